"""Entries that the configs of many language models share, as descriptions of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmblocks.checkpoints.layouts.published_config import check_model, plain, shown, stated, title
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.llama_config import agreed, rotary_entries, scaling_of
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.rotary import Rotary

FULL, SLIDING = "full_attention", "sliding_attention"
"""What transformers calls layers whose attention reaches all tokens before, or a window."""


def check_named(config: Mapping[str, Any], *models: str) -> None:
    """Refuses the config of another model, and one that names none: what is not said there has the model's defaults.

    Raises:
        ValueError: it is another model's, or names none.
    """
    if config.get("model_type") is None:
        raise ValueError(f"{title(config, 'model_type')} is missing; accepted: {', '.join(models)}")
    check_model(config, *models)


def attention_of(config: Mapping[str, Any], *, head_dim: int | None = None, **fields: Any) -> Attention:  # its own fields
    """``Attention`` of a config's heads.

    Args:
        config: the config.
        head_dim: where the config does not say it; the width's share of a head if None.
        fields: further ones of ``Attention``.
    """
    heads = config["num_attention_heads"]
    return Attention(
        num_heads=heads,
        num_kv_heads=stated(config, "num_key_value_heads", heads),
        head_dim=stated(config, "head_dim", head_dim or config["hidden_size"] // heads),
        **fields,
    )


def rotary_of(
    config: Mapping[str, Any],
    *,
    theta: float = 10000.0,
    share: float = 1.0,
    layer_type: str | None = None,
    neighbours: bool = False,
) -> Rotary:
    """The angles that a config names; newer files have all entries among the ``rope_parameters``.

    Args:
        config: the config.
        theta: the base where none is named.
        share: the part of a head that is turned where none is named.
        layer_type: which of the ``rope_parameters``, where these differ by type of layer.
        neighbours: as for ``Rotary``.
    """
    given = rotary_entries(config)
    scaled = given
    if layer_type is not None:
        given, scaled = _of_type(config, given, layer_type)
    base = agreed(config, given, "rope_theta")
    turned = agreed(config, given, "partial_rotary_factor")
    return Rotary(
        theta=theta if base is None else base,
        scaling=plain(scaling_of(config, scaled)),
        share=share if turned is None else turned,
        neighbours=neighbours,
    )


def _of_type(config: Mapping[str, Any], given: Mapping[str, Any], layer_type: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The entries of one type of layer, and those that scale its angles.

    Older files have one ``rope_scaling``: it is that of layers that read all tokens, and windows know no far ones.

    Raises:
        ValueError: ``rope_parameters`` that name no type of layer, which transformers does not read.
    """
    new = config.get("rope_parameters")
    if new and not any(isinstance(new.get(kind), Mapping) for kind in (FULL, SLIDING)):
        raise ValueError(f"{title(config, 'rope_parameters')} is {shown(new)}; accepted: entries for each of {FULL} and {SLIDING}")
    if isinstance(given.get(layer_type), Mapping):
        return given[layer_type], given[layer_type]
    return given, {} if layer_type == SLIDING else given


def types_of(config: Mapping[str, Any], *, every: int | None = None) -> tuple[str, ...]:
    """Which layers have a window.

    Args:
        config: the config, whose ``layer_types`` count where there are some.
        every: otherwise every so-manieth layer has none, and all others have one; None for a window in every layer, and none at all
            where no ``sliding_window`` is named.

    Raises:
        ValueError: another number of types than of layers, or types that are neither ``FULL`` nor ``SLIDING``.
    """
    count, named = config["num_hidden_layers"], config.get("layer_types")
    if named is None and config.get("sliding_window") is None:
        named = (FULL,) * count
    if named is None:
        named = tuple(FULL if every and (layer + 1) % every == 0 else SLIDING for layer in range(count))
    strange = [found for found in named if found not in (FULL, SLIDING)]
    if strange or len(named) != count:
        found = shown(strange[0]) if strange else f"{len(named)} types"
        raise ValueError(f"{title(config, 'layer_types')} has {found}; accepted: {count}, of {FULL} and {SLIDING}")
    return tuple(named)


def arguments_of(config: Mapping[str, Any], layers: Mapping[str, Layer], types: Sequence[str], **more: object) -> dict[str, Any]:
    """``Decoder`` arguments.

    Args:
        config: the config.
        layers: kinds of layers by name.
        types: the kind of each layer.
        more: further arguments.
    """
    used = {name: layer for name, layer in layers.items() if name in types}
    one = len(used) == 1
    return {
        "dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "layers": next(iter(used.values())) if one else used,
        **({} if one else {"layer_types": tuple(types)}),
        **more,
    }
