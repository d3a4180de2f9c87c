"""Configs of transformers language models of the Llama family as ``Decoder`` arguments, each of them read whole."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import check_model, only, plain, shown, stated, title
from mmblocks.layers.attention.rotary_scaling import yarn_growth

LLAMA_HARMLESS = (
    "vocab_size",  # of the embedding and the head, as is the next
    "tie_word_embeddings",
    "max_position_embeddings",  # counts with scaled rotary angles and windows, which read it; so does the next
    "original_max_position_embeddings",
    "sliding_window",  # counts where use_sliding_window does not say no, and is read then
    "max_window_layers",
    "max_sequence_length",  # how long texts were in training
)
"""Entries that say nothing about a ``Decoder`` without scaled angles or windows."""

_WINDOW_ON_REQUEST = ("qwen2", "qwen3", "eve-qwen2")
"""Models whose ``use_sliding_window`` is False where it is not there."""

_LONGEST = {"mistral": 131072, **dict.fromkeys(_WINDOW_ON_REQUEST, 32768)}
"""Models that have a window of 4096 tokens where none is named -> ``max_position_embeddings``, likewise."""

_THETA = {"mixtral": 1e6, "emu3": 1e6, "emu3_text_model": 1e6}
"""The rotary base of models that have another one than Llama's where none is named."""


def llama_config(
    config: Mapping[str, Any],
    *,
    models: tuple[str, ...] = ("llama", "mistral"),
    qk_norm: bool = False,
    windowed: bool = False,
) -> dict[str, Any]:
    """A config as ``Decoder`` arguments.

    Args:
        config: of the model, or the entry of a larger config that describes its language model.
        models: values of ``model_type`` that it may have; the first is meant where it has none.
        qk_norm: whether the model normalizes every head's q and k.
        windowed: whether sliding windows are left to the caller, and not refused.

    Raises:
        KeyError: a size is missing.
        ValueError: another model, or what ``Decoder`` does not have: another activation, biases on the output, a sliding window,
            partly rotated heads, or scaling of angles that is not among ``layers.attention.rotary_scaling``.
    """
    check_model(config, *models)
    only(config, "hidden_act", "silu", "swish")
    for bias in ("attention_bias", "mlp_bias"):
        only(config, bias, False)
    only(config, "use_mrope", False)
    kind = model_of(config, models)
    if windowed:
        windows_of(config, kind)  # which counts as read
    else:
        check_window(config, kind)
    num_heads = config["num_attention_heads"]
    theta, scaling = rotary(config, kind)
    return {
        "dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": num_heads,
        "num_kv_heads": stated(config, "num_key_value_heads", num_heads),
        "head_dim": stated(config, "head_dim", config["hidden_size"] // num_heads),
        "mlp_dim": config["intermediate_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": qk_norm,
    }


def model_of(config: Mapping[str, Any], models: tuple[str, ...]) -> str:
    """The model whose defaults count."""
    return str(stated(config, "model_type", models[0])).lower()


def check_window(config: Mapping[str, Any], kind: str) -> None:
    """Refuses attention that does not reach all that came before."""
    window = _window(config, kind)
    if window is not None:
        what = title(config, "sliding_window")
        raise ValueError(f"{what} is {window}; accepted: none, or one as long as max_position_embeddings")
    for attention in config.get("layer_types") or ():
        if attention != "full_attention":
            raise ValueError(f"{title(config, 'layer_types')} names {shown(attention)}; accepted: full_attention")


def windows_of(config: Mapping[str, Any], kind: str) -> list[int | None]:
    """How far the attention of each layer reaches back; None for all that came before.

    Raises:
        ValueError: ``layer_types`` of other kinds, or another number of them than of layers.
    """
    count, window, named = config["num_hidden_layers"], _window(config, kind), config.get("layer_types")
    if named is None:
        first = config.get("max_window_layers", 28) if kind in _WINDOW_ON_REQUEST else 0
        return [window if layer >= first else None for layer in range(count)]
    strange = [found for found in named if found not in ("full_attention", "sliding_attention")]
    if strange or len(named) != count:
        found = f"names {shown(strange[0])}" if strange else f"has {len(named)} entries"
        raise ValueError(f"{title(config, 'layer_types')} {found}; accepted: {count}, of full_attention and sliding_attention")
    return [window if found == "sliding_attention" else None for found in named]


def _window(config: Mapping[str, Any], kind: str) -> int | None:
    """The window of layers that have one, if it is shorter than rows are."""
    window: int | None = config.get("sliding_window", 4096 if kind in _LONGEST else None)
    is_used = config.get("use_sliding_window")
    if is_used is None:
        is_used = kind not in _WINDOW_ON_REQUEST
    if window is None or not is_used:
        return None
    return window if window < config.get("max_position_embeddings", _LONGEST.get(kind, window)) else None


def rotary(config: Mapping[str, Any], kind: str) -> tuple[float, dict[str, Any] | None]:
    """``rope_theta`` and ``rope_scaling`` of ``Decoder``. Newer files have both among the ``rope_parameters``."""
    given = rotary_entries(config)
    theta = agreed(config, given, "rope_theta")
    rotated = agreed(config, given, "partial_rotary_factor")
    if rotated not in (None, 1.0):
        what = title(config, "partial_rotary_factor")
        raise ValueError(f"{what} is {shown(rotated)}; accepted: 1, heads that are rotated as a whole")
    return _THETA.get(kind, 10000.0) if theta is None else theta, scaling_of(config, given)


def rotary_entries(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of the rotary angles, under their older or their newer name."""
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    if old and new and plain(old) != plain(new):
        raise ValueError(f"{title(config, 'rope_scaling')} and rope_parameters are {old} and {new}; accepted: one of them")
    found: Mapping[str, Any] = old or new or {}
    return found


def agreed(config: Mapping[str, Any], given: Mapping[str, Any], name: str) -> Any:
    """An entry that may stand at the top, among those of the angles, or in both places with one value."""
    above, within = config.get(name), given.get(name)
    if above is not None and within is not None and above != within:
        found = f"{title(config, name)} is {shown(above)}, and {title(given, name)} is {shown(within)}"
        raise ValueError(f"{found}; accepted: one value")
    return within if above is None else above


def scaling_of(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``rope_scaling`` of ``Decoder``; older files call longrope "su"."""
    kind = agreed({"rope_type": given.get("type")}, given, "rope_type") or "default"
    match kind:
        case "default":
            return None
        case "dynamic":
            only(given, "original_max_position_embeddings", config["max_position_embeddings"])
            return {"type": kind, "factor": given["factor"], "max_position": config["max_position_embeddings"]}
        case "longrope" | "su":
            trained, factor = _trained(config, given), given.get("factor")
            return {
                "type": "longrope",
                "factor": config["max_position_embeddings"] / trained if factor is None else factor,
                "max_position": trained,
                "short_factor": tuple(given["short_factor"]),
                "long_factor": tuple(given["long_factor"]),
            }
        case "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor")
            return {"type": kind, **{name: given[name] for name in names}, "max_position": _trained(config, given)}
        case "yarn":
            return {"type": kind, **_yarn(given, config["max_position_embeddings"], _trained(config, given))}
        case _:
            return {"type": kind, "factor": given["factor"]}


def _trained(config: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """The length that was trained with; the longest one where nothing else is said."""
    length = agreed(config, given, "original_max_position_embeddings")
    return int(config["max_position_embeddings"] if length is None else length)


def _yarn(given: Mapping[str, Any], longest: int, trained: int) -> dict[str, Any]:
    """YaRN's entries; a config may give two weights in place of the growth of queries and keys (DeepSeek)."""
    factor = stated(given, "factor", longest / trained)
    growth, above, below = (given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if growth is None and above and below:
        growth = yarn_growth(factor, above) / yarn_growth(factor, below)
    more = {name: given.get(name) for name in ("beta_fast", "beta_slow", "truncate")} | {"attention_factor": growth}
    return {"factor": factor, "max_position": trained, **{name: value for name, value in more.items() if value is not None}}
