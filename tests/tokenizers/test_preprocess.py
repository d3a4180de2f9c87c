"""What every ``preprocess`` has to do, whatever its resize rule."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mmblocks
from mmblocks.tokenizers.tower_tokenizer import TowerTokenizer

NAMES = ("IBQ", "LlamaGenVQ", "MingTok", "DualToken", "TiTok", "UniTok", "VARVQ", "Emu3VQ")
CLASSES = {"TowerTokenizer": TowerTokenizer, **{name: getattr(mmblocks, name) for name in NAMES}}


@pytest.mark.parametrize("name", CLASSES)
def test_sixteen_bits_are_not_cut_off(name):
    cls = CLASSES[name]
    sizes = SimpleNamespace(  # all that preprocess reads of a tokenizer, whose weights would take long to build
        image_size=(256, 256) if name == "TowerTokenizer" else 256,
        image_area=256 * 256,
        min_pixels=64 * 64,
        max_pixels=256 * 256,
        downsampling=(16, 16),
        bottleneck=SimpleNamespace(scales=((16, 16),)),
    )
    sizes._resized = getattr(cls, "_resized", lambda *_: None).__get__(sizes)
    levels = np.linspace(0, 65535, 300 * 280).reshape(300, 280).astype(np.uint16)
    deep = cls.preprocess(sizes, Image.fromarray(levels))
    flat = cls.preprocess(sizes, Image.fromarray((levels // 257).astype(np.uint8)))
    assert (deep - flat).abs().max() < 3 / 255
    assert deep.min() < 0.2 and deep.max() > 0.8 and 0.4 < deep.mean() < 0.6
