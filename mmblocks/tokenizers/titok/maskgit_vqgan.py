"""MaskGIT's VQGAN: convolutions without attention. TiTok learns to predict its codes and paints with its decoder.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import as_tuples, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv.blocks import Conv2d, GroupNorm, ResidualBlock, Upsample, channels_first, channels_last, norm_silu
from mmblocks.tokenizers.conv.conv_autoencoder import decoder_widths, encoder_widths
from mmblocks.tokenizers.conv.taming_layout import residual_rules
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


def maskgit_half_rules(theirs: str, ours: str, side: str) -> tuple[Rule, ...]:
    """The rules of the encoder (``side`` "down") or decoder ("up")."""
    return (
        *residual_rules(f"{theirs}.{side}.{{}}.block.{{}}", f"{ours}.levels.{{}}.blocks.{{}}"),
        *residual_rules(f"{theirs}.mid.{{}}", f"{ours}.middle.{{}}"),
        Rule(f"{theirs}.{side}.{{}}.upsample_conv.*", f"{ours}.levels.{{}}.resample.conv.*"),
        *(Rule(f"{theirs}.{name}.*", f"{ours}.{name}.*") for name in ("conv_in", "norm_out", "conv_out")),
    )


_ARGUMENTS = {
    "num_codes": ("num_embeddings", 1024),
    "code_dim": ("z_channels", 256),
    "channels": ("hidden_channels", 128),
    "multipliers": ("channel_mult", (1, 1, 2, 2, 4)),
    "num_blocks": ("num_res_blocks", 2),
}
"""Arguments -> entries, and what open-muse's class takes where there is none."""

_UNUSED = (
    "resolution",
    "attn_resolutions",
    "resample_with_conv",
    "commitment_cost",
    "num_resolutions",
    "reduction_factor",
    "latent_size",
    "_version",
)
"""Of open-muse's class: its network takes any size, has no attention and averages; the rest follows, or is a loss's weight."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open-muse's config; the file that TiTok's authors pass around has none, and the same sizes."""
    only(config, "_class_name", "MaskGitVQGAN")
    only(config, "num_channels", 3)
    arguments = {ours: as_tuples(config.get(theirs, default)) for ours, (theirs, default) in _ARGUMENTS.items()}
    if config.get("quantized_embed_dim", 256) != arguments["code_dim"]:
        raise ValueError(f"quantized_embed_dim is {config.get('quantized_embed_dim', 256)}; accepted: that of z_channels")
    return arguments


def _published_config(arguments: Arguments) -> dict[str, Any]:
    return {
        "_class_name": "MaskGitVQGAN",
        "num_channels": 3,
        "quantized_embed_dim": arguments["code_dim"],
        **{theirs: arguments[ours] for ours, (theirs, _) in _ARGUMENTS.items()},
    }


class OutputShortcutBlock(ResidualBlock):
    """Without biases; where the width changes, what is added is a 1x1 convolution of the block's own output, not of its input.

    A slip of the original code that the published weights were trained with.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, bias=False)
        self.widens = in_channels != out_channels
        if self.widens:
            self.shortcut = Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"], *condition: Tensor) -> Float[Tensor, "B C2 H W"]:
        """There is no condition."""
        hidden = self.conv1(norm_silu(self.norm1, x))
        hidden = self.conv2(norm_silu(self.norm2, hidden))
        return hidden + (self.shortcut(hidden) if self.widens else x)


class _Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution."""

    def __init__(self, widths: list[int], resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(OutputShortcutBlock(before, after) for before, after in pairwise(widths)))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


def _middle(channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(OutputShortcutBlock(channels, channels) for _ in range(num_blocks)))


class MaskGITEncoder(Block):
    """Residual blocks at each level and averages of 2 x 2 between levels.

    Args:
        channels, multipliers, num_blocks: see ``ConvEncoder``.
        code_dim: width of a token.

    Source: MaskGIT (arXiv 2202.04200), in the port of huggingface/open-muse.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        code_dim: int = 256,
    ) -> None:
        super().__init__()
        widths = encoder_widths(channels, multipliers, num_blocks)
        deepest = len(widths) - 1
        self.conv_in = Conv2d(3, channels, 3, padding=1, bias=False)
        self.levels = nn.Sequential(
            *(_Level(ws, nn.Identity() if number == deepest else nn.AvgPool2d(2)) for number, ws in enumerate(widths))
        )
        self.middle = _middle(widths[-1][-1], num_blocks)
        self.norm_out = GroupNorm(widths[-1][-1])
        self.conv_out = Conv2d(widths[-1][-1], code_dim, 1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Pixels in [0, 1] to features."""
        x = self.middle(self.levels(self.conv_in(pixels)))
        return channels_last(self.conv_out(norm_silu(self.norm_out, x)))


class MaskGITDecoder(Block):
    """Residual blocks at each level, doubling the sides between levels.

    Args:
        channels, multipliers, num_blocks, code_dim: as in ``MaskGITEncoder``.

    Source: MaskGIT (arXiv 2202.04200), in the port of huggingface/open-muse.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        code_dim: int = 256,
    ) -> None:
        super().__init__()
        self.code_dim = code_dim
        widths = decoder_widths(channels, multipliers, num_blocks - 1)
        self.conv_in = Conv2d(code_dim, widths[-1][0], 3, padding=1)
        self.middle = _middle(widths[-1][0], num_blocks)
        self.levels = nn.ModuleList(_Level(ws, Upsample(ws[-1]) if number else nn.Identity()) for number, ws in enumerate(widths))
        self.norm_out = GroupNorm(widths[0][-1])
        self.conv_out = Conv2d(widths[0][-1], 3, 3, padding=1)

    def forward(self, features: Float[Tensor, "B h w D"]) -> Float[Tensor, "B 3 H W"]:
        """Codes to pixels, about in [0, 1].

        Raises:
            ValueError: features of another shape.
        """
        check_shape("features", features, "B", "h", "w", self.code_dim)
        x = self.middle(self.conv_in(channels_first(features)))
        for level in reversed(self.levels):
            x = level(x)
        return self.conv_out(norm_silu(self.norm_out, x))


class MaskGITVQGAN(VisualTokenizer):
    """A VQGAN of convolutions alone, for pixels in [0, 1] as they are: 16 x 16 pixels a token, 1,024 codes.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        channels, multipliers, num_blocks: see ``MaskGITEncoder``.

    Source: MaskGIT (arXiv 2202.04200), in the port of huggingface/open-muse.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import MaskGITVQGAN
        >>> tokenizer = MaskGITVQGAN(num_codes=16, code_dim=8, channels=32, multipliers=(1, 2), num_blocks=1).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "maskgit",
            (
                *maskgit_half_rules("encoder", "encoder", "down"),
                *maskgit_half_rules("decoder", "decoder", "up"),
                Rule("quantize.embedding.weight", "bottleneck.codes"),
            ),
            config=_config,
            published_config=_published_config,
            harmless=_UNUSED,
        ),
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
    ) -> None:
        network: dict[str, Any] = {"channels": channels, "multipliers": multipliers, "num_blocks": num_blocks, "code_dim": code_dim}
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=MaskGITEncoder(**network),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=MaskGITDecoder(**network),
            downsampling=(step, step),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
