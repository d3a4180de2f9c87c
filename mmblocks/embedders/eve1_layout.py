"""How EVEv1's published files name the tensors of its patch embedding layer, and what their config means."""

import re
from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.embedders.eve_presets import EVE1_HARMLESS, eve_preprocessor

_PRESET_ENTRIES = {
    "patch_stride": "patch_size",
    "conv_stride": "merge_size",
    "image_size": "image_size",
    "image_size_clip": "teacher_image_size",
    "patch_stride_clip": "teacher_patch_size",
}
"""Of the published preprocessor_config.json -> arguments."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv1's config. Strides and sizes stand in presets that it names, and that are not published beside the weights.

    Entries of such presets may stand in the config itself, and come first.
    """
    check_model(config, "eve", "eve_llama")
    depth = re.fullmatch(r"mlp(\d+)x_gelu", config["mm_projector_type"])
    if depth is None:
        raise ValueError(f"mm_projector_type is {config['mm_projector_type']!r}; accepted: mlp2x_gelu, or with another number")
    arguments = {"dim": config["hidden_size"], "hidden_dim": config["mm_hidden_size"], "projector_layers": int(depth[1])}
    presets = (
        ("mm_vision_tower", r"eve-patch(\d+)-anypixel-(\d+)", ("patch_stride", "image_size")),
        ("mm_vision_tower_clip", r"patch(\d+)-(\d+)", ("patch_stride_clip", "image_size_clip")),
    )
    for name, pattern, entries in presets:
        if config.get(name) is None or config.keys() >= set(entries):
            continue
        match = re.search(pattern, config[name])
        if match is None:
            raise ValueError(
                f"{name} is {config[name]!r}; accepted: a name such as openai/eve-patch14-anypixel-672 or"
                f" openai/clip-vit-large-patch14-336, or the preset's entries {', '.join(entries)} in config.json"
            )
        arguments |= {_PRESET_ENTRIES[entry]: int(value) for entry, value in zip(entries, match.groups(), strict=True)}
    return arguments | {ours: config[theirs] for theirs, ours in _PRESET_ENTRIES.items() if theirs in config}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """With the presets' entries beside the presets' names, which upstream looks up in folders of its own."""
    check_arguments(arguments, num_heads=8)
    tower = f"openai/eve-patch{arguments['patch_size']}-anypixel-{arguments['image_size']}"
    teacher = f"openai/clip-vit-large-patch{arguments['teacher_patch_size']}-{arguments['teacher_image_size']}"
    return {
        "model_type": "eve",
        "architectures": ["EVELlamaForCausalLM"],
        "hidden_size": arguments["dim"],
        "mm_hidden_size": arguments["hidden_dim"],
        "mm_projector_type": f"mlp{arguments['projector_layers']}x_gelu",
        "mm_vision_tower": tower,
        "mm_vision_tower_clip": teacher,
        **{theirs: arguments[ours] for theirs, ours in _PRESET_ENTRIES.items()},
    }


def _attention_rules(name: str) -> tuple[Rule, ...]:
    theirs, ours = f"model.vision_tower.{name}", name
    return (
        Rule(f"{theirs}.q.0.*", f"{ours}.norm_query.*"),
        Rule(f"{theirs}.q.1.*", f"{ours}.query.*"),
        Rule(f"{theirs}.kv.0.*", f"{ours}.norm_context.*"),
        Rule(f"{theirs}.kv.1.*", f"{ours}.key_value.*"),
        Rule(f"{theirs}.proj.*", f"{ours}.out.*"),
    )


EVE1_LAYOUTS = (
    Layout(
        "eve1",
        (
            Rule("model.vision_tower.patch_embedding.weight", "patch.weight"),
            Rule("model.vision_tower.class_embedding", "class_token"),
            Rule("model.vision_tower.split_embedding", "split_token"),
            *_attention_rules("local_attention"),
            *_attention_rules("global_attention"),
            Rule("model.mm_projector.{}.*", "projector.{}.*"),
        ),
        ignored=(
            "model.layers.*",
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
            "model.vision_clip.*",
            "model.vision_tower_compressor.*",
        ),
        config=_config,
        published_config=_published_config,
        harmless=EVE1_HARMLESS,
        preprocessor=eve_preprocessor(_PRESET_ENTRIES),
    ),
)
"""Of ``EVE1PatchEmbedding``."""
