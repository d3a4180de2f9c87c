"""The denoising networks of diffusers, conditioned on a sequence of vectors, all called alike.

Shapes: B images, M conditions, D their width, C channels of latents, h and w their sides, P width of the pooled vector.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.layers.towers.foreign_towers import fill_buffers
from mmblocks.pixels.denoiser_kinds import KINDS, Told

OF_AVERAGES = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
"""What diffusers notes beside weights that are averages over training."""


def class_of(kind: str) -> Any:
    """The class of that name, if the table has it.

    Raises:
        ValueError: it has not.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; accepted: {', '.join(KINDS)}")
    import diffusers  # here, since importing it takes a while

    return getattr(diffusers, kind)  # a name of KINDS


def parameters_of(kind: str) -> list[str]:
    """The names of the class's arguments."""
    return list(inspect.signature(class_of(kind).__init__).parameters)[1:]


def built(kind: str, arguments: Mapping[str, Any]) -> Any:
    """The network of diffusers.

    Raises:
        ValueError: an argument that the class has not.
    """
    for name in arguments:
        if name not in parameters_of(kind):
            raise ValueError(f"arguments: unknown {name!r}; accepted: {', '.join(parameters_of(kind))}")
    return class_of(kind)(**{name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()})


def _config(published: Mapping[str, Any]) -> dict[str, Any]:
    """A published config.json without diffusers' notes to itself."""
    kind = published["_class_name"]
    return {"kind": kind, "arguments": {name: published[name] for name in parameters_of(kind) if name in published}}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"_class_name": arguments["kind"], **arguments["arguments"]}


class DiffusersDenoiser(Block):
    """A denoising network of diffusers, with its own weights: of Stable Diffusion 1.5, 2, XL and 3, FLUX, SANA, Lumina-Image 2.

        unet = DiffusersDenoiser.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", subfolder="unet")
        dit = DiffusersDenoiser.from_pretrained("black-forest-labs/FLUX.1-dev", subfolder="transformer")

    What each class reads beside latents, time and conditions is in ``denoiser_kinds.KINDS``. Low-rank adapters are attached with
    ``checkpoints.surgery.attach_lora``, whose patterns begin with ``model.``.

    Args:
        kind: name of the class, one of ``KINDS``.
        arguments: its arguments, as its config.json has them; what is left out has diffusers' defaults.
        distilled_guidance: the scale that a network which was distilled with guidance is told (FLUX.1-dev); others read none.

    Attributes:
        channels: C.
        condition_dim: D.
        pooled_dim: P; 0 where no pooled vector is read.
        patch: rows and columns of latents that a token has.

    Raises:
        ValueError: another kind, an argument that diffusers' class has not, or a network that reads more than it is told here, or
            predicts another number of channels than it reads.

    Source: huggingface/diffusers.

    Examples:
        >>> import torch
        >>> from mmblocks.pixels import DiffusersDenoiser
        >>> heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2, "num_layers": 1}
        >>> widths = {"in_channels": 4, "out_channels": 4, "cross_attention_head_dim": 4, "cross_attention_dim": 8}
        >>> network = DiffusersDenoiser(kind="SanaTransformer2DModel", arguments={**heads, **widths, "caption_channels": 6})
        >>> noised, states = torch.randn(1, 4, 6, 4), torch.randn(1, 3, 6)
        >>> tuple(network(noised, torch.tensor([500.0]), states, size=(192, 128)).shape)
        (1, 4, 6, 4)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "diffusers",
            (Rule("*", "model.*"),),
            config=_config,
            published_config=_published_config,
            harmless=OF_AVERAGES,
            weights="diffusion_pytorch_model",
            otherwise="A newer diffusers may know the entries",
        ),
    )

    def __init__(self, *, kind: str, arguments: dict[str, Any], distilled_guidance: float = 3.5) -> None:
        super().__init__()
        self.model: Any = built(kind, arguments)  # diffusers', of which type checkers see little
        self.kind, self.distilled_guidance = KINDS[kind], distilled_guidance
        config = self.model.config
        for name, accepted in self.kind.needs.items():
            if config[name] not in accepted:
                raise ValueError(f"{name} of {kind} is {config[name]!r}; accepted: {', '.join(map(repr, accepted))}")
        outer = config.get("out_channels")
        if outer not in (None, config["in_channels"]):
            raise ValueError(f"out_channels of {kind} is {outer}; accepted: {config['in_channels']}, as many as are read")
        if not isinstance(config[self.kind.condition_dim], int):
            raise ValueError(f"{self.kind.condition_dim} of {kind} is {config[self.kind.condition_dim]}; accepted: one number")
        self.channels: int = self.kind.channels(config)
        self.condition_dim: int = config[self.kind.condition_dim]
        self.pooled_dim: int = self.kind.pooled_dim(config)
        self.patch: int = self.kind.patch(config)

    def check_sizes(self, rows: int, columns: int, num_conditions: int) -> None:
        """Refuses latents and conditions that the network has no places for.

        Raises:
            ValueError: sides of latents that are no multiples of a token's, too long, or too many conditions.
        """
        most_rows, most_columns, most_conditions = self.kind.most(self.model.config)
        for name, side, most in (("rows", rows, most_rows), ("columns", columns, most_columns)):
            if side < 1 or side % self.patch or (most is not None and side > most * self.patch):
                accepted = f"multiples of {self.patch}" + (f" up to {most * self.patch}" if most is not None else "")
                raise ValueError(f"latents have {side} {name}; accepted: {accepted}")
        if num_conditions < 1 or (most_conditions is not None and num_conditions > most_conditions):
            accepted = "1 or more" if most_conditions is None else f"1 to {most_conditions}"
            raise ValueError(f"there are {num_conditions} conditions; accepted: {accepted}")

    def forward(
        self,
        latents: Float[Tensor, "B C h w"],
        time: Real[Tensor, "*B"],
        conditions: Float[Tensor, "B M D"],
        *,
        size: tuple[int, int],
        real: Bool[Tensor, "B M"] | None = None,
        pooled: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """What the network predicts: noise or velocity for diffusion, ``noise - data`` for flows; in its own dtype.

        Args:
            latents: noised, as the scheduler scales them.
            time: what the scheduler calls the timestep, one for all images or one for each.
            conditions: what the images show.
            size: of the images in pixels, height and width.
            real: which conditions there are; those that are not change nothing. None for all.
            pooled: one vector for all conditions of an image; zeros if None.
        """
        dtype = next(self.model.parameters()).dtype
        if pooled is None:
            pooled = latents.new_zeros(len(latents), self.pooled_dim)
        latents, conditions, pooled = latents.to(dtype), conditions.to(dtype), pooled.to(dtype)
        time = time.float().expand(len(latents))
        told = Told(latents, time, conditions, real, pooled, size, self.distilled_guidance)
        if real is None or self.kind.masked:
            return self.kind.call(self.model, told)
        return self._apart(told, real)

    def _apart(self, told: Told, real: Bool[Tensor, "B M"]) -> Float[Tensor, "B C h w"]:
        """Images with unlike numbers of conditions one number at a time, for a network that takes no mask."""
        counts = real.sum(dim=1)
        predicted = torch.zeros_like(told.latents)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().flatten()
            kept = told.conditions[rows][real[rows]].unflatten(0, (len(rows), count))
            part = told._replace(
                latents=told.latents[rows], time=told.time[rows], conditions=kept, real=None, pooled=told.pooled[rows]
            )
            predicted = predicted.index_copy(0, rows, self.kind.call(self.model, part))
        return predicted

    def reset_buffers(self, device: torch.device) -> None:
        """What no checkpoint holds: tables of positions, as a network that is built anew has them."""
        kind, arguments = self.config["kind"], self.config["arguments"]
        fill_buffers(self.model, lambda: built(kind, {**arguments, "num_layers": 1}), device)
        rotary = self.model._modules.get("rope_embedder")
        if rotary is not None:  # Lumina's tables are no buffers
            with torch.device("cpu"):
                self.model.rope_embedder = type(rotary)(rotary.theta, rotary.axes_dim, rotary.axes_lens, rotary.patch_size)
