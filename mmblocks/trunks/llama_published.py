"""The way back from a ``Decoder``'s arguments to a config of transformers; see ``llama_config``."""

from collections.abc import Mapping
from typing import Any

_OWN_LENGTH = ("linear", "dynamic")
"""Kinds of scaling whose config is a type and a factor, and nothing else."""


def published_llama(arguments: Mapping[str, Any], *, model_type: str, architecture: str) -> dict[str, Any]:
    """A config that ``llama_config`` reads as these arguments.

    Args:
        arguments: of a ``Decoder``, or of what has its arguments among others. ``vocab_size`` is written where it is one.
        model_type: the model.
        architecture: the class that its own code has for it.
    """
    heads = arguments["num_heads"]
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": arguments.get("vocab_size"),
        "hidden_size": arguments["dim"],
        "intermediate_size": arguments["mlp_dim"],
        "num_hidden_layers": arguments["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": arguments["num_kv_heads"] or heads,
        "head_dim": arguments["head_dim"] or arguments["dim"] // heads,
        "hidden_act": "silu",
        "rms_norm_eps": arguments["norm_eps"],
        "rope_theta": arguments["rope_theta"],
        "tie_word_embeddings": False,
        **_published_scaling(arguments["rope_scaling"]),
    }
    return {name: value for name, value in config.items() if value is not None}


def _published_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """``rope_scaling``, and the length of texts that goes with it."""
    if scaling is None:
        return {"rope_scaling": None}
    kind, length = scaling["type"], scaling.get("max_position")
    if kind in _OWN_LENGTH:
        return {"rope_scaling": {"type": kind, "factor": scaling["factor"]}, "max_position_embeddings": length}
    entries = {
        name: list(value) if isinstance(value, tuple) else value for name, value in scaling.items() if name != "max_position"
    }
    return {
        "rope_scaling": {**entries, "original_max_position_embeddings": length},
        "max_position_embeddings": round(length * scaling.get("factor", 1)) if length else None,
    }
