"""The image tower of any CLIP that open_clip knows by name: CLIP, SigLIP, EVA, ConvNeXt, ...

Shapes: B images, H and W pixels, h and w places, M tokens, D width, E width of the embedding that images and texts share.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only, plain, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.encoders.open_clip_models import known_ways, matching_names, model_config, quick_gelu
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, check_pixels, check_size, check_some, normalised_for, rgb_of
from mmblocks.layers.towers.foreign_towers import entry_of, fill_buffers, fitting_grid
from mmblocks.support.pickling import weightless

_BESIDE_VISUAL = (
    *("text.*", "logit_scale", "logit_bias"),
    *("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "attn_mask"),
)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a repository of open_clip on the Hub. The model is known by its image tower, whatever its size of images."""
    if not config:
        return {}
    model, ways = dict(plain(config["model_cfg"])), stated(config, "preprocess_cfg", {})
    only(ways, "mode", "RGB")
    only(ways, "fill_color", 0)
    names = matching_names(model)
    if not names:
        raise ValueError("model_cfg is of a tower that open_clip knows by no name; accepted: those of open_clip.list_models()")
    size = _pair(model["vision_cfg"].get("image_size", 224))
    return {
        "name": names[0],
        "image_size": None if size == _pair(model_config(names[0])["vision_cfg"].get("image_size", 224)) else size,
        "mean": tuple(ways.get("mean", CLIP_MEAN)),
        "std": tuple(ways.get("std", CLIP_STD)),
        "interpolation": ways.get("interpolation", "bicubic"),
        "resizing": ways.get("resize_mode", "shortest"),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    model = model_config(arguments["name"])
    if arguments["image_size"] is not None:
        height, width = arguments["image_size"]
        model["vision_cfg"]["image_size"] = height if height == width else [height, width]
    if quick_gelu(arguments["name"], arguments["weights"]):
        model["quick_gelu"] = True
    ways = dict(zip(_WAYS, known_ways(arguments["name"], arguments["weights"], *(arguments[way] for way in _WAYS)), strict=True))
    return {"model_cfg": model, "preprocess_cfg": {"resize_mode": ways.pop("resizing"), **ways}}


_WAYS = ("mean", "std", "resizing", "interpolation")


class OpenClipEncoder(Block):
    """Pixels to the features of one layer of an open_clip image tower, or to embeddings.

        encoder = OpenClipEncoder.from_pretrained("open_clip_model.safetensors", name="ViT-B-16-SigLIP")
        encoder = OpenClipEncoder(name="ViT-L-14", weights="openai")               # random weights

    A file of the whole model will do. ``encoder.model`` is open_clip's own tower; that of the texts is built beside it and dropped.

    Args:
        name: as ``open_clip.create_model`` knows it.
        weights: the published weights (open_clip's ``pretrained``) whose mean, standard deviation and way of resizing are meant,
            and whose GELU: some were trained with QuickGELU. None where all that are known of ``name`` agree, with the GELU of
            ``name``. Nothing is downloaded.
        image_size: height and width, for a tower that shall have another size; None for its own.
        feature_layer: the block, or stage, whose states are the features: from 0, or from the end.
        feature_norm: let them through the tower's final norm.
        mean, std: what pixels are normalised with; None for those of ``weights``.
        resizing, interpolation: how ``preprocess`` brings an image to its size, in open_clip's words; None likewise.

    Raises:
        ValueError: a name or weights that open_clip does not know; known weights that differ in how they want their images; no
            such layer.

    Source: mlfoundations/open_clip.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import OpenClipEncoder
        >>> with torch.device("meta"):  # no weights
        ...     encoder = OpenClipEncoder(name="ViT-B-32", weights="openai")
        >>> encoder.dim, encoder.grid_of(224, 224)
        (768, (7, 7))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "open_clip",
            (Rule("visual.*", "model.*"),),
            ignored=_BESIDE_VISUAL,
            config=_config,
            published_config=_published_config,
            unwrap="state_dict|",
            config_file="open_clip_config.json",
            weights="open_clip_model",
        ),
    )

    def __init__(
        self,
        *,
        name: str,
        weights: str | None = None,
        image_size: tuple[int, int] | None = None,
        feature_layer: int = -1,
        feature_norm: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        resizing: str | None = None,
        interpolation: str | None = None,
    ) -> None:
        super().__init__()
        self.mean, self.std, self.resizing, self.interpolation = known_ways(name, weights, mean, std, resizing, interpolation)
        self.model = _built(name, image_size, quick_gelu(name, weights))
        self.num_layers, self.dim, self.stride = _sizes(self.model, feature_layer)
        self.name = name
        self.feature_layer = feature_layer
        self.feature_norm = feature_norm
        height, width = _pair(self.model.image_size)
        self.image_size = height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the features."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the features of an image.

        Raises:
            ValueError: a size that the tower does not take.
        """
        return fitting_grid(height, width, self.stride, self.image_size)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Features, of the layer and after the norm or not as the constructor was told.

        Args:
            pixels: in [0, 1], of ``image_size``.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of another size.
        """
        (features,) = self.states(pixels, (self.feature_layer,), normed=self.feature_norm)
        return features

    def states(
        self, pixels: Float[Tensor, "B 3 H W"], layers: Sequence[int], *, normed: bool = False
    ) -> list[Float[Tensor, "B h w D"]]:
        """The features of several layers, in the order asked for; ``normed`` lets all of them through the final norm.

        Raises:
            TypeError, ValueError: as ``forward``; also a layer that is not there.
        """
        maps, _ = self._intermediates(pixels, layers, normed)
        return [features.permute(0, 2, 3, 1) for features in maps]

    def tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """The tokens before the patches, such as the class token, then the patches row by row: layer and norm as for ``forward``.

        Raises:
            TypeError, ValueError: as ``forward``; also a tower without such tokens.
        """
        trunk = entry_of(self.model, "trunk") or self.model
        count = entry_of(trunk, "num_prefix_tokens")  # of timm's towers; open_clip's own have a class token or none
        if not (entry_of(trunk, "class_embedding") is not None if count is None else count):
            raise ValueError(f"{self.name} has no class token; accepted: its features on a grid, from forward")
        (patches,), (before,) = self._intermediates(pixels, (self.feature_layer,), self.feature_norm, output_extra_tokens=True)
        return torch.cat([before, patches.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """One embedding for each image, of any length: open_clip's ``encode_image``. Errors as for ``forward``."""
        embedding = self.model(self._normalised(pixels))
        return embedding[0] if isinstance(embedding, tuple) else embedding

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the weights want it, by open_clip's own evaluation: its middle (CLIP) or all of it, squashed (SigLIP).

        Raises:
            ValueError: an image without pixels, or a mode that ``rgb_of`` refuses.
        """
        import open_clip  # type: ignore[import-untyped]

        check_size(image.height, image.width)
        ways: dict[str, Any] = {"interpolation": self.interpolation, "resize_mode": self.resizing}
        return open_clip.image_transform(self.image_size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, **ways)(rgb_of(image))

    def reset_buffers(self, device: torch.device) -> None:
        """What no checkpoint holds, such as rotary tables: as a tower that is built anew has it."""
        name, image_size, weights = (self.config[option] for option in ("name", "image_size", "weights"))
        fill_buffers(self.model, lambda: _built(name, image_size, quick_gelu(name, weights)), device)

    def _intermediates(
        self, pixels: Tensor, layers: Sequence[int], normed: bool, **options: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The towers sort what is asked for, and give each once."""
        count = self.num_layers
        if not layers or not all(-count <= layer < count for layer in layers):
            raise ValueError(f"layers are {list(layers)}; accepted: at least one, each from {-count} to {count - 1}")
        indices = [layer % count for layer in layers]
        asked = sorted(set(indices))
        # A ResNet of open_clip's own has no norm and knows no such option.
        options |= {"normalize_intermediates": True} if normed else {}
        found = self.model.forward_intermediates(
            self._normalised(pixels), indices=asked, stop_early=True, intermediates_only=True, **options
        )
        places = [asked.index(index) for index in indices]
        before = found.get("image_intermediates_prefix", [])
        return [found["image_intermediates"][place] for place in places], [before[place] for place in places] if before else []

    def _normalised(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, num_axes=4)
        check_some(pixels)
        self.grid_of(pixels.shape[2], pixels.shape[3])
        return normalised_for(self.model, pixels, self.mean, self.std)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _no_warning(record: logging.LogRecord) -> bool:
    return "No pretrained weights loaded" not in record.getMessage()


def _built(name: str, image_size: tuple[int, int] | None, force_quick_gelu: bool) -> Any:
    import open_clip

    # A ResNet knows squares alone, by one side.
    square = image_size is not None and image_size[0] == image_size[1]
    size = image_size[0] if square and image_size is not None else image_size
    # It warns that weights are random, which is what is asked for here.
    logging.getLogger().addFilter(_no_warning)
    try:
        # The default device decides: under torch.device("meta") nothing is filled in.
        device = torch.get_default_device()
        options: dict[str, Any] = {"force_image_size": size, "force_quick_gelu": force_quick_gelu, "device": device}
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False, **options)
    finally:
        logging.getLogger().removeFilter(_no_warning)
    return model.visual


def _sizes(model: Any, layer: int) -> tuple[int, int, int]:  # three classes of a library that has no types
    """How many layers there are, and the width and pixels a side of the places of one of them."""
    if entry_of(model, "trunk") is not None:
        sizes = [(int(stage["num_chs"]), int(stage["reduction"])) for stage in model.trunk.feature_info]
    elif entry_of(model, "transformer") is not None:
        patch, _ = _pair(model.patch_size)
        sizes = [(model.transformer.width, patch)] * len(model.transformer.resblocks)
    else:  # a ResNet
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        sizes = [(model.conv3.out_channels, 4)] + [(stage[-1].conv3.out_channels, 4 * 2**n) for n, stage in enumerate(stages)]
    if not -len(sizes) <= layer < len(sizes):
        raise ValueError(f"feature_layer is {layer}; accepted: from {-len(sizes)} to {len(sizes) - 1}")
    return len(sizes), *sizes[layer]
