"""A plain linear patch embedding, of pixels or of a tokenizer's latents.

Shapes: H and W pixels or latents, N tokens of all images, D width of the trunk.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.layers.images.image_tokens import check_images, grid_layout, grid_of, pack, sizes
from mmblocks.layers.images.pixels import normalise
from mmblocks.sequence.tokens import ImageLayout, VisionTokens
from mmblocks.support.pickling import weightless


def _omnigen_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of OmniGen's own files, whose config is the language model's, alone or beside its own arguments, or of diffusers'."""
    language, own = config.get("phi3", config), config.get("omnigen", config)
    check_model(language, "phi3")
    only(config, "_class_name", "OmniGenTransformer2DModel")
    dim = language.get("hidden_size", 3072)
    table = {"table_size": own.get("pos_embed_max_size", 192), "interpolation": own.get("pe_interpolation", 1.0)}
    return {
        "dim": dim,
        "patch_size": own.get("patch_size", 2),
        "channels": own.get("in_channels", 4),
        "positions": SinCosPositions(dim=dim, base_size=64, **table),
    }


def _published_omnigen(arguments: Arguments, *, diffusers: bool) -> dict[str, Any]:
    """OmniGen's own code reads the language model's config alone: that its other sizes are as published."""
    check_arguments(arguments, bias=True, mean=None, std=None)
    positions = arguments["positions"]
    if not isinstance(positions, SinCosPositions):
        raise ValueError(f"positions is {type(positions).__name__}; accepted in this layout: SinCosPositions")
    check_arguments(positions.config, dim=arguments["dim"], theta=10000.0, base_size=64)
    common = {"patch_size": arguments["patch_size"], "in_channels": arguments["channels"]}
    common |= {"hidden_size": arguments["dim"], "pos_embed_max_size": positions.config["table_size"]}
    if diffusers:
        check_arguments(positions.config, interpolation=1.0)
        return {"_class_name": "OmniGenTransformer2DModel", **common}
    interpolation = {"pe_interpolation": positions.config["interpolation"]}
    return {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], **common, **interpolation}


_OMNIGEN_HARMLESS = (
    *LANGUAGE_MODEL,
    *("phi3.*", "num_layers", "rope_base", "time_step_dim", "flip_sin_to_cos", "downscale_freq_shift", "timestep_activation_fn"),
)
"""Of the trunk and of the steps' embedding, in both forms."""


def _table_difference(table: Tensor, arguments: Mapping[str, Any]) -> float:
    """Of the table of positions in a file from what ``positions`` computes, where it computes something."""
    positions = arguments["positions"]
    return positions.difference(table) if isinstance(positions, SinCosPositions) else 0.0


def _omnigen(name: str, theirs: str, table: str, ignored: tuple[str, ...]) -> Layout:
    diffusers = "diffusers" in name
    return Layout(
        name,
        (Rule(f"{theirs}.*", "patch.*"),),
        ignored=ignored,
        config=_omnigen_config,
        published_config=partial(_published_omnigen, diffusers=diffusers),
        derived=(Derived(table, _table_difference),),
        harmless=_OMNIGEN_HARMLESS,
        weights="diffusion_pytorch_model" if diffusers else "model",
    )


_OMNIGEN_REST = ("time_token.*", "t_embedder.*", "final_layer.*", "llm.*")
_DIFFUSERS_REST = tuple(
    f"{part}.*" for part in ("time_token", "t_embedder", "layers", "norm", "norm_out", "proj_out", "embed_tokens")
)
_DIFFUSERS_TABLE = "patch_embedding.pos_embed"


class LinearPatchEmbedding(Block):
    """Each patch through one linear map, and its place added to it. Every token is a patch token.

    Args:
        dim: D.
        patch_size: values a side of a patch.
        channels: 3 for pixels, a tokenizer's width for latents.
        bias: whether the linear map has one.
        positions: what is added, a Block of grids to vectors such as ``SinCosPositions`` or ``LearnedPositions``; None for
            nothing, where the trunk turns queries and keys by place.
        mean, std: per channel. With them images are pixels in [0, 1]; without, values are taken as they are.

    Raises:
        ValueError: one of ``mean`` and ``std`` without the other, or for anything but three channels.

    The layouts read the two of OmniGen: that of the latents to be denoised, and, in those whose name ends in "-input", that of the
    latents of input images. Both fit the same files, so ``layout`` has to be named.

    Source: ViT (arXiv 2010.11929); OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import LinearPatchEmbedding
        >>> from mmblocks.layers import SinCosPositions
        >>> embedder = LinearPatchEmbedding(dim=8, patch_size=2, channels=4, positions=SinCosPositions(dim=8))
        >>> tokens = embedder([torch.randn(4, 6, 8), torch.randn(4, 2, 2)])
        >>> tuple(tokens.embeds.shape), tokens.image.bincount().tolist()
        ((13, 8), [12, 1])
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        _omnigen("omnigen", "x_embedder.proj", "pos_embed", ("input_x_embedder.*", *_OMNIGEN_REST)),
        _omnigen("omnigen-input", "input_x_embedder.proj", "pos_embed", ("x_embedder.*", *_OMNIGEN_REST)),
        _omnigen(
            "omnigen-diffusers",
            "patch_embedding.output_image_proj",
            _DIFFUSERS_TABLE,
            ("patch_embedding.input_image_proj.*", *_DIFFUSERS_REST),
        ),
        _omnigen(
            "omnigen-diffusers-input",
            "patch_embedding.input_image_proj",
            _DIFFUSERS_TABLE,
            ("patch_embedding.output_image_proj.*", *_DIFFUSERS_REST),
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        patch_size: int,
        channels: int = 3,
        bias: bool = True,
        positions: Block | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None) or (mean is not None and channels != 3):
            raise ValueError(f"mean is {mean}, std {std}, channels {channels}; accepted: both for three channels, or neither")
        self.dim = dim
        self.patch_size = patch_size
        self.channels = channels
        self.mean = mean
        self.std = std
        self.patch = nn.Conv2d(channels, dim, patch_size, patch_size, bias=bias)
        self.positions = positions

    def forward(self, images: Sequence[Float[Tensor, "_ _ _"]] | Float[Tensor, "_ _ _ _"]) -> VisionTokens:
        """Images or latents (channels, H, W) with sides that are multiples of ``patch_size``, each of its own size.

        Raises:
            TypeError: values that are not floating point.
            ValueError: no image, another number of channels, a size that is no multiple; or, where they are pixels, values
                outside [0, 1].
        """
        if self.mean is None or self.std is None:
            images = self._checked(images)
        else:
            images = [normalise(image, self.mean, self.std) for image in check_images(images, self.patch.weight.dtype)]
        layouts = [self.layout(*size) for size in sizes(images)]
        sides = {"p": self.patch_size, "q": self.patch_size}
        patches = torch.cat([rearrange(image, "c (h p) (w q) -> (h w) (c p q)", **sides) for image in images])
        embeds = linear(patches.to(self.patch.weight), self.patch.weight.flatten(1), self.patch.bias)
        if self.positions is not None:
            grids = [(height // self.patch_size, width // self.patch_size) for height, width in sizes(images)]
            embeds = embeds + self.positions(grids).to(embeds)
        return pack(layouts, embeds)

    @weightless
    def layout(self, height: int, width: int) -> ImageLayout:
        """The tokens of an image of this size.

        Raises:
            ValueError: if a side is no positive multiple of ``patch_size``.
        """
        return grid_layout(*grid_of(height, width, self.patch_size))

    def _checked(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        if isinstance(images, Tensor) and images.ndim != 4:
            shapes = f"({self.channels}, H, W), or a batch (B, {self.channels}, H, W)"
            raise ValueError(f"images have shape {tuple(images.shape)}; accepted: a list of {shapes}")
        if len(images) == 0:
            raise ValueError("images is empty; accepted: at least one")
        for image in images:
            if not image.is_floating_point():
                raise TypeError(f"an image is {image.dtype}; accepted: floating point")
            if image.ndim != 3 or image.shape[0] != self.channels:
                raise ValueError(f"an image has shape {tuple(image.shape)}; accepted: ({self.channels}, H, W)")
        return list(images)
