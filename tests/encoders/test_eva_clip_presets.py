import pytest
import torch

from mmblocks.encoders.eva_clip import EVACLIP
from mmblocks.encoders.eva_clip_presets import EVA_CLIP_MODELS, eva_clip_arguments

MILLIONS = {
    "EVA01_CLIP_g_14_psz14_s11B": (1012.6, 123.8),
    "EVA01_CLIP_g_14_plus_psz14_s11B": (1012.6, 354.0),
    "EVA02_CLIP_B_psz16_s8B": (86.3, 63.4),
    "EVA02_CLIP_L_psz14_s4B": (304.1, 123.7),
    "EVA02_CLIP_L_336_psz14_s6B": (304.4, 123.7),
    "EVA02_CLIP_E_psz14_s4B": (4350.6, 354.0),
    "EVA02_CLIP_E_psz14_plus_s9B": (4350.6, 694.3),
    "EVA_CLIP_8B_psz14_s9B": (7526.1, 694.7),
    "EVA_CLIP_8B_psz14_plus_s0.6B": (7529.2, 694.7),
    "EVA_CLIP_18B_psz14_s6B": (17630.5, 695.0),
}
"""Parameters of the published towers."""


@pytest.mark.parametrize("name", EVA_CLIP_MODELS)
def test_the_published_number_of_parameters(name) -> None:
    with torch.device("meta"):
        clip = EVACLIP(**eva_clip_arguments(name))
    counts = [sum(p.numel() for p in tower.parameters()) / 1e6 for tower in (clip.vision, clip.text)]
    assert counts == pytest.approx(MILLIONS[name], abs=0.05)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="name is 'EVA03'; accepted: EVA01_CLIP_g_14_psz14_s11B, "):
        eva_clip_arguments("EVA03")
