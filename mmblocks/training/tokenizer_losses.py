"""The losses between images and what a tokenizer made of them, and the check that keeps NaN out.

Shapes: B images, H and W pixels (T frames), N = B T frames.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training.tokenizer_recipe import LossSettings

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Images and what a tokenizer made of them, both (N, 3, H, W), to how different they look: (N,) or a scalar. The images lie in
[0, 1]; the others may leave it a little."""


class NotFiniteError(ArithmeticError):
    """NaN or infinity has turned up."""


def check_finite(**tensors: Tensor) -> None:
    """Stops a step that would corrupt weights.

    Raises:
        NotFiniteError: if a value is not finite; names the tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NotFiniteError(f"{name.replace('_', ' ')}: NaN or infinity")


def check_autocast(wanted: bool, device: torch.device) -> None:
    """Refuses what the device cannot do.

    Raises:
        ValueError: autocast on a device without bfloat16.
    """
    able = torch.amp.autocast_mode.is_autocast_available(device.type) and (device.type != "cuda" or torch.cuda.is_bf16_supported())
    if wanted and not able:
        raise ValueError(f"autocast is true; accepted: false on {device.type}, which has no bfloat16")


def bfloat16_autocast(wanted: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Convolutions and matrix products in bfloat16, if wanted."""
    context: AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16, enabled=wanted)
    return context


def frames(pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "N 3 H W"]:
    """The frames of clips as images; images as they are."""
    return rearrange(pixels, "b c t h w -> (b t) c h w") if pixels.ndim == 5 else pixels


def reconstruction_losses(
    pixels: Float[Tensor, "B 3 *size"],
    rebuilt: Float[Tensor, "B 3 *size"],
    settings: LossSettings,
    perceptual: Perceptual | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses that have a weight, by name and unweighted, and their weighted sum.

    Pixels in [0, 1] are compared on [-1, 1], the scale on which published weights were found.

    Raises:
        ValueError: no loss has a weight.
    """
    losses, weights = {}, {"l1": settings.l1, "l2": settings.l2}
    if settings.l1:
        losses["l1"] = 2 * l1_loss(rebuilt, pixels)
    if settings.l2:
        losses["l2"] = 4 * mse_loss(rebuilt, pixels)
    if settings.perceptual and perceptual is not None:
        losses["perceptual"] = perceptual(frames(pixels), frames(rebuilt)).mean()
        weights["perceptual"] = settings.perceptual
    if not losses:
        raise ValueError("l1 and l2 are 0, and there is no perceptual loss; accepted: at least one of them")
    return losses, torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def bottleneck_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float], demanded: Mapping[str, float]) -> Tensor | float:
    """The weighted sum of a bottleneck's own losses.

    Args:
        losses: what it returned.
        weights: by name; more than there are losses, since a class lists those of all its options.
        demanded: the weights that a person asked for, all of which must have a loss.

    Raises:
        ValueError: a loss without a weight, or a demanded weight without a loss.
    """
    missing, unknown = losses.keys() - weights.keys(), demanded.keys() - losses.keys()
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"the bottleneck returns losses that have no weight: {names}; give one, or 0, in loss_weights")
    if unknown:
        names, known = ", ".join(sorted(unknown)), ", ".join(sorted(losses)) or "none"
        raise ValueError(f"loss_weights has {names}; accepted: the losses that the bottleneck returns ({known})")
    return sum(weights[name] * loss for name, loss in losses.items())


def last_layer(tokenizer: VisualTokenizer, name: str | None) -> nn.Parameter:
    """The parameter of this name, or the last one of the decoder that is a matrix or a kernel.

    Raises:
        ValueError: no such parameter that requires gradients.
    """
    if name is None:
        kernels = [parameter for parameter in tokenizer.decoder.parameters() if parameter.ndim > 1 and parameter.requires_grad]
        if kernels:
            return kernels[-1]
        raise ValueError("the decoder has no kernel that requires gradients, for the discriminator's weight; name one: last_layer")
    named = dict(tokenizer.named_parameters())
    if name in named and named[name].requires_grad:
        return named[name]
    raise ValueError(f"last_layer is {name!r}; accepted: the name of a parameter of the tokenizer that requires gradients")
