"""What Mono-InternVL's checkpoints look like, next to ``RoutedDecoder``: InternLM2 with a second feed-forward layer for images."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.language_models import INTERNVL
from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model
from mmblocks.trunks.decoder_layouts import attention_rows
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama

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
        ValueError: biases, which InternLM2 has unless its config says no, and ``RoutedDecoder`` has in part only.
    """
    check_model(config, "internvl_chat")
    llm = config["llm_config"]
    if llm.get("bias", True):
        raise ValueError("bias of the llm_config is true, as where it is missing; accepted: false, as published")
    return {**llama_config(llm, models=("internlm2", "internlm2ve")), "routed": ("mlp",)}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back, without the vision part, whose config the trunk does not know."""
    check_arguments(arguments, qkv_bias=False, qk_norm=False, routed=("mlp",), experts=("text", "vision"), rope_sections=None)
    llm = published_llama(arguments, model_type="internlm2", architecture="InternLM2VEForCausalLM")
    return {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "llm_config": {**llm, "bias": False}}


_HARMLESS = (
    *(f"llm_config.{name}" for name in LLAMA_HARMLESS),
    *(*INTERNVL, "downsample_ratio"),  # the last is the projector's
)

MONO_INTERNVL_LAYOUT = Layout(
    "mono-internvl",
    MONO_INTERNVL_RULES,
    ignored=("language_model.model.tok_embeddings.weight", "language_model.output.weight", "vision_model.*", "mlp1.*"),
    config=mono_internvl_config,
    published_config=_published_config,
    harmless=_HARMLESS,
)
