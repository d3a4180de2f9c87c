"""The discriminator's part in training a tokenizer.

Shapes: B images, H and W pixels (T frames).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW

from mmblocks.block import Block
from mmblocks.training.adversarial import LeCam, adaptive_weight, hinge_discriminator_loss, hinge_generator_loss
from mmblocks.training.tokenizer_losses import bfloat16_autocast, check_finite, frames
from mmblocks.training.tokenizer_recipe import TokenizerRecipe


class Adversary:
    """A discriminator with its optimizer: what it tells the tokenizer, and what it learns itself.

    Args:
        discriminator: images (N, 3, H, W) in [0, 1] -> scores. Clips are judged frame by frame.
        optimizer: of the discriminator.
        last_layer: of the tokenizer's decoder.
        recipe: ``gan_weight``, ``lecam`` and ``autocast``.
    """

    def __init__(self, discriminator: Block, optimizer: AdamW, last_layer: nn.Parameter, recipe: TokenizerRecipe) -> None:
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.last_layer = last_layer
        self.recipe = recipe
        self.lecam = LeCam().to(last_layer.device)

    def generator_loss(self, rebuilt: Float[Tensor, "B 3 *size"], reconstruction_loss: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the tokenizer is told: ``generator`` loss and ``adaptive_weight``, and the loss with all weights."""
        loss = hinge_generator_loss(self._scores(rebuilt))
        weight = adaptive_weight(reconstruction_loss, loss, self.last_layer)
        return {"generator": loss, "adaptive_weight": weight}, self.recipe.gan_weight * weight * loss

    def discriminator_loss(
        self, real: Float[Tensor, "B 3 *size"], rebuilt: Float[Tensor, "B 3 *size"]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What the discriminator learns: ``discriminator`` loss and ``lecam``, and their weighted sum.

        Raises:
            NotFiniteError: scores with NaN or infinity; LeCam's averages have not seen them.
        """
        scores, others = self._scores(real), self._scores(rebuilt)
        check_finite(discriminator_scores=torch.stack([scores.sum(), others.sum()]))
        losses = {"discriminator": hinge_discriminator_loss(scores, others)}
        if not self.recipe.lecam:
            return losses, losses["discriminator"]
        self.lecam.update(scores, others)
        losses["lecam"] = self.lecam(scores, others)
        return losses, losses["discriminator"] + self.recipe.lecam * losses["lecam"]

    def _scores(self, pixels: Tensor) -> Tensor:
        with bfloat16_autocast(self.recipe.autocast, pixels.device):
            scores: Tensor = self.discriminator(frames(pixels))
        return scores.to(pixels.dtype)
