"""Operations behind small interfaces; each imports torch alone."""
