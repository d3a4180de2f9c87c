"""NEO's patch stem: two convolutions with a rotation by place between them, and no encoder.

Shapes: H and W pixels, P patches and N tokens of all images, E width between the convolutions, D width of the trunk.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.image_tokens import Images, check_images, grid_layout, grid_of, pack, positions, sizes
from mmblocks.layers.images.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, on_white, pixels_of
from mmblocks.layers.images.resizing import smart_resize, upright
from mmblocks.sequence.positions import rotary_table, rotate_interleaved
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """NEO's config, or that of its vision part alone."""
    vision = config.get("vision_config", config)
    check_model(vision, "neo_vision")
    only(vision, "num_channels", 3)
    ratio = _scalar(vision.get("downsample_ratio", 0.5))
    if "vision_config" in config:
        check_model(config, "neo_chat")
        only(config, "downsample_ratio", ratio)
        only(config, "patch_size", vision.get("patch_size", 16))
    return {
        "dim": int(_scalar(vision.get("llm_hidden_size", 2048))),
        "hidden_dim": vision.get("hidden_size", 1024),
        "patch_size": vision.get("patch_size", 16),
        "merge_size": int(1 / ratio),
        "rope_theta": vision.get("rope_theta_vision", 10000.0),
        "min_pixels": vision.get("min_pixels", 65536),
        "max_pixels": vision.get("max_pixels", 4194304),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    vision = {
        "model_type": "neo_vision",
        "architectures": ["NEOVisionModel"],
        "llm_hidden_size": arguments["dim"],
        "downsample_ratio": 1 / arguments["merge_size"],
        "hidden_size": arguments["hidden_dim"],
        "patch_size": arguments["patch_size"],
        "rope_theta_vision": arguments["rope_theta"],
        "min_pixels": arguments["min_pixels"],
        "max_pixels": arguments["max_pixels"],
    }
    return {"model_type": "neo_chat", "downsample_ratio": 1 / arguments["merge_size"], "vision_config": vision}


_HARMLESS = (
    *("llm_config.*", "max_position_embeddings_vision", "vision_config.max_position_embeddings_vision"),
    *("template", "use_backbone_lora", "use_llm_lora", "img_start_token_id", "img_context_token_id", "hidden_size"),
    *("tie_word_embeddings", "vision_config.tie_word_embeddings", "extra_num_layers(pre-buffer)"),
    *("extra_num_layers", "loss_reduction"),
)
"""Of the language model, and how long upstream's tables of angles are."""


def _scalar(value: float | Sequence[float]) -> float:
    """Published configs hold some numbers in lists of one."""
    return value[0] if isinstance(value, Sequence) else value


class NEOPatchEmbedding(Block):
    """Convolution, GELU, rotary embedding of the features themselves, convolution. Every token is a patch token.

    An image of H x W pixels becomes ``h * w`` tokens, ``h = H / (patch_size * merge_size)``.

    Args:
        dim: D.
        hidden_dim: E; a multiple of four, since one half is rotated by column and the other by row.
        patch_size: pixels a side of the first convolution's patches.
        merge_size: patches a side that the second convolution merges into a token.
        rope_theta: base of the angles; places count in patches.
        min_pixels, max_pixels: areas between which ``preprocess`` brings an image; published fine-tuning of the 9B takes up to
            16777216.

    Raises:
        ValueError: a ``hidden_dim`` that is no multiple of four.

    Source: NEO (arXiv 2510.14979; EvolvingLMMs-Lab/NEO).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import NEOPatchEmbedding
        >>> embedder = NEOPatchEmbedding(dim=8, hidden_dim=16)
        >>> tokens = embedder([torch.rand(3, 32, 64), torch.rand(3, 64, 64)])
        >>> tuple(tokens.embeds.shape), tokens.image.tolist()
        ((6, 8), [0, 0, 1, 1, 1, 1])
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "neo",
            (
                Rule("vision_model.embeddings.patch_embedding.*", "patch.*"),
                Rule("vision_model.embeddings.dense_embedding.*", "merge.*"),
            ),
            ignored=("language_model.*",),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int = 1024,
        patch_size: int = 16,
        merge_size: int = 2,
        rope_theta: float = 10000.0,
        min_pixels: int = 65536,
        max_pixels: int = 4194304,
    ) -> None:
        super().__init__()
        if hidden_dim % 4:
            raise ValueError(f"hidden_dim is {hidden_dim}; accepted: multiples of 4, since halves of it are rotated in pairs")
        self.dim = dim
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.token_size = patch_size * merge_size
        self.rope_theta = rope_theta
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.patch = nn.Conv2d(3, hidden_dim, patch_size, patch_size)
        self.merge = nn.Conv2d(hidden_dim, dim, merge_size, merge_size)

    def forward(self, images: Images) -> VisionTokens:
        """Images with pixels in [0, 1] and sides that are multiples of ``token_size``, each of its own size.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, a size that is no multiple, or pixels that are no RGB in [0, 1].
        """
        images = check_images(images, self.patch.weight.dtype)
        return self.embed([normalise(image, IMAGENET_MEAN, IMAGENET_STD) for image in images])

    def embed(self, values: Sequence[Float[Tensor, "3 _ _"]]) -> VisionTokens:
        """The tokens of images that are normalised already.

        Both convolutions have the stride of their kernel, so each is a linear map of patches, and images of any size go through it
        together. Patches lie window after window, as the second convolution reads them.
        """
        layouts = [self.layout(*size) for size in sizes(values)]
        pattern = "c (h m p) (w n q) -> (h w m n) (c p q)"
        sides = {"p": self.patch_size, "q": self.patch_size, "m": self.merge_size, "n": self.merge_size}
        patches = torch.cat([rearrange(image, pattern, **sides) for image in values])
        hidden = gelu(linear(patches.to(self.patch.weight), self.patch.weight.flatten(1), self.patch.bias))
        windows = rearrange(self._rotate(hidden, self._places(sizes(values))), "(n c) e -> n (c e)", c=self.merge_size**2)
        kernel = rearrange(self.merge.weight, "d e m n -> d (m n e)")
        return pack(layouts, linear(windows, kernel, self.merge.bias))

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: if a side is no positive multiple of ``token_size``.
        """
        return grid_layout(*grid_of(height, width, self.token_size))

    @weightless
    def preprocess(self, image: PILImage.Image, *, num_images: int = 1) -> Float[Tensor, "3 H W"]:
        """Resizes to multiples of ``token_size`` within the two areas; see ``smart_resize``. Transparency shows white.

        Args:
            image: any PIL image.
            num_images: how many the sample has: more than one share twice ``max_pixels``, as published.

        Raises:
            ValueError: an image without pixels, or an aspect above 200.
        """
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}; accepted: 1 or more")
        most = self.max_pixels if num_images == 1 else max(2 * self.max_pixels // num_images, self.min_pixels)
        image = on_white(upright(image))
        height, width = smart_resize(
            image.height, image.width, multiple=self.token_size, min_pixels=self.min_pixels, max_pixels=most
        )
        return pixels_of(image.resize((width, height)))

    def _places(self, images: Sequence[tuple[int, int]]) -> Int[Tensor, "P 2"]:
        """Row and column, in patches, of each patch of all images, window after window."""
        grids = [(height // self.token_size, width // self.token_size) for height, width in images]
        windows = positions(grids, self.merge.weight.device)
        inside = positions([(self.merge_size, self.merge_size)], windows.device)
        return (windows[:, None] * self.merge_size + inside).flatten(0, 1)

    def _rotate(self, hidden: Float[Tensor, "P E"], places: Int[Tensor, "P 2"]) -> Float[Tensor, "P E"]:
        """Turns the first half of the channels by column and the second by row, in float32."""
        half = hidden.shape[1] // 2
        tables = rotary_table(places.flip(1).T, half, self.rope_theta)
        halves = rearrange(hidden.float(), "p (two e) -> two 1 p e", two=2)
        return rearrange(rotate_interleaved(halves, tables), "two 1 p e -> p (two e)").to(hidden.dtype)
