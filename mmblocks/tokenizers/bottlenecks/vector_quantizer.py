"""A codebook that learns by gradients: the two-term loss and the straight-through estimator of VQ-VAE.

Shapes: B images, D width of a code.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mmblocks.ops.nearest_code import Metric
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import Codebook
from mmblocks.tokenizers.bottlenecks.codebooks.losses import entropies, squared_distance


class VectorQuantizer(Codebook):
    """Replaces each feature by the nearest of K learned codes; gradients pass straight through.

    Losses while training, unweighted: ``codebook`` pulls codes to the features that chose them, ``commitment`` pulls features
    to the codes they chose. Taming's "legacy" sum weights them 0.25 and 1, the paper's 1 and 0.25.

    Args:
        num_codes: K.
        dim: D.
        metric: "l2", or "cosine" as in ViT-VQGAN and LlamaGen.
        entropy_temperature: also return ``sample_entropy`` (of one feature's soft choice; smaller is surer) and
            ``codebook_entropy`` (of the average choice; larger uses more codes), at this temperature.

    Source: VQ-VAE (arXiv 1711.00937); entropies as in MaskGIT (arXiv 2202.04200) and LlamaGen (arXiv 2406.06525).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import VectorQuantizer
        >>> quantizer = VectorQuantizer(num_codes=32, dim=4)
        >>> latents = quantizer(torch.randn(2, 7, 7, 4))
        >>> tuple(latents.ids.shape), sorted(latents.loss)
        ((2, 7, 7), ['codebook', 'commitment'])
        >>> torch.allclose(quantizer.lookup(latents.ids), latents.z, atol=1e-6)
        True
    """

    def __init__(self, *, num_codes: int, dim: int, metric: Metric = "l2", entropy_temperature: float | None = None) -> None:
        super().__init__(num_codes=num_codes, dim=dim, metric=metric)
        self.entropy_temperature = entropy_temperature

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Quantises the last axis.

        Raises:
            ValueError: if the width is not D, or a value is not finite.
        """
        ids = self.nearest(features)
        chosen = self.rows(ids)
        dtype, features = features.dtype, self.widened(features)
        if self.metric == "cosine":
            features = normalize(features, dim=-1)
        z = (features + (chosen - features).detach()).to(dtype)
        return Latents(z=z, ids=ids, loss=self._losses(features, chosen) if self.training else None)

    def _losses(self, features: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        losses = {
            "codebook": squared_distance(chosen, features.detach()),
            "commitment": squared_distance(features, chosen.detach()),
        }
        if self.entropy_temperature is not None:
            logits = self.scores(features).flatten(0, -2) / self.entropy_temperature
            losses["sample_entropy"], losses["codebook_entropy"] = entropies(logits)
        return losses
