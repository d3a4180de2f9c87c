"""VQGAN, the image tokenizer of taming-transformers, and Chameleon's, which is one.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.layers.pixels import pixels_of
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv_autoencoder import ConvDecoder, ConvEncoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_RESIDUAL = (
    ("norm1.*", "norm1.*"),
    ("conv1.*", "conv1.*"),
    ("norm2.*", "norm2.*"),
    ("conv2.*", "conv2.*"),
    ("nin_shortcut.*", "shortcut.*"),
)
_ATTENTION = (
    ("norm.*", "norm.*"),
    ("q.*", "query.*"),
    ("k.*", "key.*"),
    ("v.*", "value.*"),
    ("proj_out.*", "out.*"),
)


def nested(theirs: str, ours: str, table: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """The rules of a module that sits at ``theirs`` in a published file and at ``ours`` in a Block."""
    return tuple(Rule(f"{theirs}.{key}", f"{ours}.{name}") for key, name in table)


def residual_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A residual block's rules."""
    return nested(theirs, ours, _RESIDUAL)


def attention_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """An attention block's rules."""
    return nested(theirs, ours, _ATTENTION)


def half_rules(theirs: str, ours: str, side: str) -> tuple[Rule, ...]:
    """The rules of taming's encoder or decoder; ``side`` is "down" or "up"."""
    return (
        *residual_rules(f"{theirs}.{side}.{{}}.block.{{}}", f"{ours}.levels.{{}}.blocks.{{}}"),
        *attention_rules(f"{theirs}.{side}.{{}}.attn.{{}}", f"{ours}.levels.{{}}.attentions.{{}}"),
        Rule(f"{theirs}.{side}.{{}}.{side}sample.conv.*", f"{ours}.levels.{{}}.resample.conv.*"),
        *residual_rules(f"{theirs}.mid.block_1", f"{ours}.middle.block1"),
        *attention_rules(f"{theirs}.mid.attn_1", f"{ours}.middle.attention"),
        *residual_rules(f"{theirs}.mid.block_2", f"{ours}.middle.block2"),
        Rule(f"{theirs}.conv_in.*", f"{ours}.conv_in.*"),
        Rule(f"{theirs}.norm_out.*", f"{ours}.norm_out.*"),
        Rule(f"{theirs}.conv_out.*", f"{ours}.conv_out.*"),
    )


TAMING_RULES = (
    *half_rules("encoder", "encoder", "down"),
    *half_rules("decoder", "decoder", "up"),
    Rule("quant_conv.*", "encoder.project.*"),
    Rule("post_quant_conv.*", "decoder.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.codes"),
)
"""taming-transformers' names, which many later tokenizers kept."""

LOSS_MODULES = ("loss.*",)
"""Perceptual network and discriminator, which training checkpoints hold too."""


def taming_network(ddconfig: Mapping[str, Any]) -> dict[str, Any]:
    """What taming's ``ddconfig`` says of the network. Attention goes by the nominal resolution, whatever the image's size.

    Raises:
        ValueError: an encoder of twice the latent width, which is a variational one.
    """
    if ddconfig.get("double_z"):
        raise ValueError("double_z is true; accepted: false (a VQ tokenizer's encoder has no variance)")
    multipliers = tuple(ddconfig["ch_mult"])
    resolutions = {level: ddconfig["resolution"] // 2**level for level in range(len(multipliers))}
    return {
        "channels": ddconfig["ch"],
        "multipliers": multipliers,
        "num_blocks": ddconfig["num_res_blocks"],
        "attention_levels": tuple(level for level, side in resolutions.items() if side in ddconfig["attn_resolutions"]),
        "latent_channels": ddconfig["z_channels"],
    }


def _taming_config(config: Mapping[str, Any]) -> dict[str, Any]:
    network = taming_network(config["ddconfig"])
    return {**network, "num_codes": config["n_embed"], "code_dim": config["embed_dim"]}


class VQGAN(VisualTokenizer):
    """Convolutions with a little attention, and a codebook searched by Euclidean distance.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        channels, multipliers, num_blocks, attention_levels, latent_channels: see ``ConvEncoder``.

    The defaults are those of the ImageNet model of 16 x 16 pixels a token and 1,024 codes.

    Source: Esser et al., Taming Transformers (arXiv 2012.09841; CompVis/taming-transformers).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("taming", TAMING_RULES, ignored=LOSS_MODULES, config=_taming_config, unwrap="state_dict"),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 0.25, "commitment": 1.0}

    def __init__(
        self,
        *,
        num_codes: int = 1024,
        code_dim: int = 256,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (4,),
        latent_channels: int = 256,
    ) -> None:
        network: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "attention_levels": attention_levels,
            "latent_channels": latent_channels,
            "code_dim": code_dim,
        }
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=ConvEncoder(**network),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=ConvDecoder(**network),
            downsampling=(step, step),
        )
