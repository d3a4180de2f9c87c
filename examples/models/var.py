"""VAR: an image of a class, scale after scale. Give it a folder that a pipeline has saved, or with a config.json."""

from tiny import NUM_CODES, keep, pipeline

from mmblocks import Pipeline
from mmblocks.models import VAR, VARFront
from mmblocks.tokenizers import VARVQ


def tiny() -> Pipeline:
    shared = {"num_codes": NUM_CODES, "code_dim": 4, "scales": (1, 2, 4)}
    model = VAR(num_classes=2, dim=16, num_layers=1, num_heads=2, **shared).eval()
    tokenizer = VARVQ(channels=32, multipliers=(1, 1), num_blocks=1, num_blends=2, **shared).eval()
    return Pipeline(front=VARFront(classes=("cat", "dog"), image_size=(8, 8)), model=model, image_tokenizer=tokenizer)


if __name__ == "__main__":
    keep(pipeline(tiny).generate_image(1, seed=0)[0], "var")
