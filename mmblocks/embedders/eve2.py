"""EVEv2's patch stem: an image straight to a language model's tokens, with two convolutions and no encoder.

Shapes: H and W pixels, h and w tokens, N tokens of all images, D width of the trunk.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.embedders.eve_presets import EVE2_HARMLESS, eve_preprocessor
from mmblocks.layers.images.image_tokens import Images, check_images, grid_layout, grid_of, pack, sizes
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, normalise, pixels_of
from mmblocks.layers.images.resizing import fit_area, upright_rgb
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv2's config. Strides and size stand in a preset that it names, and that is not published beside the weights.

    Entries of such a preset may stand in the config itself, and come first.
    """
    check_model(config, "eve-qwen2", "eve-llama3", "eve-llama")
    arguments = {"dim": config["hidden_size"], "hidden_dim": config["mm_hidden_size"]}
    tower = config.get("mm_vision_tower")
    if tower is not None and not _PRESET_ENTRIES.keys() <= config.keys():
        preset = re.search(r"eve-anyratio-res(\d+)-patch(\d+)", tower)
        if preset is None:
            raise ValueError(
                f"mm_vision_tower is {tower!r}; accepted: a name such as openai/eve-anyratio-res1600-patch16,"
                f" or the preset's entries {', '.join(_PRESET_ENTRIES)} in config.json"
            )
        arguments |= {"max_size": int(preset[1]), "patch_size": int(preset[2])}
    return arguments | {ours: config[theirs] for theirs, ours in _PRESET_ENTRIES.items() if theirs in config}


_PRESET_ENTRIES = {"patch_stride": "patch_size", "dense_stride": "merge_size", "max_size": "max_size"}
"""Of the published preprocessor_config.json -> arguments."""


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """With the preset's entries beside the preset's name, which upstream looks up in folders of its own."""
    return {
        "model_type": "eve-qwen2",
        "architectures": ["EVEQwen2ForCausalLM"],
        "hidden_size": arguments["dim"],
        "mm_hidden_size": arguments["hidden_dim"],
        "mm_vision_tower": f"openai/eve-anyratio-res{arguments['max_size']}-patch{arguments['patch_size']}",
        **{theirs: arguments[ours] for theirs, ours in _PRESET_ENTRIES.items()},
    }


class EVE2ImageArguments(TypedDict, total=False):
    """The arguments of ``EVE2Images``, for the signatures of classes that pass them on."""

    patch_size: int
    merge_size: int
    max_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class EVE2Images:
    """How EVEv2 reads images: the arguments that ``EVE2PatchEmbedding`` and ``EVE2`` share.

    Attributes:
        patch_size: pixels a side of the first convolution's patches.
        merge_size: patches a side that the second convolution merges into a token.
        max_size: square root of the area, in pixels, to which ``preprocess`` brings an image (800 or 1600 in EVEv2).
        mean, std: what pixels are normalised with.
    """

    patch_size: int = 16
    merge_size: int = 2
    max_size: int = 1600
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class EVE2PatchEmbedding(Block):
    """Convolution, GELU, convolution; a class token opens each image and a split token closes each row.

    An image of H x W pixels becomes ``1 + h * (w + 1)`` tokens, ``h = H / (patch_size * merge_size)``.

    Args:
        dim: width of the trunk.
        hidden_dim: width between the two convolutions.
        images: the arguments of ``EVE2Images``.

    Source: EVEv2 (arXiv 2502.06788; baaivision/EVE).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import EVE2PatchEmbedding
        >>> embedder = EVE2PatchEmbedding(dim=16, hidden_dim=8, patch_size=4, merge_size=2)
        >>> tokens = embedder([torch.rand(3, 16, 24), torch.rand(3, 8, 8)])  # images of any size
        >>> tuple(tokens.embeds.shape), tokens.image.bincount().tolist()
        ((12, 16), [9, 3])
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "eve2",
            (
                Rule("model.vision_tower.patch_embedding.0.*", "patch.*"),
                Rule("model.vision_tower.patch_embedding.2.*", "merge.*"),
                Rule("model.vision_tower.class_embedding", "class_token"),
                Rule("model.vision_tower.split_embedding", "split_token"),
            ),
            ignored=("model.layers.*", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
            config=_config,
            published_config=_published_config,
            harmless=EVE2_HARMLESS,
            preprocessor=eve_preprocessor(_PRESET_ENTRIES),
        ),
    )
    shorthand = EVE2Images

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int = 1024,
        **images: Unpack[EVE2ImageArguments],
    ) -> None:
        super().__init__()
        own = EVE2Images(**images)
        self.dim, self.mean, self.std = dim, own.mean, own.std
        self.max_size = own.max_size
        self.token_size = own.patch_size * own.merge_size
        self.patch = nn.Conv2d(3, hidden_dim, own.patch_size, own.patch_size)
        self.merge = nn.Conv2d(hidden_dim, dim, own.merge_size, own.merge_size)
        self.class_token = nn.Parameter(torch.empty(dim).normal_(std=dim**-0.5))
        self.split_token = nn.Parameter(torch.empty(dim).normal_(std=dim**-0.5))

    def forward(self, images: Images) -> VisionTokens:
        """Images with pixels in [0, 1] and sides that are multiples of ``token_size``, each of its own size.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: no image, a size that is no multiple, or pixels that are no RGB in [0, 1].
        """
        images = check_images(images, self.patch.weight.dtype)
        layouts = [self.layout(*size) for size in sizes(images)]
        classes = self.class_token.expand(len(images), -1)
        return pack(layouts, self._patch_tokens(images), newline=self.split_token, classes=classes)

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: if a side is no positive multiple of ``token_size``.
        """
        return grid_layout(*grid_of(height, width, self.token_size), class_token=True, newline=True)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes to an area of about ``max_size`` squared, each side rounded up to a multiple of ``token_size``.

        Raises:
            ValueError: an image without pixels.

        Source: ``process_images`` of baaivision/EVE (EVEv2); enlarges small images too.
        """
        image = upright_rgb(image)
        height, width = fit_area(image.height, image.width, multiple=self.token_size, side=self.max_size)
        return pixels_of(image.resize((width, height)))

    def _patch_tokens(self, images: Sequence[Tensor]) -> Tensor:
        """The patch tokens (N, D) of all images.

        Both convolutions have the stride of their kernel, so each is a linear map of patches, and images of any size
        go through it together.
        """
        size = {"p": self.patch.kernel_size[0], "q": self.patch.kernel_size[1]}
        merge = {"m": self.merge.kernel_size[0], "n": self.merge.kernel_size[1]}
        patches = torch.cat(
            [
                rearrange(normalise(image, self.mean, self.std), "c (h m p) (w n q) -> (h w) (m n) (c p q)", **size, **merge)
                for image in images
            ]
        )
        hidden = gelu(linear(patches.to(self.class_token), self.patch.weight.flatten(1), self.patch.bias))
        return linear(hidden.flatten(1), rearrange(self.merge.weight, "d c m n -> d (m n c)"), self.merge.bias)
