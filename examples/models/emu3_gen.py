"""Emu3-Gen: images of a text. Give it BAAI/Emu3-Gen, or a folder."""

from tiny import EMU3_CODES, EMU3_WORDS, NUM_CODES, SIZES, image_tokenizer, keep, pipeline

from mmblocks import Pipeline
from mmblocks.models import Emu3, Emu3GenFront


def tiny() -> Pipeline:
    model = Emu3(vocab_size=EMU3_WORDS.vocab_size + NUM_CODES, **SIZES).eval()
    front = Emu3GenFront(codes=EMU3_CODES, size=(8, 12), step=2)
    return Pipeline(front=front, model=model, text_tokenizer=EMU3_WORDS, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    pipe = pipeline(tiny)
    for number, picture in enumerate(pipe.generate_image("a red bicycle", num_images=2, seed=0)):
        keep(picture, f"emu3_gen_{number}")
