"""The autoencoders of diffusers as tokenizers: continuous latents of images and of clips.

Shapes: B images or clips, T frames, H and W pixels, D width of a latent.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.layers.images.pixels import check_some
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.scaled_latents import PerChannel, ScaledLatents, unscale
from mmblocks.tokenizers.diffusers_kinds import KINDS, Config, affine
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

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

    Raises:
        ValueError: another kind, an argument that it does not take, or latents whose scale is 0 or no number.

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
            weights="diffusion_pytorch_model",
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
        shift, scale = affine(model.config)
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

    def __init__(self, model: nn.Module, layers: nn.Module, project: nn.Module | None) -> None:
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

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, model.get_submodule("encoder"), model._modules.get("quant_conv"))

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

    def __init__(self, model: nn.Module, dim: int, shift: PerChannel, scale: PerChannel) -> None:
        super().__init__(model, model.get_submodule("decoder"), model._modules.get("post_quant_conv"))
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

    return getattr(diffusers, kind)  # a name of KINDS


def _parameters(cls: type[Any]) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters)[1:]


def _as_lists(value: object) -> Any:
    """As JSON gives it, which is what diffusers' constructors are used to."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _nearest_frames(frames: int, step: int) -> int:
    return 1 + max(round((frames - 1) / step), 0) * step
