"""OmniGen's trunk, a Phi-3 decoder whose rotary frequencies are stretched, and its head for velocities.

Shapes: N tokens of images, D width.
"""

import math
from typing import ClassVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.heads.span_denoising import ModulatedOutput
from mmblocks.sequence.positions import PositionScheme, RotaryTable, rotary_table, sequential
from mmblocks.sequence.spans import from_patches
from mmblocks.trunks.context import ForwardContext
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.llama import LlamaArguments, llama_layer, with_attention
from mmblocks.trunks.parts.rotary import Rotary


class Phi3Rotary(Rotary):
    """Rotary embedding whose "longrope" scaling stretches all rows of a batch alike, by the longest, padding included.

    How long rows will become is the ``total_length`` of a trunk's call. In a cache the keys of a prompt then have the angles that
    they have where prompt and image are read together.

    Args: those of ``Rotary``.

    Examples:
        >>> from mmblocks.models import Phi3Rotary
        >>> scaling = {"type": "longrope", "factor": 2.0, "max_position": 8, "short_factor": (1.0,), "long_factor": (2.0,)}
        >>> Phi3Rotary(scaling=scaling).static_step  # which factors count follows from lengths
        False
    """

    def table(self, context: ForwardContext, head_dim: int) -> RotaryTable:
        """The angles of the new tokens."""
        if self.scaling is None or self.scaling["type"] != "longrope":
            return super().table(context, head_dim)
        length, total = context.lengths
        positions = context.position(sequential)[:, -length:]
        trained = self.scaling["max_position"]
        known = total if context.total_length is None else context.total_length
        is_long = torch.as_tensor(known, device=positions.device).view(-1, 1) > trained
        long, short = (torch.tensor(self.scaling[f"{name}_factor"], device=positions.device) for name in ("long", "short"))
        stretch = torch.where(is_long, long, short).expand(len(positions), -1)
        table = rotary_table(positions, head_dim, self.theta, stretch)
        growth = math.sqrt(1 + math.log(self.scaling["factor"]) / math.log(trained))
        return RotaryTable(table.cos * growth, table.sin * growth)


class Phi3Decoder(Decoder):
    """A ``Decoder`` of ``llama_layer`` with ``Phi3Rotary``, which is told while it generates how long rows will become.

    Args: those of ``Decoder``.

    Source: Phi-3 (arXiv 2404.14219) in OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.models import Phi3Decoder
        >>> scaling = {"type": "longrope", "factor": 2.0, "max_position": 8, "short_factor": (1.0, 1.0), "long_factor": (2.0, 4.0)}
        >>> trunk = Phi3Decoder(dim=16, num_layers=1, num_heads=4, mlp_dim=16, rope_scaling=scaling)
        >>> embeds, table = torch.randn(1, 5, 16), TokenTable.text(1, 5)
        >>> torch.equal(trunk(embeds, table), trunk(embeds, table, total_length=8))
        True
        >>> torch.equal(trunk(embeds, table), trunk(embeds, table, total_length=9))  # longer than the model was trained for
        False
    """

    reads_total_length: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        rotary = Phi3Rotary(
            theta=llama.get("rope_theta", Rotary.theta),
            scaling=llama.get("rope_scaling"),
            sections=llama.get("rope_sections"),
            dtype=llama.get("rope_dtype"),
        )
        layer = with_attention(llama_layer(**llama), rotary=rotary)
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout, positions=positions)


class VelocityHead(ModulatedOutput):
    """Hidden states of an image's tokens to a velocity in each latent of their patches; the time shifts and scales them.

    Args:
        dim: D.
        patch_size: latents a side of a patch.
        channels: of a latent.

    Source: DiT (arXiv 2212.09748) as OmniGen has it.

    Examples:
        >>> import torch
        >>> from mmblocks.models import VelocityHead
        >>> head = VelocityHead(dim=16, patch_size=2, channels=4)
        >>> states = torch.randn(2 * 3, 16)
        >>> tuple(head(states, torch.tensor(0.5), (4, 6)).shape)
        (4, 4, 6)
    """

    former: ClassVar[Layout | None] = Layout("velocity head until version 0.2", (Rule("output.*", "predict.*"),))

    def __init__(self, *, dim: int, patch_size: int = 2, channels: int = 4) -> None:
        super().__init__(dim=dim, channels=patch_size * patch_size * channels, own_time=True)
        self.patch_size = patch_size

    def forward(
        self, hidden: Float[Tensor, "N D"], t: Float[Tensor, ""], size: tuple[int, int]
    ) -> Float[Tensor, "channels height width"]:
        """The velocity of one image.

        Args:
            hidden: states of the image's tokens, row by row.
            t: its time.
            size: (height, width) in latents.
        """
        return from_patches(self.predicted(hidden, self.moves(t, None)), size, self.patch_size).movedim(-1, 0)
