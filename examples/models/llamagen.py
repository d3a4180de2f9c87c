"""LlamaGen: images of a class, code by code. Give it a folder that a pipeline has saved, or with a config.json."""

from tiny import NUM_CODES, SIZES, image_tokenizer, keep, pipeline

from mmblocks import Pipeline
from mmblocks.models import LlamaGen, LlamaGenFront


def tiny() -> Pipeline:
    model = LlamaGen(vocab_size=NUM_CODES, num_classes=2, **SIZES).eval()
    front = LlamaGenFront(classes=("cat", "dog"), image_size=(4, 6), grid=(2, 3))
    return Pipeline(front=front, model=model, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    for number, picture in enumerate(pipeline(tiny).generate_image(1, num_images=2, seed=0)):
        keep(picture, f"llamagen_{number}")
