"""BLIP-2's connector: a Q-Former reads an image into a few tokens, and a linear layer brings them to the trunk's width.

Shapes: B images, L tokens of an image, Q queries, C width of the features, D of the trunk.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.grids import Grid, check_width
from mmblocks.connectors.published_widths import of_width, width_of
from mmblocks.layers.activations import published_activation, transformers_name
from mmblocks.layers.attention.query_transformer import QFormer, QFormerArguments, QFormerSizes, qformer_rules

_TEXT_HALF = (
    *("Qformer.cls.*", "Qformer.bert.embeddings.word_embeddings.*", "Qformer.bert.embeddings.position_embeddings.*"),
    *("Qformer.bert.embeddings.position_ids", "Qformer.bert.encoder.layer.{}.intermediate.*"),
    "Qformer.bert.encoder.layer.{}.output.*",
)
"""Of the first stage of training, where the Q-Former reads text too."""


def _transformers_rules() -> tuple[Rule, ...]:
    """Transformers has the same tensors without ``bert``, and with one more level inside attention."""
    rules: list[Rule] = []
    for rule in qformer_rules("Qformer", "qformer"):
        theirs = rule.theirs.replace("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm").replace("Qformer.bert", "qformer")
        rules.append(Rule(theirs.replace(".self.", ".attention."), rule.ours))
    return tuple(rules)


def _transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers leaves out of config.json what is as in its classes, whose sizes are those of QFormerConnector."""
    check_model(config, "blip-2")
    qformer = stated(config, "qformer_config", {})
    only(qformer, "model_type", "blip_2_qformer")
    only(qformer, "use_qformer_text_input", False)
    only(qformer, "position_embedding_type", "absolute")
    return {
        "dim": width_of(config, "text_config", "opt"),
        "num_queries": config.get("num_query_tokens", 32),
        "input_norm_eps": stated(config, "vision_config", {}).get("layer_norm_eps", 1e-6),
        "in_dim": qformer.get("encoder_hidden_size", 1408),
        "hidden_dim": qformer.get("hidden_size", 768),
        "num_layers": qformer.get("num_hidden_layers", 12),
        "num_heads": qformer.get("num_attention_heads", 12),
        "mlp_dim": qformer.get("intermediate_size", 3072),
        "cross_attention_every": qformer.get("cross_attention_frequency", 2),
        "activation": published_activation(qformer, "hidden_act", "gelu"),
        "norm_eps": qformer.get("layer_norm_eps", 1e-12),
    }


def _transformers_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, causal=False)
    if arguments["dim"] is None or arguments["input_norm_eps"] is None:
        raise ValueError("dim or input_norm_eps is None; accepted in this layout: a norm before, and a linear layer after")
    return {
        "model_type": "blip-2",
        "architectures": ["Blip2ForConditionalGeneration"],
        "num_query_tokens": arguments["num_queries"],
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "encoder_hidden_size": arguments["in_dim"],
            "hidden_size": arguments["hidden_dim"],
            "num_hidden_layers": arguments["num_layers"],
            "num_attention_heads": arguments["num_heads"],
            "intermediate_size": arguments["mlp_dim"],
            "cross_attention_frequency": arguments["cross_attention_every"],
            "hidden_act": transformers_name(arguments["activation"]),
            "layer_norm_eps": arguments["norm_eps"],
        },
        "vision_config": of_width(arguments["in_dim"], layer_norm_eps=arguments["input_norm_eps"]),
        "text_config": of_width(arguments["dim"]),
    }


_BERT = {
    "query_length": "num_queries",
    "encoder_width": "in_dim",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
    "cross_attention_freq": "cross_attention_every",
    "layer_norm_eps": "norm_eps",
}
"""Entries of the BERT config that LAVIS builds its Q-Former with -> arguments."""


def _lavis(config: Mapping[str, Any]) -> dict[str, Any]:
    """LAVIS' BERT config, with the trunk's width as ``llm_hidden_size``; LAVIS itself builds it in code, so files have none."""
    check_model(config, "bert")
    only(config, "position_embedding_type", "absolute")
    arguments = {ours: config[theirs] for theirs, ours in _BERT.items() if theirs in config}
    if "llm_hidden_size" in config:
        arguments["dim"] = config["llm_hidden_size"]
    return arguments | {"activation": published_activation(config, "hidden_act", "gelu"), "input_norm_eps": 1e-5}


def _lavis_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, causal=False, input_norm_eps=1e-5)
    return {
        "model_type": "bert",
        "llm_hidden_size": arguments["dim"],
        "hidden_act": transformers_name(arguments["activation"]),
        **{theirs: arguments[ours] for theirs, ours in _BERT.items()},
    }


def _lavis_layout(name: str, projection: str) -> Layout:
    return Layout(
        name,
        (
            Rule("query_tokens", "qformer.queries"),
            *qformer_rules("Qformer", "qformer"),
            Rule("ln_vision.*", "input_norm.*"),
            Rule(f"{projection}.*", "projection.*"),
        ),
        ignored=(*_TEXT_HALF, "visual_encoder.*", "opt_model.*", "t5_model.*", "llm_model.*"),
        unwrap="model",
        config=_lavis,
        published_config=_lavis_config,
        harmless=("add_cross_attention", "vocab_size", "max_position_embeddings", "type_vocab_size"),
    )


class QFormerConnector(Block):
    """A norm, a Q-Former and a linear layer: features of any number of tokens to Q embeddings.

    Args:
        dim: D; None for no linear layer, so that tokens are ``hidden_dim`` wide.
        in_dim: C.
        hidden_dim: width of the Q-Former.
        input_norm_eps: of a layer norm of the features; None for no norm.
        activation, norm_eps: of the Q-Former; see ``QFormer``.
        sizes: the arguments of ``QFormerSizes``.

    The defaults are those of BLIP-2. Files of LAVIS have no config, since it builds one in code: ``from_pretrained(..., dim=2560)``
    for OPT-2.7B, 4096 for OPT-6.7B, 2048 for Flan-T5-XL, 4096 for Flan-T5-XXL.

    Source: BLIP-2 (arXiv 2301.12597; salesforce/LAVIS; transformers' ``Blip2QFormerModel``).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import QFormerConnector
        >>> sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
        >>> connector = QFormerConnector(dim=32, in_dim=24, num_queries=5, **sizes)
        >>> tuple(connector(torch.randn(2, 17, 24)).shape)
        (2, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        _lavis_layout("blip2-opt", "opt_proj"),
        _lavis_layout("blip2-t5", "t5_proj"),
        Layout(
            "blip2-transformers",
            (
                Rule("query_tokens", "qformer.queries"),
                *_transformers_rules(),
                Rule("vision_model.post_layernorm.*", "input_norm.*"),
                Rule("language_projection.*", "projection.*"),
            ),
            ignored=("vision_model.*", "language_model.*"),
            config=_transformers,
            published_config=_transformers_config,
            harmless=(
                *("vision_config.*", "text_config.*", "image_token_index", "image_token_id", "image_text_hidden_size"),
                *("use_decoder_only_language_model", "tie_word_embeddings", "is_encoder_decoder"),
                *("qformer_config.vocab_size", "qformer_config.max_position_embeddings", "qformer_config.tie_word_embeddings"),
            ),
        ),
    )

    shorthand = QFormerSizes

    def __init__(
        self,
        *,
        dim: int | None,
        in_dim: int = 1408,
        hidden_dim: int = 768,
        input_norm_eps: float | None = 1e-5,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        **sizes: Unpack[QFormerArguments],
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.num_queries = QFormerSizes(**sizes).num_queries
        self.input_norm = None if input_norm_eps is None else nn.LayerNorm(in_dim, eps=input_norm_eps)
        self.qformer = QFormer(dim=hidden_dim, context_dim=in_dim, activation=activation, norm_eps=norm_eps, **sizes)
        self.projection = None if dim is None else nn.Linear(hidden_dim, dim)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B Q D"]:
        """What the queries read in the features of each image, a class token and all.

        Raises:
            ValueError: features of another width than ``in_dim``.
        """
        check_width(features, self.in_dim)
        context = features.flatten(1, -2)
        tokens = self.qformer(context if self.input_norm is None else self.input_norm(context))
        return tokens if self.projection is None else self.projection(tokens)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on any grid become: Q tokens."""
        return (self.num_queries,)
