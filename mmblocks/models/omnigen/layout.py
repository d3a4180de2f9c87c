"""How published files of OmniGen name their tensors: its own, and diffusers'."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.models.omnigen.phi3_config import diffusers_config, phi3_config, published_diffusers, published_phi3

_BASE_SIZE = 64
"""Of the table of positions, in both."""


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's config, alone or beside OmniGen's own arguments."""
    language = config.get("phi3", config)
    own = config.get("omnigen", config)
    return {**phi3_config(language), **_sizes(language, own), "interpolation": own.get("pe_interpolation", 1.0)}


def _diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**diffusers_config(config), **_sizes(config, config), "interpolation": 1.0}


def _sizes(language: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": language.get("vocab_size", 32064),
        "patch_size": own.get("patch_size", 2),
        "channels": own.get("in_channels", 4),
        "table_size": own.get("pos_embed_max_size", 192),
        "base_size": _BASE_SIZE,
    }


def _published_own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's config, which the official code reads, with the arguments that it takes beside it."""
    return {**published_phi3(arguments), **_published_sizes(arguments), "pe_interpolation": arguments["interpolation"]}


def _published_diffusers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments["interpolation"] != 1:
        raise ValueError(f"interpolation is {arguments['interpolation']}; accepted in the layout 'omnigen-diffusers': 1")
    return {**published_diffusers(arguments), **_published_sizes(arguments)}


def _published_sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if arguments["base_size"] != _BASE_SIZE:
        raise ValueError(f"base_size is {arguments['base_size']}; accepted in published layouts: {_BASE_SIZE}")
    names = {"patch_size": "patch_size", "in_channels": "channels", "pos_embed_max_size": "table_size"}
    return {theirs: arguments[ours] for theirs, ours in names.items()}


# The length that texts may have counts with stretched angles alone. Masks of the official code know no window; there is no head.
_LENGTHS = ("max_position_embeddings", "original_max_position_embeddings")
_UNUSED = (*_LENGTHS, "sliding_window", "tie_word_embeddings")


def _positions(arguments: Mapping[str, Any]) -> SinCosPositions:
    return SinCosPositions(**{name: arguments[name] for name in ("dim", "table_size", "base_size", "interpolation")})


def _table_difference(table: Tensor, arguments: Mapping[str, Any]) -> float:
    """Of the table of positions in a file from what ``OmniGen`` computes."""
    return _positions(arguments).difference(table)


def _table(name: str) -> Derived:
    """The table of positions under this name, which its own code asks for."""

    def made(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        size = arguments["table_size"]
        return {name: _positions(arguments)([(size, size)])[None]}

    return Derived(name, _table_difference, made=made)


def _qkv_rows(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    head_dim = arguments["dim"] // arguments["num_heads"]
    keys = (arguments["num_kv_heads"] or arguments["num_heads"]) * head_dim
    return arguments["dim"], keys, keys


def _layers(theirs: str) -> tuple[Rule | Split, ...]:
    """What both name alike."""
    ours = "model.trunk.layers.{}"
    return (
        Rule(f"{theirs}embed_tokens.weight", "model.inputs.text.weight"),
        Rule(f"{theirs}layers.{{}}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        Rule(f"{theirs}layers.{{}}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight"),
        Split(f"{theirs}layers.{{}}.mlp.gate_up_proj.weight", (f"{ours}.mlp.gate.weight", f"{ours}.mlp.up.weight")),
        Rule(f"{theirs}layers.{{}}.mlp.down_proj.weight", f"{ours}.mlp.down.weight"),
        Rule(f"{theirs}norm.weight", "model.trunk.norm.weight"),
    )


_PARTS = tuple(f"model.trunk.layers.{{}}.attention.{name}.weight" for name in ("query", "key", "value"))
_TOKEN, _OUTPUT = "model.outputs.image.time", "model.outputs.image.output"

OMNIGEN_LAYOUTS = (
    Layout(
        "omnigen",
        (
            Rule("x_embedder.proj.*", "model.inputs.noised.patch.*"),
            Rule("input_x_embedder.proj.*", "model.inputs.vision.patch.*"),
            Rule("time_token.mlp.{}.*", f"{_TOKEN}.mlp.{{}}.*"),
            Rule("t_embedder.mlp.{}.*", f"{_OUTPUT}.time.mlp.{{}}.*"),
            Rule("final_layer.adaLN_modulation.{}.*", f"{_OUTPUT}.modulation.{{}}.*"),
            Rule("final_layer.linear.*", f"{_OUTPUT}.predict.*"),
            *_layers("llm."),
            Split("llm.layers.{}.self_attn.qkv_proj.weight", _PARTS, sizes=_qkv_rows),
            Rule("llm.layers.{}.self_attn.o_proj.weight", "model.trunk.layers.{}.attention.output.weight"),
        ),
        derived=(_table("pos_embed"),),
        config=_own,
        published_config=_published_own,
        harmless=(*_UNUSED, *(f"phi3.{name}" for name in _UNUSED)),
    ),
    Layout(
        "omnigen-diffusers",
        (
            Rule("patch_embedding.output_image_proj.*", "model.inputs.noised.patch.*"),
            Rule("patch_embedding.input_image_proj.*", "model.inputs.vision.patch.*"),
            *(
                Rule(f"{theirs}.linear_{layer}.*", f"{ours}.mlp.{place}.*")
                for theirs, ours in (("time_token", _TOKEN), ("t_embedder", f"{_OUTPUT}.time"))
                for layer, place in ((1, 0), (2, 2))
            ),
            Rule("norm_out.linear.*", f"{_OUTPUT}.modulation.1.*"),
            Rule("proj_out.*", f"{_OUTPUT}.predict.*"),
            *_layers(""),
            *(
                Rule(f"layers.{{}}.self_attn.to_{part[0]}.weight", f"model.trunk.layers.{{}}.attention.{part}.weight")
                for part in ("query", "key", "value")
            ),
            Rule("layers.{}.self_attn.to_out.0.weight", "model.trunk.layers.{}.attention.output.weight"),
        ),
        derived=(_table("patch_embedding.pos_embed"),),
        config=_diffusers,
        published_config=_published_diffusers,
        weights="diffusion_pytorch_model",
        harmless=_LENGTHS,
    ),
)
"""Of ``OmniGen``."""

OMNIGEN_FORMER = Layout(
    "omnigen until version 0.2",
    (
        Rule("text.*", "model.inputs.text.*"),
        Rule("output_patches.*", "model.inputs.noised.*"),
        Rule("input_patches.*", "model.inputs.vision.*"),
        Rule("trunk.*", "model.trunk.*"),
        Rule("time_token.*", f"{_TOKEN}.*"),
        Rule("head.time.*", f"{_OUTPUT}.time.*"),
        Rule("head.modulation.*", f"{_OUTPUT}.modulation.*"),
        Rule("head.output.*", f"{_OUTPUT}.predict.*"),
    ),
)
"""Names that folders saved by earlier versions have."""
