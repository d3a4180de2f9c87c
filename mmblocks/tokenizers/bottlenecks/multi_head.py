"""Vector quantization in several heads, or with any other way of training that vector-quantize-pytorch knows.

Shapes: B images, D width of a feature, H heads, K codes, d width of a code, N tokens.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor, distributed
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import num_of_each, several_processes
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import mapped
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, check_in_all, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import in_evaluation
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.multi_head_layout import MULTI_HEAD_LAYOUTS

UNSUPPORTED = (
    "affine_param",
    "diveq",
    "vq_bridge",
    "in_place_codebook_optimizer",
    "accept_image_fmap",
    "accept_3d_fmap",
    "channel_last",
)
"""Options of the library that need more than JSON, change evaluation, or move the channels."""


class MultiHeadVectorQuantizer(Block):
    """Cuts each feature into H pieces, projected where widths ask for it, and replaces each by the nearest code.

    A wrapper of vector-quantize-pytorch's ``VectorQuantize``, which trains it, with N x K numbers in memory; in evaluation there
    are none. Train it in float32: cast to half precision, the library's averages are cast too. For one head and moving averages,
    ``EMAVectorQuantizer`` trains many times faster.

    Loss while training, unweighted: ``commitment``; of a codebook that learns by gradients it moves the codes too. Where they are
    switched on, ``codebook_diversity`` and ``orthogonality``.

    Args:
        dim: D.
        num_codes: K, of each codebook.
        num_heads: H; a token has as many numbers.
        code_dim: d; linear layers lead from D to H d and back where these differ. None: D.
        separate_codebooks: one codebook a head, rather than one for all.
        metric: "l2", or "cosine", where features and codes have length one.
        options: further arguments of ``VectorQuantize`` by name, such as ``decay``, ``learnable_codebook``, ``rotation_trick``,
            ``stochastic_sample_codes``, ``orthogonal_reg_weight``.

    Raises:
        ValueError: an option that is not supported.

    Source: improved VQGAN (arXiv 2110.04627); lucidrains' vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import MultiHeadVectorQuantizer
        >>> quantizer = MultiHeadVectorQuantizer(dim=8, num_codes=16, num_heads=2, code_dim=4).eval()
        >>> latents = quantizer(torch.randn(1, 3, 3, 8))
        >>> tuple(latents.ids.shape), quantizer.codebook_sizes
        ((1, 3, 3, 2), (16, 16))
    """

    layouts: ClassVar[tuple[Layout, ...]] = MULTI_HEAD_LAYOUTS
    learns_together: ClassVar[bool] = True  # see all_processes

    def __init__(
        self,
        *,
        dim: int,
        num_codes: int,
        num_heads: int = 1,
        code_dim: int | None = None,
        separate_codebooks: bool = False,
        metric: Literal["l2", "cosine"] = "l2",
        options: dict[str, Any] | None = None,
    ) -> None:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-untyped]

        super().__init__()
        check_options(options)
        self.dim = dim
        self.metric = metric
        self.num_heads = num_heads
        self.quantizer = VectorQuantize(
            dim=dim,
            codebook_size=num_codes,
            codebook_dim=code_dim,
            heads=num_heads,
            separate_codebook_per_head=separate_codebooks,
            use_cosine_sim=metric == "cosine",
            **(options or {}),
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K for each head."""
        return (self.quantizer.codebook_size,) * self.num_heads

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"], *, generator: Generator | None = None) -> Latents:
        """Quantises the last axis. ``ids`` are (B, *grid), or (B, *grid, H) with several heads.

        Args:
            features: what to quantise.
            generator: source of randomness while training; None is torch's own.

        Raises:
            ValueError: if the width is not D, or a value is not finite (while training, of any process); nothing is learned then.
        """
        if self.training:
            return self._learned(features, generator)
        check(features, wrong_width(features, self.dim))
        ids = self._nearest(features)
        return Latents(z=in_evaluation(features, self._vectors(ids).to(features.dtype)), ids=ids)

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "B *grid"]) -> Float[Tensor, "B *grid2 D"]:
        """Codes by number: of all heads, joined and projected back.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU), or not H of them a token.
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, self.quantizer.codebook_size)
        if self.num_heads > 1 and ids.shape[-1] != self.num_heads:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; accepted: {self.num_heads} numbers a token, along the last axis")
        return self._vectors(ids)

    def reset_buffers(self, device: torch.device) -> None:
        """The library's constant zeros."""
        reset_library_buffers(self.quantizer, device)

    # The library breaks graphs anyway, and inside one nothing could be refused.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _learned(self, features: Tensor, generator: Generator | None) -> Latents:
        """A training step of the library, which moves the codes."""
        check_in_all(features, wrong_width(features, self.dim))
        tokens = features.reshape(len(features), math.prod(features.shape[1:-1]), features.shape[-1])
        agree_with_all(self.quantizer, self.config["options"], tokens.flatten(0, 1))
        with drawn_from(generator):
            z, ids, _, terms = self.quantizer(tokens.to(self.quantizer._codebook.embed.dtype), return_loss_breakdown=True)
        losses = {"commitment": terms.commitment}
        if self.quantizer.has_codebook_diversity_loss:
            losses["codebook_diversity"] = terms.codebook_diversity
        if self.quantizer.has_codebook_orthogonal_loss:
            losses["orthogonality"] = terms.orthogonal_reg
        z, ids = z.to(features.dtype).view(features.shape), ids.reshape(*features.shape[:-1], *ids.shape[2:])
        return Latents(z=z, ids=ids, loss=losses)

    def _nearest(self, features: Tensor) -> Tensor:
        pieces = mapped(self.quantizer.project_in, features).float().unflatten(-1, (self.num_heads, -1)).flatten(0, -3)
        pieces = self.quantizer._codebook.transform_input(pieces)  # of length one with metric "cosine", as the codes are
        metric: Metric = "dot" if self.metric == "cosine" else "l2"
        ids = [nearest_code(pieces[:, head], codes, metric) for head, codes in enumerate(self._codebooks())]
        joined = torch.stack(ids, dim=-1).view(*features.shape[:-1], self.num_heads)
        return joined.squeeze(-1) if self.num_heads == 1 else joined

    def _vectors(self, ids: Tensor) -> Tensor:
        numbers = ids[..., None] if self.num_heads == 1 else ids
        pieces = [embedding(numbers[..., head], codes) for head, codes in enumerate(self._codebooks())]
        return mapped(self.quantizer.project_out, torch.cat(pieces, dim=-1))

    def _codebooks(self) -> list[Tensor]:
        """(K, d) for each head."""
        codes = self.quantizer._codebook.embed
        return [codes[head] if len(codes) > 1 else codes[0] for head in range(self.num_heads)]


def check_options(options: Mapping[str, Any] | None) -> None:
    """Refuses options of the library that are not supported.

    Raises:
        ValueError: names them.
    """
    found = [name for name in UNSUPPORTED if (options or {}).get(name)]
    if found:
        raise ValueError(f"options hold {', '.join(found)}; accepted: all of vector-quantize-pytorch but {', '.join(UNSUPPORTED)}")


@contextmanager
def drawn_from(generator: Generator | None) -> Iterator[None]:
    """Inside, torch's own randomness, which the library uses, comes from the generator; outside it goes on as if nothing was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def agree_with_all(module: torch.nn.Module, options: Mapping[str, Any] | None, features: Float[Tensor, "N D"]) -> None:
    """Has the library's codebooks learn from all processes, whether or not there were several when they were built.

    Raises:
        ValueError: no feature, of any process; options by which the codes of several processes would drift apart.
    """
    from vector_quantize_pytorch import vector_quantize_pytorch as library

    several = several_processes()
    if not all(nums := num_of_each(features)):  # the library's processes would wait for each other
        raise ValueError(f"features hold {nums} vectors (of each process); accepted: at least one (EMAVectorQuantizer takes none)")
    drifting = [name for name in ("sync_codebook", "sync_kmeans") if (options or {}).get(name) is False]
    if several and drifting:
        raise ValueError(f"options hold {' and '.join(drifting)}=False; accepted in several processes: codes that stay the same")
    for part in module.modules():
        if not isinstance(part, library.Codebook) or part.use_ddp == several:
            continue
        if several and part.num_codebooks > 1 and not part.initted:
            raise ValueError("options hold kmeans_init=True with separate codebooks; accepted in several processes: one codebook")
        part.use_ddp = several
        part.sample_fn = part.replace_sample_fn = library.sample_vectors_distributed if several else library.batched_sample_vectors
        part.kmeans_all_reduce_fn = part.all_reduce_fn = distributed.all_reduce if several else library.noop


def reset_library_buffers(module: torch.nn.Module, device: torch.device) -> None:
    """The constants that vector-quantize-pytorch keeps in no checkpoint."""
    for part in module.modules():
        if "zero" in part._non_persistent_buffers_set:
            part.zero = torch.zeros((), device=device)
