"""Cambrian-1's spatial vision aggregator: each query of a grid reads its own part of the image in the features of several encoders.

Shapes: B images, h and w queries, E width of queries and projected features, D of the trunk, K tokens that one query reads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.grids import Grid

_LAYER = (
    ("proj_context.weight", "context.weight"),
    ("proj_in.weight", "merge.weight"),
    ("proj_out.linear_1.weight", "up.weight"),
    ("proj_out.linear_2.weight", "down.weight"),
    ("norm.*", "norm.*"),
    ("cross_attn.q_proj.0.*", "query_norm.*"),
    ("cross_attn.q_proj.1.weight", "query.weight"),
    ("cross_attn.k_proj_{}.0.*", "key_norms.{}.*"),
    ("cross_attn.k_proj_{}.1.weight", "keys.{}.weight"),
    ("cross_attn.v_proj_{}.0.*", "value_norms.{}.*"),
    ("cross_attn.v_proj_{}.1.weight", "values.{}.weight"),
    ("cross_attn.o_proj.weight", "out.weight"),
    ("pos_embed_{}", "places.{}"),
)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Cambrian-1's config; it names the encoders and not their widths, so ``in_dims`` is given to ``from_pretrained``.

    A config that ``to_upstream`` wrote has the widths too, as ``mm_vision_tower_aux_hidden_sizes``.
    """
    check_model(config, *(f"cambrian_{kind}" for kind in ("llama", "mistral", "phi3", "qwen", "gemma", "cohere")))
    only(config, "mm_projector_type", "sva")
    if config["num_query_group"] != 1 or len(config["query_num_list"]) != 1:
        found = f"num_query_group is {config['num_query_group']}, query_num_list {config['query_num_list']}"
        raise ValueError(f"{found}; accepted: 1, and one number")
    side = math.isqrt(config["query_num_list"][0])
    widths = config.get("mm_vision_tower_aux_hidden_sizes")
    return {
        **({} if widths is None else {"in_dims": tuple(widths)}),
        "dim": config["hidden_size"],
        "hidden_dim": config["vision_hidden_size"],
        "grid": (side, side),
        "windows": tuple(math.isqrt(count) // side for count in config["mm_vision_tower_aux_token_len_list"]),
        "num_layers": config["connector_depth"],
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    rows, columns = arguments["grid"]
    check_arguments(arguments, grid=(rows, rows), num_heads=16)
    return {
        "model_type": "cambrian_llama",
        "architectures": ["CambrianLlamaForCausalLM"],
        "mm_projector_type": "sva",
        "hidden_size": arguments["dim"],
        "vision_hidden_size": arguments["hidden_dim"],
        "num_query_group": 1,
        "query_num_list": [rows * columns],
        "mm_vision_tower_aux_token_len_list": [(rows * window) ** 2 for window in arguments["windows"]],
        "mm_vision_tower_aux_hidden_sizes": list(arguments["in_dims"]),
        "connector_depth": arguments["num_layers"],
        "connector_only": True,
    }


_HARMLESS = (
    *LANGUAGE_MODEL,
    *("connector_only", "start_of_vision_sampler_layers", "stride_of_vision_sampler_layers", "num_of_vision_sampler_layers"),
    *("image_token_len", "image_position", "image_aspect_ratio", "image_grid_pinpoints", "mm_patch_merge_type", "mm_hidden_size"),
    *("mm_vision_tower_aux_list", "mm_vision_select_layer", "mm_vision_select_feature", "mm_projector_lr", "use_mm_proj"),
    *("mm_vision_sampler_lr", "mm_vision_tower_lr", "mm_use_im_patch_token", "mm_use_im_start_end", "is_meta_device"),
    *("freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "unfreeze_mm_vision_tower", "vision_tower_aux_token_len_list"),
    *("tokenizer_model_max_length", "tokenizer_padding_side", "max_sequence_length", "model_max_length", "debug"),
)
"""What Cambrian-1's config says of its language model and the layers in it, of its encoders, and of its training."""


class SpatialAggregator(Block):
    """One grid of tokens from the features of several encoders, each with a grid of its own.

    A query reads the tokens that lie in its part of the image, of all encoders at once, and knows the mean of the first encoder's
    features; all queries begin as the same learned vector. Features on another grid than ``grid`` times the encoder's window are
    resized (bilinear).

    Args:
        in_dims: width of each encoder's features.
        dim: D.
        windows: tokens a side that a query reads of each encoder.
        grid: h and w.
        hidden_dim: E.
        num_layers, num_heads: layers of cross-attention, and their heads.

    Raises:
        ValueError: no encoder, another number of windows than of encoders, or heads that do not divide the width.

    Source: Cambrian-1 (arXiv 2406.16860; cambrian-mllm/cambrian): the connector before the trunk, with one group of queries. The
    layers that Cambrian-1 has inside its trunk are not part of it.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import SpatialAggregator
        >>> sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
        >>> connector = SpatialAggregator(in_dims=(8, 12), dim=16, windows=(1, 2), grid=(3, 3), **sizes)
        >>> low, high = torch.randn(1, 3, 3, 8), torch.randn(1, 6, 6, 12)
        >>> tuple(connector([low, high]).shape)
        (1, 3, 3, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "cambrian",
            (
                Rule("model.vision_query", "queries"),
                *(Rule(f"model.mm_projector_aux_{{}}.{index}.*", f"inputs.{{}}.{index}.*") for index in (0, 2, 3)),
                *(Rule(f"model.vision_sampler_0.layers.{{}}.{key}", f"layers.{{}}.{name}") for key, name in _LAYER),
                Rule("model.mm_projector.*", "output.*"),
            ),
            ignored=(
                *("model.embed_tokens.*", "model.layers.*", "model.norm.*", "lm_head.*"),
                *("model.image_newline", "model.vision_sampler_layers.*", "model.vision_tower_aux_list.*"),
            ),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        in_dims: tuple[int, ...],
        dim: int,
        windows: tuple[int, ...],
        grid: tuple[int, int] = (24, 24),
        hidden_dim: int = 1024,
        num_layers: int = 3,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        if not in_dims or len(in_dims) != len(windows) or min(windows) < 1:
            raise ValueError(
                f"in_dims is {in_dims}, windows {windows}; accepted: one of each for every encoder, windows of at least 1"
            )
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim is {hidden_dim}, num_heads {num_heads}; accepted: heads that divide the width")
        self.in_dims = tuple(in_dims)
        self.windows = tuple(windows)
        self.grid = (grid[0], grid[1])
        self.queries = nn.Parameter(torch.randn(1, hidden_dim) * dim**-0.5)
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim))
            for width in in_dims
        )
        self.layers = nn.ModuleList(_Layer(hidden_dim, num_heads, self.windows) for _ in range(num_layers))
        self.output = nn.Sequential(nn.Linear(hidden_dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B h w D"]:
        """Features of all encoders, (B, rows, columns, C) each, in the order of ``in_dims``.

        Raises:
            ValueError: features of other encoders than the constructor was told of.
        """
        widths = tuple(one.shape[-1] for one in features)
        if widths != self.in_dims or any(one.ndim != 4 for one in features):
            shapes = [tuple(one.shape) for one in features]
            raise ValueError(f"features have shapes {shapes}; accepted: one (B, rows, columns, C) for each C of {self.in_dims}")
        projected = [project(one) for project, one in zip(self.inputs, features, strict=True)]
        rows, columns = self.grid
        context = projected[0].mean(dim=(1, 2))[:, None].expand(-1, rows * columns, -1).flatten(0, 1)[:, None]
        parts = [self._parts(one, window) for one, window in zip(projected, self.windows, strict=True)]
        x = self.queries.expand(len(context), 1, -1)
        for layer in self.layers:
            x = layer(x, context, parts)
        return self.output(rearrange(x, "(b h w) 1 e -> b h w e", h=rows, w=columns))

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on any grids become."""
        return self.grid

    def _parts(self, features: Tensor, window: int) -> Tensor:
        """(B * h * w, window * window, E): the tokens that each query reads."""
        rows, columns = self.grid
        size = (rows * window, columns * window)
        if features.shape[1:3] != size:
            resized = interpolate(rearrange(features, "b h w e -> b e h w").float(), size, mode="bilinear", align_corners=False)
            features = rearrange(resized, "b e h w -> b h w e").to(features.dtype)
        return rearrange(features, "b (h p) (w q) e -> (b h w) (p q) e", p=window, q=window)


class _Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.context = nn.Linear(dim, dim, bias=False)
        self.merge = nn.Linear(2 * dim, dim, bias=False)
        self.query_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_norms, self.value_norms = (nn.ModuleList(nn.LayerNorm(dim) for _ in windows) for _ in range(2))
        self.keys, self.values = (nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in windows) for _ in range(2))
        # A window of one token needs no places.
        self.places = nn.ParameterDict(
            {str(index): nn.Parameter(torch.randn(window**2, dim)) for index, window in enumerate(windows) if window > 1}
        )
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim, bias=False)
        self.down = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, context: Tensor, parts: Sequence[Tensor]) -> Tensor:
        x = self.merge(torch.cat([queries, self.context(context)], dim=-1))
        placed = [part + self.places[str(index)] if str(index) in self.places else part for index, part in enumerate(parts)]
        keys = torch.cat([key(norm(part)) for key, norm, part in zip(self.keys, self.key_norms, placed, strict=True)], dim=1)
        values = torch.cat(
            [value(norm(part)) for value, norm, part in zip(self.values, self.value_norms, placed, strict=True)], dim=1
        )
        query, key, value = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)
            for tokens in (self.query(self.query_norm(x)), keys, values)
        )
        read = rearrange(scaled_dot_product_attention(query, key, value), "b heads n d -> b n (heads d)")
        return queries + self.down(gelu(self.up(self.norm(x + self.out(read)))))
