"""Residual vector quantization: each quantizer replaces what the ones before it left over.

Shapes: B images, D width of a feature, G groups, Q quantizers a group, K codes, N tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Generator, Tensor
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import from_first
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, check_in_all, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import in_evaluation
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.multi_head import (
    agree_with_all,
    check_options,
    drawn_from,
    reset_library_buffers,
)
from mmblocks.tokenizers.bottlenecks.residual.layout import RESIDUAL_LAYOUTS

PIECE = 256
"""Tokens at once where each has codes of its own (implicit codebooks), or several candidates (beam search)."""


class _Codebook(Protocol):
    embed: Tensor

    def transform_input(self, x: Tensor) -> Tensor: ...


class _Layer(Protocol):
    codebook: Tensor
    _codebook: _Codebook


@runtime_checkable
class _Group(Protocol):
    """What is used of ``ResidualVQ``, whose library has no types."""

    implicit_neural_codebook: bool
    eval_beam_size: int | None
    layers: Sequence[_Layer]

    def __call__(self, x: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]: ...

    def get_output_from_indices(self, indices: Tensor) -> Tensor: ...

    def project_in(self, x: Tensor) -> Tensor: ...

    def project_out(self, x: Tensor) -> Tensor: ...


class ResidualQuantizer(Block):
    """Sums Q codes for each feature, or for each of G groups of its entries; ids are (B, *grid, G Q), group after group.

    A wrapper of vector-quantize-pytorch's ``ResidualVQ``, which trains it, with N x K numbers in memory; in evaluation there
    are none. Gradients reach the features once for each quantizer. Train it in float32: cast to half precision, the
    library's averages are cast too.

    Loss while training, unweighted: ``commitment``, the mean over all quantizers.

    Args:
        dim: D.
        num_codes: K, of each codebook; or one number for each quantizer.
        num_quantizers: Q.
        num_groups: G; each group of D / G entries has its own quantizers.
        code_dim: width of a code; linear layers lead there and back where it is not D / G. None: D / G.
        shared: one codebook for all quantizers of a group.
        implicit: a network turns each codebook, but the first, into other codes for each token, by what was chosen before
            (QINCo). Needs gradients to learn.
        metric: "l2", or "cosine", where what is left over and the codes have length one.
        options: further arguments of ``ResidualVQ`` by name, such as ``decay``, ``kmeans_init``, ``rotation_trick``,
            ``threshold_ema_dead_code``, ``quantize_dropout``, ``beam_size``.

    Raises:
        ValueError: a width that the groups do not divide, numbers of codes for another count of quantizers, or an option that is
            not supported.

    Source: SoundStream (arXiv 2107.03312), HiFi-Codec (arXiv 2305.02765), QINCo (arXiv 2401.14732); lucidrains'
    vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import ResidualQuantizer
        >>> quantizer = ResidualQuantizer(dim=8, num_codes=16, num_quantizers=3).eval()
        >>> latents = quantizer(torch.randn(1, 3, 3, 8))
        >>> tuple(latents.ids.shape)
        (1, 3, 3, 3)
        >>> torch.allclose(quantizer.lookup(latents.ids), latents.z, atol=1e-5)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = RESIDUAL_LAYOUTS
    learns_together: ClassVar[bool] = True  # see all_processes

    def __init__(
        self,
        *,
        dim: int,
        num_codes: int | tuple[int, ...],
        num_quantizers: int,
        num_groups: int = 1,
        code_dim: int | None = None,
        shared: bool = False,
        implicit: bool = False,
        metric: Literal["l2", "cosine"] = "l2",
        options: dict[str, Any] | None = None,
    ) -> None:
        from vector_quantize_pytorch import ResidualVQ  # type: ignore[import-untyped]

        super().__init__()
        check_options(options)
        if dim % num_groups:
            raise ValueError(f"dim is {dim}; accepted: multiples of {num_groups}, the number of groups")
        sizes = num_codes if isinstance(num_codes, tuple) else (num_codes,) * num_quantizers
        if len(sizes) != num_quantizers or (shared and len({*sizes}) > 1):
            accepted = "one number" if shared else f"one number, or {num_quantizers} numbers (num_quantizers)"
            raise ValueError(f"num_codes is {num_codes}; accepted: {accepted}")
        self.dim = dim
        self.metric = metric
        self.num_quantizers = num_quantizers
        self.sizes = sizes
        self.groups = torch.nn.ModuleList(
            ResidualVQ(
                dim=dim // num_groups,
                codebook_size=num_codes,
                num_quantizers=num_quantizers,
                codebook_dim=code_dim,
                shared_codebook=shared,
                implicit_neural_codebook=implicit,
                use_cosine_sim=metric == "cosine",
                **(options or {}),
            )
            for _ in range(num_groups)
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K for each quantizer of each group."""
        return self.sizes * len(self.groups)

    @without_autocast
    def forward(
        self, features: Float[Tensor, "B *grid D"], *, generator: Generator | None = None, dropout_seed: int | None = None
    ) -> Latents:
        """Quantises the last axis. An id of -1 is a quantizer that was dropped while training (``quantize_dropout``).

        Args:
            features: what to quantise.
            generator: source of randomness while training; None is torch's own.
            dropout_seed: what decides which quantizers are dropped, in place of a draw: the library's
                ``rand_quantize_dropout_fixed_seed``.

        Raises:
            ValueError: if the width is not D, or a value is not finite (while training, of any process); nothing is learned then.
        """
        if self.training:
            return self._learned(features, generator, dropout_seed)
        check(features, wrong_width(features, self.dim))
        results = [self._quantise(group, piece) for group, piece in self._pairs(features)]
        z, ids = zip(*results, strict=True)
        return _joined(features, z, ids)

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """The sums of codes by number. Fewer quantizers than there are, if ``quantize_dropout`` is on: -1 for those left out.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU), or not G Q of them a token.
        """
        ids = as_int64("ids", ids)
        if ids.shape[-1] != len(self.codebook_sizes):
            raise ValueError(
                f"ids have shape {tuple(ids.shape)}; accepted: {len(self.codebook_sizes)} numbers a token, along the last axis"
            )
        dropped = any(group.quantize_dropout for group in self.groups)
        used = torch.where(ids == -1, 0, ids) if dropped else ids
        each = set(self.sizes)
        for number, size in enumerate(self.sizes if len(each) > 1 else each):
            check_range("ids", used[..., number :: len(self.sizes)] if len(each) > 1 else used, size)
        numbers = rearrange(ids, "b ... (g q) -> g (b ...) 1 q", g=len(self.groups))
        vectors = [
            torch.cat([cast("_Group", group).get_output_from_indices(piece) for piece in mine.split(PIECE)])
            for group, mine in zip(self.groups, numbers, strict=True)
        ]
        return torch.cat(vectors, dim=-1).view(*ids.shape[:-1], self.dim)

    def reset_buffers(self, device: torch.device) -> None:
        """The library's constants."""
        reset_library_buffers(self, device)
        for group in self.groups:
            weights = (self.config["options"] or {}).get("beam_score_quantizer_weights") or [1.0] * self.num_quantizers
            group.beam_score_weights = torch.tensor(weights, device=device)

    # The library breaks graphs anyway, and inside one nothing could be refused.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _learned(self, features: Tensor, generator: Generator | None, dropout_seed: int | None) -> Latents:
        """A training step of the library, which moves the codes."""
        check_in_all(features, wrong_width(features, self.dim))
        agree_with_all(self, self.config["options"], features.flatten(0, -2))
        with drawn_from(generator):
            # Groups drop the same quantizers, and so do processes, which sum up what each quantizer learns.
            drawn = int(from_first(torch.randint(2**31, ()).to(features.device)))
            seed = drawn if dropout_seed is None else dropout_seed
            results = [group(piece, rand_quantize_dropout_fixed_seed=seed) for group, piece in self._pairs(features)]
        z, ids, losses = zip(*results, strict=True)
        return _joined(features, z, ids, {"commitment": torch.stack(losses).mean()})

    def _pairs(self, features: Tensor) -> list[tuple[_Group, Tensor]]:
        """Each group with its entries of the features, (B, N, D / G), in the dtype of its codes."""
        pieces = features.reshape(len(features), math.prod(features.shape[1:-1]), features.shape[-1]).chunk(
            len(self.groups), dim=-1
        )
        dtype = cast("_Group", self.groups[0]).layers[0]._codebook.embed.dtype
        return [(cast("_Group", group), piece.to(dtype)) for group, piece in zip(self.groups, pieces, strict=True)]

    def _quantise(self, group: _Group, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if group.implicit_neural_codebook or (group.eval_beam_size or 1) > 1:
            flat = tokens.flatten(0, 1)[:, None]
            pieces, numbers, _ = zip(*(group(piece) for piece in flat.split(PIECE)), strict=True)
            return torch.cat(pieces).view(tokens.shape), torch.cat(numbers).view(*tokens.shape[:2], self.num_quantizers)
        return self._nearest(group, tokens)

    def _nearest(self, group: _Group, tokens: Tensor) -> tuple[Tensor, Tensor]:
        left = group.project_in(tokens).flatten(0, 1).float()
        total, ids = torch.zeros_like(left), []
        metric: Metric = "dot" if self.metric == "cosine" else "l2"
        for layer in group.layers:
            codes = layer.codebook
            ids.append(nearest_code(layer._codebook.transform_input(left), codes, metric))
            chosen = embedding(ids[-1], codes).float()
            left, total = left - chosen, total + chosen
        z = in_evaluation(tokens.flatten(0, 1), group.project_out(total.to(tokens.dtype)))
        return z.view(tokens.shape), torch.stack(ids, dim=-1).view(*tokens.shape[:2], self.num_quantizers)


def _joined(features: Tensor, z: Sequence[Tensor], ids: Sequence[Tensor], loss: dict[str, Tensor] | None = None) -> Latents:
    """What the groups made of their entries, side by side."""
    numbers = torch.cat([*ids], dim=-1)
    return Latents(
        z=torch.cat([*z], dim=-1).to(features.dtype).view(features.shape),
        ids=numbers.view(*features.shape[:-1], numbers.shape[-1]),
        loss=loss,
    )
