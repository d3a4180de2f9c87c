"""Emu3's tokenizer: features before and after the projection, codes, and pixels, of images and clips."""

import torch
from torch import Tensor

from mmblocks.tokenizers.emu3.tokenizer import Emu3VQ
from tests.parity.cases import Case

MANIFESTS = {"emu3_vision_tokenizer": [(Emu3VQ, "emu3")]}

MARGIN = 1e-3
"""Codes count where the second best is farther by this, in squared distance, as the cases say."""


def run(case: Case) -> None:
    tokenizer = case.load(Emu3VQ)
    pixels = time_and_colour_swapped(case.io["in.pixels"])
    case.check("out.encoder", tokenizer.encoder.maps(pixels).movedim(2, 1))
    features = tokenizer.encoder(pixels)
    case.check("out.prequant", (features if features.ndim == 5 else features[:, None]).movedim(-1, 2))
    ids = tokenizer.bottleneck(features).ids
    case.leave_out("out.code_margin")  # not an output: how sure each code is
    margin = case.io.get("out.code_margin", torch.full(ids.shape, torch.inf))
    case.check("out.codes", ids, where=(margin > MARGIN).view(ids.shape))
    for name, given in (("out.decoded", "out.codes"), ("out.decoded_from_random_codes", "in.random_codes")):
        if name not in case.io:
            continue
        decoded = tokenizer.decoder(tokenizer.lookup(case.io[given]))
        case.check(name, time_and_colour_swapped(decoded))


def time_and_colour_swapped(pixels: Tensor) -> Tensor:
    """Clips (B, T, C, H, W) to (B, C, T, H, W), and back."""
    return pixels.transpose(1, 2) if pixels.ndim == 5 else pixels
