"""ACDiT: blocks of an image or video come one after the other, each by diffusion given the clean ones before it.

Shapes: N rows, T blocks, S tokens of a block, C width of a token's latents, D width, L tokens.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.diffusion.adaln import ModulatedLinear, TimeEmbedding
from mmblocks.models.acdit.blocks import BlockGrid
from mmblocks.models.acdit.layout import ACDIT_FORMER, ACDIT_LAYOUTS
from mmblocks.models.acdit.positions import BlockRotary, head_split
from mmblocks.models.acdit.scheduler import Scheduler, published_scheduler
from mmblocks.sequence.masks import Everything, visible
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import check_range
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP
from mmblocks.trunks.parts.modulation import AdaLN
from mmblocks.trunks.parts.norms import Norm


class ACDiT(Block):
    """Predicts the noise in each block, given its class, its time step and the clean blocks before it.

    Maps of latents become blocks by ``blocks.split`` and maps again by ``blocks.join``; see ``BlockGrid``.

    Args:
        latent_dim: C, a tokenizer's channels times the latents of a patch, in the order (row, column, channel).
        dim: D.
        num_layers, num_heads: heads are ``dim / num_heads`` wide; 64 in the published models.
        num_classes: classes; one more vector stands for none.
        grid: (frames, rows, columns) of tokens.
        block_size: S; must divide the tokens of the grid.
        square_blocks: whether blocks are squares, rather than runs of rows or of frames.
        mlp_ratio: inner width of the feed-forward layers over D.
        axis_shares: how the channels of a head are shared out among the axes that have a position: (row, column), or with more than
            one frame (frame, row, column).
        qk_norm: RMS norms on queries and keys.
        label_dropout: how often a class is left out while training.

    Raises:
        ValueError: sizes that do not go together.

    Published files are ``.pt`` files without a config; ``args`` in them tell ``model``, ``block_size``, ``patch_size`` and
    ``vae_latent_size``. Give the arguments above accordingly.

    Source: ACDiT (arXiv 2412.07720; thunlp/ACDiT). Upstream leaves classes out in evaluation too; here only training does.

    Examples:
        >>> import torch
        >>> from mmblocks.models import ACDiT
        >>> sizes = {"latent_dim": 4, "dim": 16, "num_layers": 1, "num_heads": 2, "num_classes": 10}
        >>> model = ACDiT(grid=(1, 4, 4), block_size=4, **sizes).eval()
        >>> clean = model.blocks.split(torch.randn(2, 4, 4, 4))
        >>> tuple(clean.shape), tuple(model.loss(clean, torch.tensor([3, 7])).shape)
        ((2, 4, 4, 4), (2, 4, 4))
        >>> tuple(model.sample(torch.tensor([3]), num_steps=2).shape)
        (1, 4, 4, 4)
    """

    layouts: ClassVar[tuple[Layout, ...]] = ACDIT_LAYOUTS
    former: ClassVar[Layout | None] = ACDIT_FORMER

    def __init__(
        self,
        *,
        latent_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_classes: int,
        grid: tuple[int, int, int],
        block_size: int,
        square_blocks: bool = True,
        mlp_ratio: float = 4.0,
        axis_shares: tuple[int, ...] = (1, 1),
        qk_norm: bool = True,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        axes = 2 if grid[0] == 1 else 3
        if dim % num_heads or len(axis_shares) != axes:
            raise ValueError(f"dim is {dim}, num_heads {num_heads}, axis_shares {axis_shares}; accepted: a multiple, {axes} shares")
        self.blocks = BlockGrid(grid, block_size, square_blocks)
        self.latent_dim, self.num_classes, self.label_dropout = latent_dim, num_classes, label_dropout
        self.time = TimeEmbedding(dim)
        # Upstream has a vector for "no class" only where classes are left out while training.
        self.classes = nn.Embedding(num_classes + (label_dropout > 0), dim)
        nn.init.normal_(self.classes.weight, std=0.02)
        self.embed = nn.Linear(latent_dim, dim, bias=False)
        norm, widths = Norm(eps=1e-6), head_split(dim // num_heads, axis_shares)
        rotary = BlockRotary(lengths=self.blocks.grid[-axes:], widths=widths)
        layer = Layer(
            mixer=Attention(num_heads=num_heads, qkv_bias=True, output_bias=True, qk_norm=norm if qk_norm else None, rotary=rotary),
            feed_forward=MLP(hidden_dim=int(dim * mlp_ratio)),
            norm=norm,
            modulation=AdaLN(),
        )
        self.trunk = Decoder(dim=dim, num_layers=num_layers, layers=layer)
        self.output = ModulatedLinear(dim, dim, latent_dim)

    def forward(
        self,
        clean: Float[Tensor, "N T S C"],
        noised: Float[Tensor, "N T S C"],
        t: Int[Tensor, "N *blocks"],
        labels: Int[Tensor, " N"] | None = None,
        *,
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "N T S C"]:
        """The noise in every block, in one pass.

        Args:
            clean: blocks, as conditions of those after them.
            noised: the same blocks, noised.
            t: time steps in [0, 1000), one per row or one per block; 0 is nearly clean.
            labels: classes, ``num_classes`` for none; none at all where it is None.
            hooks: functions that read or change states, attention weights and heads on the way; see ``TrunkHooks``.

        Raises:
            ValueError: shapes that do not fit; a time or a class out of range (checked on CPU); hooks of layers that are not there.
        """
        blocks = (self.blocks.count, self.blocks.size, self.latent_dim)
        for name, values in (("clean", clean), ("noised", noised)):
            if tuple(values.shape[1:]) != blocks:
                raise ValueError(f"{name} is {tuple(values.shape)}; accepted: (N, {', '.join(map(str, blocks))})")
        tokens = torch.cat([clean.flatten(1, 2), noised.flatten(1, 2)], dim=1)
        condition = self._condition(t, labels, len(clean), self.blocks.count)
        return self._run(tokens, condition, self.blocks.table(len(clean)), None, hooks)

    def loss(
        self,
        clean: Float[Tensor, "N T S C"],
        labels: Int[Tensor, " N"] | None = None,
        *,
        t: Int[Tensor, "N *blocks"] | None = None,
        noise: Float[Tensor, "N T S C"] | None = None,
        drop: Bool[Tensor, " N"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "N T S"]:
        """Squared error of the predicted noise, its mean over a token's channels.

        Args:
            clean: blocks.
            labels: classes.
            t: time steps; sampled if None.
            noise: sampled if None.
            drop: rows whose class is left out; while training sampled with ``label_dropout`` if None, in evaluation none.
            generator: source of randomness.
        """
        device = clean.device
        if t is None:
            t = torch.randint(1000, clean.shape[:2], generator=generator, device=device)
        if noise is None:
            noise = torch.randn(clean.shape, generator=generator, device=device, dtype=clean.dtype)
        if drop is None and self.training and self.label_dropout > 0:
            drop = torch.rand(len(clean), generator=generator, device=device) < self.label_dropout
        if labels is not None and drop is not None:
            labels = torch.where(drop, self.num_classes, labels)
        predicted = self(clean, self.add_noise(clean, noise, t), t, labels)
        return (predicted.float() - noise.float()).square().mean(dim=-1)

    def add_noise(
        self, clean: Float[Tensor, "N T S C"], noise: Float[Tensor, "N T S C"], t: Int[Tensor, "N *blocks"]
    ) -> Float[Tensor, "N T S C"]:
        """DDPM's corruption: 1000 steps whose variances grow linearly from 0.0001 to 0.02."""
        self._check_time(t, len(clean), clean.shape[1])
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=clean.device), dim=0)[t].to(clean.dtype)
        kept = kept.view(len(clean), -1, 1, 1)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, " N"],
        *,
        num_steps: int = 25,
        guidance: float = 1.0,
        scheduler: Scheduler | None = None,
        cached: bool = True,
        noise: Float[Tensor, "_ _ _ _"] | None = None,
        generator: Generator | None = None,
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "N T S C"]:
        """Blocks, one after the other, each from noise in ``num_steps`` steps.

        Args:
            labels: classes.
            num_steps: of each block.
            guidance: ``u + guidance * (c - u)`` of the noise with and without class; 1 is the class alone, in half the work.
            scheduler: a scheduler of diffusers for predicted noise; DPM-Solver++ as published if None.
            cached: keep keys and values of the clean blocks, and of those alone; the result is the same without, later.
            noise: the noise each block starts from, (T, N, S, C), in place of a generator.
            generator: its source.
            hooks: as of ``forward``, called in every step of every block.

        Raises:
            ValueError: a guidance below 1, no step, noise of another shape, or a class out of range.
        """
        rows, device, shape = len(labels), labels.device, (self.blocks.count, len(labels), self.blocks.size, self.latent_dim)
        if not guidance >= 1 or num_steps < 1:
            raise ValueError(f"guidance is {guidance}, num_steps {num_steps}; accepted: 1 or more of either")
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=device, dtype=self.embed.weight.dtype)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise is {tuple(noise.shape)}; accepted: {shape}, blocks first")
        scheduler = published_scheduler() if scheduler is None else scheduler
        if guidance > 1:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        copies = len(labels) // rows
        cache = self.new_cache(len(labels)) if cached else None

        done: list[Tensor] = []
        for x in noise:
            scheduler.set_timesteps(num_steps, device=device)
            before = [block.repeat(copies, 1, 1) for block in done]
            for step, t in enumerate(scheduler.timesteps):
                unread = before if cache is None else before[-1:] if step == 0 else []
                scaled = scheduler.scale_model_input(x, t).repeat(copies, 1, 1)
                predicted = self._next_block(scaled, t.expand(len(labels)), labels, unread, len(done), cache, hooks)
                if guidance > 1:
                    with_class, without = predicted.chunk(2)
                    predicted = without + guidance * (with_class - without)
                x = scheduler.step(predicted, t, x).prev_sample
            done.append(x)
        return torch.stack(done, dim=1)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for all blocks of ``batch`` rows."""
        return self.trunk.new_cache(batch, self.blocks.count * self.blocks.size)

    def _next_block(
        self,
        noised: Tensor,
        t: Tensor,
        labels: Tensor,
        unread: list[Tensor],
        index: int,
        cache: KVCache | None,
        hooks: TrunkHooks | None,
    ) -> Tensor:
        """The noise in block ``index``, after clean blocks of which the cache lacks the last ones, ``unread``."""
        table = self.blocks.table(len(noised), clean=range(index - len(unread), index), noised=[index])
        condition = self._condition(t, labels, len(noised), 1)
        predicted = self._run(torch.cat([*unread, noised], dim=1), condition, table, cache, hooks)
        if cache is not None:
            cache.forget(self.blocks.size)  # the noised block is read anew in each step, and never kept
        return predicted[:, 0]

    def _run(
        self,
        tokens: Float[Tensor, "N L C"],
        condition: Float[Tensor, "N blocks D"],
        table: TokenTable,
        cache: KVCache | None,
        hooks: TrunkHooks | None,
    ) -> Float[Tensor, "N blocks S C"]:
        """The noise in the noised blocks, the last ones of the tokens, each with its condition."""
        rows, noised = condition.shape[:2]
        clean = tokens.shape[1] // self.blocks.size - noised
        of = pad(torch.arange(rows * noised, device=tokens.device).view(rows, noised), (clean, 0), value=-1)
        conditions = Conditions(condition.flatten(0, 1), of)  # block by block
        mask = visible if clean or cache is None else Everything()
        states = self.trunk(self.embed(tokens), table, cache, mask=mask, hooks=hooks, conditions=conditions)
        blocks = states.unflatten(1, (clean + noised, -1))[:, clean:]
        return self.output(blocks, condition[:, :, None])

    def _condition(self, t: Tensor, labels: Tensor | None, rows: int, blocks: int) -> Float[Tensor, "N T D"]:
        self._check_time(t, rows, blocks)
        if labels is None:
            labels = torch.full((rows,), self.num_classes, device=t.device)
        if labels.shape != (rows,):
            raise ValueError(f"labels is {tuple(labels.shape)}; accepted: ({rows},)")
        check_range("labels", labels, self.classes.num_embeddings)
        times = self.time(t if t.ndim == 2 else t[:, None].expand(rows, blocks))
        return times + self.classes(labels)[:, None]

    def _check_time(self, t: Tensor, rows: int, blocks: int) -> None:
        if tuple(t.shape) not in ((rows,), (rows, blocks)):
            raise ValueError(f"t is {tuple(t.shape)}; accepted: ({rows},) or ({rows}, {blocks})")
        check_range("t", t, 1000)
