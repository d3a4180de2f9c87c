"""Any image model of timm as an encoder: DINOv2, SigLIP, ConvNeXt, ...

Shapes: B images, H and W pixels, h and w places, M tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only, shown, stated, title
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import check_pixels, check_size, check_some, normalised_for, rgb_of
from mmblocks.layers.towers.foreign_towers import entry_of, fill_buffers, fitting_grid
from mmblocks.support.pickling import weightless

_CLASSIFIERS = tuple(
    f"{name}.{kind}" for name in ("head", "head.fc", "head_dist", "fc", "classifier") for kind in ("weight", "bias")
)
"""How timm's models name the classifier, which an encoder has none of."""


_WAYS = ("interpolation", "crop_pct", "crop_mode")
"""How ``preprocess`` brings an image to its size: entries of timm's pretrained_cfg, and arguments."""


def _config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Of a repository ``timm/...`` on the Hub. The oldest have the entries of pretrained_cfg at the top."""
    if not published:
        return {}
    cfg, options = published.get("pretrained_cfg", published), stated(published, "model_args", {})
    arguments: dict[str, Any] = {kind: tuple(cfg[kind]) for kind in ("mean", "std") if kind in cfg}
    arguments |= {way: cfg[way] for way in _WAYS if way in cfg}
    if "input_size" in cfg:
        channels, height, width = cfg["input_size"]
        if channels != 3:
            raise ValueError(f"{title(cfg, 'input_size')} is {shown(cfg['input_size'])}; accepted: three channels")
        # timm builds models of one size for the published one.
        arguments["image_size" if cfg.get("fixed_input_size") else "input_size"] = height, width
    if options.get("img_size") is not None:
        size = options["img_size"]
        arguments["image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    if options.get("dynamic_img_size"):
        arguments["any_size"] = True
    only(options, "num_classes", 0, cfg.get("num_classes"), published.get("num_classes"))
    only(options, "in_chans", 3)
    if options.get("global_pool") is not None:
        _check_pooling(published["architecture"], options["global_pool"])
    return {"name": published["architecture"], **arguments}


def _check_pooling(name: str, pooling: str) -> None:
    """Refuses pooling that is not the model's own: it moves the final norm of some models, and changes what ``embed`` gives."""
    import timm

    if not timm.is_model(name):
        return  # which is refused when the model is built
    try:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0)
            asked = timm.create_model(name, num_classes=0, global_pool=pooling)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"global_pool of the model_args is {shown(pooling)}; accepted: what {name} takes ({error})") from error
    ways = {way for way in (entry_of(own, "global_pool"), entry_of(asked, "global_pool")) if isinstance(way, str)}
    if repr(own) != repr(asked) or len(ways) > 1:
        raise ValueError(f"global_pool of the model_args is {shown(pooling)}; accepted: that of {name} where nothing is said")


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """With what timm knows of a tag in words, since its tags are not read again."""
    import timm

    architecture, _, tag = arguments["name"].partition(".")
    known = timm.get_pretrained_cfg(arguments["name"])
    cfg: dict[str, Any] = {"tag": tag} if tag else {}
    for name in ("mean", "std", *_WAYS):
        given = arguments[name] if arguments[name] is not None else entry_of(known, name)
        cfg |= {} if given is None else {name: given}
    size = arguments["input_size"] or (entry_of(known, "input_size") or (3, None))[1:]
    options: dict[str, Any] = {} if arguments["image_size"] is None else {"img_size": list(arguments["image_size"])}
    options |= {"dynamic_img_size": True} if arguments["any_size"] else {}
    cfg |= {} if len(size) < 2 else {"input_size": [3, *size]}
    return {"architecture": architecture, "num_classes": 0, "pretrained_cfg": cfg, "model_args": options}


_OF_A_CHECKPOINT = (
    *("architecture", "tag", "url", "file", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "state_dict", "license"),
    *("description", "origin_url", "paper_name", "paper_ids", "notes", "num_classes", "label_offset", "labels", "label_names"),
    *("label_descriptions", "first_conv", "classifier", "min_input_size", "test_input_size", "test_crop_pct", "pool_size"),
    *("test_pool_size", "fixed_input_size", "crop_border_pixels"),
)
_HARMLESS = (
    *("num_features", "global_pool", *_OF_A_CHECKPOINT),
    *(f"pretrained_cfg.{name}" for name in _OF_A_CHECKPOINT),
    *("label_descriptions.*", "pretrained_cfg.label_descriptions.*", "model_args.num_classes"),
    *(f"model_args.{name}_rate" for name in ("drop", "proj_drop", "attn_drop", "pos_drop", "patch_drop")),
)
"""Where a checkpoint comes from, its classifier, and how it was tested on images of another size."""


class TimmEncoder(Block):
    """Pixels to the features of one layer of a timm model.

        encoder = TimmEncoder.from_pretrained("folder of timm/vit_base_patch16_siglip_224.webli")
        encoder = TimmEncoder(name="vit_base_patch14_dinov2", any_size=True)      # random weights

    ``encoder.model`` is timm's own model, without its classifier.

    Args:
        name: as ``timm.create_model`` knows it; a tag after a dot says whose mean and standard deviation are meant.
        image_size: height and width for a model of one size that shall have another; None for its own.
        any_size: interpolate learned positions to the images that come, rather than take one size. For vision transformers;
            convolutional networks take any size as it is.
        feature_layer: the block, or stage, whose states are the features: from 0, or from the end.
        feature_norm: let them through the model's final norm.
        mean, std: what pixels are normalised with; None for those that timm has for ``name``.
        interpolation, crop_pct, crop_mode: how ``preprocess`` brings an image to its size, in timm's words; None likewise.
        input_size: height and width of what it gives, for a model that takes others too; None likewise.

    Raises:
        ValueError: a name or tag that timm does not know; a model that gives no features on a grid, that cannot have another
            size, or without such a layer.

    Source: huggingface/pytorch-image-models.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import TimmEncoder
        >>> encoder = TimmEncoder(name="test_vit", any_size=True).eval()
        >>> tuple(encoder(torch.rand(1, 3, 32, 64)).shape), encoder.grid_of(32, 64)
        ((1, 2, 4, 64), (2, 4))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "timm",
            (Rule("*", "model.*"),),
            ignored=_CLASSIFIERS,
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
            unwrap="state_dict|model|",
        ),
    )

    def __init__(
        self,
        *,
        name: str,
        image_size: tuple[int, int] | None = None,
        any_size: bool = False,
        feature_layer: int = -1,
        feature_norm: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = _built(name, image_size, any_size)
        stages = self.model.feature_info
        num_layers = len(stages)
        if not -num_layers <= feature_layer < num_layers:
            raise ValueError(f"feature_layer is {feature_layer}; accepted: from {-num_layers} to {num_layers - 1}")
        self.name = name
        self.feature_layer = feature_layer
        self.feature_norm = feature_norm
        self.dim = int(stages[feature_layer]["num_chs"])
        self.stride = int(stages[feature_layer]["reduction"])
        cfg = self.model.pretrained_cfg
        self.mean, self.std = mean or tuple(cfg["mean"]), std or tuple(cfg["std"])
        given = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
        self.ways = {way: cfg[way] if value is None else value for way, value in given.items()}
        self.input_size = tuple(cfg["input_size"][1:]) if input_size is None else input_size

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images; None where any multiples of ``stride`` will do."""
        patches = entry_of(self.model, "patch_embed")
        if not entry_of(patches, "strict_img_size"):
            return None
        height, width = patches.img_size
        return height, width

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the features of an image.

        Raises:
            ValueError: a size that the model does not take.
        """
        return fitting_grid(height, width, self.stride, self.image_size)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Features, of the layer and after the norm or not as the constructor was told.

        Args:
            pixels: in [0, 1].

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of a size that the model does not take.
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
        maps = self._intermediates(pixels, layers, normed)
        if self.feature_layer in layers:
            own = maps[list(layers).index(self.feature_layer)]
            if tuple(own.shape[2:]) != self.grid_of(pixels.shape[2], pixels.shape[3]):
                raise ValueError(self._unfit(pixels))
        return [features.permute(0, 2, 3, 1) for features in maps]

    def tokens(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """The tokens before the patches, such as a class token, then the patches row by row: layer and norm as for ``forward``.

        Raises:
            TypeError, ValueError: as ``forward``; also a model without such tokens.
        """
        if not entry_of(self.model, "num_prefix_tokens"):
            raise ValueError(f"{self.name} has no class token; accepted: its features on a grid, from forward")
        ((patches, before),) = self._intermediates(pixels, (self.feature_layer,), self.feature_norm, return_prefix_tokens=True)
        return torch.cat([before, patches.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """One vector for each image: what the model hands its classifier. Errors as for ``forward``."""
        return self.model(self._normalised(pixels))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as timm's own evaluation has it, with the model's filter and crop: of its own size where any size will do.

        Raises:
            ValueError: an image without pixels, or a mode that ``rgb_of`` refuses.
        """
        import timm.data

        own = entry_of(entry_of(self.model, "patch_embed"), "img_size")
        size = self.config["image_size"] or self.image_size or self.config["input_size"] or own or self.input_size
        check_size(image.height, image.width)
        library: Any = timm.data  # of which type checkers see little
        return library.create_transform((3, *size), mean=(0.0,) * 3, std=(1.0,) * 3, **self.ways)(rgb_of(image))

    def reset_buffers(self, device: torch.device) -> None:
        """What no checkpoint holds, such as rotary tables: as a model that is built anew has it."""
        options = (self.config["name"], self.config["image_size"], self.config["any_size"])
        fill_buffers(self.model, lambda: _built(*options), device)

    def _intermediates(self, pixels: Tensor, layers: Sequence[int], normed: bool, **options: bool) -> list[Any]:
        """timm sorts what is asked for, and gives each once."""
        count = len(self.model.feature_info)
        if not layers or not all(-count <= layer < count for layer in layers):
            raise ValueError(f"layers are {list(layers)}; accepted: at least one, each from {-count} to {count - 1}")
        indices = [layer % count for layer in layers]
        asked = sorted(set(indices))
        values = self._normalised(pixels)
        try:
            maps = self.model.forward_intermediates(
                values, indices=asked, norm=normed, stop_early=True, intermediates_only=True, **options
            )
        except (RuntimeError, AssertionError, IndexError) as error:  # of a model that takes few sizes and does not say which
            if torch.compiler.is_compiling() or tuple(pixels.shape[2:]) == self._built_for:
                raise
            raise ValueError(f"{self._unfit(pixels)} ({error})") from error
        return [maps[asked.index(index)] for index in indices]

    @property
    def _built_for(self) -> tuple[int, int]:
        height, width = self.config["image_size"] or self.model.pretrained_cfg["input_size"][1:]
        return height, width

    def _unfit(self, pixels: Tensor) -> str:
        height, width = self._built_for
        found = f"image is {pixels.shape[2]}x{pixels.shape[3]}, of which {self.name} makes no grid"
        return f"{found}; accepted: sizes that it takes, such as {height}x{width} (see image_size)"

    def _normalised(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, num_axes=4)
        check_some(pixels)
        self.grid_of(pixels.shape[2], pixels.shape[3])
        return normalised_for(self.model, pixels, self.mean, self.std)


def _built(name: str, image_size: tuple[int, int] | None, any_size: bool) -> Any:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"name is {name!r}, which timm does not know; accepted: of timm.list_models(), such as {_similar(name)}")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    options |= {"dynamic_img_size": True} if any_size else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise ValueError(f"name is {name!r}; accepted: a name of timm.list_pretrained() ({error})") from error
    except TypeError as error:
        given = f"image_size is {image_size}, any_size {any_size}"
        raise ValueError(f"{given}; accepted of {name}: neither, for timm's model has its own way with sizes ({error})") from error
    if entry_of(model, "forward_intermediates") is None:
        raise ValueError(f"name is {name!r}, a model that gives no features on a grid; accepted: one with forward_intermediates")
    return model


def _similar(name: str) -> str:
    import difflib

    import timm

    names = timm.list_models()
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3])
