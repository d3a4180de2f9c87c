"""Open-MAGVIT2's video tokenizer: its image tokenizer with convolutions that are causal in time."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.open_magvit2.autoencoder import OpenMAGVIT2Decoder, OpenMAGVIT2Encoder
from mmblocks.tokenizers.open_magvit2.tokenizer import (
    AVERAGED_IGNORED,
    HARMLESS,
    PLAIN_IGNORED,
    averaged_rules,
    network,
    plain_rules,
    published_network,
)
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_RULES = plain_rules(".conv_1")


def _halved(multipliers: tuple[int, ...]) -> tuple[int, ...]:
    """The levels after which frames are halved with the sides: not those of the least width."""
    return tuple(level for level, multiplier in enumerate(multipliers[:-1]) if multiplier != 1)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """No config: that of the published model."""
    if not config:
        return {}
    arguments = network(config)
    return {**arguments, **read_own(config, {"temporal_levels": _halved(arguments["multipliers"])})}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    own = written_own(arguments, {"temporal_levels": _halved(arguments["multipliers"])})
    return {**published_network(arguments), **own}


_OPTIONS: dict[str, Any] = {
    "config": _config,
    "published_config": _published_config,
    "unwrap": "state_dict",
    "harmless": HARMLESS,
}
"""Of both layouts."""


class OpenMAGVIT2Video(VisualTokenizer):
    """Clips of 1 + 4 k frames (with the defaults) to the signs of 18 numbers a token: the first frame alone, then four at a time.

    An image is a clip of one frame.

    Args:
        bits: of each number of a token; see ``OpenMAGVIT2``.
        channels, multipliers, num_blocks, temporal_levels: see ``OpenMAGVIT2Encoder``.

    The defaults are those of the UCF-101 model, of 4 frames of 8 x 8 pixels a token.

    Source: Open-MAGVIT2 (arXiv 2409.04410; TencentARC/SEED-Voken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import OpenMAGVIT2Video
        >>> sizes = {"channels": 32, "multipliers": (1, 1, 1), "num_blocks": 1, "temporal_levels": (1,)}
        >>> tokenizer = OpenMAGVIT2Video(bits=(6,), **sizes).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 5, 8, 8)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)  # the first frame, then two at a time
        ((1, 3, 2, 2), (1, 3, 5, 8, 8))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("open_magvit2_video", _RULES, ignored=PLAIN_IGNORED, **_OPTIONS),
        Layout("open_magvit2_video_ema", averaged_rules(_RULES), ignored=AVERAGED_IGNORED, **_OPTIONS),
    )
    loss_weights: ClassVar[dict[str, float]] = {"commitment": 0.25, "sample_entropy": 0.1, "codebook_entropy": -0.1}

    def __init__(
        self,
        *,
        bits: tuple[int, ...] = (18,),
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        num_blocks: int = 4,
        temporal_levels: tuple[int, ...] = (1, 2),
    ) -> None:
        parts: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "code_dim": sum(bits),
            "temporal_levels": temporal_levels,
        }
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=OpenMAGVIT2Encoder(**parts),
            bottleneck=LookupFreeQuantizer(bits=bits),
            decoder=OpenMAGVIT2Decoder(**parts),
            downsampling=(2 ** len(temporal_levels), step, step),
        )

    def check_size(self, *size: int) -> None:
        """Refuses frames that are not one more than a multiple of ``downsampling``, and sides that are no positive multiple.

        Raises:
            ValueError: names the nearest size that is accepted.
        """
        frames, height, width = size
        period, step, _ = self.downsampling
        if (frames - 1) % period or frames < 1:
            near = 1 + max(round((frames - 1) / period), 0) * period
            raise ValueError(f"clip has {frames} frames; accepted: 1 + a multiple of {period}, such as {near}")
        if height % step or width % step or not height * width:
            sides = "x".join(str(max(round(side / step), 1) * step) for side in (height, width))
            raise ValueError(f"frames are {height}x{width}; accepted: multiples of {step}x{step}, such as {sides}")
