"""Between PIL images, pixels in [0, 1] and a model's own normalised values."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor


def pixels_of(image: PILImage.Image) -> Float[Tensor, "3 H W"]:
    """A PIL image as RGB in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def normalise(pixels: Float[Tensor, "*B 3 H W"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "*B 3 H W"]:
    """(pixels - mean) / std, per colour."""
    shape = (3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def denormalise(values: Float[Tensor, "*B 3 H W"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "*B 3 H W"]:
    """The inverse of ``normalise``."""
    shape = (3, 1, 1)
    return values * values.new_tensor(std).view(shape) + values.new_tensor(mean).view(shape)
