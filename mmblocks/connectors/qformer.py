"""BLIP-2's connector: a Q-Former reads an image into a few tokens, and a linear layer brings them to the trunk's width.

Shapes: B images, L tokens of an image, Q queries, C width of the features, D of the trunk.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.connectors.grids import Grid, check_width
from mmblocks.layers.qformer import QFormer, qformer_rules

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
    vision, qformer = config["vision_config"], config["qformer_config"]
    # Transformers leaves out of config.json what is as in its defaults, which are those of QFormerConnector.
    sizes = {
        "in_dim": qformer.get("encoder_hidden_size", 1408),
        "hidden_dim": qformer.get("hidden_size", 768),
        "num_layers": qformer.get("num_hidden_layers", 12),
        "num_heads": qformer.get("num_attention_heads", 12),
        "mlp_dim": qformer.get("intermediate_size", 3072),
        "cross_attention_every": qformer.get("cross_attention_frequency", 2),
    }
    text = config["text_config"]
    return {
        "dim": text["d_model"] if "d_model" in text else text["hidden_size"],
        "num_queries": config.get("num_query_tokens", 32),
        "input_norm_eps": vision.get("layer_norm_eps", 1e-6),
        **sizes,
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
    )


class QFormerConnector(Block):
    """A norm, a Q-Former and a linear layer: features of any number of tokens to Q embeddings.

    Args:
        dim: D; None for no linear layer, so that tokens are ``hidden_dim`` wide.
        in_dim: C.
        num_queries: Q.
        hidden_dim, num_layers, num_heads, mlp_dim, cross_attention_every: of the Q-Former; see ``QFormer``.
        causal: let a query see only those before it, as in SEED.
        input_norm_eps: of a layer norm of the features; None for no norm.

    The defaults are those of BLIP-2. Files of LAVIS have no config: ``from_pretrained(..., dim=2560)`` for OPT-2.7B, 4096 for
    OPT-6.7B, 2048 for Flan-T5-XL, 4096 for Flan-T5-XXL.

    Source: BLIP-2 (arXiv 2301.12597; salesforce/LAVIS; transformers' ``Blip2QFormerModel``).

    Examples:
        >>> import torch
        >>> from mmblocks import QFormerConnector
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
        ),
    )

    def __init__(
        self,
        *,
        dim: int | None,
        in_dim: int = 1408,
        num_queries: int = 32,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        cross_attention_every: int = 2,
        causal: bool = False,
        input_norm_eps: float | None = 1e-5,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.num_queries = num_queries
        self.input_norm = None if input_norm_eps is None else nn.LayerNorm(in_dim, eps=input_norm_eps)
        self.qformer = QFormer(
            num_queries=num_queries,
            dim=hidden_dim,
            context_dim=in_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            cross_attention_every=cross_attention_every,
            causal=causal,
        )
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
