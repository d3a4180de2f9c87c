"""Index backpropagation: a codebook searched by dot product, of which every code gets a gradient at every step.

Shapes: B images, K codes, D width of a code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.entropy import choice_entropies
from mmblocks.tokenizers.bottlenecks.codebook import Codebook
from mmblocks.tokenizers.bottlenecks.estimators import in_evaluation
from mmblocks.tokenizers.bottlenecks.full_precision import without_autocast
from mmblocks.tokens import Latents


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_codes": config["n_e"], "dim": config["e_dim"]}


class IndexBackpropagation(Codebook):
    """Replaces each feature by the code of the largest dot product; gradients pass through the softmax over all codes.

    Losses while training, unweighted: ``index`` (between features and chosen codes, with gradients to both and, through the
    softmax, to all codes), ``commitment`` (to the features alone) and ``codebook`` (to the chosen codes alone). Training holds
    N x K weights; evaluation does not.

    Args:
        num_codes: K.
        dim: D.
        entropy_temperature: also return ``sample_entropy`` and ``codebook_entropy`` at this temperature.

    Source: IBQ (arXiv 2412.02692; TencentARC/SEED-Voken).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("ibq", (Rule("embedding.weight", "codes"),), config=_config),)

    def __init__(self, *, num_codes: int, dim: int, entropy_temperature: float | None = None) -> None:
        super().__init__(num_codes=num_codes, dim=dim, metric="dot")
        self.entropy_temperature = entropy_temperature

    @without_autocast
    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis.

        Raises:
            ValueError: if a value is not finite.
        """
        ids = self.nearest(features)
        if not self.training:
            return Latents(z=in_evaluation(features, self.rows(ids)), ids=ids)
        scores = self.scores(features)
        soft = scores.softmax(dim=-1)
        hard = one_hot(ids, len(self.codes)).to(soft.dtype)
        z = (hard - soft.detach() + soft) @ self.codes
        chosen = self.rows(ids)
        losses = {
            "index": mse_loss(z, features),
            "commitment": mse_loss(features, chosen.detach()),
            "codebook": mse_loss(chosen, features.detach()),
        }
        if self.entropy_temperature is not None:
            logits = scores.flatten(0, -2) / self.entropy_temperature
            losses["sample_entropy"], losses["codebook_entropy"] = choice_entropies(logits)
        return Latents(z=z, ids=ids, loss=losses)
