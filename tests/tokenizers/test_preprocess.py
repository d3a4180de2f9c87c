"""What every ``preprocess`` has to do, and those whose published rule is torchvision's: held against it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import mmblocks
from mmblocks.tokenizers.towers.tower_tokenizer import TowerTokenizer

NAMES = ("IBQ", "LlamaGenVQ", "MingTok", "DualToken", "TiTok", "UniTok", "VARVQ", "Emu3VQ", "TATok")
CLASSES = {"TowerTokenizer": TowerTokenizer, **{name: getattr(mmblocks.tokenizers, name) for name in NAMES}}
PUBLISHED = {  # at 64 pixels: what is done to an image in RGB
    "MingTok": (transforms.Resize(64, InterpolationMode.BICUBIC), transforms.CenterCrop(64), transforms.ToTensor()),
    "DualToken": (transforms.Resize(64, InterpolationMode.BICUBIC), transforms.CenterCrop(64), transforms.ToTensor()),
    "TiTok": (transforms.Resize(64, InterpolationMode.BICUBIC), transforms.CenterCrop(64), transforms.ToTensor()),
    "UniTok": (transforms.Resize(72), transforms.CenterCrop(64), transforms.ToTensor()),
    "VARVQ": (transforms.Resize(72, InterpolationMode.LANCZOS), transforms.CenterCrop(64), transforms.ToTensor()),
    "TowerTokenizer": (transforms.Resize((64, 64), InterpolationMode.BICUBIC), transforms.ToTensor()),
    "TATok": (transforms.ToTensor(), transforms.Resize((64, 64))),
}


def preprocess(name: str, image: Image.Image, *, side: int) -> torch.Tensor:
    """Of a class whose weights would take long to build."""
    cls = CLASSES[name]
    sizes = SimpleNamespace(  # all that preprocess reads of a tokenizer
        image_size=(side, side) if name == "TowerTokenizer" else side,
        image_area=side * side,
        min_pixels=side * side // 16,
        max_pixels=side * side,
        size_step=16,
        downsampling=(16, 16),
        bottleneck=SimpleNamespace(scales=((side // 16, side // 16),)),
    )
    sizes._resized = getattr(cls, "_resized", lambda *_: None).__get__(sizes)
    return cls.preprocess(sizes, image)


@pytest.mark.parametrize("name", CLASSES)
def test_sixteen_bits_are_not_cut_off(name):
    levels = np.linspace(0, 65535, 300 * 280).reshape(300, 280).astype(np.uint16)
    deep = preprocess(name, Image.fromarray(levels), side=256)
    flat = preprocess(name, Image.fromarray((levels // 257).astype(np.uint8)), side=256)
    assert (deep - flat).abs().max() < 3 / 255
    assert deep.min() < 0.2 and deep.max() > 0.8 and 0.4 < deep.mean() < 0.6


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rule_is_the_published_one(name):
    drawn = np.random.default_rng(0)
    sizes = [(427, 640), (640, 427), (64, 64), (72, 72), (31, 47), (2, 401), (400, 2), *drawn.integers(1, 260, (40, 2))]
    for height, width in sizes:
        image = Image.fromarray(drawn.integers(0, 256, (height, width, 3), dtype=np.uint8))
        published = transforms.Compose(PUBLISHED[name])(image).clamp(0, 1)
        assert torch.equal(preprocess(name, image, side=64), published), (height, width)
