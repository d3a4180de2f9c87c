"""Residual quantisation as in RQ-VAE: codes of what is left by the codes before; learned by running averages.

Shapes: B images, H and W places of features of width C, h and w tokens, Q codes a token (its depth), K codes of width D.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.averaging_codebook import AveragingCodebook
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, check_in_all, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance
from mmblocks.tokenizers.bottlenecks.codebooks.soft_choices import soft_choice

RQ_RULES = (
    Rule("codebooks.{}.weight", "codebooks.{}.codes"),
    Rule("codebooks.{}.cluster_size_ema", "codebooks.{}.sizes"),
    Rule("codebooks.{}.embed_ema", "codebooks.{}.sums"),
)


def rq_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """RQ-VAE's options. How many places there are is not asked for: any number will do.

    Raises:
        ValueError: shapes that do not divide, or a loss other than the cumulative one.
    """
    if not config:  # the arguments are given to from_pretrained then
        return {}
    (height, width, dim), (rows, columns, depth) = config["latent_shape"], config["code_shape"]
    if height % rows or width % columns:
        raise ValueError(
            f"latent_shape is {height}x{width}, code_shape {rows}x{columns}; accepted: places that the codes' places divide"
        )
    only(config, "commitment_loss", "cumsum")
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


def published_rq(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of ``rq_arguments``: for one token, as the number of places is not kept."""
    rows, columns = arguments["merge"]
    return {
        "latent_shape": (rows, columns, arguments["dim"]),
        "code_shape": (1, 1, arguments["depth"]),
        "n_embed": arguments["num_codes"],
        "shared_codebook": arguments["shared"],
        "decay": arguments["decay"],
        "restart_unused_codes": arguments["restart_unused"],
    }


class RQBottleneck(Block):
    """Quantises features, then what is left of them, and so on: the codes of all depths add up to the feature.

    Codes learn by running averages while training. The only loss, unweighted, is ``commitment``: the mean over depths of the
    squared distance from the features to the sum of the codes so far. What is left over, and the sums, are float32 in between,
    whatever the features are.

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

    Published: the bottleneck alone. The authors' yaml files name its arguments, as a config.json beside its weights does.

    Source: RQ-VAE (arXiv 2203.01941; kakaobrain/rq-vae-transformer), DualToken (arXiv 2503.14324; songweii/DualToken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import RQBottleneck
        >>> quantizer = RQBottleneck(num_codes=16, dim=4, depth=3).eval()
        >>> latents = quantizer(torch.randn(1, 2, 2, 4))
        >>> tuple(latents.ids.shape)
        (1, 2, 2, 3)
        >>> torch.allclose(quantizer.depths(latents.ids).sum(dim=-2), latents.z, atol=1e-6)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("rq", RQ_RULES, config=rq_arguments, published_config=published_rq),)

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
        self.shared = shared
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
            ValueError: another width than C, a size that ``merge`` does not divide, or a value that is not finite (while training,
                of any process).
        """
        (check_in_all if self.training else check)(features, self._refusal(features))
        wide = features.float()
        ids, vectors = self._search(self._merged(wide).detach(), generator)
        depths = torch.stack(vectors, dim=-2)
        z = wide + (self._split(depths.sum(dim=-2)) - wide).detach()
        loss = {"commitment": self.commitment(features, depths)} if self.training else None
        return Latents(z=z.to(features.dtype), ids=torch.stack(ids, dim=-1), loss=loss)

    def lookup(self, ids: Integer[Tensor, "B h w Q"]) -> Float[Tensor, "B H W C"]:
        """The sum of the codes of all depths.

        Raises:
            TypeError, ValueError: as ``depths``.
        """
        codes = self.depths(ids)
        return self._split(codes.float().sum(dim=-2).to(codes.dtype))

    def depths(self, ids: Integer[Tensor, "*N Q"]) -> Float[Tensor, "*N Q D"]:
        """The code of each depth.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another number of codes than Q in the last axis, or one that does not exist (checked on CPU).
        """
        if ids.shape[-1] != len(self.codebooks):
            raise ValueError(f"ids have {ids.shape[-1]} codes a token (last axis); accepted: {len(self.codebooks)}")
        ids = as_int64("ids", ids)
        for number, size in enumerate(self.codebook_sizes):
            check_range("ids", ids[..., number], size)
        return torch.stack([book.rows(ids[..., number]) for number, book in enumerate(self._books)], dim=-2)

    @without_autocast
    def assign(self, features: Float[Tensor, "B H W C"], temperature: float = 1.0) -> Float[Tensor, "B h w Q K"]:
        """A soft choice of codes at each depth, for what the nearest codes of the depths before left over.

        Weights sum to one, in float32; see ``soft_choice``.

        Raises:
            ValueError: codebooks of different sizes, whose weights have no common shape; a size that ``merge`` does not divide.
        """
        self._check_one_size()
        rest, weights = self._merged(features.float()), []
        for book in self._books:
            weights.append(soft_choice(rest, book.codes[:-1].float(), temperature))
            rest = rest - book.rows(book.nearest(rest.detach())).float()
        return torch.stack(weights, dim=-2)

    @without_autocast
    def mix(self, weights: Float[Tensor, "B h w Q K"]) -> Float[Tensor, "B H W C"]:
        """The sum over depths of the mixtures of codes with these weights.

        Raises:
            ValueError: codebooks of different sizes, or weights for others.
        """
        self._check_one_size()
        wanted = (len(self.codebooks), self.codebook_sizes[0])
        if tuple(weights.shape[-2:]) != wanted:
            raise ValueError(f"weights have shape {tuple(weights.shape)}; accepted: (B, h, w, {wanted[0]}, {wanted[1]})")
        parts = zip(weights.unbind(dim=-2), self._books, strict=True)
        return self._split(torch.stack([part.float() @ book.codes[:-1].float() for part, book in parts]).sum(dim=0))

    def _check_one_size(self) -> None:
        if len(set(self.codebook_sizes)) > 1:
            raise ValueError(f"the codebooks have {self.codebook_sizes} codes; accepted for soft choices: as many each")

    def commitment(self, features: Float[Tensor, "B H W C"], depths: Float[Tensor, "B h w Q D"]) -> Float[Tensor, ""]:
        """The mean over depths of the squared distance from the features to the sum of the codes so far."""
        so_far = depths.float().cumsum(dim=-2).detach()
        merged = self._merged(features).float()[..., None, :]
        return squared_distance(merged.expand_as(so_far), so_far)

    def _search(self, tokens: Tensor, generator: Generator | None) -> tuple[list[Tensor], list[Tensor]]:
        """Numbers and codes of each depth, for float32 tokens (B, h, w, D); learns on the way while training."""
        rest, ids, vectors = tokens, [], []
        for book in self._books:
            ids.append(book.nearest(rest))
            vectors.append(book.rows(ids[-1]).float())
            if self.training:
                book.learn(rest.flatten(0, -2), ids[-1].flatten(), generator)
            rest = rest - vectors[-1]
        return ids, vectors

    @property
    def _books(self) -> list[AveragingCodebook]:
        return list(self.codebooks)  # type: ignore[arg-type]

    def _refusal(self, features: Tensor) -> str | None:
        """Why the features do not fit."""
        rows, columns = self.merge
        if features.shape[1] % rows or features.shape[2] % columns:
            size = f"{features.shape[1]}x{features.shape[2]}"
            return f"features are {size} places; accepted: multiples of merge, {rows}x{columns}"
        return wrong_width(features, self.dim)

    def _merged(self, features: Tensor) -> Tensor:
        rows, columns = self.merge
        if (refusal := self._refusal(features)) is not None:
            raise ValueError(refusal)
        return rearrange(features, "b (h r) (w s) c -> b h w (r s c)", r=rows, s=columns)

    def _split(self, tokens: Tensor) -> Tensor:
        rows, columns = self.merge
        return rearrange(tokens, "b h w (r s c) -> b (h r) (w s) c", r=rows, s=columns)


class JointRQBottleneck(RQBottleneck):
    """``RQBottleneck`` whose depths have all searched before any codebook learns; a shared one learns from all depths at once.

    Evaluation is the same. Called ``RQBottleneck_ema`` in the official code, which keeps views of what is left over and then
    changes it in place, so that each depth learns from what all depths left; here each learns from what it saw.

    Args:
        num_codes, dim, depth, merge, shared, decay, restart_unused: see ``RQBottleneck``.

    Source: DualToken (arXiv 2503.14324; songweii/DualToken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import JointRQBottleneck, RQBottleneck
        >>> joint, plain = (cls(num_codes=16, dim=4, depth=3).eval() for cls in (JointRQBottleneck, RQBottleneck))
        >>> _ = plain.load_state_dict(joint.state_dict())
        >>> features = torch.randn(1, 2, 2, 4)
        >>> torch.equal(joint(features).ids, plain(features).ids)
        True
    """

    def _search(self, tokens: Tensor, generator: Generator | None) -> tuple[list[Tensor], list[Tensor]]:
        rests, ids, vectors = [tokens], [], []
        for book in self._books:
            ids.append(book.nearest(rests[-1]))
            vectors.append(book.rows(ids[-1]).float())
            rests.append(rests[-1] - vectors[-1])
        if self.training:
            seen = [rest.flatten(0, -2) for rest in rests[:-1]]
            chosen = [numbers.flatten() for numbers in ids]
            if self.shared:
                self._books[0].learn(torch.cat(seen), torch.cat(chosen), generator)
            else:
                for book, features, numbers in zip(self._books, seen, chosen, strict=True):
                    book.learn(features, numbers, generator)
        return ids, vectors
