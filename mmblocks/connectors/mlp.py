"""Linear layers with GELUs between, token by token: LLaVA's projector, and InternVL's after its pixel shuffle.

Shapes: B images, C and D the widths before and after.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.language_models import INTERNVL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.grids import Grid, check_width
from mmblocks.connectors.published_widths import of_width, width_of
from mmblocks.layers.activations import activation_of, published_activation, transformers_name

_LLAVA_OTHERS = (
    *("model.embed_tokens.weight", "model.layers.*", "model.norm.weight", "lm_head.weight"),
    *("model.vision_tower.*", "model.image_newline"),
)
_MOST_LAYERS = 4
"""As many linear layers as published projectors have at most."""

_LLAVA_MODELS = tuple(f"llava{kind}" for kind in ("", "_llama", "_mistral", "_mixtral", "_mpt", "_qwen", "_qwen_moe", "_gemma"))

_LLAVA_HARMLESS = (
    *LANGUAGE_MODEL,
    *("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "freeze_mm_vision_resampler", "tune_mm_vision_resampler"),
    *("unfreeze_mm_vision_tower", "mm_projector_lr", "mm_vision_tower_lr", "mm_tunable_parts", "use_mm_proj"),
    *("image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution", "mm_patch_merge_type"),
    *(
        "image_token_index",
        "mm_newline_position",
        "mm_spatial_pool_mode",
        "mm_spatial_pool_stride",
        "mm_spatial_pool_out_channels",
        "mm_resampler_type",
    ),
    *("add_faster_video", "faster_token_stride", "add_time_instruction", "force_sample", "use_pos_skipping"),
    *("mm_use_im_patch_token", "mm_use_im_start_end", "mm_vision_select_feature", "mm_vision_select_layer", "mm_vision_tower"),
    *(
        "vision_tower_pretrained",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "max_sequence_length",
        "pos_skipping_range",
    ),
)
"""What LLaVA's config says of its training, of its encoder, and of where image tokens stand."""

_HUB_HARMLESS = (
    *("vision_config.*", "text_config.*", "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio"),
    *("image_token_index", "image_token_id", "video_token_index", "video_token_id", "image_seq_length", "image_grid_pinpoints"),
    *("ignore_index", "vocab_size", "use_image_newline_parameter", "tie_word_embeddings"),
    *("video_seq_length", "spatial_pool_mode", "spatial_pool_stride", "spatial_pool_out_channels"),
)


def _llava(config: Mapping[str, Any]) -> dict[str, Any]:
    check_model(config, *_LLAVA_MODELS)
    kind = stated(config, "mm_projector_type", "linear")
    named = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if named is None and kind != "linear":
        raise ValueError(f"mm_projector_type is {kind!r}; accepted: 'linear' or 'mlp2x_gelu', with any number for 2")
    layers = int(named[1]) if named else 1
    return {"in_dim": config["mm_hidden_size"], "dim": config["hidden_size"], "num_layers": layers}


def _llava_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, norm=False, bias=True, activation="gelu")
    _check_plain(arguments)
    layers = arguments["num_layers"]
    return {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_hidden_size": arguments["in_dim"],
        "hidden_size": arguments["dim"],
        "mm_projector_type": "linear" if layers == 1 else f"mlp{layers}x_gelu",
    }


def _llava_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers. Features of several layers come one after the other."""
    check_model(config, "llava", "llava_next", "llava_next_video", "llava_onevision")
    layers = config.get("vision_feature_layer", -2)
    # A model whose config does not tell its encoder has CLIP's ViT-L/14-336.
    width = width_of(config, "vision_config", "clip_vision_model", 1024)
    return {
        "in_dim": width * (len(layers) if isinstance(layers, list | tuple) else 1),
        "dim": width_of(config, "text_config", "llama"),
        "bias": config.get("multimodal_projector_bias", True),
        "activation": published_activation(config, "projector_hidden_act", "gelu"),
    }


def _llava_hub_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, norm=False, num_layers=2)
    _check_plain(arguments)
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": of_width(arguments["in_dim"], model_type="clip_vision_model"),
        "text_config": of_width(arguments["dim"], model_type="llama"),
        "projector_hidden_act": transformers_name(arguments["activation"]),
        "multimodal_projector_bias": arguments["bias"],
    }


def _internvl(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of OpenGVLab, whose projector has always a GELU."""
    check_model(config, "internvl_chat")
    width = width_of(config, "vision_config", "intern_vit_6b")
    return {
        "in_dim": width * int(1 / config.get("downsample_ratio", 0.5)) ** 2,
        "dim": width_of(config, "llm_config", "llama"),
        "norm": True,
    }


def _internvl_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, norm=True, bias=True, num_layers=2, activation="gelu")
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        **_folded(arguments),
        "llm_config": of_width(arguments["dim"], architectures=["LlamaForCausalLM"]),
    }


def _internvl_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    check_model(config, "internvl")
    width = width_of(config, "vision_config", "internvl_vision")
    return {
        "in_dim": width * int(1 / config.get("downsample_ratio", 0.5)) ** 2,
        "dim": width_of(config, "text_config", "qwen2"),
        "norm": True,
        "activation": published_activation(config, "projector_hidden_act", "gelu"),
    }


def _internvl_transformers_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, norm=True, bias=True, num_layers=2)
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        **_folded(arguments),
        "text_config": of_width(arguments["dim"], model_type="qwen2", num_key_value_heads=1),
        "projector_hidden_act": transformers_name(arguments["activation"]),
    }


def _folded(arguments: Arguments) -> dict[str, Any]:
    """Width and folding of the features, from how wide the folded ones are."""
    _check_plain(arguments)
    width = arguments["in_dim"]
    folded = width % 4 == 0
    return {"vision_config": of_width(width // 4 if folded else width), "downsample_ratio": 0.5 if folded else 1.0}


def _check_plain(arguments: Arguments) -> None:
    if arguments["hidden_dim"] not in (None, arguments["dim"]):
        check_arguments(arguments, hidden_dim=None)


def _hub_rules(prefix: str, *names: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{prefix}.{name}.*", f"layers.{index}.*") for index, name in enumerate(names))


class MLPProjector(Block):
    """Linear layers with GELUs between them, on every token by itself; with one layer, a linear projection.

    Args:
        in_dim: C, the width of the features.
        dim: D, the width of the trunk.
        hidden_dim: width between the layers; None for ``dim``.
        num_layers: linear layers, at least one.
        norm: a layer norm before the first, as in InternVL.
        bias: whether the linear layers have biases.
        activation: between them; see ``ACTIVATIONS``.

    Raises:
        ValueError: no layer.

    Source: LLaVA (arXiv 2304.08485), LLaVA-1.5 (arXiv 2310.03744; haotian-liu/LLaVA); InternVL (OpenGVLab/InternVL).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import MLPProjector
        >>> connector = MLPProjector(in_dim=16, dim=32)
        >>> tuple(connector(torch.randn(2, 4, 6, 16)).shape)
        (2, 4, 6, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llava",
            tuple(Rule(f"model.mm_projector.{2 * index}.*", f"layers.{index}.*") for index in range(_MOST_LAYERS)),
            ignored=_LLAVA_OTHERS,
            config=_llava,
            published_config=_llava_config,
            harmless=_LLAVA_HARMLESS,
        ),
        Layout(
            "llava-linear",
            tuple(Rule(f"model.mm_projector.{kind}", f"layers.0.{kind}") for kind in ("weight", "bias")),
            ignored=_LLAVA_OTHERS,
            config=_llava,
            published_config=_llava_config,
            harmless=_LLAVA_HARMLESS,
        ),
        Layout(
            "llava-hub",
            _hub_rules("multi_modal_projector", "linear_1", "linear_2"),
            ignored=("vision_tower.*", "language_model.*", "image_newline"),
            config=_llava_hub,
            published_config=_llava_hub_config,
            harmless=_HUB_HARMLESS,
        ),
        Layout(
            "llava-transformers",
            _hub_rules("model.multi_modal_projector", "linear_1", "linear_2"),
            ignored=("model.vision_tower.*", "model.language_model.*", "lm_head.weight", "model.image_newline"),
            config=_llava_hub,
            published_config=_llava_hub_config,
            harmless=_HUB_HARMLESS,
        ),
        Layout(
            "internvl",
            (Rule("mlp1.0.*", "norm.*"), *_hub_rules("mlp1", "1", "3")),
            ignored=("vision_model.*", "language_model.*"),
            config=_internvl,
            published_config=_internvl_config,
            harmless=(*INTERNVL, "llm_config.*"),
        ),
        Layout(
            "internvl-transformers",
            (
                Rule("model.multi_modal_projector.layer_norm.*", "norm.*"),
                *_hub_rules("model.multi_modal_projector", "linear_1", "linear_2"),
            ),
            ignored=("model.vision_tower.*", "model.language_model.*", "lm_head.weight"),
            config=_internvl_transformers,
            published_config=_internvl_transformers_config,
            harmless=_HUB_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        hidden_dim: int | None = None,
        num_layers: int = 2,
        norm: bool = False,
        bias: bool = True,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; accepted: at least 1")
        widths = (in_dim, *[hidden_dim or dim] * (num_layers - 1), dim)
        self.in_dim = in_dim
        self.dim = dim
        self.activation = activation_of(activation)
        self.norm = nn.LayerNorm(in_dim) if norm else None
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=bias) for before, after in pairwise(widths))

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *grid D"]:
        """Keeps the grid.

        Raises:
            ValueError: features of another width than ``in_dim``.
        """
        check_width(features, self.in_dim)
        x = features if self.norm is None else self.norm(features)
        for index, layer in enumerate(self.layers):
            x = layer(self.activation(x) if index else x)
        return x

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on this one become: the same."""
        return grid
