"""How the denoising networks of diffusers are told the time, the conditions and what else they read: an adapter for each class.

All take latents that are noised as their scheduler does it, and give what the scheduler's step is handed: noise or velocity for
diffusion, ``noise - data`` for flows.

Shapes: B images, M conditions, D their width, C channels of latents, h and w their sides, P width of the pooled vector.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

Config = Mapping[str, Any]
"""A network's own config, defaults included."""


class Told(NamedTuple):
    """What a network is told.

    Attributes:
        latents: noised.
        time: what the scheduler calls a timestep: the index of the time, or for flows the share of noise times 1000.
        conditions: what the image shows.
        real: which of the conditions there are; None for all. Only for networks that take a mask.
        pooled: one vector for all conditions; of width 0 for networks that read none.
        size: of the image in pixels, height and width.
        guidance: what a network that was distilled with guidance is told of its scale.
    """

    latents: Float[Tensor, "B C h w"]
    time: Float[Tensor, " B"]
    conditions: Float[Tensor, "B M D"]
    real: Bool[Tensor, "B M"] | None
    pooled: Float[Tensor, "B P"]
    size: tuple[int, int]
    guidance: float


class Kind(NamedTuple):
    """How a class of diffusers is called, and how its config says what has to be known of it.

    Attributes:
        call: the network, what it is told -> what it predicts.
        condition_dim: the config's name of D.
        patch: rows and columns of latents that a token has.
        masked: whether the network takes a mask of the conditions. Otherwise images with unlike numbers of them go apart.
        channels: C.
        pooled_dim: P; 0 where none is read.
        most: the most rows and columns of tokens, and the most conditions; None for any number.
        needs: entries of a config and their accepted values; with others a network reads what nothing here tells it.
        folder: where a pipeline of diffusers keeps the network.
        even: whether its pipeline spaces the times evenly, see ``DiffusersSampler``.
    """

    call: Callable[[Any, Told], Tensor]
    condition_dim: str
    patch: Callable[[Config], int]
    masked: bool
    channels: Callable[[Config], int] = lambda config: config["in_channels"]
    pooled_dim: Callable[[Config], int] = lambda config: 0
    most: Callable[[Config], tuple[int | None, int | None, int | None]] = lambda config: (None, None, None)
    needs: Mapping[str, tuple[object, ...]] = {}
    folder: str = "transformer"
    even: bool = False


def mean_of(conditions: Float[Tensor, "B M D"], real: Bool[Tensor, "B M"] | None) -> Float[Tensor, "B D"]:
    """The mean of the conditions that there are."""
    if real is None:
        return conditions.mean(dim=1)
    share = (real / real.sum(dim=1, keepdim=True)).to(conditions.dtype)
    return torch.einsum("bm,bmd->bd", share, conditions)


def _unet(model: Any, told: Told) -> Tensor:
    """Stable Diffusion; XL reads a pooled vector too, and height and width before the crop, its corner, and those aimed at."""
    more: dict[str, Any] = {}
    if model.config.addition_embed_type == "text_time":
        sizes = torch.tensor([*told.size, 0, 0, *told.size], device=told.latents.device).repeat(len(told.latents), 1)
        more["added_cond_kwargs"] = {"text_embeds": told.pooled, "time_ids": sizes}
    more["encoder_attention_mask"] = told.real
    return model(told.latents, told.time, told.conditions, return_dict=False, **more)[0]


def _sd3(model: Any, told: Told) -> Tensor:
    return model(
        hidden_states=told.latents,
        timestep=told.time,
        encoder_hidden_states=told.conditions,
        pooled_projections=told.pooled,
        return_dict=False,
    )[0]


def _flux(model: Any, told: Told) -> Tensor:
    """Tokens are squares of four latents, channel by channel; the time is a share, and all conditions stand at one place."""
    packed = rearrange(told.latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    rows, columns = told.latents.shape[-2] // 2, told.latents.shape[-1] // 2
    places = torch.cartesian_prod(*(torch.arange(count, device=packed.device) for count in (1, rows, columns)))
    guidance = torch.full_like(told.time, told.guidance) if model.config.guidance_embeds else None
    predicted = model(
        hidden_states=packed,
        timestep=told.time / 1000,
        guidance=guidance,
        encoder_hidden_states=told.conditions,
        pooled_projections=told.pooled,
        img_ids=places.to(packed.dtype),
        txt_ids=packed.new_zeros(told.conditions.shape[1], 3),
        return_dict=False,
    )[0]
    return rearrange(predicted, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=2, q=2)


def _sana(model: Any, told: Told) -> Tensor:
    return model(
        told.latents,
        timestep=told.time * model.config.timestep_scale,
        encoder_hidden_states=told.conditions,
        encoder_attention_mask=told.real,
        return_dict=False,
    )[0]


def _lumina2(model: Any, told: Told) -> Tensor:
    """Its time is the share of data, and it predicts ``data - noise``. Of the conditions it reads the first ones alone."""
    conditions, real = told.conditions, told.real
    if real is None:
        real = torch.ones(conditions.shape[:2], dtype=torch.bool, device=conditions.device)
    else:
        order = real.long().argsort(dim=1, descending=True, stable=True)
        conditions, real = conditions.gather(1, order[..., None].expand_as(conditions)), real.gather(1, order)
    predicted = model(
        hidden_states=told.latents,
        timestep=1 - told.time / 1000,
        encoder_hidden_states=conditions,
        encoder_attention_mask=real,
        return_dict=False,
    )[0]
    return -predicted


def _unet_pooled(config: Config) -> int:
    if config["addition_embed_type"] is None:
        return 0
    return config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]


def _sd3_most(config: Config) -> tuple[int, int, None]:
    return config["pos_embed_max_size"], config["pos_embed_max_size"], None


def _lumina2_most(config: Config) -> tuple[int, int, int]:
    conditions, rows, columns = config["axes_lens"]
    return rows, columns, conditions - 1  # the image itself stands at the place after the last condition


KINDS: dict[str, Kind] = {
    "UNet2DConditionModel": Kind(
        _unet,
        "cross_attention_dim",
        lambda config: 1,
        masked=True,
        pooled_dim=_unet_pooled,
        needs={
            "addition_embed_type": (None, "text_time"),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim_type": (None,),
        },
        folder="unet",
    ),
    "SD3Transformer2DModel": Kind(
        _sd3,
        "joint_attention_dim",
        lambda config: config["patch_size"],
        masked=False,
        pooled_dim=lambda config: config["pooled_projection_dim"],
        most=_sd3_most,
    ),
    "FluxTransformer2DModel": Kind(
        _flux,
        "joint_attention_dim",
        lambda config: 2,
        masked=False,
        channels=lambda config: config["in_channels"] // 4,
        pooled_dim=lambda config: config["pooled_projection_dim"],
        needs={"patch_size": (1,)},
        even=True,
    ),
    "SanaTransformer2DModel": Kind(
        _sana, "caption_channels", lambda config: config["patch_size"], masked=True, needs={"guidance_embeds": (False,)}
    ),
    "Lumina2Transformer2DModel": Kind(
        _lumina2, "cap_feat_dim", lambda config: config["patch_size"], masked=True, most=_lumina2_most, even=True
    ),
}
"""The classes that may be wrapped. A name in a file never reaches diffusers unless it stands here."""
