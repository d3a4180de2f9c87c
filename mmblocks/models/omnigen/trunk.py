"""OmniGen's trunk, a Phi-3 decoder whose rotary frequencies are stretched, and its head for velocities.

Shapes: B rows, L new tokens, N tokens of images, D width.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln import Modulation, TimeEmbedding, modulate
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.positions import RotaryTable, rotary_table, sequential
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks


class Phi3Decoder(Decoder):
    """A ``Decoder`` whose rows may say how long they will become, which decides on the frequencies of "longrope" scaling.

    In a cache the keys of a prompt then have the angles that they have where prompt and image are read together. Rows of a batch
    are stretched alike, by the longest, padding included, as upstream does.

    Args: those of ``Decoder``.

    Source: Phi-3 (arXiv 2404.14219) in OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).
    """

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        taps: dict[int, Tensor] | None = None,
        hooks: TrunkHooks | None = None,
        total_length: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states after the final norm; see ``Decoder``.

        Args:
            embeds: the tokens.
            table: the tokens' metadata.
            cache: what was read before.
            mask: see ``Decoder``, as the others.
            taps: states to record.
            hooks: functions that read or change what is on the way.
            total_length: tokens that rows will have in the end, padding included; those read so far if None.
        """
        return self._run(embeds, table, cache, mask, taps, hooks, total_length=total_length)

    def _rotary(self, keys: TokenTable, length: int, total_length: int | None = None, **angles: object) -> RotaryTable:
        """Angles of the last ``length`` tokens, of rows that will have ``total_length`` in the end."""
        scaling = self.rope_scaling
        if scaling is None or scaling["type"] != "longrope":
            return super()._rotary(keys, length)
        positions = sequential(keys)[:, -length:]
        trained = scaling["max_position"]
        factors = scaling["long_factor" if (total_length or keys.shape[1]) > trained else "short_factor"]
        table = rotary_table(
            positions, self.head_dim, self.rope_theta, torch.tensor([factors] * len(positions), device=positions.device)
        )
        growth = math.sqrt(1 + math.log(scaling["factor"]) / math.log(trained))
        return RotaryTable(table.cos * growth, table.sin * growth)


class VelocityHead(Block):
    """Hidden states of an image's tokens to a velocity in each latent of their patches; the time shifts and scales them.

    Args:
        dim: D.
        patch_size: latents a side of a patch.
        channels: of a latent.

    Source: DiT (arXiv 2212.09748) as OmniGen has it.
    """

    def __init__(self, *, dim: int, patch_size: int = 2, channels: int = 4) -> None:
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.time = TimeEmbedding(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, dim, 2)
        self.output = nn.Linear(dim, patch_size * patch_size * channels)

    def forward(
        self, hidden: Float[Tensor, "N D"], t: Float[Tensor, ""], size: tuple[int, int]
    ) -> Float[Tensor, "channels height width"]:
        """The velocity of one image.

        Args:
            hidden: states of the image's tokens, row by row.
            t: its time.
            size: (height, width) in latents.
        """
        shift, scale = self.modulation(self.time(t)).chunk(2, dim=-1)
        patches = self.output(modulate(self.norm(hidden), shift, scale))
        sides = {"h": size[0] // self.patch_size, "p": self.patch_size, "q": self.patch_size}
        return rearrange(patches, "(h w) (p q c) -> c (h p) (w q)", **sides)
