"""Ids and latents of another shape than a method's are refused, whoever decodes them, by an error that names the right one."""

import re

import pytest
import torch

from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers import IBQ, VQGAN, ChameleonVQ, LlamaGenVQ, VisualTokenizer
from tests.tokenizers import (
    test_conv_vq,
    test_diffusers_autoencoder,
    test_emu3_vq,
    test_lavit,
    test_ming_tok,
    test_open_magvit2,
    test_open_magvit2_video,
    test_swap,
    test_var_vq,
    test_vqgan_family,
)
from tests.tokenizers.titok import test_maskgit_vqgan, test_titok
from tests.tokenizers.towers import test_dualtoken, test_seed, test_tar, test_unitok

pytestmark = pytest.mark.unchecked

FAMILY = {cls.__name__: lambda cls=cls: cls(**test_vqgan_family.SMALL) for cls in (VQGAN, ChameleonVQ, LlamaGenVQ, IBQ)}
MAKERS = {
    **FAMILY,
    "ConvVQ": test_conv_vq.tokenizer,
    "MaskGITVQGAN": test_maskgit_vqgan.tokenizer,
    "OpenMAGVIT2": test_open_magvit2.tokenizer,
    "OpenMAGVIT2, two numbers": lambda: test_open_magvit2.tokenizer(bits=(2, 4)),
    "OpenMAGVIT2Video": test_open_magvit2_video.tokenizer,
    "Emu3VQ": test_emu3_vq.tokenizer,
    "UniTok": test_unitok.tokenizer,
    "TATok": test_tar.tokenizer,
    "DualToken": test_dualtoken.tokenizer,
    "VARVQ": test_var_vq.tokenizer,
    "TiTok": test_titok.MAKERS["two stages"],
    "FirstStageTiTok": test_titok.first_stage,
    "OneStageTiTok": test_titok.MAKERS["codes"],
    "SEEDTokenizer": test_seed.tokenizer,
    "LaVITTokenizer": test_lavit.tokenizer,
}
CONTINUOUS = {
    "MingTok": test_ming_tok.tokenizer,
    "OneStageTiTok, gaussian": test_titok.MAKERS["gaussian"],
    "AutoencoderKL": lambda: test_diffusers_autoencoder.tokenizer("sd"),
    "AutoencoderKLWan": lambda: test_diffusers_autoencoder.tokenizer("wan"),
}
# Of ids; where nothing is said, (B, h, w).
GRIDS = {
    "Emu3VQ": ("B, h, w", "B, t, h, w"),
    "OpenMAGVIT2, two numbers": ("B, h, w, 2",),
    "OpenMAGVIT2Video": ("B, t, h, w",),
    "UniTok": ("B, h, w, 2",),
    "DualToken": ("B, h, w, 4",),
    "VARVQ": ("B, L",),
    "TiTok": ("B, K",),
    "FirstStageTiTok": ("B, K",),
    "OneStageTiTok": ("B, K",),
    "SEEDTokenizer": ("B, Q",),
    "LaVITTokenizer": ("B, L",),
}
SHAPES = [(), (4,), (1, 4), (1, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2, 4), (1, 1, 2, 2, 2, 4)]


def latents_of(tokenizer: VisualTokenizer) -> Latents:
    size = tokenizer.only_size or tuple(4 * step for step in tokenizer.downsampling[-2:])
    frames = (1,) if tokenizer.grids == ("thw",) else ()
    return tokenizer.encode(torch.rand(1, 3, *frames, *size))


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_ids(name: str) -> None:
    tokenizer = MAKERS[name]().eval()
    grids = GRIDS.get(name, ("B, h, w",))
    accepted = "accepted: " + " or ".join(f"({grid})" for grid in grids)
    for shape in SHAPES:
        if len(shape) not in [len(grid.split(",")) for grid in grids]:
            with pytest.raises(ValueError, match=re.escape(accepted)):
                tokenizer.decode(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("name", ["OpenMAGVIT2, two numbers", "UniTok", "DualToken"])
def test_another_number_of_codes_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="last axis"):
        MAKERS[name]().decode(torch.zeros(1, 2, 2, 3, dtype=torch.long))


@pytest.mark.parametrize("name", MAKERS | CONTINUOUS)
@torch.no_grad()
def test_latents(name: str) -> None:
    tokenizer = (MAKERS | CONTINUOUS)[name]().eval()
    latents = latents_of(tokenizer)
    z = latents.z
    tokenizer.decode(latents)
    for wrong in (z[0], z[:, None, None], z.flatten(1)):
        with pytest.raises(ValueError, match=rf"latents have shape \({len(wrong)}, .*; accepted: \(B, .*D\)"):
            tokenizer.decode(latents._replace(z=wrong))
    if name != "DualToken":  # whose decoder reads the vectors for pixels alone
        with pytest.raises(ValueError, match=f"accepted: .*{z.shape[-1]}"):
            tokenizer.decode(latents._replace(z=z[..., :-1]))


@pytest.mark.parametrize("name", sorted(set(test_swap.DISCRETE) - {"scales"}))  # whose ids lie in a row
@torch.no_grad()
def test_any_bottleneck(name: str) -> None:
    tokenizer = test_swap.between_convolutions(test_swap.DISCRETE[name]()).eval()
    ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
    for wrong in (ids[0], ids[:, None], ids[..., None, None]):
        with pytest.raises(ValueError, match="accepted: "):
            tokenizer.decode(wrong)
