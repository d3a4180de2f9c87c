"""Linear layers with GELUs between, token by token: LLaVA's projector, and InternVL's behind its pixel shuffle.

Shapes: B images, C and D the widths before and after.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.connectors.grids import Grid, check_width

_LLAVA_OTHERS = (
    *("model.embed_tokens.weight", "model.layers.*", "model.norm.weight", "lm_head.weight"),
    *("model.vision_tower.*", "model.image_newline"),
)
_MOST_LAYERS = 4
"""As many linear layers as published projectors have at most."""


def _llava(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("mm_projector_type", "linear")
    named = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if named is None and kind != "linear":
        raise ValueError(f"mm_projector_type is {kind!r}; accepted: 'linear' or 'mlp2x_gelu', with any number for 2")
    layers = int(named[1]) if named else 1
    return {"in_dim": config["mm_hidden_size"], "dim": config["hidden_size"], "num_layers": layers}


def _llava_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise ValueError(f"projector_hidden_act is {config['projector_hidden_act']!r}; accepted: 'gelu'")
    bias = config.get("multimodal_projector_bias", True)
    return {"in_dim": config["vision_config"]["hidden_size"], "dim": config["text_config"]["hidden_size"], "bias": bias}


def _internvl(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config["llm_config"] if "llm_config" in config else config["text_config"]
    patches = round(1 / config["downsample_ratio"]) ** 2
    return {"in_dim": config["vision_config"]["hidden_size"] * patches, "dim": text["hidden_size"], "norm": True}


def _hub_rules(prefix: str, *names: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{prefix}.{name}.*", f"layers.{number}.*") for number, name in enumerate(names))


class MLPProjector(Block):
    """Linear layers with GELUs between them, on every token by itself; with one layer, a linear projection.

    Args:
        in_dim: C, the width of the features.
        dim: D, the width of the trunk.
        hidden_dim: width between the layers; None for ``dim``.
        num_layers: linear layers, at least one.
        norm: a layer norm before the first, as in InternVL.
        bias: whether the linear layers have biases.

    Raises:
        ValueError: no layer.

    Source: LLaVA (arXiv 2304.08485), LLaVA-1.5 (arXiv 2310.03744; haotian-liu/LLaVA); InternVL (OpenGVLab/InternVL).

    Examples:
        >>> import torch
        >>> from mmblocks import MLPProjector
        >>> connector = MLPProjector(in_dim=16, dim=32)
        >>> tuple(connector(torch.randn(2, 4, 6, 16)).shape)
        (2, 4, 6, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llava",
            tuple(Rule(f"model.mm_projector.{2 * number}.*", f"layers.{number}.*") for number in range(_MOST_LAYERS)),
            ignored=_LLAVA_OTHERS,
            config=_llava,
        ),
        Layout(
            "llava-linear",
            tuple(Rule(f"model.mm_projector.{kind}", f"layers.0.{kind}") for kind in ("weight", "bias")),
            ignored=_LLAVA_OTHERS,
            config=_llava,
        ),
        Layout(
            "llava-hub",
            _hub_rules("multi_modal_projector", "linear_1", "linear_2"),
            ignored=("vision_tower.*", "language_model.*", "image_newline"),
            config=_llava_hub,
        ),
        Layout(
            "llava-transformers",
            _hub_rules("model.multi_modal_projector", "linear_1", "linear_2"),
            ignored=("model.vision_tower.*", "model.language_model.*", "lm_head.weight", "model.image_newline"),
            config=_llava_hub,
        ),
        Layout(
            "internvl",
            (Rule("mlp1.0.*", "norm.*"), *_hub_rules("mlp1", "1", "3")),
            ignored=("vision_model.*", "language_model.*"),
            config=_internvl,
        ),
        Layout(
            "internvl-transformers",
            (
                Rule("model.multi_modal_projector.layer_norm.*", "norm.*"),
                *_hub_rules("model.multi_modal_projector", "linear_1", "linear_2"),
            ),
            ignored=("model.vision_tower.*", "model.language_model.*", "lm_head.weight"),
            config=_internvl,
        ),
    )

    def __init__(
        self, *, in_dim: int, dim: int, hidden_dim: int | None = None, num_layers: int = 2, norm: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; accepted: at least 1")
        widths = (in_dim, *[hidden_dim or dim] * (num_layers - 1), dim)
        self.in_dim = in_dim
        self.dim = dim
        self.norm = nn.LayerNorm(in_dim) if norm else None
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=bias) for before, after in pairwise(widths))

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *grid D"]:
        """Keeps the grid.

        Raises:
            ValueError: features of another width than ``in_dim``.
        """
        check_width(features, self.in_dim)
        x = features if self.norm is None else self.norm(features)
        for number, layer in enumerate(self.layers):
            x = layer(gelu(x) if number else x)
        return x

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on this one become: the same."""
        return grid
