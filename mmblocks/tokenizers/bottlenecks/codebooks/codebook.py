"""K vectors with numbers, and the three ways into them: the nearest, a given number, or a soft mixture.

Shapes: K codes, D width, any leading axes where "*".
"""

import torch
from jaxtyping import Float, Int, Integer
from torch import Generator, Tensor, nn
from torch.nn.functional import embedding, normalize

from mmblocks.block import Block
from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import (
    from_first,
    gather_equal,
    num_of_each,
    rows_of_all,
    several_processes,
    sum_of_all,
)
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import product
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast

_NOT_FINITE = "the features to quantise hold NaN or infinity; nothing was learned from them"


def check_finite(features: Tensor) -> None:
    """Refuses NaN and infinity: they would corrupt a codebook permanently.

    Not checked inside a compiled graph, where running averages leave them out with a warning (``finite_or_warned``).

    Raises:
        ValueError: a value that is not finite.
    """
    if not torch.compiler.is_compiling() and not features.isfinite().all():
        raise ValueError(_NOT_FINITE)


def wrong_width(features: Tensor, dim: int) -> str | None:
    """Why the features do not fit a bottleneck of width ``dim``; None if they do."""
    width = features.shape[-1]
    return None if width == dim else f"features are {width} wide; accepted: {dim}"


def check(features: Tensor, refusal: str | None) -> None:
    """Refuses features that do not fit, and those that hold NaN or infinity.

    Args:
        features: of this process.
        refusal: why their shape does not fit; None if it does.

    Raises:
        ValueError: they do not fit, or a value is not finite.
    """
    if refusal is not None:
        raise ValueError(refusal)
    check_finite(features)


def check_in_all(features: Tensor, refusal: str | None) -> None:
    """``check`` where all processes learn together: if one of them has to refuse, all do.

    Were it one alone, the others would wait for what it has to tell them. Every process has to call, before anything else that
    they tell each other.

    Raises:
        ValueError: as ``check``, of any process.
    """
    if torch.compiler.is_compiling() or not several_processes():
        check(features, refusal)
        return
    not_finite = ~features.isfinite().all()
    flags = torch.stack([torch.full_like(not_finite, refusal is not None), not_finite]).to(torch.uint8)
    misshapen, not_finite_ranks = torch.stack(gather_equal(flags)).bool().T.tolist()
    if refusal is not None:
        raise ValueError(refusal)
    if any(misshapen):
        numbers = ", ".join(str(number) for number, wrong in enumerate(misshapen) if wrong)
        raise ValueError(f"the features of process {numbers} do not fit; nothing was learned")
    if any(not_finite_ranks):
        raise ValueError(_NOT_FINITE)


class Codebook(Block):
    """K code vectors of width D.

    Args:
        num_codes: K.
        dim: D.
        metric: which code counts as nearest. With "cosine", codes and features are scaled to length one.
    """

    def __init__(self, *, num_codes: int, dim: int, metric: Metric = "l2") -> None:
        super().__init__()
        self.dim = dim
        self.metric: Metric = metric
        self.codes = nn.Parameter(torch.empty(num_codes, dim))
        nn.init.uniform_(self.codes, -1 / num_codes, 1 / num_codes)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: K."""
        return (len(self.codes),)

    @property
    def vectors(self) -> Float[Tensor, "K D"]:
        """The codes as they are looked up: of length one with metric "cosine"."""
        return normalize(self.codes, dim=-1) if self.metric == "cosine" else self.codes

    def nearest(self, features: Float[Tensor, "*N D"]) -> Int[Tensor, "*N"]:
        """The number of the nearest code; the lowest of equals. Compared in float32 whatever the dtype.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        check(features, wrong_width(features, self.dim))
        return nearest_code(features.flatten(0, -2), self.codes, self.metric).view(features.shape[:-1])

    def lookup(self, ids: Integer[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU).
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, len(self.codes))
        return self.rows(ids)

    def rows(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """The vectors that were found nearest: ``lookup`` without its check."""
        chosen = embedding(ids, self.codes)
        return normalize(chosen, dim=-1) if self.metric == "cosine" else chosen

    def widened(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """In the dtype of the codes, where that is the wider one."""
        return features.to(torch.promote_types(features.dtype, self.codes.dtype))

    @without_autocast
    def scores(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N K"]:
        """How near each code is: the negative squared distance, or the dot product. Gradients flow to features and codes."""
        features = self.widened(features)
        if self.metric == "cosine":
            features = normalize(features, dim=-1)
        products = product(features, self.vectors.T)
        if self.metric == "dot":
            return products
        return 2 * products - features.square().sum(-1, keepdim=True) - self.vectors.square().sum(-1)

    def assign(self, features: Float[Tensor, "*N D"], temperature: float = 1.0) -> Float[Tensor, "*N K"]:
        """A soft choice of codes, with weights that sum to one: the softmax of ``scores``, harder at smaller temperatures."""
        return (self.scores(features) / temperature).softmax(dim=-1)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes with these weights."""
        return product(weights, self.vectors)

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "N D"], *, num_iterations: int = 10, generator: Generator | None = None) -> None:
        """Moves all codes to the centres of clusters of ``features``, by k-means; an empty cluster takes a feature instead.

        It begins at features drawn at random without repetition or, if there are fewer than codes, with repetition, as
        vector-quantize-pytorch does; some codes are equal then. With several processes all of them call this, and the clusters are
        those of the features of all.

        Raises:
            ValueError: if there is no feature, the width is not D, or a value is not finite, of any process.
        """
        check_in_all(features, wrong_width(features, self.dim))
        nums = num_of_each(features)
        count, found = len(self.codes), sum(nums)
        if not found:
            raise ValueError("features holds no vector; accepted: at least one")
        if found < count:
            drawn = torch.randint(found, (count,), generator=generator, device=features.device)
        else:
            drawn = torch.randperm(found, generator=generator, device=features.device)[:count]
        self.codes.copy_(rows_of_all(features, from_first(drawn), nums))
        for _ in range(num_iterations):
            ids = self.nearest(features)
            used = torch.bincount(ids, minlength=count)
            sums = torch.zeros_like(self.codes).index_add_(0, ids, features.to(self.codes.dtype))
            sum_of_all(used, sums)
            self.codes.copy_(sums / used.clamp(min=1)[:, None])
            self._replace(features, used, nums, generator)

    @torch.no_grad()
    def replace_unused(self, features: Float[Tensor, "N D"], used: Int[Tensor, " K"], generator: Generator | None = None) -> int:
        """Moves codes that nothing chose to features drawn at random; returns how many.

        With several processes all of them call this; a code is moved if none of them chose it, to features of any.

        Args:
            features: as the encoder makes them now.
            used: how often each code was chosen recently, by this process.
            generator: source of randomness.

        Raises:
            ValueError: if there is no feature, the width is not D, there is not one count a code, or a value is not finite, of any
                process; nothing is moved then.
        """
        counts = None if len(used) == len(self.codes) else f"used holds {len(used)} counts; accepted: {len(self.codes)}"
        check_in_all(features, wrong_width(features, self.dim) or counts)
        nums = num_of_each(features)
        if not sum(nums):
            raise ValueError("features holds no vector; accepted: at least one")
        used = used.clone()
        sum_of_all(used)
        return self._replace(features, used, nums, generator)

    def _replace(self, features: Tensor, used: Tensor, nums: list[int], generator: Generator | None) -> int:
        """``replace_unused``, with what all processes used."""
        unused = (used == 0).nonzero().flatten()
        drawn = torch.randint(sum(nums), (len(unused),), generator=generator, device=features.device)
        self.codes[unused] = rows_of_all(features, from_first(drawn), nums).to(self.codes.dtype)
        return len(unused)
