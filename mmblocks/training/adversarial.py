"""A discriminator that judges patches, the losses between it and a tokenizer, and its part in training one.

Shapes: B images, H and W pixels (T frames), h and w patches.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import AdamW

from mmblocks.block import Block
from mmblocks.training.tokenizer_losses import bfloat16_autocast, check_finite, frames
from mmblocks.training.tokenizer_recipe import AdversarySettings


class PatchDiscriminator(Block):
    """Strided convolutions that say of each of many overlapping patches how real it looks.

    Args:
        channels: width of the first layer; doubles with each layer, up to eight times.
        num_layers: how often the sides are halved. With 3, a patch is 70 x 70 pixels.

    Source: pix2pix (arXiv 1611.07004), as VQGAN (arXiv 2012.09841) has it.

    Examples:
        >>> import torch
        >>> from mmblocks.training import PatchDiscriminator
        >>> discriminator = PatchDiscriminator(channels=4, num_layers=2)
        >>> tuple(discriminator(torch.rand(2, 3, 32, 48)).shape)  # how real each patch looks
        (2, 1, 6, 10)
    """

    def __init__(self, *, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        self.smallest = 3 * 2**num_layers
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        widths = [channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            conv = nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(widths[layer]), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Pixels in [0, 1] to scores, larger for what looks real.

        Raises:
            ValueError: a side that is too small for one patch score.
        """
        if min(pixels.shape[-2:]) < self.smallest:
            size = f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            raise ValueError(f"pixels are {size}; accepted: sides of at least {self.smallest}, or a discriminator of fewer layers")
        return self.net(pixels * 2 - 1)


def hinge_discriminator_loss(real: Float[Tensor, "*N"], fake: Float[Tensor, "*N2"]) -> Float[Tensor, ""]:
    """Small where real scores are above 1 and fake ones below -1."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def hinge_generator_loss(fake: Float[Tensor, "*N"]) -> Float[Tensor, ""]:
    """Small where fakes look real."""
    return -fake.mean()


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""], generator_loss: Float[Tensor, ""], last_layer: nn.Parameter
) -> Float[Tensor, ""]:
    """What the generator's loss is multiplied by so that both losses pull equally hard at the decoder's last layer.

    The ratio of the gradients' norms, at most 10,000; no gradient flows through it. The graph of both losses is kept.

    Source: VQGAN (arXiv 2012.09841, equation 7; CompVis/taming-transformers, with its 1e-4 in the denominator).
    """
    (wanted,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (given,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(max=1e4).detach()


class LeCam(nn.Module):
    """Holds a discriminator's scores near their moving averages, which steadies it where images are few.

    Real scores shall not rise above the average fake one, nor fake ones fall below the average real one.

    Args:
        decay: share of the moving averages that a batch leaves as it is.

    Source: LeCam-GAN (arXiv 2104.03310; google/lecam-gan, where excesses alone are punished), with the averages that begin
    at zero of Open-MAGVIT2 (TencentARC/SEED-Voken).
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Float[Tensor, "*N"], fake: Float[Tensor, "*N2"]) -> None:
        """Moves the averages towards those of a batch. Called before the penalty of that batch."""
        self.real.lerp_(real.mean().to(self.real.dtype), 1 - self.decay)
        self.fake.lerp_(fake.mean().to(self.fake.dtype), 1 - self.decay)

    def forward(self, real: Float[Tensor, "*N"], fake: Float[Tensor, "*N2"]) -> Float[Tensor, ""]:
        """The penalty, to be added to the discriminator's loss."""
        return relu(real - self.fake).square().mean() + relu(self.real - fake).square().mean()


class Adversary:
    """A discriminator with its optimizer: what it tells the tokenizer, and what it learns itself.

    Args:
        discriminator: images (N, 3, H, W) in [0, 1] -> scores. Clips are judged frame by frame.
        optimizer: of the discriminator.
        last_layer: of the tokenizer's decoder.
        settings: of its losses.
        autocast: whether it computes in bfloat16.
    """

    def __init__(
        self, discriminator: Block, optimizer: AdamW, last_layer: nn.Parameter, settings: AdversarySettings, *, autocast: bool
    ) -> None:
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.last_layer = last_layer
        self.settings = settings
        self.autocast = autocast
        self.lecam = LeCam().to(last_layer.device)

    def generator_loss(self, rebuilt: Float[Tensor, "B 3 *size"], reconstruction_loss: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the tokenizer is told: ``generator`` loss and ``adaptive_weight``, and the loss with all weights."""
        loss = hinge_generator_loss(self._scores(rebuilt))
        weight = adaptive_weight(reconstruction_loss, loss, self.last_layer)
        return {"generator": loss, "adaptive_weight": weight}, self.settings.gan_weight * weight * loss

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
        if not self.settings.lecam:
            return losses, losses["discriminator"]
        self.lecam.update(scores, others)
        losses["lecam"] = self.lecam(scores, others)
        return losses, losses["discriminator"] + self.settings.lecam * losses["lecam"]

    def _scores(self, pixels: Tensor) -> Tensor:
        with bfloat16_autocast(self.autocast, pixels.device):
            scores: Tensor = self.discriminator(frames(pixels))
        return scores.to(pixels.dtype)
