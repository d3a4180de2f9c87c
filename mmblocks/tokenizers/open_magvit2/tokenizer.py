"""Open-MAGVIT2's image tokenizer: convolutions without attention, and a code for every combination of 18 signs."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.conv.taming_layout import TRAINING_ENTRIES, check_ddconfig
from mmblocks.tokenizers.open_magvit2.autoencoder import OpenMAGVIT2Decoder, OpenMAGVIT2Encoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_LOSS_MODULES = ("loss.*",)
_EMA = "model_ema."


def plain_rules(conv: str = "") -> tuple[Rule, ...]:
    """The rules of the encoder and the decoder; ``conv`` is what a convolution's name ends with."""
    table = [
        (f"encoder.conv_in{conv}.*", "encoder.conv_in.*"),
        *_blocks("encoder.down.{}.block.{}", "encoder.levels.{}.blocks.{}", conv),
        (f"encoder.down.{{}}.downsample{conv}.*", "encoder.levels.{}.resample.*"),
        *_blocks("encoder.mid_block.{}", "encoder.middle.{}", conv),
        ("encoder.norm_out.*", "encoder.norm_out.*"),
        (f"encoder.conv_out{conv}.*", "encoder.conv_out.*"),
        (f"decoder.conv_in{conv}.*", "decoder.conv_in.*"),
        *_blocks("decoder.mid_block.{}", "decoder.middle.{}", conv),
        *_blocks("decoder.up.{}.block.{}", "decoder.levels.{}.blocks.{}", conv),
        (f"decoder.up.{{}}.upsample.conv1{conv}.*", "decoder.levels.{}.resample.conv.*"),
        ("decoder.adaptive.{}.gamma.*", "decoder.levels.{}.condition.scale.*"),
        ("decoder.adaptive.{}.beta.*", "decoder.levels.{}.condition.shift.*"),
        ("decoder.norm_out.*", "decoder.norm_out.*"),
        (f"decoder.conv_out{conv}.*", "decoder.conv_out.*"),
    ]
    return tuple(Rule(theirs, ours) for theirs, ours in table)


def averaged_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of the averaged weights of a training checkpoint, whose names have lost their dots."""
    return tuple(Rule(_EMA + rule.theirs.replace(".", ""), rule.ours) for rule in rules)


AVERAGED_IGNORED = (*_LOSS_MODULES, "encoder.*", "decoder.*", f"{_EMA}decay", f"{_EMA}num_updates", f"{_EMA}loss*")
"""What a training checkpoint holds beside the averaged weights, which are those that were evaluated."""

PLAIN_IGNORED = _LOSS_MODULES


def network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a published config; none where there is none, since the published checkpoints have no config file.

    Raises:
        ValueError: an encoder of twice the latent width, a width that is not the number of bits, or what is no RGB.
    """
    if not config:
        return {}
    ddconfig = config["ddconfig"]
    check_ddconfig(ddconfig)
    bits = config["n_embed"].bit_length() - 1
    if 2**bits != config["n_embed"] or ddconfig["z_channels"] != bits:
        raise ValueError(f"n_embed is {config['n_embed']}; accepted: 2 to the power of z_channels, {ddconfig['z_channels']}")
    only(config, "embed_dim", bits)
    factorized = tuple(config.get("factorized_bits", (9, 9))) if config.get("token_factorization") else (bits,)
    if sum(factorized) != bits:
        raise ValueError(f"factorized_bits is {list(factorized)}; accepted: numbers whose sum is {bits}")
    return {
        "bits": factorized,
        "channels": ddconfig["ch"],
        "multipliers": tuple(ddconfig["ch_mult"]),
        "num_blocks": ddconfig["num_res_blocks"],
    }


def published_network(arguments: Arguments) -> dict[str, Any]:
    """The way back, as SEED-Voken's yaml has it under ``params``; its code takes the resolution and does not use it."""
    bits, multipliers = arguments["bits"], arguments["multipliers"]
    return {
        "ddconfig": {
            "double_z": False,
            "z_channels": sum(bits),
            "resolution": 128,
            "in_channels": 3,
            "out_ch": 3,
            "ch": arguments["channels"],
            "ch_mult": list(multipliers),
            "num_res_blocks": arguments["num_blocks"],
        },
        "n_embed": 2 ** sum(bits),
        "embed_dim": sum(bits),
        **({"token_factorization": True, "factorized_bits": list(bits)} if len(bits) > 1 else {}),
    }


HARMLESS = (*TRAINING_ENTRIES, "factorized_bits")
"""The bits count with ``token_factorization``."""


def _blocks(theirs: str, ours: str, conv: str) -> list[tuple[str, str]]:
    pairs = [(f"conv{number}{conv}", f"conv{number}") for number in (1, 2)]
    pairs += [("norm1", "norm1"), ("norm2", "norm2"), (f"nin_shortcut{conv}", "shortcut")]
    return [(f"{theirs}.{key}.*", f"{ours}.{name}.*") for key, name in pairs]


_OPTIONS: dict[str, Any] = {
    "config": network,
    "published_config": published_network,
    "unwrap": "state_dict",
    "harmless": HARMLESS,
}
"""Of both layouts."""


class OpenMAGVIT2(VisualTokenizer):
    """Images to the signs of 18 numbers a token: 2^18 codes without a codebook.

    Training checkpoints hold the weights twice; the averaged ones are read, as in the official evaluation.

    Args:
        bits: of each number of a token: (18,) for one of 2^18; (6, 12) or (9, 9) for the sub-ids that the language models read
            and write.
        channels, multipliers, num_blocks: see ``OpenMAGVIT2Encoder``.

    The defaults are those of the models of 16 x 16 pixels a token. The model of 8 x 8 has ``multipliers=(1, 2, 2, 4)``, that of
    16,384 codes ``bits=(14,)``. Published checkpoints come without a config: give these to ``from_pretrained``.

    Source: Open-MAGVIT2 (arXiv 2409.04410; TencentARC/SEED-Voken).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import OpenMAGVIT2
        >>> tokenizer = OpenMAGVIT2(bits=(2, 4), channels=32, multipliers=(1, 1), num_blocks=1).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tokenizer.codebook_sizes
        ((1, 4, 6, 2), (4, 16))
        >>> tuple(tokenizer.decode(ids).shape)
        (1, 3, 8, 12)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("open_magvit2", plain_rules(), ignored=PLAIN_IGNORED, **_OPTIONS),
        Layout("open_magvit2_ema", averaged_rules(plain_rules()), ignored=AVERAGED_IGNORED, **_OPTIONS),
    )
    loss_weights: ClassVar[dict[str, float]] = {"commitment": 0.25, "sample_entropy": 0.1, "codebook_entropy": -0.1}

    def __init__(
        self,
        *,
        bits: tuple[int, ...] = (18,),
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 4,
    ) -> None:
        parts: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "code_dim": sum(bits),
        }
        step = 2 ** (len(multipliers) - 1)
        super().__init__(
            encoder=OpenMAGVIT2Encoder(**parts),
            bottleneck=LookupFreeQuantizer(bits=bits),
            decoder=OpenMAGVIT2Decoder(**parts),
            downsampling=(step, step),
        )
