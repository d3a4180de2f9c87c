"""What the tokenizers over a pretrained image tower have in common: one size of image, CLIP's colours."""

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, pixels_of, rgb_of
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


class NoDecoder(nn.Module):
    """Stands where a method has no decoder of its own."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def forward(self, *inputs: Tensor) -> Tensor:
        """Raises ``ValueError`` with the reason."""
        raise ValueError(self.reason)


class TowerTokenizer(VisualTokenizer):
    """A tokenizer whose encoder is an image tower made for images of one size.

    Args:
        encoder: pixels, normalised as for CLIP, (B, 3, H, W) -> a class token, then the patches, (B, 1 + N, D).
        image_size: height and width, in pixels, that the tower takes.
        bottleneck, decoder, downsampling: as for ``VisualTokenizer``.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        image_size: tuple[int, int],
        bottleneck: nn.Module,
        decoder: nn.Module,
        downsampling: tuple[int, ...],
    ) -> None:
        super().__init__(
            encoder=encoder, bottleneck=bottleneck, decoder=decoder, downsampling=downsampling, mean=CLIP_MEAN, std=CLIP_STD
        )
        self.image_size = image_size
        self.only_size = image_size

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image in RGB, squashed (bicubic) to ``image_size`` whatever its aspect, as these methods were trained."""
        height, width = self.image_size
        return pixels_of(rgb_of(image).resize((width, height), PILImage.Resampling.BICUBIC))
