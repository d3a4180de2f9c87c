"""Small networks that denoise single tokens: residual MLPs whose norms follow a condition and the time.

A network for a denoising head has three methods, so that what stays the same over the sampling loop is computed once:
``embed_time``, ``embed_condition``, and ``forward``, which takes what these two made.

Shapes: N rows, C channels of a token, D width of the condition, W inner width.
"""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln import TimeEmbedding, sinusoid


@runtime_checkable
class TokenDenoiser(Protocol):
    """What a denoising head asks of a network. ``dim`` is C, ``condition_dim`` is D."""

    dim: int
    condition_dim: int

    def embed_time(self, time: Num[Tensor, "*M"]) -> Float[Tensor, "*M W"]:
        """What the path's ``net_time`` becomes."""
        ...

    def embed_condition(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N W"]:
        """What the states become."""
        ...

    def __call__(
        self, x: Float[Tensor, "*N C"], time: Float[Tensor, "*M W"], condition: Float[Tensor, "*N W"]
    ) -> Float[Tensor, "*N C2"]:
        """Noised tokens to the path's prediction; ``time`` has a row for each token, or one for all: (W,)."""
        ...


class AdaLNBlock(nn.Module):
    """A residual MLP of one inner layer, after a norm that is shifted and scaled, with a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Float[Tensor, "*N W"], condition: Float[Tensor, "*N W"]) -> Float[Tensor, "*N W"]:
        """``condition`` is after its SiLU, which all blocks share."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        normed = self.norm(x)
        # addcmul reads and writes each tensor once, where a product and a sum would do so twice.
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, normed, scale + 1)))


class AdaLNMLP(Block):
    """The network of MAR's and Orthus's heads: no mixing over tokens, the condition in every norm.

    Args:
        dim: C.
        out_dim: channels it gives; ``dim`` if None, twice that where the variance is learned.
        condition_dim: D.
        width: W.
        num_blocks: residual blocks.

    Source: MAR (arXiv 2406.11838; LTH14/mar).
    """

    def __init__(self, *, dim: int, condition_dim: int, width: int, num_blocks: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.dim, self.condition_dim = dim, condition_dim
        self.time_embedding = TimeEmbedding(width)
        self.condition = nn.Linear(condition_dim, width)
        self.input = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(num_blocks))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, out_dim or dim)
        self._initialise()

    def embed_time(self, time: Num[Tensor, "*M"]) -> Float[Tensor, "*M W"]:
        """Indices of times to vectors."""
        embedded: Tensor = self.time_embedding(time)
        return embedded

    def embed_condition(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N W"]:
        """States to vectors."""
        embedded: Tensor = self.condition(hidden)
        return embedded

    def forward(
        self, x: Float[Tensor, "*N C"], time: Float[Tensor, "*M W"], condition: Float[Tensor, "*N W"]
    ) -> Float[Tensor, "*N C2"]:
        """Noised tokens to the prediction."""
        condition = silu(time + condition)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        normed = layer_norm(x, x.shape[-1:], eps=1e-6)
        predicted: Tensor = self.output(torch.addcmul(shift, normed, scale + 1))
        return predicted

    def _initialise(self) -> None:
        """Blocks begin as the identity, and the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for place in (0, 2):
            nn.init.normal_(self.time_embedding.mlp.get_parameter(f"{place}.weight"), std=0.02)
        for layer in (self.final_modulation, self.output, *(block.get_submodule("modulation") for block in self.blocks)):
            nn.init.zeros_(layer.get_parameter("weight"))


class PostNormBlock(nn.Module):
    """A residual MLP after a norm that is scaled and shifted; its output passes a norm of its own before the gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "*N W"], condition: Float[Tensor, "*N W"]) -> Float[Tensor, "*N W"]:
        """``condition`` is after its SiLU, which all blocks share."""
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        normed = layer_norm(x, x.shape[-1:], eps=1e-6)
        return torch.addcmul(x, gate, self.norm(self.mlp(torch.addcmul(shift, normed, scale + 1))))


class PatchMLP(Block):
    """The network of NOVA's head: tokens are patches of latents, inner order (row, column, channel).

    Args:
        channels: of the latents.
        patch_size: side of a patch.
        condition_dim: D.
        width: W.
        num_blocks: residual blocks.

    Source: NOVA (arXiv 2412.14169; baaivision/NOVA).
    """

    def __init__(self, *, channels: int, patch_size: int, condition_dim: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.patch_size, self.condition_dim = patch_size, condition_dim
        self.dim = channels * patch_size**2
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        self.time_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_mlp = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(PostNormBlock(width) for _ in range(num_blocks))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, self.dim)

    def embed_time(self, time: Num[Tensor, "*M"]) -> Float[Tensor, "*M W"]:
        """Sigmas times a thousand to vectors."""
        embedded: Tensor = self.time_mlp(sinusoid(time, 256).to(self.output.weight.dtype))
        return embedded

    def embed_condition(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N W"]:
        """States to vectors."""
        embedded: Tensor = self.condition_mlp(hidden)
        return embedded

    def forward(
        self, x: Float[Tensor, "*N C"], time: Float[Tensor, "*M W"], condition: Float[Tensor, "*N W"]
    ) -> Float[Tensor, "*N C2"]:
        """Noised patches to velocities."""
        condition = silu(time + condition)
        # The kernel covers the patch, so the convolution is a product with its rows in the tokens' order.
        x = linear(x, rearrange(self.patches.weight, "w c p q -> w (p q c)"), self.patches.bias)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.final_modulation(condition).chunk(2, dim=-1)
        predicted: Tensor = self.output(torch.addcmul(shift, layer_norm(x, x.shape[-1:], eps=1e-6), scale + 1))
        return predicted
