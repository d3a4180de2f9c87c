"""The U-Net of latent diffusion as diffusers builds it, conditioned on a sequence of vectors.

Shapes: B images, N conditions, D their width, C channels of latents, h and w their sides.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.pixels.denoiser_kinds import mean_of
from mmblocks.pixels.diffusers_denoiser import OF_AVERAGES, built, parameters_of

_KIND = "UNet2DConditionModel"


def _config(published: Mapping[str, Any]) -> dict[str, Any]:
    """A published config.json without diffusers' notes to itself."""
    only(published, "_class_name", _KIND)
    return {"arguments": {name: published[name] for name in parameters_of(_KIND) if name in published}}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"_class_name": _KIND, **arguments["arguments"]}


class ConditionalUNet(Block):
    """diffusers' UNet2DConditionModel of the SDXL kind: attends to conditions, and is told their mean and the image's size.

    Args:
        arguments: its arguments, as its config.json has them; what is left out has diffusers' defaults.

    Raises:
        ValueError: an argument that diffusers' class has not.

    Source: SDXL (arXiv 2307.01952), Emu2's visual decoder (arXiv 2312.13286; baaivision/Emu); huggingface/diffusers.

    Examples:
        >>> import torch
        >>> from mmblocks.pixels import ConditionalUNet
        >>> down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
        >>> blocks = {"down_block_types": down, "up_block_types": up, "block_out_channels": [4, 8], "layers_per_block": 1}
        >>> told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
        >>> heads = {"norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6}
        >>> unet = ConditionalUNet(arguments={**blocks, **told, **heads})
        >>> noise, sizes = torch.randn(1, 4, 8, 8), torch.tensor([[64, 64, 0, 0, 64, 64]])
        >>> tuple(unet(noise, torch.tensor(500), torch.randn(1, 3, 6), sizes).shape)
        (1, 4, 8, 8)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "diffusers",
            (Rule("*", "model.*"),),
            config=_config,
            published_config=_published_config,
            harmless=OF_AVERAGES,
            weights="diffusion_pytorch_model",
        ),
        Layout(
            "emu2-gen",
            (Rule("unet.*", "model.*"),),
            ignored=("*",),
            config=_config,
            published_config=_published_config,
            harmless=OF_AVERAGES,
        ),
    )

    def __init__(self, *, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.model: Any = built(_KIND, arguments)  # diffusers', of which type checkers see little
        self.channels: int = self.model.config.in_channels
        self.condition_dim: int = self.model.config.cross_attention_dim

    def forward(
        self,
        latents: Float[Tensor, "B C h w"],
        time: Real[Tensor, "*B"],
        conditions: Float[Tensor, "B N D"],
        sizes: Int[Tensor, "B 6"],
        *,
        real: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """What the network predicts.

        Args:
            latents: noised, as the sampler scales them.
            time: the index of the time in training, one for all images or one for each.
            conditions: what the image shows.
            sizes: in pixels: original height and width, top and left of the crop, target height and width.
            real: which conditions there are; None for all.
        """
        more = {"text_embeds": mean_of(conditions, real), "time_ids": sizes.flatten()}
        predicted: Tensor = self.model(
            latents, time, conditions, encoder_attention_mask=real, added_cond_kwargs=more, return_dict=False
        )[0]
        return predicted
