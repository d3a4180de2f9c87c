"""TokenFLEX's projector: the same weights for as many tokens as an image is worth.

Shapes: B images, rows and columns of tokens, s tokens a side after the projector, C and D the widths before and after.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate, silu

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.language_models import INTERNVL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.grids import Grid, check_axes, check_width
from mmblocks.connectors.published_widths import of_width, width_of
from mmblocks.support.deprecation import former_method


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ristretto's config; a file of the projector alone has none."""
    if not config:
        return {}
    check_model(config, "ristretto")
    return {
        "in_dim": width_of(config, "vision_config", "siglip_vision_model"),
        "dim": width_of(config, "llm_config", "qwen2"),
        "num_tokens": config.get("num_image_token", 256),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    if arguments["hidden_dim"] is not None:
        check_arguments(arguments, hidden_dim=3 * arguments["in_dim"])
    return {
        "model_type": "ristretto",
        "architectures": ["RistrettoModel"],
        "num_image_token": arguments["num_tokens"],
        "vision_config": of_width(arguments["in_dim"], model_type="siglip_vision_model"),
        "llm_config": of_width(arguments["dim"], model_type="qwen2", architectures=["Qwen2ForCausalLM"]),
    }


class TokenFlexProjector(Block):
    """Averages over a grid of any chosen number of tokens, then a norm and a gated feed-forward part to the trunk's width.

        projector.num_tokens = projector.sample_num_tokens(generator)     # another count for each step of training
        tokens = projector(features, num_tokens=256)                      # or for one call

    Args:
        in_dim: C.
        dim: D.
        hidden_dim: width inside; None for three times ``in_dim``.
        num_tokens: how many where a call does not say; a square number.
        choices: what ``sample_num_tokens`` chooses from: square numbers.

    Attributes:
        num_tokens: may be set. Layouts that were computed before, such as a ``BatchBuilder`` keeps, are of the old count.

    Raises:
        ValueError: numbers that are no squares.

    Source: TokenFLEX (arXiv 2504.03154; LiAutoAD/Ristretto).

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import TokenFlexProjector
        >>> connector = TokenFlexProjector(in_dim=8, dim=16, num_tokens=9)
        >>> tuple(connector(torch.randn(2, 8, 8, 8)).shape)
        (2, 3, 3, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ristretto",
            (
                Rule("mlp.layernorm.*", "norm.*"),
                Rule("mlp.f1.*", "gate.*"),
                Rule("mlp.f2.*", "up.*"),
                Rule("mlp.g.*", "down.*"),
            ),
            config=_config,
            published_config=_published_config,
            harmless=(*INTERNVL, "llm_config.*"),
        ),
    )

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        hidden_dim: int | None = None,
        num_tokens: int = 256,
        choices: Sequence[int] = (64, 144, 256),
    ) -> None:
        super().__init__()
        for count in (num_tokens, *choices):
            _side(count)
        self.in_dim = in_dim
        self.num_tokens = num_tokens
        self.choices = tuple(choices)
        inner = hidden_dim or 3 * in_dim
        self.norm = nn.LayerNorm(in_dim)
        self.gate = nn.Linear(in_dim, inner)
        self.up = nn.Linear(in_dim, inner)
        self.down = nn.Linear(inner, dim)

    def forward(
        self, features: Float[Tensor, "B rows columns C"], *, num_tokens: int | None = None
    ) -> Float[Tensor, "B side side D"]:
        """Features to a square grid of tokens; on a grid that does not divide, they are resized (bilinear) to one that does.

        Args:
            features: without a class token.
            num_tokens: instead of the projector's own number; a square number.

        Raises:
            ValueError: features of another width or without a grid, or a number that is no square.
        """
        check_width(features, self.in_dim)
        check_axes(features, "rows", "columns")
        x = self.norm(_pooled(features, _side(self.num_tokens if num_tokens is None else num_tokens)))
        return self.down(silu(self.gate(x)) * self.up(x))

    def sample_num_tokens(self, generator: Generator | None = None) -> int:
        """One of ``choices``, each as likely as the others."""
        return self.choices[int(torch.randint(len(self.choices), (), generator=generator))]

    draw = former_method("draw", "sample_num_tokens")

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what features on any grid become, for the projector's own number of tokens."""
        side = _side(self.num_tokens)
        return (side, side)


def _side(num_tokens: int) -> int:
    side = math.isqrt(max(num_tokens, 0))
    if side < 1 or side**2 != num_tokens:
        raise ValueError(
            f"num_tokens is {num_tokens}; accepted: square numbers, such as {max(round(math.sqrt(max(num_tokens, 0))), 1) ** 2}"
        )
    return side


def _pooled(features: Tensor, side: int) -> Tensor:
    """Averages (B, side, side, C)."""
    rows, columns = (math.ceil(length / side) * side for length in features.shape[1:3])
    if features.shape[1:3] != (rows, columns):
        # Corners on corners, as published.
        resized = interpolate(rearrange(features, "b h w c -> b c h w"), (rows, columns), mode="bilinear", align_corners=True)
        features = rearrange(resized, "b c h w -> b h w c")
    return reduce(features, "b (h p) (w q) c -> b h w c", "mean", h=side, w=side)
