"""What lies on disk: safetensors, pickles, JSON and shards, read within bounds and replaced in one step."""
