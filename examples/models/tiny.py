"""What the tiny models of these scripts are made of: a few thousand random weights, and published formats at a small vocabulary."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from mmblocks import ByteTokenizer, GridFormat, Pipeline
from mmblocks.tokenizers import ConvVQ
from mmblocks.vocabulary import CodeIds

SIZES = {"dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
NUM_CODES = 16
VAE = {"block_out_channels": [4], "norm_num_groups": 2, "latent_channels": 3}
PICTURE = Image.new("RGB", (24, 16), (200, 30, 0))
QUESTION = [{"role": "user", "content": [PICTURE, "what colour is this?"]}]

_IMAGE = ["<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>"]
EMU3_WORDS = ByteTokenizer([*_IMAGE, "<|extra_100|>", "<|extra_203|>", "<|extra_204|>"])
EMU3_CODES = GridFormat(
    begin=EMU3_WORDS["<|image start|>"],
    image=EMU3_WORDS["<|image token|>"],
    row_end=EMU3_WORDS["<|extra_200|>"],
    last_row_end=True,
    closing=(EMU3_WORDS["<|extra_201|>"], EMU3_WORDS["<|image end|>"]),
    digits=tuple(EMU3_WORDS.encode(str(digit))[0] for digit in range(10)),
    times=EMU3_WORDS.encode("*")[0],
    codes=CodeIds(sizes=(NUM_CODES,), first=EMU3_WORDS.vocab_size),
)
"""Emu3's way of writing an image; the published ids differ."""


def image_tokenizer() -> ConvVQ:
    """Pixels to codes of half the sides."""
    return ConvVQ(channels=(8,), num_codes=NUM_CODES, code_dim=4).eval()


def pipeline(tiny: Callable[[], Pipeline]) -> Pipeline:
    """The pipeline of the id or folder that the script is given; the tiny one without."""
    torch.manual_seed(0)
    return Pipeline.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else tiny()


def keep(picture: Image.Image, name: str) -> None:
    """Saves a picture in ``demo/models``, and says so."""
    file = Path("demo") / "models" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
    print(f"{picture.width} x {picture.height} pixels: {file}")
