"""A codebook that learns by moving averages of the features that chose its codes, rather than by gradients.

Shapes: B images, N features, K codes, D width of a code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import normalize

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.ops.nearest_code import code_stats
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import from_first, num_of_each, rows_of_all, sum_of_all
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import Codebook, check_in_all, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import Estimator, check_estimator, in_evaluation, pass_gradients
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance
from mmblocks.tokenizers.bottlenecks.codebooks.options import check_plain
from mmblocks.tokenizers.bottlenecks.codebooks.running_averages import RunningAverages, finite_or_warned

_HARMLESS = (
    "accept_3d_fmap",
    "accept_image_fmap",
    "affine_param_batch_decay",
    "affine_param_codebook_decay",
    "channel_last",
    "codebook_diversity_temperature",
    "commitment_weight",
    "directional_reparam_variance",
    "kmeans_iters",
    "layernorm_after_project_in",
    "manual_in_place_optimizer_update",
    "orthogonal_reg_active_codes_only",
    "orthogonal_reg_max_codes",
    "return_zeros_for_masked_padding",
    "sample_codebook_temp",
    "separate_codebook_per_head",
    "sync_affine_param",
    "sync_codebook",
    "sync_kmeans",
)
"""Where channels lie, weights of losses, and what counts with several heads, projections, masks or an option of ``_PLAIN`` alone.

Processes learn together whether or not they are told so."""

_PLAIN = {
    "affine_param": False,
    "codebook_diversity_loss_weight": 0.0,
    "commitment_use_cross_entropy_loss": False,
    "directional_reparam": False,
    "ema_update": True,
    "freeze_codebook": False,
    "heads": 1,
    "learnable_codebook": False,
    "manual_ema_update": False,
    "orthogonal_reg_weight": 0.0,
    "route_gradients_to_input": True,
    "stochastic_sample_codes": False,
    "straight_through": False,
    "sync_update_v": 0.0,
}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``VectorQuantize``, with its defaults."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    dim, rotation = config["dim"], config.get("rotation_trick")
    only(config, "codebook_dim", dim)
    check_plain(config, _PLAIN)
    if config.get("kmeans_init"):
        only(config, "kmeans_iters", 10)
    return {
        "num_codes": config["codebook_size"],
        "dim": dim,
        "metric": "cosine" if config.get("use_cosine_sim", False) else "l2",
        "decay": config.get("decay", 0.8),
        "eps": config.get("eps", 1e-5),
        "dead_below": config.get("threshold_ema_dead_code", 0),
        "kmeans_init": config.get("kmeans_init", False),
        "estimator": "rotation" if (dim > 1 if rotation is None else rotation) else "straight_through",
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dim": arguments["dim"],
        "codebook_size": arguments["num_codes"],
        "use_cosine_sim": arguments["metric"] == "cosine",
        "decay": arguments["decay"],
        "eps": arguments["eps"],
        "threshold_ema_dead_code": arguments["dead_below"],
        "kmeans_init": arguments["kmeans_init"],
        "rotation_trick": arguments["estimator"] == "rotation",
    }


class EMAVectorQuantizer(RunningAverages, Codebook):
    """Replaces each feature by the nearest code; each code follows the mean of the features that chose it.

    While training, a forward moves the codes, after it has used them. The loss, unweighted: ``commitment`` pulls features to
    the codes they chose. Averages are kept in float32 whatever the module is cast to, and over all processes of a process group.

    Args:
        num_codes: K.
        dim: D.
        metric: "l2"; or "cosine", where features and codes have length one.
        decay: share of the averages that stays at each step.
        eps: added to each code's share of the features, so that a code without any stays finite.
        dead_below: codes that fewer features than this have chosen, on average, are moved to features of the batch.
        kmeans_init: whether the first training batch places the codes, by k-means. It may hold fewer features than codes.
        estimator: how gradients pass to the features.

    Source: VQ-VAE (arXiv 1711.00937, appendix), dead codes as in SoundStream (arXiv 2107.03312); lucidrains'
    vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import EMAVectorQuantizer
        >>> quantizer = EMAVectorQuantizer(num_codes=8, dim=4, kmeans_init=True, dead_below=1.0)
        >>> latents = quantizer(torch.randn(2, 7, 7, 4))  # while training, this moves the codes
        >>> tuple(latents.ids.shape), sorted(latents.loss)
        ((2, 7, 7), ['commitment'])
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "vector_quantize_pytorch",
            (
                Rule("_codebook.embed", "codes", "squeeze_first"),
                Rule("_codebook.embed_avg", "sums", "squeeze_first"),
                Rule("_codebook.cluster_size", "usage", "squeeze_first"),
                Rule("_codebook.initted", "placed"),
            ),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
            otherwise="MultiHeadVectorQuantizer takes all that vector-quantize-pytorch does",
        ),
    )

    averages: ClassVar[tuple[str, ...]] = ("sums", "usage")

    sums: Tensor
    usage: Tensor
    placed: Tensor

    def __init__(
        self,
        *,
        num_codes: int,
        dim: int,
        metric: Literal["l2", "cosine"] = "l2",
        decay: float = 0.99,
        eps: float = 1e-5,
        dead_below: float = 0.0,
        kmeans_init: bool = False,
        estimator: Estimator = "straight_through",
    ) -> None:
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric is {metric!r}; accepted: l2, cosine")
        check_estimator(estimator)
        # Codes are kept at length one, so that with unit features the largest dot product is the smallest angle.
        super().__init__(num_codes=num_codes, dim=dim, metric="dot" if metric == "cosine" else metric)
        self.unit = metric == "cosine"
        self.decay = decay
        self.eps = eps
        self.dead_below = dead_below
        self.kmeans_init = kmeans_init
        self.estimator: Estimator = estimator
        codes = self._unit(self.codes.detach())
        del self.codes  # a parameter in the base class
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.clone())
        self.register_buffer("usage", torch.ones(num_codes))
        self.register_buffer("placed", torch.tensor(not kmeans_init))

    def forward(self, features: Float[Tensor, "B *grid D"], *, generator: Generator | None = None) -> Latents:
        """Quantises the last axis.

        Args:
            features: what to quantise.
            generator: source of randomness, for k-means and for dead codes while training.

        Raises:
            ValueError: if the width is not D, or a value is not finite (while training, of any process); nothing is learned then. A
                compiled graph warns instead of the latter.
        """
        if self.training:
            check_in_all(features, wrong_width(features, self.dim))
        x = self._unit(features)
        flat = x.detach().flatten(0, -2).float()
        if self.training and self.kmeans_init and not self.placed:
            self.fit(flat, generator=generator)
        ids = super().nearest(x)
        chosen = self.rows(ids).to(x.dtype)
        if not self.training:
            return Latents(z=in_evaluation(x, chosen).to(features.dtype), ids=ids)
        self._learn(flat, ids.flatten(), generator)
        z = pass_gradients(x, chosen, self.estimator).to(features.dtype)
        return Latents(z=z, ids=ids, loss={"commitment": squared_distance(x, chosen)})

    def nearest(self, features: Float[Tensor, "*N D"]) -> Int[Tensor, "*N"]:
        """As ``Codebook.nearest``; features of any length with metric "cosine"."""
        return super().nearest(self._unit(features))

    def scores(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N K"]:
        """As ``Codebook.scores``; features of any length with metric "cosine"."""
        return super().scores(self._unit(features))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "N D"], *, num_iterations: int = 10, generator: Generator | None = None) -> None:
        """Moves all codes to the centres of clusters of ``features``, and starts the averages anew.

        Raises:
            ValueError: if there is no feature, or a value is not finite.
        """
        features = self._unit(features)
        super().fit(features, num_iterations=num_iterations, generator=generator)
        self.codes.copy_(self._unit(self.codes))
        used = torch.bincount(self.nearest(features), minlength=len(self.codes))
        sum_of_all(used)
        self.usage.copy_(used.clamp(min=1))
        self.sums.copy_(self.codes * self.usage[:, None])
        self.placed.fill_(True)

    @torch.no_grad()
    def replace_unused(self, features: Float[Tensor, "N D"], used: Int[Tensor, " K"], generator: Generator | None = None) -> int:
        """As ``Codebook.replace_unused``; the averages of a moved code start anew, or it would return where it was."""
        count = super().replace_unused(self._unit(features), used, generator)
        used = used.clone()
        sum_of_all(used)
        moved = used == 0
        self.usage.masked_fill_(moved, 1.0)
        self.sums.copy_(torch.where(moved[:, None], self.codes.to(self.sums.dtype), self.sums))
        return count

    def _unit(self, vectors: Tensor) -> Tensor:
        """Brought to length one in float32 or better, for a length rounded to half precision would choose other codes."""
        if not self.unit:
            return vectors
        return normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1, eps=1e-6)

    @torch.no_grad()
    def _learn(self, x: Tensor, ids: Tensor, generator: Generator | None) -> None:
        """One step of the averages. Features that are not finite, which only a compiled graph lets through, change nothing."""
        count, sums = code_stats(x, ids, len(self.codes))
        sum_of_all(count, sums)
        finite = finite_or_warned(sums)
        weight = (1 - self.decay) * (finite & (count.sum() > 0))  # nothing is learned from no feature at all
        self.usage.lerp_(count, weight)
        self.sums.lerp_(sums.nan_to_num(0, 0, 0), weight)
        total = self.usage.sum()
        smoothed = (self.usage + self.eps) / (total + len(self.usage) * self.eps) * total
        self.codes.copy_(self._unit(self.sums / smoothed[:, None]))
        if self.dead_below:
            self._revive(x, finite, generator)

    def _revive(self, x: Tensor, finite: Tensor, generator: Generator | None) -> None:
        """Moves dead codes to features, each to another; those beyond the number of features wait for the next step."""
        nums = num_of_each(x)
        if not sum(nums):
            return
        dead = (self.usage < self.dead_below) & finite
        place = dead.cumsum(0) - 1  # of a dead code among them
        drawn = from_first(torch.randperm(sum(nums), generator=generator, device=x.device)[: len(self.codes)])
        moved = (dead & (place < len(drawn)))[:, None]
        new = rows_of_all(x, drawn[place.clamp(0, len(drawn) - 1)], nums)
        self.codes.copy_(torch.where(moved, new.to(self.codes.dtype), self.codes))
        self.sums.copy_(torch.where(moved, new * self.dead_below, self.sums))
        self.usage.masked_fill_(moved[:, 0], self.dead_below)
