"""The published folder of BAGEL: two configs, and the tensors of ema.safetensors. FLUX's autoencoder lies beside them."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only, read_own, stated, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.towers.siglip import siglip_rules
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama

EXPERTS = ("understanding", "generation")
"""The two sets of weights."""

VISION: dict[str, Any] = {
    "image_size": 980,
    "patch_size": 14,
    "dim": 1152,
    "num_layers": 26,
    "num_heads": 16,
    "mlp_dim": 4304,
}
"""The tower of the published model. Its config counts 27 layers, the last of which the authors' code leaves out."""

_OWN: dict[str, Any] = {
    "markers": (151652, 151653),
    "latent_channels": 16,
    "latent_patch": 2,
    "latent_side": 64,
    "shift": 1.0,
}
"""What no published file says, as the authors' code has it."""

_OVERRIDDEN = ("qk_norm", "tie_word_embeddings", "layer_module", "freeze_und")
"""Entries that the authors' code writes over after it has read them, and one that says what is trained."""

_TOWER, _LLM = "inputs.vision.embedder.encoder.tower.", "language_model."


def bagel_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """llm_config.json and vit_config.json."""
    language, vision = config["llm_config"], config["vit_config"]
    arguments = llama_config(language, models=("qwen2",))
    for name in ("qk_norm", "qkv_bias"):
        arguments.pop(name, None)
    return {
        "vocab_size": language["vocab_size"],
        **arguments,
        "vision": _tower(vision),
        **read_own(language, _OWN),
    }


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    check_model(config, "siglip_vision_model")
    for name, accepted in (("hidden_act", "gelu_pytorch_tanh"), ("layer_norm_eps", 1e-6), ("num_channels", 3)):
        only(config, name, accepted)
    return {
        "image_size": stated(config, "image_size", 224),
        "patch_size": stated(config, "patch_size", 16),
        "dim": stated(config, "hidden_size", 768),
        "num_layers": stated(config, "num_hidden_layers", 12) - 1,
        "num_heads": stated(config, "num_attention_heads", 12),
        "mlp_dim": stated(config, "intermediate_size", 3072),
    }


def published_bagel(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: what the authors' code does not have.
    """
    check_arguments(arguments, qk_norm=True, qkv_bias=True, rope_sections=None, rope_dtype=None)
    vision = {**VISION, **(arguments["vision"] or {})}
    unknown = [name for name in vision if name not in VISION]
    if unknown:
        raise ValueError(f"vision has {', '.join(unknown)}; accepted in this layout: {', '.join(VISION)}")
    language = published_llama(arguments, model_type="qwen2", architecture="Qwen2ForCausalLM")
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision["dim"],
        "intermediate_size": vision["mlp_dim"],
        "num_hidden_layers": vision["num_layers"] + 1,
        "num_attention_heads": vision["num_heads"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "num_channels": 3,
    }
    return {"llm_config": {**language, **written_own(arguments, _OWN)}, "vit_config": tower}


def _twins(rule: Rule) -> tuple[Rule, ...]:
    """A tensor of the weights that understand, and its twin of those that generate, which has a suffix on a module's name."""
    *path, last = rule.theirs.split(".")
    place = len(path) - (2 if "mlp" in path else 1)  # mlp_moe_gen.gate_proj, but self_attn.q_proj_moe_gen
    twin = [f"{name}_moe_gen" if index == place else name for index, name in enumerate(path)]
    ours, tensor = rule.ours.rsplit(".", 1)
    names = (rule.theirs, ".".join([*twin, last]))
    return tuple(Rule(_LLM + theirs, f"trunk.{ours}.{expert}.{tensor}") for theirs, expert in zip(names, EXPERTS, strict=True))


_PATCHES = "vit_model.vision_model.embeddings.patch_embedding.weight"

BAGEL_RULES = (
    Rule("language_model.model.embed_tokens.weight", "inputs.text.weight"),
    *(twin for rule in LLAMA_RULES for twin in _twins(rule)),
    Rule("language_model.lm_head.weight", "outputs.text.weight"),
    Rule(_PATCHES, f"{_TOWER}patch.weight", "rgb_patches_to_kernel"),
    *(rule for rule in siglip_rules("vit_model.vision_model.", _TOWER) if ".head." not in rule.theirs),
    Rule("connector.fc1.*", "inputs.vision.embedder.connector.layers.0.*"),
    Rule("connector.fc2.*", "inputs.vision.embedder.connector.layers.1.*"),
    Rule("vit_pos_embed.pos_embed", "inputs.vision.places.table"),
    Rule("vae2llm.*", "inputs.latents.embedder.*"),
    Rule("latent_pos_embed.pos_embed", "inputs.latents.places.table"),
    Rule("time_embedder.mlp.{}.*", "outputs.image.time.mlp.{}.*"),
    Rule("llm2vae.*", "outputs.image.output.*"),
)
"""The names of ema.safetensors -> ``Bagel``."""

BAGEL_LAYOUTS = (
    Layout(
        "bagel",
        BAGEL_RULES,
        config=bagel_config,
        published_config=published_bagel,
        harmless=(
            *(f"llm_config.{name}" for name in (*LLAMA_HARMLESS, *_OVERRIDDEN)),
            "vit_config.rope",  # written over, too
        ),
        config_file=("llm_config.json", "vit_config.json"),
        weights="ema",
    ),
)
