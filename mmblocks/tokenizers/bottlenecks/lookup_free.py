"""Lookup-free quantization: a code is the signs of a feature, so there is no codebook to search or to learn.

Shapes: B images, D width of a feature, Q numbers a token, b bits.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.ops.lfq_entropy import Floor, lfq_entropy
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import mapped
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import in_evaluation, pass_gradients
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance
from mmblocks.tokenizers.bottlenecks.codebooks.options import bits_of, check_plain, published_temperature, temperature_of
from mmblocks.tokenizers.bottlenecks.codebooks.soft_choices import mixtures, soft_choices

FirstBit = Literal["least", "most"]
"""Whether the first entry of a feature is the least or the most significant bit of its number."""

_CONVENTIONS = {"first_bit": "most", "joint_entropy": False, "floor": "clamp"}

LFQ_HARMLESS = (
    "channel_first",
    "commitment_loss_weight",
    "cosine_sim_project_in_scale",
    "diversity_gamma",
    "entropy_loss_offset",
    "entropy_loss_weight",
    "keep_num_codebooks_dim",
)
"""Weights of losses, what changes shapes alone, and what counts with an option alone."""

LFQ_PLAIN = {
    "experimental_softplus_entropy_loss": False,
    "force_quantization_f32": True,
    "frac_per_sample_entropy": 1.0,
    "orthogonal_rotation": False,
}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``LFQ``; its temperature is an argument of the forward there."""
    if not config:  # the arguments are given to from_pretrained then
        return dict(_CONVENTIONS)
    dim, bits, numbers = config.get("dim"), bits_of(config), config.get("num_codebooks", 1)
    bits = dim if bits is None else bits
    if bits is None:
        raise KeyError("codebook_size")
    only(config, "has_projections", dim not in (None, bits * numbers))
    check_plain(config, {**LFQ_PLAIN, "cosine_sim_project_in": False})
    return {
        "bits": (bits,) * numbers,
        "dim": dim,
        **_CONVENTIONS,
        **temperature_of(config),
        "scale": config.get("codebook_scale", 1.0),
        "spherical": config.get("spherical", False),
        "soft_clamp": config.get("soft_clamp_input_value"),
        "projection_bias": config.get("projection_has_bias", True),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    others = {name: arguments[name] for name, value in _CONVENTIONS.items() if arguments[name] != value}
    if others or len({*arguments["bits"]}) > 1:
        raise ValueError(
            f"the arguments are bits {arguments['bits']}, {others}; accepted in vector-quantize-pytorch's layout: as many bits for"
            f" each number, {_CONVENTIONS}"
        )
    return {
        "codebook_size": 2 ** arguments["bits"][0],
        "num_codebooks": len(arguments["bits"]),
        "dim": arguments["dim"],
        "codebook_scale": arguments["scale"],
        "spherical": arguments["spherical"],
        "soft_clamp_input_value": arguments["soft_clamp"],
        "projection_has_bias": arguments["projection_bias"],
        **published_temperature(arguments["temperature"]),
    }


def bit_mask_difference(mask: Tensor, bits: int) -> float:
    """Of the values of the bits in a published file from those that the numbers here are read by: most significant first.

    Raises:
        ValueError: another number of bits.
    """
    if tuple(mask.shape) != (bits,):
        raise ValueError(f"it has shape {tuple(mask.shape)}; expected {(bits,)}")
    values = 2.0 ** torch.arange(bits - 1, -1, -1, dtype=torch.float64, device="cpu")
    return float((mask.to("cpu", torch.float64) - values).abs().max())


def _mask_difference(mask: Tensor, arguments: Mapping[str, Any]) -> float:
    if arguments["first_bit"] != "most":
        raise ValueError(f"first_bit is {arguments['first_bit']!r}; accepted: 'most'")
    return bit_mask_difference(mask, arguments["bits"][0])


class LookupFreeQuantizer(Block):
    """Replaces each entry of a feature by its sign; the number of a code is its bits read as a number.

    Losses while training, unweighted: ``commitment`` (between features and signs), ``sample_entropy`` (of one feature's soft
    choice, to be made small) and ``codebook_entropy`` (of the mean choice, to be subtracted). They are exact, and need neither
    2^b scores for each feature nor the codebook.

    Args:
        bits: of each number of a token: (18,) for one of 2^18, (6, 12) or (9, 9) for two sub-ids.
        dim: D; where it is not the number of bits, linear layers lead there and back. None: the number of bits.
        first_bit: "least" as in Open-MAGVIT2, "most" as in vector-quantize-pytorch.
        joint_entropy: whether the entropies are those of all bits together, of which the numbers are but parts (Open-MAGVIT2's
            factorised tokens), or the mean of each number's.
        temperature: of the soft choices; one over vector-quantize-pytorch's ``inv_temperature``.
        floor: what keeps the logarithms finite; see ``lfq_entropy``.
        scale: size of a code's entries; with ``spherical``, length of a code.
        spherical: features are brought to the length of the codes first (binary spherical quantization).
        soft_clamp: features are squashed by a tanh to this size first.
        projection_bias: whether the linear layers have a bias.

    Raises:
        ValueError: no bits, or more than 62 in a number; an unknown ``first_bit``.

    Source: MAGVIT-v2 (arXiv 2310.05737), Open-MAGVIT2 (arXiv 2409.04410), BSQ (arXiv 2406.07548); lucidrains'
    vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import LookupFreeQuantizer
        >>> quantizer = LookupFreeQuantizer(bits=(3,)).eval()
        >>> latents = quantizer(torch.tensor([[[-0.2, 0.7, 0.1]]]))
        >>> latents.z.tolist(), latents.ids.tolist()
        ([[[-1.0, 1.0, 1.0]]], [[6]])
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "vector_quantize_pytorch",
            (Rule("project_in.*", "project_in.*"), Rule("project_out.*", "project_out.*")),
            derived=(Derived("mask", _mask_difference),),
            config=_config,
            published_config=_published_config,
            harmless=LFQ_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        bits: tuple[int, ...],
        dim: int | None = None,
        first_bit: FirstBit = "least",
        joint_entropy: bool = True,
        temperature: float = 0.01,
        floor: Floor = "add",
        scale: float = 1.0,
        spherical: bool = False,
        soft_clamp: float | None = None,
        projection_bias: bool = True,
    ) -> None:
        super().__init__()
        if not bits or min(bits) < 1 or max(bits) > 62:
            raise ValueError(f"bits is {bits}; accepted: from 1 to 62 for each number")
        if first_bit not in get_args(FirstBit):
            raise ValueError(f"first_bit is {first_bit!r}; accepted: {', '.join(get_args(FirstBit))}")
        self.bits = bits
        self.first_bit = first_bit
        self.joint_entropy = joint_entropy
        self.temperature = temperature
        self.floor: Floor = floor
        self.scale = scale
        self.spherical = spherical
        self.soft_clamp = soft_clamp
        total = sum(bits)
        self.dim = total if dim is None else dim
        straight = self.dim == total
        self.project_in = nn.Identity() if straight else nn.Linear(self.dim, total, bias=projection_bias)
        self.project_out = nn.Identity() if straight else nn.Linear(total, self.dim, bias=projection_bias)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """2^b for each number of a token."""
        return tuple(2**bits for bits in self.bits)

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis. ``ids`` are (B, *grid), or (B, *grid, Q) for several numbers a token.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        check(features, wrong_width(features, self.dim))
        x = self._prepared(mapped(self.project_in, features).float())
        positive = x > 0
        signs = self._codes(positive)
        z = (pass_gradients if self.training else in_evaluation)(x, signs)
        return Latents(
            z=mapped(self.project_out, z).to(features.dtype),
            ids=self._ids(positive),
            loss=self._losses(x, signs) if self.training else None,
        )

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """Codes by number, in float32 where nothing is projected.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number that does not exist (checked on CPU), or not Q of them a token.
        """
        ids = as_int64("ids", ids)
        numbers = [ids] if len(self.bits) == 1 else self._unbound(ids)
        for number, size in zip(numbers, self.codebook_sizes, strict=True):
            check_range("ids", number, size)
        positive = [self._bits(number, bits) for number, bits in zip(numbers, self.bits, strict=True)]
        return mapped(self.project_out, self._codes(torch.cat(positive, dim=-1)))

    @without_autocast
    def assign(self, features: Float[Tensor, "*N D"], temperature: float = 1.0) -> Float[Tensor, "*Q K"]:
        """A soft choice of codes, (*N, K) or (*N, Q, K), with weights that sum to one, in float32; see ``soft_choices``.

        All K codes are written out for it: meant for a few thousand of them.

        Raises:
            ValueError: numbers of different sizes, whose weights have no common shape.
        """
        x = self._prepared(mapped(self.project_in, features).float())
        return soft_choices(x.split(self.bits, dim=-1), self._tables(features.device), temperature)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*Q K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes with these weights, which are as ``assign`` gives them.

        Raises:
            ValueError: weights of another shape.
        """
        return mapped(self.project_out, mixtures(weights, self._tables(weights.device)))

    def _tables(self, device: torch.device) -> list[Tensor]:
        every = [self._bits(torch.arange(2**bits, device=device), bits) for bits in self.bits]
        return [torch.where(positive, size, -size) for positive, size in zip(every, self._sizes, strict=True)]

    def _prepared(self, x: Tensor) -> Tensor:
        if self.soft_clamp is not None:
            x = (x / self.soft_clamp).tanh() * self.soft_clamp
        if not self.spherical:
            return x
        # Each number's code has its own sphere.
        return torch.cat([normalize(part, dim=-1) * self.scale for part in x.split(self.bits, dim=-1)], dim=-1)

    def _codes(self, positive: Tensor) -> Tensor:
        parts = zip(positive.split(self.bits, dim=-1), self._sizes, strict=True)
        return torch.cat([torch.where(part, size, -size) for part, size in parts], dim=-1)

    @property
    def _sizes(self) -> list[float]:
        """Of the entries of each number's codes."""
        return [self.scale / bits**0.5 if self.spherical else self.scale for bits in self.bits]

    def _bits(self, number: Tensor, bits: int) -> Tensor:
        return number[..., None] >> self._places(bits, number.device) & 1 == 1

    def _places(self, bits: int, device: torch.device) -> Tensor:
        """Which bit of the number each entry is."""
        places = torch.arange(bits, device=device)
        return places if self.first_bit == "least" else places.flip(0)

    def _ids(self, positive: Tensor) -> Tensor:
        parts = positive.long().split(self.bits, dim=-1)
        ids = [(part << self._places(part.shape[-1], part.device)).sum(dim=-1) for part in parts]
        return ids[0] if len(ids) == 1 else torch.stack(ids, dim=-1)

    def _unbound(self, ids: Tensor) -> tuple[Tensor, ...]:
        if ids.shape[-1] != len(self.bits):
            raise ValueError(f"ids have shape {tuple(ids.shape)}; accepted: {len(self.bits)} numbers a token, along the last axis")
        return ids.unbind(dim=-1)

    def _losses(self, x: Tensor, signs: Tensor) -> dict[str, Tensor]:
        flat = x.flatten(0, -2)
        if not len(flat):  # the mean over none would be NaN
            return dict.fromkeys(("commitment", "sample_entropy", "codebook_entropy"), flat.sum())
        together = self.joint_entropy or len(self.bits) == 1
        groups = [flat] if together else list(flat.split(self.bits, dim=-1))
        scales = [self.scale / group.shape[-1] ** 0.5 if self.spherical else self.scale for group in groups]
        pairs = [
            lfq_entropy(group, temperature=self.temperature, scale=scale, floor=self.floor)
            for group, scale in zip(groups, scales, strict=True)
        ]
        sample, codebook = (torch.stack(entropies).mean() for entropies in zip(*pairs, strict=True))
        return {"commitment": squared_distance(x, signs), "sample_entropy": sample, "codebook_entropy": codebook}
