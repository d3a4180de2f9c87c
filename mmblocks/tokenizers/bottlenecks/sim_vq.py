"""SimVQ: a frozen random codebook after a learned linear map, so that all codes move whenever one is chosen.

Shapes: B images, K codes, D width of a feature, F width of a frozen code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.ops.nearest_code import nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import product
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import Estimator, check_estimator, in_evaluation, pass_gradients
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance

_HARMLESS = ("channel_first", "commitment_weight", "input_to_quantize_commit_loss_weight")
"""Where channels lie, and weights of losses."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of vector-quantize-pytorch's ``SimVQ``, with its defaults."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    return {
        "num_codes": config["codebook_size"],
        "dim": config["dim"],
        "frozen_dim": config.get("frozen_codebook_dim"),
        "estimator": "rotation" if config.get("rotation_trick", True) else "straight_through",
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "codebook_size": arguments["num_codes"],
        "dim": arguments["dim"],
        "frozen_codebook_dim": arguments["frozen_dim"],
        "rotation_trick": arguments["estimator"] == "rotation",
    }


class SimVQ(Block):
    """Replaces each feature by the nearest of K codes, which are a linear map of a codebook that stays as it was drawn.

    Losses while training, unweighted: ``codebook`` pulls the codes to the features, ``commitment`` the features to the codes.
    The paper weights them 1 and 0.25.

    Args:
        num_codes: K.
        dim: D.
        frozen_dim: F; None for D.
        estimator: how gradients pass to the features.

    Source: SimVQ (arXiv 2411.02038); lucidrains' vector-quantize-pytorch.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import SimVQ
        >>> quantizer = SimVQ(num_codes=32, dim=4)
        >>> latents = quantizer(torch.randn(2, 3, 3, 4))
        >>> torch.allclose(quantizer.vectors[latents.ids], latents.z, atol=1e-6)
        True
        >>> latents.loss["codebook"].backward()  # moves the linear map, which all codes share
        >>> quantizer.frozen.requires_grad
        False
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "vector_quantize_pytorch",
            (Rule("frozen_codebook", "frozen"), Rule("code_transform.weight", "transform.weight")),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    frozen: Tensor

    def __init__(
        self, *, num_codes: int, dim: int, frozen_dim: int | None = None, estimator: Estimator = "straight_through"
    ) -> None:
        super().__init__()
        check_estimator(estimator)
        width = frozen_dim or dim
        self.estimator: Estimator = estimator
        self.register_buffer("frozen", torch.randn(num_codes, width) * width**-0.5)
        self.transform = nn.Linear(width, dim, bias=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: K."""
        return (len(self.frozen),)

    @property
    def vectors(self) -> Float[Tensor, "K D"]:
        """The codes as they are now."""
        return self.transform(self.frozen)

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        check(features, wrong_width(features, self.transform.out_features))
        codes = self.vectors
        ids = nearest_code(features.flatten(0, -2), codes).view(features.shape[:-1])
        chosen = embedding(ids, codes).to(features.dtype)
        if not self.training:
            return Latents(z=in_evaluation(features, chosen), ids=ids)
        losses = {
            "codebook": squared_distance(chosen, features.detach()),
            "commitment": squared_distance(features, chosen.detach()),
        }
        return Latents(z=pass_gradients(features, chosen, self.estimator), ids=ids, loss=losses)

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Codes by number.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU).
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, len(self.frozen))
        return self.transform(embedding(ids, self.frozen))

    @without_autocast
    def scores(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N K"]:
        """How near each code is: the negative squared distance. Gradients flow to features and codes."""
        codes = self.vectors
        return 2 * product(features, codes.T) - features.square().sum(-1, keepdim=True) - codes.square().sum(-1)

    def assign(self, features: Float[Tensor, "*N D"], temperature: float = 1.0) -> Float[Tensor, "*N K"]:
        """A soft choice of codes, with weights that sum to one; harder at smaller temperatures."""
        return (self.scores(features) / temperature).softmax(dim=-1)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """The mixture of codes with these weights."""
        return product(weights, self.vectors)
