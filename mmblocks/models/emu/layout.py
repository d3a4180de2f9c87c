"""How Emu's published files name its tensors, and what its configs mean: pretrained, and tuned to instructions with LoRA.

Emu's files have no config beside them. Where there is one it is read, with T5's config as ``t5_config`` and LLaMA's as ``llama``.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import check_arguments, only, read_own, stated, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.configurable import parameters
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.layers.towers.eva_layouts import TOWER_HARMLESS, complete_tower, eva_rules, eva_tower_arguments, eva_tower_config
from mmblocks.models.emu.merged_lora import MergedLoRA
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.derived_tables import inverse_frequencies
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama

(_FORMER,) = (layout for layout in CausalFormer.layouts if layout.name == "emu")

_ROUNDED = {"rope_dtype": "bfloat16"}
"""Emu's code makes its language model in bfloat16, and the sines and cosines keep that rounding; no config says so."""

T5_WORDS = 32128
"""Of T5's vocabulary, whose embedding lies in the files and is read by nothing."""


def language_rules(theirs: str, ours: str = "") -> tuple[Rule, ...]:
    """Of a LLaMA, its embedding and its head, where published names begin with ``theirs``, and ours with ``ours``."""
    plain = (rule for rule in LLAMA_RULES if "q_norm" not in rule.theirs and "k_norm" not in rule.theirs)
    return (
        Rule(f"{theirs}model.embed_tokens.weight", f"{ours}inputs.text.weight"),
        *(Rule(f"{theirs}{rule.theirs}", f"{ours}trunk.{rule.ours}") for rule in plain),
        Rule(f"{theirs}lm_head.weight", f"{ours}outputs.text.weight"),
    )


def frequencies(theirs: str) -> Derived:
    """The angles that older files hold once a layer; some were rounded to bfloat16 and stored in float32."""
    return replace(inverse_frequencies(f"{theirs}model.layers.{{}}.self_attn.rotary_emb.inv_freq"), tolerance=2**-8)


def llama_arguments(llama: Mapping[str, Any], *models: str) -> dict[str, Any]:
    """Arguments of the trunk; those of ``qk_norm`` are not told, since there is none."""
    only(llama, "tie_word_embeddings", False)
    found = llama_config(llama, models=models or ("llama",))
    return {name: value for name, value in found.items() if name != "qk_norm"}


def llama_entries(arguments: Arguments) -> dict[str, Any]:
    """The way back.

    Raises:
        ValueError: layers that no LLaMA has.
    """
    check_arguments(arguments, qk_norm=False, qkv_bias=False, rope_sections=None)
    return published_llama(
        {name: value for name, value in arguments.items() if name != "vocab_size"},
        model_type="llama",
        architecture="LlamaForCausalLM",
    )


def _config(config: Mapping[str, Any], *, vocab_size: int) -> dict[str, Any]:
    former = {} if _FORMER.config is None else dict(_FORMER.config(config))
    for name in ("in_dim", "dim", "input_norm"):  # which follow from the other parts
        former.pop(name)
    vision, llama, lora = (stated(config, name, {}) for name in ("vision_cfg", "llama", "lora"))
    for name, value in (("r", 16), ("alpha", 16), ("targets", ["q_proj", "k_proj", "v_proj", "o_proj"])):
        only(lora, name, value)
    only(config, "quick_gelu", False)
    return {
        "vocab_size": stated(config, "vocab", vocab_size),
        "embed_dim": stated(config, "embed_dim", 1024),
        "vision": eva_tower_arguments(vision) if vision else {},
        "former": former,
        **(llama_arguments(llama) if llama else {}),
        **read_own(config, _ROUNDED),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    tower = complete_tower(arguments["vision"] or {})
    usual = {name: parameter.default for name, parameter in parameters(CausalFormer).items()}
    inside = {"in_dim": tower["dim"], "dim": arguments["dim"], "input_norm": True}
    former = {**usual, **(arguments["former"] or {}), **inside}
    return {
        **({} if _FORMER.published_config is None else _FORMER.published_config(former)),
        "embed_dim": arguments["embed_dim"],
        "vision_cfg": eva_tower_config(tower),
        "llama": llama_entries(arguments),
        "vocab": arguments["vocab_size"],
        **written_own(arguments, _ROUNDED),
    }


def _words(arguments: Arguments) -> dict[str, Tensor]:
    """The embedding that the authors' strict loader asks for."""
    return {"cformer.cformer.embed_tokens.weight": torch.zeros(T5_WORDS, (arguments["former"] or {}).get("hidden_dim", 768))}


def _reads_nothing(table: Tensor, arguments: Arguments) -> float:
    return 0.0


_UNREAD = Derived("cformer.cformer.embed_tokens.weight", _reads_nothing, made=_words)

_VISION: tuple[Rule | Split, ...] = (
    *eva_rules("visual.", "inputs.vision.encoder.tower."),
    Rule("visual.norm.*", "inputs.vision.encoder.norm.*"),
    Rule("visual.head.*", "inputs.vision.encoder.head.*"),
    *(Rule(rule.theirs, f"inputs.vision.connector.{rule.ours}") for rule in _FORMER.rules if isinstance(rule, Rule)),
)

_HARMLESS = (
    *TOWER_HARMLESS,
    *(name for name in _FORMER.harmless if name not in ("embed_dim", "quick_gelu", "vision_cfg.*", "llama.*", "lora.*", "vocab")),
    *(f"llama.{name}" for name in LLAMA_HARMLESS),
    *("vision_cfg.patch_dropout", "vision_cfg.global_average_pool"),
)


def _layout(name: str, language: tuple[Rule, ...], lm: str, *, vocab_size: int) -> Layout:
    return Layout(
        name,
        (*_VISION, *language, Rule(f"{lm}stu_regress_head.weight", "outputs.embeddings.projection.weight")),
        config=partial(_config, vocab_size=vocab_size),
        published_config=_published_config,
        unwrap="module|",
        derived=(frequencies(lm), _UNREAD),
        harmless=_HARMLESS,
    )


def _with_lora(rules: tuple[Rule, ...], base: str) -> tuple[Rule, ...]:
    """The rules of a LLaMA where peft has wrapped the four maps of attention; ``base`` is what it calls the map itself."""
    adapted: list[Rule] = []
    for rule in rules:
        if ".self_attn." not in rule.theirs:
            adapted.append(rule)
            continue
        theirs, ours = rule.theirs.removesuffix(".*").removesuffix(".weight"), rule.ours.removesuffix(".*").removesuffix(".weight")
        narrow, widen = (f"{theirs}.lora_{name}.default.weight" for name in "AB")
        adapted.append(MergedLoRA(f"{theirs}.{base}weight", f"{ours}.weight", narrow=narrow, widen=widen))
    return tuple(adapted)


_LM = "decoder.lm."
_PEFT = "decoder.lm.base_model.model."

EMU_LAYOUTS = (
    _layout("emu", language_rules(_LM), _LM, vocab_size=32004),
    _layout("emu-instruct", _with_lora(language_rules(_PEFT), ""), _PEFT, vocab_size=32006),
    _layout("emu-instruct-newer-peft", _with_lora(language_rules(_PEFT), "base_layer."), _PEFT, vocab_size=32006),
)
"""Of ``Emu``. In files of the second and third kind adapters are added to the weights as they are read; newer versions of peft
call the weight itself otherwise, where the authors' own loader would leave it out in silence."""
