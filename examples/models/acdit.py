"""ACDiT: an image of a class, block after block, each by diffusion. Give it a folder that a pipeline has saved."""

from tiny import VAE, keep, pipeline

from mmblocks import Pipeline
from mmblocks.models import ACDiT, ACDiTFront
from mmblocks.tokenizers import DiffusersAutoencoder


def tiny() -> Pipeline:
    model = ACDiT(dim=24, num_layers=1, num_heads=2, num_classes=2, latent_dim=12, grid=(1, 4, 4), block_size=4).eval()
    vae = DiffusersAutoencoder(kind="AutoencoderKL", arguments=VAE).eval()
    front = ACDiTFront(classes=("cat", "dog"), image_size=(8, 8), num_steps=2, patch_size=2)
    return Pipeline(front=front, model=model, image_tokenizer=vae)


if __name__ == "__main__":
    keep(pipeline(tiny).generate_image(1, seed=0)[0], "acdit")
