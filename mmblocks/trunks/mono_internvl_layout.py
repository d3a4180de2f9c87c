"""What Mono-InternVL's checkpoints look like, next to ``RoutedDecoder``: InternLM2 with a second feed-forward layer for images."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule, Split
from mmblocks.trunks.decoder_layouts import attention_rows
from mmblocks.trunks.llama_config import llama_config

_LAYER = "language_model.model.layers.{}."
_MLP = (("w1", "gate"), ("w3", "up"), ("w2", "down"))

MONO_INTERNVL_RULES: tuple[Rule | Split, ...] = (
    # Each key/value head's rows follow those of the query heads that read it.
    Split(
        f"{_LAYER}attention.wqkv.weight",
        tuple(f"layers.{{}}.attention.{part}.text.weight" for part in ("query", "key", "value")),
        sizes=lambda arguments: attention_rows(arguments),
        num_groups=lambda arguments: arguments["num_kv_heads"] or arguments["num_heads"],
    ),
    Rule(f"{_LAYER}attention.wo.weight", "layers.{}.attention.output.text.weight"),
    Rule(f"{_LAYER}attention_norm.weight", "layers.{}.attention_norm.text.weight"),
    Rule(f"{_LAYER}ffn_norm.weight", "layers.{}.mlp_norm.text.weight"),
    *(
        Rule(f"{_LAYER}{mlp}.{theirs}.weight", f"layers.{{}}.mlp.{ours}.{expert}.weight")
        for mlp, expert in (("feed_forward", "text"), ("feed_forward_ve", "vision"))
        for theirs, ours in _MLP
    ),
    Rule("language_model.model.norm.weight", "norm.weight"),
)
"""Keys of Mono-InternVL -> ``RoutedDecoder``."""


def mono_internvl_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Mono-InternVL's config as ``RoutedDecoder`` arguments.

    Raises:
        ValueError: biases, which InternLM2 may have and ``RoutedDecoder`` has in part only.
    """
    llm = config["llm_config"]
    if llm["bias"]:
        raise ValueError("bias of the llm_config is true; accepted: false, as published")
    return {**llama_config(llm), "routed": ("mlp",)}


MONO_INTERNVL_LAYOUT = Layout(
    "mono-internvl",
    MONO_INTERNVL_RULES,
    ignored=("language_model.model.tok_embeddings.weight", "language_model.output.weight", "vision_model.*", "mlp1.*"),
    config=mono_internvl_config,
)
