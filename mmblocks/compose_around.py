"""The parts of a language model of transformers: its embedding, its trunk and its head, with the weights it has.

Shapes: L tokens, V vocabulary, D width.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints import tensors
from mmblocks.checkpoints.layouts.language_models import LOGIT_SCALES, SOFTCAPS
from mmblocks.checkpoints.layouts.published import instance
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.buffers import ResetsBuffers
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.transformers.hooks import PreTrained
from mmblocks.trunks.transformers.trunk import TransformersTrunk

TRIED = 8
"""Ids of which the logits are compared."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of the mean difference of logits, relative to their spread; of half precision it is ``ROUGH``."""

ROUGH = 0.1


@runtime_checkable
class _Scaled(Protocol):
    """An embedding of transformers that multiplies its vectors."""

    embed_scale: Tensor | float


class LanguageModelParts(NamedTuple):
    """What a language model is made of."""

    embedding: TextEmbedding
    trunk: Decoder | TransformersTrunk
    head: LMHead


def language_model_parts(model: PreTrained, trunk: str | None = None) -> LanguageModelParts:
    """The parts of a causal language model, which share its weights.

    Args:
        model: of transformers.
        trunk: see ``MultimodalModel.around``.

    Raises:
        TypeError: something that is no language model with an embedding of ids and a head.
        ValueError: an encoder and a decoder, a model of more than text, several devices, a ``trunk`` that cannot be had, or parts
            that do not give the model's logits.
    """
    if trunk not in (None, "decoder", "transformers"):
        raise ValueError(f"trunk is {trunk!r}; accepted: 'decoder', 'transformers' or None")
    config = _checked_config(model)
    table, rows = _table(model), _rows(model)
    config["tie_word_embeddings"] = rows.weight is table.weight
    found = None if trunk == "transformers" else _decoder(model, config)
    if found is None and trunk == "decoder":
        raise ValueError(
            f"trunk is 'decoder', but a {type(model).__name__} of model_type {config['model_type']!r} with this config is none that"
            " a Decoder follows; accepted: 'transformers' or None"
        )
    with torch.device("meta"):
        scale = _scale(table) if found is None else _embedding_scale(config)
        embedding = TextEmbedding(vocab_size=table.weight.shape[0], dim=table.weight.shape[1], scale=scale)
        head = LMHead(dim=rows.weight.shape[1], vocab_size=rows.weight.shape[0], bias=rows.bias is not None, **_factors(config))
    embedding.weight, head.weight = cast(nn.Parameter, table.weight), cast(nn.Parameter, rows.weight)
    if rows.bias is not None:
        head.bias = rows.bias
    made = LanguageModelParts(embedding, TransformersTrunk.around(model) if found is None else found, head)
    for part in made:
        part.train(model.training)
    if not table.weight.is_meta:
        _compare(model, made)
    return made


def _checked_config(model: PreTrained) -> dict[str, Any]:
    """The model's config, as its folder would hold it."""
    name = type(model).__name__
    said: PreTrained = model.config if _is_of_transformers(model) else None
    if said is None:
        raise TypeError(f"model is a {name}; accepted: a causal language model of transformers, such as LlamaForCausalLM")
    if said.is_encoder_decoder:
        raise ValueError(f"{name} has an encoder and a decoder; accepted: a language model that is one decoder")
    if said.get_text_config() is not said:
        raise ValueError(
            f"{name} reads more than text; accepted: its language model alone, such as model.language_model with a head"
        )
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"{name} lies on {', '.join(sorted(devices))}; accepted: a model on one device")
    return {"model_type": said.model_type, **json.loads(said.to_json_string(use_diff=True))}


def _is_of_transformers(model: object) -> bool:
    try:
        from transformers import PreTrainedModel
    except ImportError as error:
        raise ImportError("around needs transformers: pip install 'mmblocks[transformers]'") from error
    return isinstance(model, PreTrainedModel)


def _table(model: PreTrained) -> nn.Embedding:
    found = _asked(model.get_input_embeddings)
    if not isinstance(found, nn.Embedding):
        what = "has none" if found is None else f"gives a {type(found).__name__}"
        raise TypeError(f"get_input_embeddings of {type(model).__name__} {what}; accepted: a model with an nn.Embedding of ids")
    return found


def _rows(model: PreTrained) -> nn.Linear:
    found = _asked(model.get_output_embeddings)
    if not isinstance(found, nn.Linear):
        what = "has none" if found is None else f"gives a {type(found).__name__}"
        raise TypeError(
            f"get_output_embeddings of {type(model).__name__} {what}; accepted: a model with a head that is one nn.Linear, such as"
            " AutoModelForCausalLM loads"
        )
    return found


def _asked(method: Callable[[], object]) -> object:
    """What a model says of itself; None where it does not."""
    try:
        return method()
    except NotImplementedError:
        return None


def _decoder(model: nn.Module, config: dict[str, Any]) -> Decoder | None:
    """The model's layers as a ``Decoder`` that shares its weights; None where no layout of the Decoder is the model's."""
    weights = model.state_dict(keep_vars=True)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for layout in Decoder.layouts:
        if not layout.fits(weights, config):
            continue
        trunk = instance(Decoder, layout, config, {})
        if layout.check(shapes, trunk):
            continue
        slots = tensors.slots(trunk)
        for name, source in layout.sources(weights, trunk.config).items():
            value = source.read(weights)
            # A part of a fused matrix is a view of it.
            slots[name].put(
                value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), weights[source.keys[0]].requires_grad)
            )
        for module in trunk.modules():
            if isinstance(module, ResetsBuffers):
                module.reset_buffers(next(model.parameters()).device)
        return trunk
    return None


def _embedding_scale(config: Mapping[str, Any]) -> float:
    """What ids' vectors are multiplied by in front of a ``Decoder``."""
    (layout,) = [one for one in TextEmbedding.layouts if one.name == "llama"]
    return float(layout.arguments(config).get("scale", 1.0))


def _scale(table: nn.Embedding) -> float:
    """What an embedding itself multiplies its vectors by, which is all that is to be done in front of a ``TransformersTrunk``."""
    return float(table.embed_scale) if isinstance(table, _Scaled) else 1.0


def _factors(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model does to logits after its head."""
    kind = config["model_type"]
    tables = {"scale": LOGIT_SCALES, "softcap": SOFTCAPS}
    return {name: table[kind](config) for name, table in tables.items() if kind in table}


@torch.no_grad()
def _compare(model: PreTrained, made: LanguageModelParts) -> None:
    """Refuses parts that do not give the model's logits of a few ids."""
    weight = made.embedding.weight
    ids = torch.arange(TRIED, device=weight.device)[None] * (made.embedding.vocab_size // TRIED)
    with _evaluated(model), _evaluated(made.trunk):
        wanted: Float[Tensor, "1 L V"] = model(input_ids=ids, use_cache=False).logits.float()
        found = made.head.logits(made.trunk(made.embedding(ids), TokenTable.text(1, TRIED)))
    difference = float((found - wanted).abs().mean() / wanted.std().clamp(min=1e-30))
    if not difference <= TOLERANCE.get(weight.dtype, ROUGH):
        raise ValueError(
            f"{type(model).__name__} is no embedding, trunk and head alone: together they give logits that differ from its own by"
            f" {difference:.2g} of their spread; accepted: a model whose logits are those of its parts"
        )


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Without dropout while open."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
