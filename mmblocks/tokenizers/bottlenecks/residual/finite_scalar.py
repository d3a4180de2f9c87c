"""Residual finite scalar quantization: levels, then levels between them, and so on.

Shapes: B images, N tokens, d levels a number.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.tokenizers.bottlenecks.codebooks.options import check_plain
from mmblocks.tokenizers.bottlenecks.finite_scalar import FSQ_PLAIN, FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.scales import (
    Level,
    Published,
    ResidualScales,
    published_arguments,
    residual_arguments,
    residual_layouts,
)

_PLAIN = {**FSQ_PLAIN, "channel_first": False, "num_codebooks": 1}


def _config(config: Published) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``ResidualFSQ`` or ``GroupedResidualFSQ``."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    check_plain(config, _PLAIN)
    clamp = config.get("soft_clamp_input_value")
    return {
        "levels": tuple(config["levels"]),
        "dim": config.get("dim"),
        "hard_clamp": config.get("bound_hard_clamp", True),
        "soft_clamp": tuple(clamp) if isinstance(clamp, list | tuple) else clamp,
        **residual_arguments(config),
    }


def _published_config(arguments: Published) -> dict[str, Any]:
    return {
        "levels": arguments["levels"],
        "dim": arguments["dim"] or len(arguments["levels"]) * arguments["num_groups"],  # which the grouped class asks for
        "bound_hard_clamp": arguments["hard_clamp"],
        "soft_clamp_input_value": arguments["soft_clamp"],
        **published_arguments(arguments),
    }


class ResidualFiniteScalarQuantizer(ResidualScales):
    """Sums Q codes of symmetric levels for each feature, the second on a scale L times finer than the first, and so on.

    There is no codebook, hence nothing of its size in memory, and there are no losses. For ids and groups see ``ResidualScales``.

    Args:
        levels: L of each entry of a code, such as (5, 5, 3); at least 2.
        num_quantizers: Q.
        dim: D; where it is not the number of entries, linear layers lead there and back. None: the number of entries of all groups.
        num_groups: G.
        hard_clamp: what is left over is cut off at -1 and 1, and features are squashed to just beyond that first; False squashes
            what is left over by a tanh.
        soft_clamp: without ``hard_clamp``: features are squashed by a tanh to this size first, one for all entries or one each.
        dropout, dropout_first, dropout_multiple: see ``ResidualScales``.

    Raises:
        ValueError: fewer than two levels, ``soft_clamp`` with ``hard_clamp``, or as for ``ResidualScales``.

    Source: SoundStream's residual codes (arXiv 2107.03312) of FSQ (arXiv 2309.15505), symmetric as in arXiv 2411.19842; lucidrains'
    vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import ResidualFiniteScalarQuantizer
        >>> quantizer = ResidualFiniteScalarQuantizer(levels=(5, 5, 3), num_quantizers=2).eval()
        >>> latents = quantizer(torch.randn(1, 4, 4, 3))
        >>> tuple(latents.ids.shape), quantizer.codebook_sizes
        ((1, 4, 4, 2), (75, 75))
        >>> torch.allclose(quantizer.lookup(latents.ids), latents.z, atol=1e-6)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = residual_layouts(
        _config, _published_config, ("allowed_dtypes", "is_channel_first", "return_indices", "scale")
    )

    def __init__(
        self,
        *,
        levels: tuple[int, ...],
        num_quantizers: int,
        dim: int | None = None,
        num_groups: int = 1,
        hard_clamp: bool = True,
        soft_clamp: float | tuple[float, ...] | None = None,
        dropout: bool = False,
        dropout_first: int = 0,
        dropout_multiple: int = 1,
    ) -> None:
        scalar = FiniteScalarQuantizer(levels=levels, symmetric=True, clamp=hard_clamp)
        super().__init__(
            dim=len(levels) * num_groups if dim is None else dim,
            code_dim=len(levels),
            num_quantizers=num_quantizers,
            num_groups=num_groups,
            dropout=dropout,
            dropout_first=dropout_first,
            dropout_multiple=dropout_multiple,
        )
        if hard_clamp and soft_clamp is not None:
            raise ValueError(
                f"soft_clamp is {soft_clamp} with hard_clamp; accepted: None, as the size follows from the levels then"
            )
        sizes = soft_clamp if isinstance(soft_clamp, tuple) else None if soft_clamp is None else (soft_clamp,)
        if sizes is not None and (len(sizes) not in (1, len(levels)) or min(sizes) <= 0):
            raise ValueError(f"soft_clamp is {soft_clamp}; accepted: a number above 0, or {len(levels)} of them")
        self.scalar = scalar
        self.levels = levels
        self.limits = tuple(1 + 1 / (count - 1) for count in levels) if hard_clamp else sizes

    @property
    def num_codes(self) -> int:
        """The product of the levels."""
        return self.scalar.codebook_sizes[0]

    def prepared(self, x: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        """Squashed to the range of what the quantizers can reach together."""
        if self.limits is None:
            return x
        limits = torch.tensor(self.limits, device=x.device)
        return (x / limits).tanh() * limits

    def quantise(self, left: Float[Tensor, "B N d"], number: int) -> Level:
        """Rounds on the scale of that quantizer."""
        scale = self._scale(left, number)
        latents = self.scalar(left / scale)
        return Level(latents.z * scale, latents.ids, {})

    def codes(self, ids: Integer[Tensor, "B N"], number: int) -> Float[Tensor, "B N d"]:
        """Levels between -1 and 1, on the scale of that quantizer."""
        codes = self.scalar.lookup(ids)
        return codes * self._scale(codes, number)

    def _scale(self, like: Tensor, number: int) -> Tensor:
        return torch.tensor(self.levels, device=like.device).float() ** -number
