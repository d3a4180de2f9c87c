"""LlamaGen's trunk: Llama layers with rotary positions in two dimensions."""

from typing import ClassVar, Unpack

import torch

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.sequence.positions import RotaryTable, grid_2d, rotary_table
from mmblocks.sequence.tokens import NO_SPAN, TokenTable
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.llama import LlamaArguments, check_plain, llama_layer, with_attention
from mmblocks.trunks.parts.rotary import Rotary


class GridRotary(Rotary):
    """The first half of a head turns with the row, the second with the column, in neighbouring pairs of channels.

    Tokens that belong to no image (the condition) have cosines and sines of zero: their queries and keys vanish, and
    attention to them has a score of zero. LlamaGen is trained this way.

    Args:
        theta: base of the frequencies.

    Examples:
        >>> from mmblocks.trunks import Attention, GridRotary
        >>> Attention(num_heads=4, rotary=GridRotary(theta=500.0)).rotary.neighbours
        True
    """

    neighbours: bool = True

    def check_head(self, head_dim: int) -> None:
        """Refuses heads without channels for two axes, turned in pairs."""
        if head_dim % 4:
            raise ValueError(f"head_dim is {head_dim}; accepted: heads whose width is a multiple of 4")

    def table(self, context: ForwardContext, head_dim: int) -> RotaryTable:
        """The angles of the new tokens."""
        return grid_rotary(context.table, head_dim, self.theta)


def grid_rotary(table: TokenTable, head_dim: int, theta: float) -> RotaryTable:
    """The angles of these tokens; see ``GridRotary``."""
    by_row, by_column = (rotary_table(positions, head_dim // 2, theta) for positions in grid_2d(table).unbind(-1))
    in_image = (table.span != NO_SPAN)[..., None]
    cos, sin = (torch.cat(both, dim=-1) * in_image for both in ((by_row.cos, by_column.cos), (by_row.sin, by_column.sin)))
    return RotaryTable(cos, sin)


class LlamaGenTrunk(Decoder):
    """A stack of causal layers over a condition and a grid of codes; any grid, as positions come from the table.

    Args:
        dim, num_layers: as for ``Decoder``.
        dropout: on the embeddings and on both branches of every layer, while training.
        llama: the arguments of ``llama_layer``. A head's width must be a multiple of four: two axes, turned in pairs.

    Raises:
        ValueError: for sizes that do not go together.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen), whose own cache has room for ``num_heads`` heads, and so fails
        with fewer key/value heads.

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.trunks import LlamaGenTrunk
        >>> trunk = LlamaGenTrunk(dim=32, num_layers=1, num_heads=4, mlp_dim=48).eval()
        >>> table = TokenTable.text(1, 5)
        >>> table.span[:, 1:] = 0  # a condition, then an image of 2 x 2 codes
        >>> table.grid[:, 1:, 1:] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> tuple(trunk(torch.randn(1, 5, 32), table).shape)
        (1, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(self, *, dim: int, num_layers: int, dropout: float = 0.1, **llama: Unpack[LlamaArguments]) -> None:
        check_plain("LlamaGenTrunk", llama, "rope_scaling", "rope_sections", "rope_dtype")
        rotary = GridRotary(theta=llama.get("rope_theta", GridRotary.theta))
        layer = with_attention(llama_layer(**llama), rotary=rotary)
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout)
