"""MAR: an image of a class, its latents in random order. Give it a folder that a pipeline has saved."""

from tiny import VAE, keep, pipeline

from mmblocks import Pipeline
from mmblocks.heads import MARDiffusionHead
from mmblocks.models import MAR, MARFront
from mmblocks.tokenizers import DiffusersAutoencoder


def tiny() -> Pipeline:
    half = {"dim": 16, "layers": 1, "heads": 2}
    halves = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in half.items()}
    model = MAR(channels=3, grid=(2, 2), num_classes=2, num_class_tokens=2, **halves).eval()
    head = MARDiffusionHead(dim=16, token_dim=3, width=8, num_blocks=1, steps=3).eval()
    vae = DiffusersAutoencoder(kind="AutoencoderKL", arguments=VAE).eval()
    front = MARFront(classes=("cat", "dog"), image_size=(2, 2), num_steps=3)
    return Pipeline(front=front, model=model, decoder=head, image_tokenizer=vae)


if __name__ == "__main__":
    keep(pipeline(tiny).generate_image(1, seed=0)[0], "mar")
