"""What the configs of diffusers' autoencoders say: the sizes of latents and their scale, under each class's names."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmblocks.checkpoints.layouts.published_config import shown, stated
from mmblocks.tokenizers.bottlenecks.scaled_latents import PerChannel

Config = Mapping[str, Any]
"""A diffusers model's own config, defaults included."""


class Kind(NamedTuple):
    """How a class of diffusers says in its config what a tokenizer has to know.

    Attributes:
        dim: the config's name of the latent's width.
        spatial: pixels a latent spans along H and W.
        temporal: frames a latent spans; None for images.
        frame_step: a clip has 1 + k times as many frames: the model drops others, or gives another number back.
        gaussian: whether the encoder gives a mean and a variance.
        leftovers: names in published configs that mean nothing to the class.
    """

    dim: str
    spatial: Callable[[Config], int]
    temporal: Callable[[Config], int] | None = None
    frame_step: Callable[[Config], int] | None = None
    gaussian: bool = True
    leftovers: tuple[str, ...] = ()


def _halvings(name: str) -> Callable[[Config], int]:
    """Sides are halved between the levels that a list of the config describes."""
    return lambda config: 2 ** (len(config[name]) - 1)


def _temporal_halvings(config: Config) -> int:
    return 2 ** sum(config["temperal_downsample"])  # diffusers' own spelling


def _four(config: Config) -> int:
    return 4  # The chunks are of four frames, whatever the config says.


KINDS: dict[str, Kind] = {
    "AutoencoderKL": Kind("latent_channels", _halvings("block_out_channels")),
    "AutoencoderDC": Kind("latent_channels", _halvings("encoder_block_out_channels"), gaussian=False),
    "AutoencoderTiny": Kind(
        "latent_channels", _halvings("encoder_block_out_channels"), gaussian=False, leftovers=("block_out_channels",)
    ),
    "AutoencoderKLWan": Kind(
        "z_dim",
        lambda config: 2 ** (len(config["dim_mult"]) - 1) * (config["patch_size"] or 1),
        _temporal_halvings,
        _four,
        leftovers=("clip_output",),
    ),
    "AutoencoderKLQwenImage": Kind("z_dim", _halvings("dim_mult"), _temporal_halvings, _four),
    "AutoencoderKLHunyuanVideo": Kind(
        "latent_channels",
        lambda config: config["spatial_compression_ratio"],
        lambda config: config["temporal_compression_ratio"],
        lambda config: config["temporal_compression_ratio"],
    ),
    "AutoencoderKLCogVideoX": Kind(
        "latent_channels",
        _halvings("block_out_channels"),
        lambda config: int(config["temporal_compression_ratio"]),
        # Its decoder takes the first latent for one frame only where their number is odd.
        lambda config: 2 * int(config["temporal_compression_ratio"]),
    ),
    "AutoencoderKLMochi": Kind(
        "latent_channels",
        lambda config: math.prod(config["spatial_expansions"]),
        lambda config: math.prod(config["temporal_expansions"]),
        lambda config: math.prod(config["temporal_expansions"]),
    ),
}
"""The classes that may be wrapped. A name in a file never reaches diffusers unless it stands here."""


def affine(config: Config) -> tuple[PerChannel, PerChannel]:
    """(shift, scale) such that z = (latent - shift) * scale.

    Raises:
        ValueError: half of the statistics per channel, two different shifts, or entries that are no numbers, or 0 for a scale.
    """
    mean, std, shift = config.get("latents_mean"), config.get("latents_std"), stated(config, "shift_factor", 0.0)
    if (mean is None) != (std is None) or (mean is not None and shift):
        raise ValueError("accepted: latents_mean and latents_std together and no shift_factor, or neither of the two")
    factor = stated(config, "scaling_factor", 1.0)
    _check_numbers("shift_factor", shift)
    _check_numbers("scaling_factor", factor, without_zero=True)
    if mean is None or std is None:
        return shift, factor
    _check_numbers("latents_mean", mean, many=True)
    _check_numbers("latents_std", std, many=True, without_zero=True)
    return tuple(mean), tuple(factor / value for value in std)


def _check_numbers(name: str, value: object, *, many: bool = False, without_zero: bool = False) -> None:
    """Refuses an entry that is not one finite number, or not ``many`` of them."""
    numbers = value if many and isinstance(value, list | tuple) else (None,) if many else (value,)
    if not all(type(one) in (int, float) and math.isfinite(one) and (one or not without_zero) for one in numbers):
        accepted = f"{'a list of finite numbers' if many else 'a finite number'}{' other than 0' * without_zero}"
        raise ValueError(f"{name} is {shown(value)}; accepted: {accepted}")
