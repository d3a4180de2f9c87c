"""How Emu2's published files name its tensors, and what its configs mean: the authors' own, Emu2-Gen's, and the Hub's.

The authors' own files have no config beside them. Where one is read, it is the entries of their ``CLIPVisionCfg`` as ``vision_cfg``
and LLaMA's config as ``llama``; the Hub's is LLaMA's, with ``vision_config`` inside.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import only, read_own, stated, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.configurable import parameters
from mmblocks.layers.towers.eva_layouts import eva_rules
from mmblocks.models.emu.layout import frequencies, language_rules, llama_arguments, llama_entries
from mmblocks.tokenizers.emu2_latents import Emu2Latents
from mmblocks.trunks.llama_config import LLAMA_HARMLESS

_OWN, _, _HUB = Emu2Latents.layouts

_EXACT = {"rope_dtype": None}
"""What no config says of the sines and cosines."""

_BESIDE_GEN = ("unet.*", "vae.*", "safety_checker.*")


def emu2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``Emu2``, from either config; none from an empty one."""
    if not config:
        return {}
    read = _OWN.config
    vision = {} if read is None else dict(read(config))
    sizes = config["vision_cfg"] if "vision_cfg" in config else config["vision_config"]
    only(config, "d_model", vision["dim"])
    llama = config.get("llama", config)
    return {
        "vocab_size": config["vocab"] if "vocab" in config else config["vocab_size"],
        "num_tokens": vision.pop("num_tokens"),
        "frame_tokens": stated(sizes, "v_query", 64),
        "vision": vision,
        **llama_arguments(llama, "llama", "emu", "emu2", ""),
        **read_own(config, _EXACT),
    }


def _vision(arguments: Arguments, layout: Layout, name: str) -> dict[str, Any]:
    """The tower's part of a config."""
    usual = {key: parameter.default for key, parameter in parameters(Emu2Latents).items()}
    given = {**usual, **(arguments["vision"] or {}), "num_tokens": arguments["num_tokens"]}
    config = {} if layout.published_config is None else layout.published_config(given)
    return {name: {**config[name], "v_query": arguments["frame_tokens"]}}


def emu2_own_config(arguments: Arguments) -> dict[str, Any]:
    """The way back to the authors' own entries."""
    return {
        **_vision(arguments, _OWN, "vision_cfg"),
        "llama": llama_entries(arguments),
        "vocab": arguments["vocab_size"],
        **written_own(arguments, _EXACT),
    }


def _hub_config(arguments: Arguments) -> dict[str, Any]:
    """The way back to the Hub's config, whose class has no ``model_type``."""
    llama = {name: value for name, value in llama_entries(arguments).items() if name != "model_type"}
    config = _vision(arguments, _HUB, "vision_config")
    return {
        **llama,
        "architectures": ["EmuForCausalLM"],
        "vocab_size": arguments["vocab_size"],
        "d_model": config["vision_config"]["width"],
        **config,
        **written_own(arguments, _EXACT),
    }


_VISION_HARMLESS = tuple(
    f"{part}.{name}"
    for part in ("vision_cfg", "vision_config")
    for name in ("patch_dropout", "xattn", "pt_hw_seq_len", "intp_freq")
)

EMU2_HARMLESS = (
    *_VISION_HARMLESS,
    *("token_ids.*", "instruct", "model_version", "llama_config_path"),
    *LLAMA_HARMLESS,
    *(f"llama.{name}" for name in LLAMA_HARMLESS),
)
"""Of the tower: kernels, rotations that it has not. Of the vocabulary: which ids are special."""


def emu2_rules(inner: str, outer: str, ours: str = "") -> tuple[Rule | Split, ...]:
    """The rules of a file.

    Args:
        inner: how the published names of the tower and of the language model begin.
        outer: how those of the projections do.
        ours: how ours do.
    """
    return (
        *eva_rules(f"{inner}visual.", f"{ours}inputs.vision.encoder.latents.encoder."),
        *language_rules(f"{inner}decoder.lm.", ours),
        Rule(f"{outer}project_up.weight", f"{ours}inputs.embeddings.projection.weight"),
        Rule(f"{outer}project_down.weight", f"{ours}outputs.embeddings.projection.weight"),
    )


def _layout(name: str, inner: str, outer: str, ignored: tuple[str, ...], back: Callable[[Arguments], dict[str, Any]]) -> Layout:
    return Layout(
        name,
        emu2_rules(inner, outer),
        ignored=ignored,
        config=emu2_config,
        published_config=back,
        unwrap="module|",
        derived=(frequencies(f"{inner}decoder.lm."),),
        harmless=EMU2_HARMLESS,
    )


EMU2_LAYOUTS = (
    _layout("emu2", "", "", (), emu2_own_config),
    _layout("emu2-gen", "multimodal_encoder.", "multimodal_encoder.", _BESIDE_GEN, emu2_own_config),
    _layout("emu2-hub", "model.", "", (), _hub_config),
)
"""Of ``Emu2``."""
