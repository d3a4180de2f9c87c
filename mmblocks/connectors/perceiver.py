"""Flamingo's perceiver resampler: learned latents that read any number of tokens, and each other, into a fixed number.

Shapes: B images or videos, L tokens of one, T frames, Q latents, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.grids import Grid, check_axes, check_width

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": relu}


def _flamingo_rules(prefix: str) -> tuple[Rule | Split, ...]:
    attention, mine = f"{prefix}layers.{{}}.0", "layers.{}"
    names = (("norm_media.*", "context_norm.*"), ("norm_latents.*", "latents_norm.*"))
    return (
        Rule(f"{prefix}latents", "latents"),
        Rule(f"{prefix}frame_embs", "frames"),
        *(Rule(f"{attention}.{key}", f"{mine}.{name}") for key, name in names),
        Rule(f"{attention}.to_q.weight", f"{mine}.query.weight"),
        Split(f"{attention}.to_kv.weight", (f"{mine}.key.weight", f"{mine}.value.weight")),
        Rule(f"{attention}.to_out.weight", f"{mine}.out.weight"),
        Rule(f"{prefix}layers.{{}}.1.0.*", f"{mine}.mlp_norm.*"),
        Rule(f"{prefix}layers.{{}}.1.1.weight", f"{mine}.up.weight"),
        Rule(f"{prefix}layers.{{}}.1.3.weight", f"{mine}.down.weight"),
        Rule(f"{prefix}norm.*", "norm.*"),
    )


def _idefics_rules(prefix: str) -> tuple[Rule, ...]:
    attention, mlp, mine = f"{prefix}blocks.{{}}.0", f"{prefix}blocks.{{}}.1", "layers.{}"
    names = (
        *(("context_layer_norm.*", "context_norm.*"), ("latents_layer_norm.*", "latents_norm.*")),
        *(("q_layer_norm.*", "query_norm.*"), ("k_layer_norm.*", "key_norm.*")),
        *(("q_proj.weight", "query.weight"), ("k_proj.weight", "key.weight"), ("v_proj.weight", "value.weight")),
        ("output_proj.weight", "out.weight"),
    )
    return (
        Rule(f"{prefix}latents", "latents"),
        *(Rule(f"{attention}.{key}", f"{mine}.{name}") for key, name in names),
        Rule(f"{mlp}.ln.*", f"{mine}.mlp_norm.*"),
        Rule(f"{mlp}.fc.weight", f"{mine}.up.weight"),
        Rule(f"{mlp}.c_proj.weight", f"{mine}.down.weight"),
        Rule(f"{prefix}layer_norm.*", "norm.*"),
    )


_FLAMINGO = {
    "dim": "dim",
    "depth": "num_layers",
    "heads": "num_heads",
    "dim_head": "head_dim",
    "num_latents": "num_latents",
    "max_num_frames": "max_frames",
}
"""Arguments of Flamingo's class -> ours."""


def _flamingo(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class. Files have none beside them; what is not said is as in OpenFlamingo."""
    if config.get("max_num_media") is not None:
        raise ValueError(f"max_num_media is {config['max_num_media']!r}; accepted: none, without vectors for several media")
    arguments = {ours: config[theirs] for theirs, ours in _FLAMINGO.items() if theirs in config}
    times = config.get("ff_mult", 4)
    return arguments | ({} if times == 4 else {"mlp_dim": int(config["dim"] * times)})


def _flamingo_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, activation="gelu", qk_norm=False)
    dim, mlp_dim = arguments["dim"], arguments["mlp_dim"]
    times = 4 if mlp_dim is None else mlp_dim / dim if mlp_dim % dim else mlp_dim // dim
    return {**{theirs: arguments[ours] for theirs, ours in _FLAMINGO.items()}, "ff_mult": times}


def _idefics(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configs of transformers leave out what is as in its defaults."""
    check_model(config, "idefics")
    only(config, "use_resampler", True)
    perceiver, dim = stated(config, "perceiver_config", {}), stated(config, "vision_config", {}).get("embed_dim", 768)
    only(perceiver, "model_type", "idefics", "idefics_perciever")
    return {
        "dim": dim,
        "num_latents": perceiver.get("resampler_n_latents", 64),
        "num_layers": perceiver.get("resampler_depth", 6),
        "num_heads": perceiver.get("resampler_n_heads", 16),
        "head_dim": perceiver.get("resampler_head_dim", 96),
        "mlp_dim": 4 * dim,
        "activation": "relu",
        "qk_norm": perceiver.get("qk_layer_norms_perceiver", False),
    }


def _idefics_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, activation="relu", max_frames=None)
    if arguments["mlp_dim"] is not None:
        check_arguments(arguments, mlp_dim=4 * arguments["dim"])
    return {
        "model_type": "idefics",
        "architectures": ["IdeficsForVisionText2Text"],
        "use_resampler": True,
        "vision_config": {"embed_dim": arguments["dim"]},
        "perceiver_config": {
            "use_resampler": True,
            "resampler_n_latents": arguments["num_latents"],
            "resampler_depth": arguments["num_layers"],
            "resampler_n_heads": arguments["num_heads"],
            "resampler_head_dim": arguments["head_dim"],
            "qk_layer_norms_perceiver": arguments["qk_norm"],
        },
    }


_IDEFICS_HARMLESS = (
    *LANGUAGE_MODEL,
    *("vision_config.*", "perceiver_config.use_resampler", "perceiver_config.tie_word_embeddings", "additional_vocab_size"),
    *("alpha_initializer", "alpha_type", "alphas_initializer_range", "cross_layer_activation_function", "cross_layer_interval"),
    *("qk_layer_norms", "freeze_lm_head", "freeze_text_layers", "freeze_text_module_exceptions", "freeze_vision_layers"),
    *("freeze_vision_module_exceptions", "ffn_dim", "word_embed_proj_dim", "max_sequence_length", "max_new_tokens"),
)
"""What IDEFICS's config says of its language model and of the layers between."""


class PerceiverResampler(Block):
    """Latents that attend to the features and to themselves at once, layer by layer.

    Args:
        dim: D, of features and latents alike.
        num_latents: Q.
        num_layers, num_heads, head_dim: sizes; heads need not fill the width.
        mlp_dim: width of the feed-forward part; None for four times ``dim``.
        max_frames: frames a video may have, each with a learned vector that is added to its features; None for no such vectors.
        activation: of the feed-forward part: "gelu" in Flamingo, "relu" in IDEFICS.
        qk_norm: layer norms of queries and keys, as in some of IDEFICS.

    The defaults are those of OpenFlamingo, whose files have no config. Its rows of vectors for several media, which no published
    model has, are not here.

    Source: Flamingo (arXiv 2204.14198), as in lucidrains/flamingo-pytorch and mlfoundations/open_flamingo; IDEFICS as in
    transformers' ``IdeficsPerceiverResampler``.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import PerceiverResampler
        >>> connector = PerceiverResampler(dim=16, num_latents=5, num_layers=1, num_heads=2, head_dim=8)
        >>> tuple(connector(torch.randn(2, 4, 6, 16)).shape)
        (2, 5, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("flamingo", _flamingo_rules(""), config=_flamingo, published_config=_flamingo_config),
        Layout(
            "open_flamingo",
            _flamingo_rules("perceiver."),
            ignored=("lang_encoder.*", "vision_encoder.*"),
            config=_flamingo,
            published_config=_flamingo_config,
        ),
        Layout(
            "idefics",
            _idefics_rules("model.perceiver_resampler."),
            ignored=(
                *("model.embed_tokens.*", "model.layers.*", "model.gated_cross_attn_layers.*", "model.norm.*"),
                *("model.vision_model.*", "lm_head.*"),
            ),
            config=_idefics,
            published_config=_idefics_config,
            harmless=_IDEFICS_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        dim: int = 1024,
        num_latents: int = 64,
        num_layers: int = 6,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int | None = None,
        max_frames: int | None = None,
        activation: Literal["gelu", "relu"] = "gelu",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; accepted: {', '.join(map(repr, _ACTIVATIONS))}")
        self.dim = dim
        self.num_latents = num_latents
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.frames = None if max_frames is None else nn.Parameter(torch.randn(max_frames, dim))
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads, head_dim, mlp_dim or 4 * dim, activation, qk_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B Q D"]:
        """What the latents read in the features of each image or video.

        Args:
            features: on any grid; (B, T, rows, columns, D) where there are vectors for frames.

        Raises:
            ValueError: features of another width, or more than ``max_frames`` frames.
        """
        check_width(features, self.dim)
        if self.frames is not None:
            check_axes(features, "frames", "rows", "columns")
            num_frames = features.shape[1]
            if num_frames > len(self.frames):
                raise ValueError(f"features have {num_frames} frames; accepted: 1 to {len(self.frames)}")
            features = features + self.frames[:num_frames, None, None]
        context = features.flatten(1, -2)
        latents = self.latents.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        return self.norm(latents)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on any grid become: Q tokens."""
        return (self.num_latents,)


class _Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, activation: str, qk_norm: bool) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.context_norm = nn.LayerNorm(dim)
        self.latents_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.query_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(inner, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, dim, bias=False)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        normed = self.latents_norm(latents)
        seen = torch.cat([self.context_norm(context), normed], dim=1)
        query, key, value = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for tokens in (self.query(normed), self.key(seen), self.value(seen))
        )
        read = scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        latents = latents + self.out(rearrange(read, "b heads n d -> b n (heads d)"))
        return latents + self.down(self.activation(self.up(self.mlp_norm(latents))))
