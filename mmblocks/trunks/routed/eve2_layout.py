"""What EVEv2's checkpoints look like, next to ``RoutedDecoder``: a Qwen2 with a second set of weights for images."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.language_models import EVE_TRAINING
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES, LLAMA_RULES
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama

_PARTS = {"layernorm": "norms", "self_attn": "attention", "mlp": "mlp"}

EVE_HARMLESS = (
    *(*LLAMA_HARMLESS, *EVE_TRAINING),
    # names of folders with sizes, which count where the config does not say the sizes itself
    *("mm_vision_tower", "mm_vision_tower_clip"),
)
"""Entries of EVE's configs that no part of the model follows."""

_VISION = ("mm_*", "patch_stride", "dense_stride", "max_size")


def eve2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv2's config as ``RoutedDecoder`` arguments."""
    if config["add_moe"] is not True:
        raise ValueError(f"add_moe is {config['add_moe']!r}; accepted: True, a checkpoint with weights per modality")
    parts = config["moe_part"].split("-")
    if not set(parts) <= set(_PARTS):
        raise ValueError(f"moe_part is {config['moe_part']!r}; accepted: {'-'.join(_PARTS)}, or some of these")
    arguments = llama_config(config, models=("eve-qwen2", "qwen2"))
    return {**arguments, "qkv_bias": True, "routed": tuple(_PARTS[part] for part in parts)}


def published_eve2(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back; of a whole model too."""
    config = published_llama(arguments, model_type="eve-qwen2", architecture="EVEQwen2ForCausalLM")
    parts = {ours: theirs for theirs, ours in _PARTS.items()}
    return {**config, "add_moe": True, "moe_part": "-".join(parts[part] for part in arguments["routed"])}


def _published_trunk(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check_arguments(arguments, qkv_bias=True, qk_norm=False, experts=("text", "vision"), rope_sections=None)
    return published_eve2(arguments)


def _routed_rules(rule: Rule) -> tuple[Rule, ...]:
    """A tensor of the text's and its twin of the images'."""
    *path, last = rule.theirs.split(".")
    depth = -2 if path[-2] == "mlp" else -1  # moe_mlp.gate_proj, but self_attn.moe_q_proj
    twin = ".".join([*path[:depth], f"moe_{path[depth]}", *path[len(path) + depth + 1 :], last])
    ours, tensor = rule.ours.rsplit(".", 1)
    return Rule(rule.theirs, f"{ours}.text.{tensor}"), Rule(twin, f"{ours}.vision.{tensor}")


EVE2_RULES = (
    *(
        routed
        for rule in LLAMA_RULES
        if "layers" in rule.theirs and not rule.theirs.endswith(("q_norm.weight", "k_norm.weight"))
        for routed in _routed_rules(rule)
    ),
    LLAMA_RULES[-1],
)
"""Keys of EVEv2 -> ``RoutedDecoder``."""

EVE2_LAYOUT = Layout(
    "eve2",
    EVE2_RULES,
    ignored=("model.embed_tokens.weight", "model.vision_tower.*", "lm_head.weight"),
    config=eve2_config,
    published_config=_published_trunk,
    derived=(INVERSE_FREQUENCIES,),
    harmless=(*EVE_HARMLESS, *_VISION),
)
