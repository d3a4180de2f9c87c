"""The autoencoders of diffusers as tokenizers: continuous latents of images and of clips.

Shapes: B images or clips, T frames, H and W pixels, D width of a latent.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import stated
from mmblocks.layers.images.pixels import check_some
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.scaled_latents import PerChannel, ScaledLatents, unscale
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

Config = Mapping[str, Any]
"""A diffusers model's own config, defaults included."""


class Kind(NamedTuple):
    """How a class of diffusers says in its config what a tokenizer has to know.

    Attributes:
        dim: the config's name of the latent's width.
        spatial: pixels a latent spans along H and W.
        temporal: frames a latent spans; None for images.
        frame_step: a clip has 1 + k times as many frames: the model drops others, or gives another number back.
        gaussian: whether the encoder gives a mean and a variance.
        leftovers: names in published configs that mean nothing to the class.
    """

    dim: str
    spatial: Callable[[Config], int]
    temporal: Callable[[Config], int] | None = None
    frame_step: Callable[[Config], int] | None = None
    gaussian: bool = True
    leftovers: tuple[str, ...] = ()


def _halvings(name: str) -> Callable[[Config], int]:
    """Sides are halved between the levels that a list of the config describes."""
    return lambda config: 2 ** (len(config[name]) - 1)


def _temporal_halvings(config: Config) -> int:
    return 2 ** sum(config["temperal_downsample"])  # diffusers' own spelling


def _four(config: Config) -> int:
    return 4  # The chunks are of four frames, whatever the config says.


KINDS: dict[str, Kind] = {
    "AutoencoderKL": Kind("latent_channels", _halvings("block_out_channels")),
    "AutoencoderDC": Kind("latent_channels", _halvings("encoder_block_out_channels"), gaussian=False),
    "AutoencoderTiny": Kind(
        "latent_channels", _halvings("encoder_block_out_channels"), gaussian=False, leftovers=("block_out_channels",)
    ),
    "AutoencoderKLWan": Kind(
        "z_dim",
        lambda config: 2 ** (len(config["dim_mult"]) - 1) * (config["patch_size"] or 1),
        _temporal_halvings,
        _four,
        leftovers=("clip_output",),
    ),
    "AutoencoderKLQwenImage": Kind("z_dim", _halvings("dim_mult"), _temporal_halvings, _four),
    "AutoencoderKLHunyuanVideo": Kind(
        "latent_channels",
        lambda config: config["spatial_compression_ratio"],
        lambda config: config["temporal_compression_ratio"],
        lambda config: config["temporal_compression_ratio"],
    ),
    "AutoencoderKLCogVideoX": Kind(
        "latent_channels",
        _halvings("block_out_channels"),
        lambda config: int(config["temporal_compression_ratio"]),
        # Its decoder takes the first latent for one frame only where their number is odd.
        lambda config: 2 * int(config["temporal_compression_ratio"]),
    ),
    "AutoencoderKLMochi": Kind(
        "latent_channels",
        lambda config: math.prod(config["spatial_expansions"]),
        lambda config: math.prod(config["temporal_expansions"]),
        lambda config: math.prod(config["temporal_expansions"]),
    ),
}
"""The classes that may be wrapped. A name in a file never reaches diffusers unless it stands here."""

_ATTENTION = tuple(
    Rule(f"{side}.{place}.attentions.{{}}.{theirs}.*", f"{side}.layers.{place}.attentions.{{}}.{ours}.*")
    for names in (
        {name: name for name in ("to_q", "to_k", "to_v", "to_out.0")},
        {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"},
    )
    for theirs, ours in names.items()
    for side, places in (("encoder", ("mid_block", "down_blocks.{}")), ("decoder", ("mid_block", "up_blocks.{}")))
    for place in places
)
"""AutoencoderKL's attention: as it is called and written, and as files from before diffusers 0.15 (Stable Diffusion's) have it."""

_RULES = (
    *_ATTENTION,
    Rule("encoder.*", "encoder.layers.*"),
    Rule("quant_conv.*", "encoder.project.*"),
    Rule("post_quant_conv.*", "decoder.project.*"),
    Rule("decoder.*", "decoder.layers.*"),
)


def _config(published: Config) -> dict[str, Any]:
    """A published config.json without diffusers' notes to itself. What the installed class does not take is left unread."""
    name = published["_class_name"]
    accepted = _parameters(_class(name))
    for leftover in KINDS[name].leftovers:
        published.get(leftover)
    return {"kind": name, "arguments": {key: published[key] for key in published if key in accepted}}


def _published_config(arguments: Config) -> dict[str, Any]:
    return {"_class_name": arguments["kind"], **_as_lists(arguments["arguments"])}


class DiffusersAutoencoder(VisualTokenizer):
    """An autoencoder of diffusers, with its own weights and numbers.

    ``encode(pixels)`` gives the mode; ``encode(pixels, sample=True, generator=...)`` or ``noise=...`` gives a draw, where the
    encoder gives a variance. z, mean and logvar are in the scale that diffusion models are trained on, which is the model's
    own: ``scaling_factor``, ``shift_factor``, and ``latents_mean`` and ``latents_std`` of its config.

        vae = DiffusersAutoencoder.from_pretrained("sd3", subfolder="vae")
        DiffusersAutoencoder(kind="AutoencoderKL", arguments={"latent_channels": 16})

    Clips have 1 + k n frames, of which the first becomes one latent (n differs: 4 for Wan, 8 for CogVideoX, 6 for Mochi). Wan
    and Qwen-Image clamp what they decode themselves, while training too.

    Args:
        kind: name of the class, one of ``KINDS``.
        arguments: its arguments, as its config.json has them; what is left out has diffusers' defaults.

    Source: huggingface/diffusers. The weight of ``kl`` is that of latent diffusion (arXiv 2112.10752).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import DiffusersAutoencoder
        >>> arguments = {"block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 2, "scaling_factor": 0.5}
        >>> tokenizer = DiffusersAutoencoder(kind="AutoencoderKL", arguments=arguments).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 8, 8))
        >>> tuple(latents.z.shape), tuple(tokenizer.decode(latents).shape)
        ((1, 8, 8, 2), (1, 3, 8, 8))
        >>> torch.equal(latents.z, latents.mean)  # the mode
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "diffusers",
            _RULES,
            config=_config,
            published_config=_published_config,
            harmless=("_use_default_values",),
            otherwise="A newer diffusers may know the entries",
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"kl": 1e-6}

    def __init__(self, *, kind: str, arguments: dict[str, Any]) -> None:
        cls = _class(kind)
        accepted = _parameters(cls)
        for name in arguments:
            if name not in accepted:
                raise ValueError(f"arguments of {kind}: unknown {name!r}; accepted: {', '.join(accepted)}")
        model = cls(**_as_lists(arguments))
        reading = KINDS[kind]
        dim = model.config[reading.dim]
        shift, scale = _affine(model.config)
        side = reading.spatial(model.config)
        super().__init__(
            encoder=DiffusersEncoder(model),
            bottleneck=ScaledLatents(dim=dim, gaussian=reading.gaussian, shift=shift, scale=scale),
            decoder=DiffusersDecoder(model, dim, shift, scale),
            downsampling=(reading.temporal(model.config), side, side) if reading.temporal else (side, side),
        )
        self.frame_step = reading.frame_step(model.config) if reading.frame_step else None

    @property
    def model(self) -> Any:
        """The diffusers model itself, to switch its tiling or slicing on. Its tensors are those of encoder and decoder."""
        return self.encoder.model

    def decode(self, latents: Latents | Float[Tensor, "B *grid D"]) -> Float[Tensor, "B 3 *size"]:
        """Latents, or their z alone, to pixels in [0, 1]; not clamped while training.

        Raises:
            ValueError: z of another width; ids, which a continuous tokenizer has not.
        """
        if not isinstance(latents, Latents) and latents.is_floating_point():
            latents = Latents(z=latents)
        return super().decode(latents)

    def check_size(self, *size: int) -> None:
        """Refuses sides that are no multiples, and for clips a number of frames that is not 1 + k n.

        Raises:
            ValueError: names the rule and the nearest size.
        """
        sides = size[-2:]
        frames = () if self.frame_step is None else (_nearest_frames(size[0], self.frame_step),)
        near = (*frames, *(max(round(side / step), 1) * step for side, step in zip(sides, self.downsampling[-2:], strict=True)))
        if size != near:
            rule = f"sides that are multiples of {self.downsampling[-1]}"
            if frames:
                rule = f"1 + {self.frame_step} k frames, and {rule}"
            raise ValueError(f"pixels are {'x'.join(map(str, size))}; accepted: {rule}, such as {'x'.join(map(str, near))}")


class _Half(nn.Module):
    """One side of a diffusers model. It is called through the whole, which cuts long clips and large images in pieces.

    The whole is not registered: each tensor has one name, and freezing one side leaves the other alone.
    """

    def __init__(self, model: Any, layers: nn.Module, project: nn.Module | None) -> None:
        super().__init__()
        self.layers = layers
        self.project = project
        self._whole = (model,)

    @property
    def model(self) -> Any:
        """The whole."""
        return self._whole[0]


class DiffusersEncoder(_Half):
    """Pixels in [-1, 1] to the means and log variances of latents, or to latents where there is no variance; unscaled."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, model.encoder, getattr(model, "quant_conv", None))

    def forward(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid C"]:
        """(B, *grid, 2 D), or (B, *grid, D).

        Raises:
            ValueError: no image.
        """
        check_some(pixels)
        (encoded,) = self.model.encode(pixels, return_dict=False)
        moments = encoded if isinstance(encoded, Tensor) else encoded.parameters
        return moments.movedim(1, -1)


class DiffusersDecoder(_Half):
    """Scaled latents of width ``dim`` to pixels in [-1, 1]."""

    def __init__(self, model: Any, dim: int, shift: PerChannel, scale: PerChannel) -> None:
        super().__init__(model, model.decoder, getattr(model, "post_quant_conv", None))
        self.dim = dim
        self.shift = shift
        self.scale = scale

    def forward(self, z: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B 3 *size"]:
        """Undoes the scale first.

        Raises:
            ValueError: z of another width, or of no image.
        """
        if z.shape[-1] != self.dim or not len(z):
            raise ValueError(f"z has shape {tuple(z.shape)}; accepted: (B, *grid, {self.dim}), of at least one image")
        (pixels,) = self.model.decode(unscale(z, self.shift, self.scale).movedim(-1, 1), return_dict=False)
        return pixels


def _class(kind: str) -> Any:
    """The class of that name, if the table has it."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; accepted: {', '.join(KINDS)}")
    import diffusers

    return getattr(diffusers, kind)


def _parameters(cls: Any) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)[1:]


def _as_lists(value: Any) -> Any:
    """As JSON gives it, which is what diffusers' constructors are used to."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _affine(config: Config) -> tuple[PerChannel, PerChannel]:
    """(shift, scale) such that z = (latent - shift) * scale.

    Raises:
        ValueError: half of the statistics per channel, or two different shifts.
    """
    mean, std, shift = config.get("latents_mean"), config.get("latents_std"), stated(config, "shift_factor", 0.0)
    factor = config.get("scaling_factor", 1.0)
    if (mean is None) != (std is None) or (mean is not None and shift):
        raise ValueError("accepted: latents_mean and latents_std together and no shift_factor, or neither of the two")
    if mean is None or std is None:
        return shift, factor
    return tuple(mean), tuple(factor / value for value in std)


def _nearest_frames(frames: int, step: int) -> int:
    return 1 + max(round((frames - 1) / step), 0) * step
