"""Index backpropagation: a codebook searched by dot product, of which every code gets a gradient at every step.

Shapes: B images, K codes, D width of a code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import Codebook
from mmblocks.tokenizers.bottlenecks.codebooks.estimators import in_evaluation
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import entropies, squared_distance

_HARMLESS = (
    "batch_maximization_weight",
    "beta",
    "entropy_temperature",  # without an entropy loss
    "sample_minimization_weight",
    "unknown_index",  # without remapped numbers
)
"""Weights of losses, and what counts with an option alone."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of IBQ's ``IndexPropagationQuantize``; ``cosine_similarity`` is an argument that its code never reads.

    The entropies are computed where it computes them.
    """
    if not config:  # the arguments are given to from_pretrained then
        return {}
    only(config, "l2_normalize", False)  # which Emu3.5's copy has
    entropy = config.get("use_entropy_loss", False)
    return {
        "num_codes": config["n_e"],
        "dim": config["e_dim"],
        "entropy_temperature": config.get("entropy_temperature", 0.01) if entropy else None,
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    temperature = arguments["entropy_temperature"]
    entropy = {"use_entropy_loss": True, "entropy_temperature": temperature}
    return {"n_e": arguments["num_codes"], "e_dim": arguments["dim"], **({} if temperature is None else entropy)}


class IndexBackpropagation(Codebook):
    """Replaces each feature by the code of the largest dot product; gradients pass through the softmax over all codes.

    Losses while training, unweighted: ``index`` (between features and chosen codes, with gradients to both and, through the
    softmax, to all codes), ``commitment`` (to the features alone) and ``codebook`` (to the chosen codes alone). Training holds
    N x K weights; evaluation does not.

    Args:
        num_codes: K.
        dim: D.
        entropy_temperature: also return ``sample_entropy`` and ``codebook_entropy`` at this temperature.

    Published: the quantizer alone. The authors' yaml files name its arguments, as a config.json beside its weights does.

    Source: IBQ (arXiv 2412.02692; TencentARC/SEED-Voken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import IndexBackpropagation
        >>> quantizer = IndexBackpropagation(num_codes=32, dim=4).eval()
        >>> features = torch.randn(2, 3, 3, 4)
        >>> torch.equal(quantizer(features).ids, (features @ quantizer.codes.T).argmax(dim=-1))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ibq",
            (Rule("embedding.weight", "codes"),),
            config=_config,
            published_config=_published_config,
            harmless=(*_HARMLESS, "cosine_similarity"),
        ),
    )

    def __init__(self, *, num_codes: int, dim: int, entropy_temperature: float | None = None) -> None:
        super().__init__(num_codes=num_codes, dim=dim, metric="dot")
        self.entropy_temperature = entropy_temperature

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        ids = self.nearest(features)
        if not self.training:
            return Latents(z=in_evaluation(features, self.rows(ids)).to(features.dtype), ids=ids)
        scores = self.scores(features)
        soft = scores.softmax(dim=-1)
        hard = one_hot(ids, len(self.codes)).to(soft.dtype)
        z = (hard - soft.detach() + soft) @ self.codes.to(soft.dtype)
        chosen = self.rows(ids)
        losses = {
            "index": squared_distance(z, features),
            "commitment": squared_distance(features, chosen.detach()),
            "codebook": squared_distance(chosen, features.detach()),
        }
        if self.entropy_temperature is not None:
            logits = scores.flatten(0, -2) / self.entropy_temperature
            losses["sample_entropy"], losses["codebook_entropy"] = entropies(logits)
        return Latents(z=z.to(features.dtype), ids=ids, loss=losses)
