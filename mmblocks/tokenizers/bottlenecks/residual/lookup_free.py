"""Residual lookup-free quantization: signs, then signs of what they leave over at half the size, and so on.

Shapes: B images, N tokens, d bits a number.
"""

from typing import Any, ClassVar, cast

from jaxtyping import Float, Integer
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.tokenizers.bottlenecks.codebooks.options import bits_of, check_plain, published_temperature, temperature_of
from mmblocks.tokenizers.bottlenecks.lookup_free import (
    LFQ_HARMLESS,
    LFQ_PLAIN,
    FirstBit,
    LookupFreeQuantizer,
    bit_mask_difference,
)
from mmblocks.tokenizers.bottlenecks.residual.scales import (
    Level,
    Published,
    ResidualScales,
    published_arguments,
    residual_arguments,
    residual_layouts,
)

_HARMLESS = (*LFQ_HARMLESS, "cosine_sim_project_in")  # of the quantizers inside, which project nothing


def _config(config: Published) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``ResidualLFQ`` or ``GroupedResidualLFQ``."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    check_plain(config, {**LFQ_PLAIN, "has_projections": False, "num_codebooks": 1})
    bits = bits_of(config)
    if bits is None:
        raise KeyError("codebook_size")
    return {
        "bits": bits,
        "dim": config["dim"],
        **temperature_of(config),
        "spherical": config.get("spherical", False),
        "soft_clamp": config.get("soft_clamp_input_value"),
        **residual_arguments(config),
    }


def _published_config(arguments: Published) -> dict[str, Any]:
    only(arguments, "first_bit", "most")
    return {
        "codebook_size": 2 ** arguments["bits"],
        "dim": arguments["dim"] or arguments["bits"] * arguments["num_groups"],
        "spherical": arguments["spherical"],
        "soft_clamp_input_value": arguments["soft_clamp"],
        **published_temperature(arguments["temperature"]),
        **published_arguments(arguments),
    }


def _mask_difference(mask: Tensor, arguments: Published) -> float:
    only(arguments, "first_bit", "most")
    return bit_mask_difference(mask, arguments["bits"])


class ResidualLookupFreeQuantizer(ResidualScales):
    """Sums Q sign vectors for each feature, each half as large as the one before. For ids and groups see ``ResidualScales``.

    Losses while training, unweighted, each the mean over all quantizers: those of ``LookupFreeQuantizer``. ``lookup`` gives what
    was quantised to; upstream's own leaves out the length of spherical codes.

    Args:
        bits: d, of each number.
        num_quantizers: Q.
        dim: D; where it is not d for each group, linear layers lead there and back. None: d for each group.
        num_groups: G.
        temperature: of the soft choices in the entropies; one over vector-quantize-pytorch's ``inv_temperature``.
        spherical: features, and what is left over, are brought to the length of the codes first.
        soft_clamp: features are squashed by a tanh to this size, what is left over to half of it, and so on.
        first_bit: "most" as in vector-quantize-pytorch, or "least".
        dropout, dropout_first, dropout_multiple: see ``ResidualScales``.

    Raises:
        ValueError: a ``soft_clamp`` below 1, the size of the first codes, or as for the two classes named.

    Source: SoundStream's residual codes (arXiv 2107.03312) of MAGVIT-v2's (arXiv 2310.05737); lucidrains' vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import ResidualLookupFreeQuantizer
        >>> quantizer = ResidualLookupFreeQuantizer(bits=3, num_quantizers=3).eval()
        >>> features = torch.rand(1, 8, 8, 3) * 2 - 1
        >>> latents = quantizer(features)  # each sum of 1, 1/2 and 1/4, added or taken away
        >>> tuple(latents.ids.shape), quantizer.codebook_sizes
        ((1, 8, 8, 3), (8, 8, 8))
        >>> bool((latents.z - features).abs().max() <= 1 / 4)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = residual_layouts(_config, _published_config, _HARMLESS, _mask_difference)

    def __init__(
        self,
        *,
        bits: int,
        num_quantizers: int,
        dim: int | None = None,
        num_groups: int = 1,
        temperature: float = 0.01,
        spherical: bool = False,
        soft_clamp: float | None = None,
        first_bit: FirstBit = "most",
        dropout: bool = False,
        dropout_first: int = 0,
        dropout_multiple: int = 1,
    ) -> None:
        super().__init__(
            dim=bits * num_groups if dim is None else dim,
            code_dim=bits,
            num_quantizers=num_quantizers,
            num_groups=num_groups,
            dropout=dropout,
            dropout_first=dropout_first,
            dropout_multiple=dropout_multiple,
        )
        if soft_clamp is not None and soft_clamp < 1:
            raise ValueError(f"soft_clamp is {soft_clamp}; accepted: 1 or more, the size of the first codes")
        self.signs = nn.ModuleList(
            LookupFreeQuantizer(
                bits=(bits,),
                first_bit=first_bit,
                joint_entropy=False,
                temperature=temperature,
                floor="clamp",
                scale=2.0**-number,
                spherical=spherical,
                soft_clamp=None if soft_clamp is None else soft_clamp * 2.0**-number,
            )
            for number in range(num_quantizers)
        )

    @property
    def num_codes(self) -> int:
        """2^d."""
        return 2**self.code_dim

    def quantise(self, left: Float[Tensor, "B N d"], number: int) -> Level:
        """Signs, at the size of that quantizer."""
        latents = self.signs[number](left)
        return Level(latents.z, latents.ids, latents.loss or {})

    def codes(self, ids: Integer[Tensor, "B N"], number: int) -> Float[Tensor, "B N d"]:
        """Signs, at the size of that quantizer."""
        return cast("LookupFreeQuantizer", self.signs[number]).lookup(ids)
