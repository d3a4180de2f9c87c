"""What the configs of both EVEs say beside the embedding, and the presets in which the rest of it stands.

A preset is a preprocessor_config.json with further entries. It stands in a folder of EVE's code, not beside the weights.
"""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.language_models import EVE_TRAINING
from mmblocks.checkpoints.layouts.preprocessing import Preprocessor, check_processor, normalisation, published_normalisation
from mmblocks.checkpoints.layouts.published_config import plain
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD

EVE1_HARMLESS = (*LANGUAGE_MODEL, *EVE_TRAINING)
EVE2_HARMLESS = (*LANGUAGE_MODEL, *EVE_TRAINING, "add_moe", "moe_part", "mm_projector_type")
"""Entries of the configs that change no numbers of the embeddings."""


def eve_preprocessor(entries: Mapping[str, str]) -> Preprocessor:
    """How a preset is read and written. A file beside the weights without a preset's entries is not looked at: EVE does not either.

    Args:
        entries: those of its further entries that the embedding has -> arguments.
    """

    def read(preset: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
        if not entries.keys() & preset.keys():
            plain(preset)
            return {}
        check_processor(preset, "CLIPImageProcessor", "CLIPFeatureExtractor")
        for name in ("do_resize", "do_center_crop"):
            if preset.get(name, True) is not False:
                raise ValueError(f"{name} is {preset.get(name, True)!r}; accepted: False, since EVE resizes images itself")
        found = {ours: preset[theirs] for theirs, ours in entries.items() if theirs in preset}
        return found | normalisation(preset, mean=CLIP_MEAN, std=CLIP_STD)

    def written(arguments: Arguments) -> dict[str, Any]:
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": False,
            "do_center_crop": False,
            **{theirs: arguments[ours] for theirs, ours in entries.items()},
            **published_normalisation(arguments["mean"], arguments["std"]),
        }

    return Preprocessor(read, written, ("resample", "size", "size.*", "crop_size", "crop_size.*"))
