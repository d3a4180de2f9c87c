"""How images are prepared for EVA-CLIP, as the preprocessor_config.json of its repositories on the Hub says it."""

from collections.abc import Mapping
from typing import Any

from PIL import Image as PILImage

from mmblocks.checkpoints.layouts.preprocessing import (
    Preprocessor,
    check_processor,
    normalisation,
    published_normalisation,
    shortest_edge,
    square,
)
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD
from mmblocks.layers.towers.eva_layouts import complete_tower


def _vision(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """CLIP's image processor, with the tower's size: the shorter side is resized to it, and the middle is kept."""
    check_processor(entries, "CLIPImageProcessor", "CLIPFeatureExtractor")
    only(entries, "do_resize", True)
    only(entries, "do_center_crop", True)
    only(entries, "resample", PILImage.Resampling.BICUBIC)
    side = complete_tower(arguments["tower"])["image_size"][0]
    for name, read in (("size", shortest_edge), ("crop_size", square)):
        found = read(entries, name, 224)
        if found != side:
            raise ValueError(f"{name} is {found}; accepted: {side}, the side of the tower's images")
    return normalisation(entries, mean=CLIP_MEAN, std=CLIP_STD)


def _published_vision(arguments: Arguments) -> dict[str, Any]:
    side = complete_tower(arguments["tower"])["image_size"][0]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": int(PILImage.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        **published_normalisation(arguments.get("mean", CLIP_MEAN), arguments.get("std", CLIP_STD)),
    }


def _clip(entries: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    vision = arguments["vision"]
    if not isinstance(vision, Mapping):
        raise ValueError("vision is a Block, which knows its images; accepted: its arguments, or no file for images")
    return {"vision": {**vision, **_vision(entries, vision)}}


def _published_clip(arguments: Arguments) -> dict[str, Any]:
    vision = arguments["vision"]
    return _published_vision(vision if isinstance(vision, Mapping) else vision.config)


VISION_IMAGES = Preprocessor(_vision, _published_vision)
CLIP_IMAGES = Preprocessor(_clip, _published_clip)
"""Of the image tower, and of both towers."""
