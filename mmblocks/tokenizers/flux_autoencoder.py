"""FLUX's autoencoder as it is published by itself, ae.safetensors: an ``AutoencoderKL`` under older names, and no config."""

from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder

_LEVELS = 4
"""The decoder's are counted from the last."""

_BLOCK = (
    *((name, name) for name in ("norm1", "conv1", "norm2", "conv2")),
    ("nin_shortcut", "conv_shortcut"),
)
_ATTENTION = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))

_ARGUMENTS: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * _LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * _LEVELS,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""What no file says. Source: FLUX.1 (black-forest-labs/flux), the same in BAGEL (ByteDance-Seed/Bagel)."""


def _blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{theirs}.{old}.*", f"{ours}.{new}.*") for old, new in _BLOCK)


def _side(theirs: str, ours: str) -> tuple[Rule, ...]:
    """What encoder and decoder name alike."""
    middle = f"{ours}.mid_block.attentions.0"
    return (
        Rule(f"{theirs}.conv_in.*", f"{ours}.conv_in.*"),
        *_blocks(f"{theirs}.mid.block_1", f"{ours}.mid_block.resnets.0"),
        Rule(f"{theirs}.mid.attn_1.norm.*", f"{middle}.group_norm.*"),
        *(
            rule
            for old, new in _ATTENTION
            for rule in (
                Rule(f"{theirs}.mid.attn_1.{old}.weight", f"{middle}.{new}.weight", "squeeze_1x1"),
                Rule(f"{theirs}.mid.attn_1.{old}.bias", f"{middle}.{new}.bias"),
            )
        ),
        *_blocks(f"{theirs}.mid.block_2", f"{ours}.mid_block.resnets.1"),
        Rule(f"{theirs}.norm_out.*", f"{ours}.conv_norm_out.*"),
        Rule(f"{theirs}.conv_out.*", f"{ours}.conv_out.*"),
    )


def _up(level: int) -> tuple[Rule, ...]:
    ours = f"decoder.layers.up_blocks.{_LEVELS - 1 - level}"
    return (
        *_blocks(f"decoder.up.{level}.block.{{}}", f"{ours}.resnets.{{}}"),
        Rule(f"decoder.up.{level}.upsample.conv.*", f"{ours}.upsamplers.0.conv.*"),
    )


_LAYOUT = Layout(
    "flux",
    (
        *_side("encoder", "encoder.layers"),
        *_blocks("encoder.down.{}.block.{}", "encoder.layers.down_blocks.{}.resnets.{}"),
        Rule("encoder.down.{}.downsample.conv.*", "encoder.layers.down_blocks.{}.downsamplers.0.conv.*"),
        *_side("decoder", "decoder.layers"),
        *(rule for level in range(_LEVELS) for rule in _up(level)),
    ),
    config_file="ae.json",  # which no repository has: a config.json is other parts'
    weights="ae",
)


class FluxAutoencoder(DiffusersAutoencoder):
    """``DiffusersAutoencoder`` of FLUX's kind, which reads the file that FLUX and BAGEL have in their folders, ae.safetensors.

        FluxAutoencoder.from_pretrained("ByteDance-Seed/BAGEL-7B-MoT")

    The folder of diffusers, ``vae``, is read by ``DiffusersAutoencoder``.

    Args:
        arguments: of diffusers' AutoencoderKL, where they are not those of FLUX; of four levels.

    Raises:
        ValueError: as ``DiffusersAutoencoder``.

    Source: FLUX.1 (black-forest-labs/flux); BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import FluxAutoencoder
        >>> arguments = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
        >>> tokenizer = FluxAutoencoder(arguments=arguments).eval()
        >>> tuple(tokenizer.encode(torch.rand(1, 3, 16, 24)).z.shape)
        (1, 2, 3, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (_LAYOUT,)

    def __init__(self, *, arguments: dict[str, Any] | None = None) -> None:
        super().__init__(kind="AutoencoderKL", arguments={**_ARGUMENTS, **(arguments or {})})
