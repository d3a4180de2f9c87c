"""Configs of Phi-3 inside OmniGen, as its own code and as diffusers write them, and the way back."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only, shown, stated, title
from mmblocks.trunks.llama_config import agreed, rotary_entries


def phi3_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config of Phi-3 as ``Phi3Decoder`` arguments.

    Raises:
        ValueError: another model, or what ``Phi3Decoder`` does not do: other activations, partly rotated heads, other scalings.
    """
    check_model(config, "phi3")
    only(config, "hidden_act", "silu", "swish")
    only(config, "attention_bias", False)
    dim, num_heads = config["hidden_size"], config.get("num_attention_heads", 32)
    only(config, "head_dim", dim // num_heads)
    given = rotary_entries(config)
    rotated = agreed(config, given, "partial_rotary_factor")
    if rotated not in (None, 1.0):
        raise ValueError(f"{title(config, 'partial_rotary_factor')} is {shown(rotated)}; accepted: 1, as published")
    theta = agreed(config, given, "rope_theta")
    return {
        "dim": dim,
        "num_layers": config["num_hidden_layers"],
        "num_heads": num_heads,
        "num_kv_heads": stated(config, "num_key_value_heads", num_heads),
        "mlp_dim": config.get("intermediate_size", 8192),
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": 10000.0 if theta is None else theta,
        "rope_scaling": _scaling(config, given, dim // num_heads // 2, longest=4096),
    }


def diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of diffusers' ``OmniGenTransformer2DModel``, likewise.

    Raises:
        ValueError: as ``phi3_config``, and time steps that are embedded in another way.
    """
    only(config, "_class_name", "OmniGenTransformer2DModel")
    fixed = {"time_step_dim": 256, "flip_sin_to_cos": True, "downscale_freq_shift": 0, "timestep_activation_fn": "silu"}
    for name, accepted in fixed.items():
        only(config, name, accepted)
    dim, num_heads = config.get("hidden_size", 3072), config.get("num_attention_heads", 32)
    given = stated(config, "rope_scaling", {})
    return {
        "dim": dim,
        "num_layers": config.get("num_layers", 32),
        "num_heads": num_heads,
        "num_kv_heads": config.get("num_key_value_heads", 32),
        "mlp_dim": config.get("intermediate_size", 8192),
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_base", 10000),
        "rope_scaling": _scaling(config, given, dim // num_heads // 2, longest=131072, kind="su"),
    }


def _scaling(
    config: Mapping[str, Any], given: Mapping[str, Any], num_pairs: int, *, longest: int, kind: str = "default"
) -> dict[str, Any] | None:
    """The ``rope_scaling`` of ``Decoder``; transformers reads Phi-3's "su" and "yarn" as "longrope", its later name.

    Args:
        config: the whole config.
        given: the entries of the angles; none for no scaling.
        num_pairs: how many factors there must be.
        longest: ``max_position_embeddings`` where it is not said.
        kind: of entries that do not name theirs.
    """
    found = agreed({"rope_type": given.get("type")}, given, "rope_type") or kind
    if not given or found == "default":
        return None
    if found not in ("su", "longrope", "yarn"):
        raise ValueError(f"rope_scaling has type {found!r}; accepted: 'longrope', or 'su' and 'yarn' as older files call it")
    factors = {name: tuple(given[name]) for name in ("short_factor", "long_factor")}
    if any(len(values) != num_pairs for values in factors.values()):
        lengths = ", ".join(f"{len(values)} numbers as {name}" for name, values in factors.items())
        raise ValueError(f"rope_scaling has {lengths}; accepted: {num_pairs}, one for each pair of a head's channels")
    trained = agreed(config, given, "original_max_position_embeddings")
    trained = 4096 if trained is None else trained
    factor = stated(given, "factor", config.get("max_position_embeddings", longest) / trained)
    return {"type": "longrope", "factor": max(factor, 1.0), "max_position": trained, **factors}


def published_phi3(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back to transformers' config, from OmniGen's arguments."""
    return {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": arguments["vocab_size"],
        "num_hidden_layers": arguments["num_layers"],
        "hidden_act": "silu",
        "rope_theta": arguments["rope_theta"],
        "tie_word_embeddings": False,
        **_published(arguments, {"type": "su"}),
    }


def published_diffusers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back to diffusers' arguments, likewise."""
    return {
        "_class_name": "OmniGenTransformer2DModel",
        "vocab_size": arguments["vocab_size"],
        "num_layers": arguments["num_layers"],
        "rope_base": arguments["rope_theta"],
        **_published(arguments, {}),
    }


def _published(arguments: Mapping[str, Any], kind: Mapping[str, Any]) -> dict[str, Any]:
    """What both call alike."""
    width = arguments["dim"] // arguments["num_heads"]
    check_arguments({**arguments, "head_dim": arguments["head_dim"] or width}, head_dim=width, qk_norm=False, qkv_bias=False)
    check_arguments(arguments, rope_sections=None, rope_dtype=None)
    scaling = arguments["rope_scaling"]
    angles: dict[str, Any] = {}
    if scaling is not None:
        if scaling["type"] != "longrope":
            raise ValueError(f"rope_scaling has type {scaling['type']!r}; accepted in a Phi-3: 'longrope'")
        angles = {
            "rope_scaling": {**kind, **{name: list(scaling[name]) for name in ("short_factor", "long_factor")}},
            "max_position_embeddings": round(scaling["factor"] * scaling["max_position"]),
            "original_max_position_embeddings": scaling["max_position"],
        }
    return {
        "hidden_size": arguments["dim"],
        "num_attention_heads": arguments["num_heads"],
        "num_key_value_heads": arguments["num_kv_heads"] or arguments["num_heads"],
        "intermediate_size": arguments["mlp_dim"],
        "rms_norm_eps": arguments["norm_eps"],
        **angles,
    }
