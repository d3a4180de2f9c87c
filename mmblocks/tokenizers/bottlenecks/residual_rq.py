"""Residual quantisation as in RQ-VAE: codes of what is left by the codes before; learned by running averages.

Shapes: B images, H and W places of features of width C, h and w tokens, Q codes a token (its depth), K codes of width D.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, distributed, nn
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.checks import check_range
from mmblocks.ops.nearest_code import nearest_code
from mmblocks.tokenizers.bottlenecks.codebook import check_finite
from mmblocks.tokens import Latents

RQ_RULES = (
    Rule("codebooks.{}.weight", "codebooks.{}.codes"),
    Rule("codebooks.{}.cluster_size_ema", "codebooks.{}.sizes"),
    Rule("codebooks.{}.embed_ema", "codebooks.{}.sums"),
)


def rq_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """RQ-VAE's options. How many places there are is not asked for: any number will do."""
    (height, width, dim), (rows, columns, depth) = config["latent_shape"], config["code_shape"]
    sizes, decay = config["n_embed"], config.get("decay", 0.99)
    return {
        "num_codes": tuple(sizes) if isinstance(sizes, Sequence) else sizes,
        "dim": dim,
        "depth": depth,
        "merge": (height // rows, width // columns),
        "shared": config.get("shared_codebook", False),
        "decay": tuple(decay) if isinstance(decay, Sequence) else decay,
        "restart_unused": config.get("restart_unused_codes", True),
    }


class AveragingCodebook(Block):
    """K codes that move with the average of what chose them, and a row of padding, which nothing chooses.

    Args:
        num_codes: K.
        dim: D.
        decay: how much of the running averages stays at each step.
        restart_unused: whether codes that less than one feature chose of late move to features of the batch.

    Attributes:
        codes: (K + 1, D); without gradients. The last row is the padding of published files.
        sizes: (K,), the running average of how many features chose a code.
        sums: (K, D), the running average of their sum.
    """

    sizes: Tensor
    sums: Tensor

    def __init__(self, *, num_codes: int, dim: int, decay: float = 0.99, restart_unused: bool = True) -> None:
        super().__init__()
        self.decay = decay
        self.restart_unused = restart_unused
        codes = torch.empty(num_codes + 1, dim).normal_()
        codes[-1] = 0
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("sizes", torch.zeros(num_codes))
        self.register_buffer("sums", codes[:-1].clone())

    def nearest(self, features: Float[Tensor, "*N D"]) -> Int[Tensor, "*N"]:
        """The number of the nearest code; the lowest of equals."""
        return nearest_code(features.flatten(0, -2), self.codes[:-1]).view(features.shape[:-1])

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number."""
        return embedding(ids, self.codes)

    @torch.no_grad()
    def learn(self, features: Float[Tensor, "N D"], ids: Int[Tensor, " N"], generator: Generator | None = None) -> None:
        """One step of the running averages; with several processes, over the features of all.

        Args:
            features: what was quantised.
            ids: what each chose.
            generator: source of randomness for the features that unused codes move to.
        """
        features = features.to(self.sums.dtype)
        sizes = torch.bincount(ids, minlength=len(self.sizes)).to(self.sizes.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, features)
        in_parallel = distributed.is_available() and distributed.is_initialized()
        if in_parallel:
            distributed.all_reduce(sums)
            distributed.all_reduce(sizes)
        self.sizes.mul_(self.decay).add_(sizes, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.restart_unused:
            substitutes = self._substitutes(features, generator)
            if in_parallel:
                distributed.broadcast(substitutes, 0)
            unused = self.sizes < 1
            self.sums.copy_(torch.where(unused[:, None], substitutes, self.sums))
            self.sizes.masked_fill_(unused, 1)
        total = self.sizes.sum()
        smoothed = total * (self.sizes + 1e-5) / (total + len(self.sizes) * 1e-5)
        self.codes[:-1] = self.sums / smoothed[:, None]

    def _substitutes(self, features: Tensor, generator: Generator | None) -> Tensor:
        """A feature for every code, drawn without repetition; too few features are repeated with a little noise."""
        count, dim = self.sums.shape
        if len(features) < count:
            features = features.repeat(-(-count // len(features)), 1)
            noise = torch.rand(features.shape, dtype=features.dtype, device=features.device, generator=generator)
            features = features + noise * (0.01 / dim**0.5)
        return features[torch.randperm(len(features), device=features.device, generator=generator)[:count]]


class RQBottleneck(Block):
    """Quantises features, then what is left of them, and so on: the codes of all depths add up to the feature.

    Codes learn by running averages while training. The only loss, unweighted, is ``commitment``: the mean over depths of the
    squared distance from the features to the sum of the codes so far.

    Args:
        num_codes: K; or one number for each depth.
        dim: C.
        depth: Q.
        merge: places (rows, columns) that are joined into one token.
        shared: whether all depths have one codebook.
        decay: see ``AveragingCodebook``; or one for each depth.
        restart_unused: see ``AveragingCodebook``.

    Raises:
        ValueError: numbers for another count of depths, or several for a shared codebook.

    Source: RQ-VAE (arXiv 2203.01941; kakaobrain/rq-vae-transformer), DualToken (arXiv 2503.14324; songweii/DualToken).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("rq", RQ_RULES, config=rq_arguments),)

    def __init__(
        self,
        *,
        num_codes: int | tuple[int, ...],
        dim: int,
        depth: int,
        merge: tuple[int, int] = (1, 1),
        shared: bool = False,
        decay: float | tuple[float, ...] = 0.99,
        restart_unused: bool = True,
    ) -> None:
        super().__init__()
        sizes = num_codes if isinstance(num_codes, tuple) else (num_codes,) * depth
        decays = decay if isinstance(decay, tuple) else (decay,) * depth
        if len(sizes) != depth or len(decays) != depth:
            raise ValueError(f"num_codes is {num_codes}, decay {decay}; accepted: one number, or {depth} numbers (depth)")
        if shared and len({*zip(sizes, decays, strict=True)}) > 1:
            raise ValueError(f"num_codes is {num_codes}, decay {decay}; accepted with shared: one number each")
        self.dim = dim
        self.merge = merge
        width = dim * merge[0] * merge[1]
        books = [
            AveragingCodebook(num_codes=size, dim=width, decay=rate, restart_unused=restart_unused)
            for size, rate in zip(sizes, decays, strict=True)
        ]
        self.codebooks = nn.ModuleList([books[0]] * depth if shared else books)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each depth."""
        return tuple(len(book.sizes) for book in self._books)

    def forward(self, features: Float[Tensor, "B H W C"], *, generator: Generator | None = None) -> Latents:
        """Quantises the last axis; ids are (B, h, w, Q). While training, each depth learns before the next one searches.

        Args:
            features: what the encoder made.
            generator: source of randomness for codes that restart while training.

        Raises:
            ValueError: a size that ``merge`` does not divide, or a value that is not finite.
        """
        check_finite(features)
        tokens = self._merged(features)
        rest, ids, vectors = tokens.detach(), [], []
        for book in self._books:
            ids.append(book.nearest(rest))
            vectors.append(book.rows(ids[-1]))
            if self.training:
                book.learn(rest.flatten(0, -2), ids[-1].flatten(), generator)
            rest = rest - vectors[-1]
        depths = torch.stack(vectors, dim=-2)
        z = features + (self._split(depths.sum(dim=-2)) - features).detach()
        loss = {"commitment": self.commitment(features, depths)} if self.training else None
        return Latents(z=z, ids=torch.stack(ids, dim=-1), loss=loss)

    def lookup(self, ids: Int[Tensor, "B h w Q"]) -> Float[Tensor, "B H W C"]:
        """The sum of the codes of all depths.

        Raises:
            TypeError, ValueError: as ``depths``.
        """
        return self._split(self.depths(ids).sum(dim=-2))

    def depths(self, ids: Int[Tensor, "*N Q"]) -> Float[Tensor, "*N Q D"]:
        """The code of each depth.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another number of codes than Q in the last axis, or one that does not exist (checked on CPU).
        """
        if ids.shape[-1] != len(self.codebooks):
            raise ValueError(f"ids have {ids.shape[-1]} codes a token (last axis); accepted: {len(self.codebooks)}")
        for number, size in enumerate(self.codebook_sizes):
            check_range("ids", ids[..., number], size)
        return torch.stack([book.rows(ids[..., number]) for number, book in enumerate(self._books)], dim=-2)

    def commitment(self, features: Float[Tensor, "B H W C"], depths: Float[Tensor, "B h w Q D"]) -> Float[Tensor, ""]:
        """The mean over depths of the squared distance from the features to the sum of the codes so far."""
        return (self._merged(features)[..., None, :] - depths.cumsum(dim=-2).detach()).square().mean()

    @property
    def _books(self) -> list[AveragingCodebook]:
        return list(self.codebooks)  # type: ignore[arg-type]

    def _merged(self, features: Tensor) -> Tensor:
        rows, columns = self.merge
        if features.shape[1] % rows or features.shape[2] % columns:
            size = f"{features.shape[1]}x{features.shape[2]}"
            raise ValueError(f"features are {size} places; accepted: multiples of merge, {rows}x{columns}")
        return rearrange(features, "b (h r) (w s) c -> b h w (r s c)", r=rows, s=columns)

    def _split(self, tokens: Tensor) -> Tensor:
        rows, columns = self.merge
        return rearrange(tokens, "b h w (r s c) -> b (h r) (w s) c", r=rows, s=columns)
