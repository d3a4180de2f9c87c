"""How published files of VAR's transformer name their tensors, and what their options say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.heads.next_scale import former_scale_tokens

_TOKENIZER = ("quant", "vae_kwargs")


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's arguments, alone or beside the tokenizer's; what is not said is the constructor's default."""
    own = config.get("var", config)
    codes: Mapping[str, Any] = next((config[name] for name in _TOKENIZER if config.get(name) is not None), {})
    return {
        "num_codes": codes.get("vocab_size", 4096),
        "code_dim": codes.get("Cvae", codes.get("z_channels", 32)),
        "num_classes": own.get("num_classes", 1000),
        "dim": own["embed_dim"],
        "num_layers": own["depth"],
        "num_heads": own["num_heads"],
        "mlp_ratio": own.get("mlp_ratio", 4.0),
        "norm_eps": own.get("norm_eps", 1e-6),
        "shared_modulation": own.get("shared_aln", False),
        "label_dropout": own.get("cond_drop_rate", 0.1),
        "l2_norm": own.get("attn_l2_norm", False),
        "scales": tuple(own.get("patch_nums", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the official constructor that the Hub reads, with the tokenizer's inside; ``.pth`` files come without."""
    scales = [_side(scale) for scale in arguments["scales"]]
    return {
        "vae_kwargs": {"vocab_size": arguments["num_codes"], "z_channels": arguments["code_dim"], "v_patch_nums": scales},
        "num_classes": arguments["num_classes"],
        "depth": arguments["num_layers"],
        "embed_dim": arguments["dim"],
        "num_heads": arguments["num_heads"],
        "mlp_ratio": arguments["mlp_ratio"],
        "norm_eps": arguments["norm_eps"],
        "shared_aln": arguments["shared_modulation"],
        "cond_drop_rate": arguments["label_dropout"],
        "attn_l2_norm": arguments["l2_norm"],
        "patch_nums": scales,
    }


def _side(scale: int | Sequence[int]) -> int:
    rows, columns = (scale, scale) if isinstance(scale, int) else scale
    if rows != columns:
        raise ValueError(f"scales has {(rows, columns)}; accepted in the layout 'var': squares, as its code has")
    return int(rows)


def _levels(arguments: Mapping[str, Any]) -> Tensor:
    """The index of the scale that each token belongs to."""
    sizes = [(scale, scale) if isinstance(scale, int) else scale for scale in arguments["scales"]]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor([rows * columns for rows, columns in sizes]))


def _level_table(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"lvl_1L": _levels(arguments)[None]}


def _mask_table(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """0 where a token attends to another, minus infinity elsewhere."""
    levels = _levels(arguments)
    hidden = levels[:, None] < levels
    return {"attn_bias_for_masking": torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)[None, None]}


def _zero_tables(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"blocks.{index}.attn.zero_k_bias": torch.zeros(arguments["dim"]) for index in range(arguments["num_layers"])}


def _level_difference(table: Tensor, arguments: Mapping[str, Any]) -> float:
    return _difference(table, _levels(arguments)[None])


def _mask_difference(table: Tensor, arguments: Mapping[str, Any]) -> float:
    """1 where the file's mask says something else."""
    (wanted,) = _mask_table(arguments).values()
    return max(_difference(table == -math.inf, wanted == -math.inf), _difference(table == 0, wanted == 0))


def _zero_difference(table: Tensor, arguments: Mapping[str, Any]) -> float:
    return _difference(table, torch.zeros(arguments["dim"]))


def _difference(table: Tensor, wanted: Tensor) -> float:
    if table.shape != wanted.shape:
        raise ValueError(f"the table has shape {tuple(table.shape)}; accepted: {tuple(wanted.shape)}")
    return float((table.double() - wanted.to(table.device).double()).abs().max())


_HARMLESS = ("drop_rate", "attn_drop_rate", "flash_if_available", "fused_if_available")


_LAYER = "trunk.layers.{}"
_ATTENTION = f"{_LAYER}.attention"
_QKV = tuple(f"{_ATTENTION}.{part}.weight" for part in ("query", "key", "value"))


VAR_LAYOUTS = (
    Layout(
        "var",
        (
            Rule("pos_start", "tokens.start", "squeeze_first"),
            Rule("pos_1LC", "tokens.positions", "squeeze_first"),
            Rule("word_embed.*", "tokens.embed.*"),
            Rule("class_emb.weight", "tokens.classes.weight"),
            Rule("lvl_embed.weight", "tokens.levels.weight"),
            Rule("shared_ada_lin.{}.*", "trunk.modulation.{}.*", "by_branch"),
            Rule("blocks.{}.ada_gss", f"{_LAYER}.modulation.own", "squeeze_first_two_by_branch"),
            Rule("blocks.{}.ada_lin.{}.*", f"{_LAYER}.modulation.map.{{}}.*", "by_branch"),
            Rule("blocks.{}.attn.scale_mul_1H11", f"{_ATTENTION}.query_norm.log_scale", "squeeze_first"),
            Rule("blocks.{}.attn.q_bias", f"{_ATTENTION}.query.bias"),
            Rule("blocks.{}.attn.v_bias", f"{_ATTENTION}.value.bias"),
            Split("blocks.{}.attn.mat_qkv.weight", _QKV),
            Rule("blocks.{}.attn.proj.*", f"{_ATTENTION}.output.*"),
            Rule("blocks.{}.ffn.fc1.*", f"{_LAYER}.mlp.up.*"),
            Rule("blocks.{}.ffn.fc2.*", f"{_LAYER}.mlp.down.*"),
            Rule("head_nm.ada_lin.{}.*", "tokens.output.modulation.{}.*", "swap_halves"),
            Rule("head.*", "tokens.output.linear.*"),
        ),
        ignored=("vae_quant.*",),
        derived=(
            Derived("attn_bias_for_masking", _mask_difference, made=_mask_table),
            Derived("lvl_1L", _level_difference, made=_level_table),
            Derived("blocks.{}.attn.zero_k_bias", _zero_difference, made=_zero_tables),
        ),
        config=_config,
        published_config=_published_config,
        harmless=(*_HARMLESS, *(f"var.{name}" for name in _HARMLESS), *(f"{name}.*" for name in _TOKENIZER)),
    ),
)
"""Of ``VAR``; the tokenizer is a part of its own."""

VAR_FORMER = Layout(
    "var until version 0.2",
    (
        *former_scale_tokens(),
        Rule("shared_modulation.{}.*", "trunk.modulation.{}.*", "by_branch"),
        Rule("layers.{}.own_modulation", f"{_LAYER}.modulation.own", "squeeze_first_by_branch"),
        Rule("layers.{}.modulation.{}.*", f"{_LAYER}.modulation.map.{{}}.*", "by_branch"),
        Rule("layers.{}.attention.log_scale", f"{_ATTENTION}.query_norm.log_scale"),
        Rule("layers.{}.attention.query_bias", f"{_ATTENTION}.query.bias"),
        Rule("layers.{}.attention.value_bias", f"{_ATTENTION}.value.bias"),
        Split("layers.{}.attention.qkv.weight", _QKV),
        Rule("layers.{}.attention.output.*", f"{_ATTENTION}.output.*"),
        *(Rule(f"layers.{{}}.{name}.*", f"{_LAYER}.mlp.{name}.*") for name in ("up", "down")),
        Rule("modulation.{}.*", "tokens.output.modulation.{}.*", "swap_halves"),
        Rule("predict.*", "tokens.output.linear.*"),
    ),
)
"""Names that folders saved by earlier versions have."""
