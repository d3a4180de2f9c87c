"""Emu2's two projections: averaged image features to the trunk, and the trunk's states back to such features.

Shapes: B images, rows and columns of tokens, C width of the image's features, D of the trunk.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.connectors.average_pool import AveragePool
from mmblocks.connectors.grids import Grid, check_width


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Emu2's own config, or that of its Hub repository; nothing where a file has none, as Emu2's own files."""
    if not config:
        return {}
    check_model(config, *_MODELS)
    return {"image_dim": _vision(config).get("width", 1792), "dim": _trunk_dim(config)}


def _pooled(config: Mapping[str, Any]) -> dict[str, Any]:
    return _config(config) | ({"num_tokens": _vision(config).get("n_query", 64)} if config else {})


def _own_config(arguments: Arguments) -> dict[str, Any]:
    """Emu2's own code has its sizes in a module beside it, under these names."""
    return {"vision_cfg": _sizes(arguments), "llama": {"hidden_size": arguments["dim"]}}


def _hub_config(arguments: Arguments) -> dict[str, Any]:
    return {"architectures": ["EmuForCausalLM"], "hidden_size": arguments["dim"], "vision_config": _sizes(arguments)}


def _sizes(arguments: Arguments) -> dict[str, Any]:
    return {"width": arguments["image_dim"]} | ({"n_query": arguments["num_tokens"]} if "num_tokens" in arguments else {})


def _vision(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config["vision_cfg"] if "vision_cfg" in config else config["vision_config"]


def _trunk_dim(config: Mapping[str, Any]) -> int:
    if "llama" in config:
        return config["llama"]["hidden_size"]
    return config["llm_hidden"] if "llm_hidden" in config else config["hidden_size"]


_MODELS = ("emu", "emu2", "")
"""The class of the Hub's config has no ``model_type``."""

_HARMLESS = (
    *LANGUAGE_MODEL,
    *("vision_cfg.*", "vision_config.*", "llama.*", "llm_hidden", "vocab", "token_ids.*", "instruct"),
    *("d_model", "model_version", "llama_config_path", "embed_dim"),
)
"""What Emu2's configs say of the tower and of the language model."""


def _layouts(mine: str, other: str, arguments: Callable[[Mapping[str, Any]], dict[str, Any]]) -> tuple[Layout, ...]:
    """The three layouts of Emu2 for the projection ``mine``; ``other`` is the one that another Block has."""
    outside = (("emu2", "", ""), ("emu2-gen", "multimodal_encoder.", "multimodal_encoder."), ("emu2-hub", "", "model."))
    gen = ("unet.*", "vae.*", "safety_checker.*")
    return tuple(
        Layout(
            name,
            (Rule(f"{prefix}{mine}.weight", "projection.weight"),),
            ignored=(
                *(f"{inner}visual.*", f"{inner}decoder.*", f"{prefix}{other}.weight"),
                *(gen if name == "emu2-gen" else ()),
            ),
            config=arguments,
            published_config=_hub_config if name == "emu2-hub" else _own_config,
            harmless=_HARMLESS,
        )
        for name, prefix, inner in outside
    )


class Emu2UpProjection(Block):
    """Averages over squares of an image's patches, then a linear layer to the trunk's width.

    Args:
        image_dim: C.
        dim: D.
        num_tokens: tokens of an image; see ``AveragePool``. None: features come averaged, as Emu2's latents are.

    The defaults are those of Emu2. A file of Emu2-Chat without a config needs ``from_pretrained(..., num_tokens=256)``.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu), where the layer is called ``project_up``.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import Emu2UpProjection
        >>> connector = Emu2UpProjection(image_dim=8, dim=16, num_tokens=4)
        >>> tuple(connector(torch.randn(2, 6, 6, 8)).shape)
        (2, 2, 2, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = _layouts("project_up", "project_down", _pooled)

    def __init__(self, *, image_dim: int = 1792, dim: int = 6656, num_tokens: int | None = 64) -> None:
        super().__init__()
        self.image_dim = image_dim
        self.pool = None if num_tokens is None else AveragePool(num_tokens=num_tokens)
        self.projection = nn.Linear(image_dim, dim, bias=False)

    def forward(self, features: Float[Tensor, "B *grid C"]) -> Float[Tensor, "B *grid2 D"]:
        """(B, rows, columns, C), without a class token; on any grid where ``num_tokens`` is None.

        Raises:
            ValueError: features of another width, or fewer than ``num_tokens``.
        """
        check_width(features, self.image_dim)
        return self.projection(features if self.pool is None else self.pool(features))

    def out_grid(self, grid: Grid) -> Grid:
        """The grid that features on this one get; raises what ``forward`` raises."""
        return grid if self.pool is None else self.pool.out_grid(grid)


class Emu2DownProjection(Block):
    """A linear layer from the trunk's states to averaged image features: what Emu2 predicts, and its decoder reads.

    Args:
        image_dim: C.
        dim: D.

    The defaults are those of Emu2.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu), where the layer is called ``project_down``.

    Examples:
        >>> import torch
        >>> from mmblocks.connectors import Emu2DownProjection
        >>> connector = Emu2DownProjection(image_dim=8, dim=16)
        >>> tuple(connector(torch.randn(2, 4, 16)).shape)
        (2, 4, 8)
    """

    layouts: ClassVar[tuple[Layout, ...]] = _layouts("project_down", "project_up", _config)

    def __init__(self, *, image_dim: int = 1792, dim: int = 6656) -> None:
        super().__init__()
        self.dim = dim
        self.projection = nn.Linear(dim, image_dim, bias=False)

    def forward(self, states: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B *grid C"]:
        """Keeps the grid.

        Raises:
            ValueError: states of another width than ``dim``.
        """
        if states.shape[-1] != self.dim:
            raise ValueError(f"states are {states.shape[-1]} wide; accepted: dim, {self.dim}")
        return self.projection(states)

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of what states on this one become: the same."""
        return grid
