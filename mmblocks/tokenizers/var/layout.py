"""How VAR names the tensors of its tokenizer, and what its options say."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Rule, Split
from mmblocks.checkpoints.layouts.published_config import as_tuples
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.tokenizers.conv.taming_layout import residual_rules

_BLENDS = (
    ("var", "qresi_ls.{}.*", "blends.{}.*"),
    ("var-one-blend", "qresi.*", "blends.0.*"),
    ("var-all-blends", "{}.*", "blends.{}.*"),
)
"""The names of a layout, and of the smoothing convolutions in it: some, one, or one for each scale."""


def quantizer_rules(theirs: str, ours: str) -> dict[str, tuple[Rule, ...]]:
    """For each layout the rules of the quantiser at ``theirs`` in a published file and ``ours`` in a Block; both end in a dot."""
    return {
        layout: (
            Rule(f"{theirs}embedding.weight", f"{ours}codes"),
            Rule(f"{theirs}ema_vocab_hit_SV", f"{ours}hits"),
            Rule(f"{theirs}quant_resi.{blend}", f"{ours}{name}"),
        )
        for layout, blend, name in _BLENDS
    }


def quantizer_arguments(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The quantiser's options; what a file does not say is as published.

    Raises:
        ValueError: the layout is that of a model with another number of smoothing convolutions.
    """
    num_blends = config.get("share_quant_resi", 4)
    wanted = {0: "var-all-blends", 1: "var-one-blend"}.get(num_blends, "var")
    if layout != wanted:
        raise ValueError(f"share_quant_resi is {num_blends}, whose layout is {wanted!r}")
    scales = as_tuples(config.get("v_patch_nums", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)))
    return {
        "num_codes": config.get("vocab_size", 4096),
        "scales": scales,
        "num_blends": num_blends,
        "blend": abs(config.get("quant_resi", 0.5)),
        "metric": "cosine" if config.get("using_znorm") else "l2",
    }


def published_quantizer(arguments: Arguments) -> dict[str, Any]:
    """The way back. Scales that are no squares are lists, which VAR's own options do not know."""
    return {
        "vocab_size": arguments["num_codes"],
        "v_patch_nums": list(arguments["scales"]),
        "share_quant_resi": arguments["num_blends"],
        "quant_resi": arguments["blend"],
        "using_znorm": arguments["metric"] == "cosine",
    }


def _attention_rules(theirs: str, ours: str) -> tuple[Rule | Split, ...]:
    """Query, key and value are one convolution."""
    return (
        Rule(f"{theirs}.norm.*", f"{ours}.norm.*"),
        *(
            Split(f"{theirs}.qkv.{kind}", tuple(f"{ours}.{name}.{kind}" for name in ("query", "key", "value")))
            for kind in ("weight", "bias")
        ),
        Rule(f"{theirs}.proj_out.*", f"{ours}.out.*"),
    )


def _half_rules(half: str, side: str) -> tuple[Rule | Split, ...]:
    return (
        *residual_rules(f"{half}.{side}.{{}}.block.{{}}", f"{half}.levels.{{}}.blocks.{{}}"),
        *_attention_rules(f"{half}.{side}.{{}}.attn.{{}}", f"{half}.levels.{{}}.attentions.{{}}"),
        Rule(f"{half}.{side}.{{}}.{side}sample.conv.*", f"{half}.levels.{{}}.resample.conv.*"),
        *residual_rules(f"{half}.mid.block_1", f"{half}.middle.block1"),
        *_attention_rules(f"{half}.mid.attn_1", f"{half}.middle.attention"),
        *residual_rules(f"{half}.mid.block_2", f"{half}.middle.block2"),
        *(Rule(f"{half}.{name}.*", f"{half}.{name}.*") for name in ("conv_in", "norm_out", "conv_out")),
    )


NETWORK_RULES = (
    *_half_rules("encoder", "down"),
    *_half_rules("decoder", "up"),
    Rule("quant_conv.*", "encoder.project.*"),
    Rule("post_quant_conv.*", "decoder.project.*"),
)
"""Encoder and decoder."""
