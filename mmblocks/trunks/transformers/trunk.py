"""Any causal language model of transformers as a trunk.

Shapes: B batch, L new tokens, D width.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.sequence.masks import Causal, Dense, Mask, MaskRule, densify, find_mask
from mmblocks.sequence.positions import PositionScheme, sequential
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.renamed import TRANSFORMERS_CACHE, parameter_name
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.derived_tables import frequencies_differ
from mmblocks.trunks.families.names import NOT_THE_TRUNK
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.transformers.hooks import ATTENTION, PreTrained, register, watched

Described = Any
"""A ``PretrainedConfig``: its entries differ from model to model."""


class TransformersCache(KVCache):
    """A transformers cache beside the table of the tokens it holds; it belongs to one generation.

    Args:
        model: whose cache it is.
        batch: rows.
        capacity: tokens a row can hold. Memory is taken as they come.
    """

    def __init__(self, model: PreTrained, *, batch: int, capacity: int) -> None:
        from transformers import DynamicCache

        super().__init__(layers=(), batch=batch, capacity=capacity, device=model.device)
        self.language_model = model.config
        self.past: Any = DynamicCache(config=model.config)  # whose layers' classes change from version to version

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values held so far, in bytes."""
        held = [tensor for layer in self.past.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def forget(self, count: int) -> None:
        """Takes back the newest tokens; see ``KVCache.forget``."""
        super().forget(count)
        if count:
            self.past.crop(-count)

    def rows(self, index: Int[Tensor, " R"]) -> Self:
        """A cache of the chosen rows, as copies."""
        from transformers import DynamicCache

        chosen = super().rows(index)
        chosen.past = DynamicCache(config=self.language_model)
        for number, layer in enumerate(self.past.layers):
            if layer.keys is not None:
                chosen.past.update(layer.keys[index], layer.values[index], number)
        return chosen


_NOT_THE_TRUNKS = (
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "quantization_config",
)
"""Entries of a config that say nothing about the trunk."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A published config: it is the argument. What transformers makes of an entry is its own affair."""
    if "model_type" not in config:
        raise ValueError("the config has no model_type; accepted: a config of transformers")
    if config.get("quantization_config") is not None:
        raise ValueError(
            "the config has a quantization_config; accepted: weights that are not quantized, or TransformersTrunk.around"
        )
    return _described(config)


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"language_model": {name: value for name, value in config.items() if name not in _NOT_THE_TRUNKS}}


def _frequencies_differ(table: Tensor, arguments: Arguments) -> float:
    """How far angles in a file are from those that transformers computes."""
    from transformers import AutoConfig

    described = AutoConfig.for_model(**arguments["language_model"]).to_dict()
    rope = described.get("rope_parameters", {})
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        raise ValueError(f"it cannot be compared for rope_parameters {rope}; accepted: rotary angles that are not scaled")
    share = rope.get("partial_rotary_factor") or 1.0
    head_dim = described.get("head_dim") or described["hidden_size"] // described["num_attention_heads"]
    return frequencies_differ(table, {"head_dim": int(head_dim * share), "rope_theta": rope["rope_theta"]})


class TransformersTrunk(Block):
    """A transformers language model with the contract of a trunk: packed documents, images, any mask, cache, hooks.

        TransformersTrunk.from_pretrained("path/of/a/checkpoint")      # one whose tensors are called model.* and lm_head.*
        TransformersTrunk.around(AutoModelForCausalLM.from_pretrained(...))

    The model's own embedding of ids and its head are left out: they are other parts. Needs the extra ``transformers``.

    Args:
        language_model: the model's config, with its ``model_type``.
        positions: a scheme of one's own, from the token table to (B, L); ``sequence.positions.sequential`` if None.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no ``model_type``, quantized weights, or a model in which some layers see a window only: a mask from the table
            would widen it.

    Source: huggingface/transformers.

    Examples:
        >>> import torch
        >>> import transformers
        >>> from mmblocks import TokenTable
        >>> from mmblocks.trunks import TransformersTrunk
        >>> sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 10}
        >>> heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        >>> trunk = TransformersTrunk(language_model={"model_type": "nemotron", **sizes, **heads})
        >>> tuple(trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5)).shape)
        (1, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "transformers",
            (Rule("model.*", "model.*"),),
            ignored=NOT_THE_TRUNK,
            config=_config,
            derived=(Derived("model.layers.{}.self_attn.rotary_emb.inv_freq", _frequencies_differ),),
            harmless=("architectures",),
        ),
    )

    def __init__(self, *, language_model: dict[str, Any], positions: PositionScheme | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.model = _without_embedding(_build(language_model))

    @classmethod
    def around(cls, model: PreTrained, *, positions: PositionScheme | None = None) -> "TransformersTrunk":
        """A trunk of a transformers model, with or without its head. The weights are shared, and its embedding stays its own."""
        base: PreTrained = getattr(model, model.base_model_prefix, model)  # the model itself where it has no head
        described = json.loads(base.config.to_json_string(use_diff=True))
        with torch.device("meta"):
            trunk = cls(**_described({"model_type": base.config.model_type, **described}), positions=positions)
        return trunk._share(base)

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm; arguments as of ``Decoder``.

        Hooks for attention weights and heads need a model that takes its attention from outside, as most do; one that was handed to
        ``around`` needs ``model.set_attn_implementation("mmblocks")`` first, which is sdpa wherever no hook looks.

        Raises:
            TypeError: a cache of another kind than ``new_cache`` makes, or a model that takes none.
            ValueError: shapes that do not fit each other, a full cache, hooks of layers that are not there, or hooks for attention
                in a model that does not let it be seen.
        """
        if cache is not None and not isinstance(cache, TransformersCache):
            raise TypeError(f"cache is a {type(cache).__name__}; accepted: what new_cache of a TransformersTrunk makes")
        if embeds.shape[:2] != table.shape or embeds.shape[2] != self.dim:
            found = f"embeds {tuple(embeds.shape)} and a table {table.shape}"
            raise ValueError(f"{found} do not fit; accepted: (B, L, {self.dim}) and (B, L)")
        asked = hooks or TrunkHooks()
        asked.check(self.model.config.num_hidden_layers)
        keys = table if cache is None else cache.append(table)
        past, length, scheme = None if cache is None else cache.past_of(keys), table.shape[1], self.positions or sequential
        mask = past.mask if mask is None and past is not None else find_mask(mask, table, keys)
        if asked.attention:
            mask = Dense(densify(mask, length, keys.shape[1], embeds.device))
        held = {} if cache is None else {parameter_name(type(self.model).forward, TRANSFORMERS_CACHE): cache.past}
        with watched(self.model, asked) if hooks is not None else nullcontext():
            output = self.model(
                inputs_embeds=embeds,
                attention_mask=_four_axes(mask, length, keys.shape[1], embeds),
                position_ids=(scheme(keys) if past is None else past.positions(scheme))[:, -length:],
                use_cache=cache is not None,
                **held,
            )
        state: Tensor = output.last_hidden_state
        return state

    @property
    def num_layers(self) -> int:
        """Layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.model.config.hidden_size)

    def new_cache(self, batch: int, capacity: int) -> TransformersCache:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens."""
        return TransformersCache(self.model, batch=batch, capacity=capacity)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recomputes what is in no checkpoint: the frequencies of rotary embeddings.

        Raises:
            ValueError: a model with another module that has such buffers.
        """
        for name, module in list(self.model.named_modules()):
            if not module._non_persistent_buffers_set:
                continue
            try:
                with torch.device("cpu"):
                    fresh = type(module)(self.model.config)
            except TypeError as error:
                raise ValueError(
                    f"{name} of {type(self.model).__name__} cannot be rebuilt: use TransformersTrunk.around"
                ) from error
            self.model.set_submodule(name, fresh.to(device))

    def _share(self, base: nn.Module) -> "TransformersTrunk":
        """The given model's modules in place of this one's, but for the embedding."""
        for name, module in base.named_children():
            if module is not base.get_input_embeddings():  # type: ignore[operator]
                setattr(self.model, name, module)
        return self.train(base.training)


def _build(config: Mapping[str, Any]) -> PreTrained:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ImportError("TransformersTrunk needs transformers: pip install 'mmblocks[transformers]'") from error
    if "model_type" not in config:
        raise ValueError(f"language_model has {sorted(config)}; accepted: a config of transformers with its model_type")
    settings = {name: value for name, value in config.items() if name != "model_type"}
    described = AutoConfig.for_model(config["model_type"], **settings)
    if _has_window(described):
        raise ValueError(f"{config['model_type']} has layers that see a window; accepted: models in which every layer sees all")
    register()
    auto: Any = AutoModel  # its methods have no types
    # Code that a config names is never run, and nobody is asked whether it may be.
    model = auto.from_config(described, attn_implementation="sdpa", trust_remote_code=False)
    if model._supports_attention_backend:
        model.set_attn_implementation(ATTENTION)
    return model


def _has_window(described: Described) -> bool:
    """Whether a layer sees less than rows can hold. Models without ``layer_types`` have a window in every layer, or in none."""
    entries = described.to_dict()
    kinds = entries.get("layer_types")
    if kinds:
        return any(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    window = entries.get("sliding_window")
    return window is not None and window < entries.get("max_position_embeddings", window)


def _without_embedding(model: PreTrained) -> PreTrained:
    """The embedding of ids is another part; what is embedded is handed in."""
    model.set_input_embeddings(nn.Identity())
    return model


def _four_axes(mask: Mask, num_queries: int, num_keys: int, embeds: Tensor) -> Tensor | None:
    """True where a query sees a key, (B, 1, Lq, Lk), which transformers takes as it is; None where it finds that by itself."""
    if isinstance(mask, Causal) and num_queries == num_keys:
        return None
    seen = densify(mask, num_queries, num_keys, embeds.device)
    return seen[:, None].expand(embeds.shape[0], -1, -1, -1)
