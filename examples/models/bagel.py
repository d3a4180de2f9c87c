"""BAGEL: an answer about an image, and an image changed as told. Give it ByteDance-Seed/BAGEL-7B-MoT, or a folder."""

from tiny import PICTURE, QUESTION, keep, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import Bagel, BagelFront, BagelPrompt
from mmblocks.tokenizers import FluxAutoencoder

PROMPT = BagelPrompt(max_tokens=6, num_steps=2, image_size=(32, 48), min_side=32, max_side=64, max_pixels=48 * 64)
AUTOENCODER = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2}


def tiny() -> Pipeline:
    words = ByteTokenizer([PROMPT.start, PROMPT.stop, PROMPT.image_begin, PROMPT.image_end])
    markers = words[PROMPT.image_begin], words[PROMPT.image_end]
    vision = {"image_size": 56, "patch_size": 14, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "latent_channels": 2, "latent_side": 4}
    model = Bagel(vocab_size=words.vocab_size, markers=markers, vision=vision, **sizes).eval()
    autoencoder = FluxAutoencoder(arguments=AUTOENCODER).eval()
    return Pipeline(front=BagelFront(prompt=PROMPT), model=model, text_tokenizer=words, image_tokenizer=autoencoder)


if __name__ == "__main__":
    pipe = pipeline(tiny)
    print(pipe.chat(QUESTION, seed=0).text)
    keep(pipe.edit([PICTURE], "make it night", seed=0)[0], "bagel_edit")
