"""ACDiT: blocks of an image or video come one after the other, each by diffusion given the clean ones before it.

Shapes: N rows, T blocks, S tokens of a block, C width of a token's latents, D width, L tokens.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.generation.guidance import SpanGuide, as_guidance
from mmblocks.generation.lone_spans import write_alone
from mmblocks.heads.span_denoising import SpanDenoisingHead
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, GivenScheduler
from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.layers.spans import Read, rows_of
from mmblocks.models.acdit.blocks import BlockGrid
from mmblocks.models.acdit.layout import ACDIT_FORMER, ACDIT_LAYOUTS
from mmblocks.models.acdit.positions import BlockRotary, head_split
from mmblocks.sequence.lone_spans import IMAGE, LoneSpans
from mmblocks.sequence.masks import Everything
from mmblocks.sequence.spans import Reading, Spans
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import check_range, check_shape
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP
from mmblocks.trunks.parts.modulation import AdaLN
from mmblocks.trunks.parts.norms import Norm

SCHEDULER = "DPMSolverMultistepScheduler"
"""As published: DPM-Solver++ over the times of DDIM."""


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
        self.head = SpanDenoisingHead(
            dim=dim,
            channels=latent_dim,
            path=DiffusionPath(schedule="linear"),
            sampler=DiffusersSampler(scheduler=SCHEDULER, num_steps=25),
            time="condition",
            output="modulated_states",
            num_classes=num_classes,
            label_dropout=label_dropout,
        )
        if label_dropout == 0:  # upstream has a vector for "no class" only where classes are left out while training
            self.head.classes = nn.Embedding(num_classes, dim)
            nn.init.normal_(self.head.classes.weight, std=0.02)
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
        spans, table = self._rows(clean, labels)
        self._check("noised", noised)
        told = self.head.condition(self._by_block(t, len(clean)), spans)
        states = self._states(self.head.reading(noised.flatten(0, 2), told, spans), spans, table, hooks)
        return self.head.predicted(states, told, spans).view_as(noised)

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
        spans, table = self._rows(clean, labels)
        reading = self.head.corrupt(spans, t=self._by_block(t, len(clean)), noise=noise.flatten(0, 2).float())
        return self.head.loss(self._states(reading, spans, table), spans, reading).view(clean.shape[:-1])

    def add_noise(
        self, clean: Float[Tensor, "N T S C"], noise: Float[Tensor, "N T S C"], t: Int[Tensor, "N *blocks"]
    ) -> Float[Tensor, "N T S C"]:
        """DDPM's corruption: 1000 steps whose variances grow linearly from 0.0001 to 0.02."""
        times = self._by_block(t, len(clean)).repeat_interleave(self.blocks.size)
        return self.head.path.corrupt(clean.flatten(0, 2), noise.flatten(0, 2), times).to(clean.dtype).view_as(clean)

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, " N"],
        *,
        num_steps: int = 25,
        guidance: float = 1.0,
        scheduler: Any = None,  # of diffusers, of which type checkers see little
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
        if guidance > 1:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        guide = SpanGuide(guidance=as_guidance(guidance if guidance > 1 else None), writes="vectors")
        sampler = GivenScheduler(scheduler, num_steps) if scheduler else DiffusersSampler(scheduler=SCHEDULER, num_steps=num_steps)
        row, done = self.row, list[Tensor]()

        def read(index: int, cache: KVCache) -> None:
            embeds = self.embed(done[index]).repeat(len(labels) // rows, 1, 1)
            self.trunk(embeds, row.alone(index, clean=True).tables(len(labels)), cache, mask=Everything(), hooks=hooks)

        def anew(embeds: Tensor, table: TokenTable, cache: KVCache, **more: Any) -> Tensor:  # what the trunk takes
            for index in range(len(done)):
                read(index, cache)
            states = self.trunk(embeds, table, cache, **more)
            cache.forget(cache.length - embeds.shape[1])
            return states

        cache, trunk = self.new_cache(len(labels)), partial(self.trunk if cached else anew, hooks=hooks)
        for index, start in enumerate(noise):
            spans, table = row.alone(index).rows(rows, len(labels) // rows)
            spans = spans._replace(given={"label": labels})
            writing = self.head.write(spans, guide=guide, sampler=sampler, noise=start, generator=generator)
            made = write_alone(writing, spans, table, self.head.span, trunk, {IMAGE: self.embed}, cache)
            done.append(made.view_as(start).to(start.dtype))
            if cached and index + 1 < len(noise):
                read(index, cache)
        return torch.stack(done, dim=1)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for all blocks of ``batch`` rows."""
        return self.trunk.new_cache(batch, self.blocks.count * self.blocks.size)

    def multimodal(self) -> MultimodalModel:
        """A model of these very parts, whose head "image" writes blocks of the input "image"."""
        return MultimodalModel(inputs={IMAGE: self.embed}, trunk=self.trunk, outputs={IMAGE: self.head})

    @property
    def row(self) -> LoneSpans:
        """How a row is laid out: each noised block, and its clean copy where another one follows."""
        row = LoneSpans.of(self.head.span, (self.blocks.size,), self.blocks.count, self.blocks.order.device)
        return row.standing(self.blocks.positions())

    def _rows(self, clean: Float[Tensor, "N T S C"], labels: Int[Tensor, " N"] | None) -> tuple[Spans, TokenTable]:
        """Clean blocks as what is learned, and the table of their rows."""
        self._check("clean", clean)
        spans, table = self.row.rows(len(clean))
        if labels is not None:
            check_shape("labels", labels, len(clean))
            check_range("labels", labels, self.head.num_labels)
        given = {} if labels is None else {"label": labels.repeat_interleave(self.blocks.count)}
        return spans._replace(values=clean.flatten(0, 2), given=given), table

    def _states(self, reading: Reading, spans: Spans, table: TokenTable, hooks: TrunkHooks | None = None) -> Float[Tensor, "L D"]:
        """States of noised blocks, after the clean ones before them."""
        reads, (rows, length) = [Read(spans, reading)], table.shape
        if (copies := self.row.copies) is not None:
            copied = spans.rows().view(rows, self.blocks.count * self.blocks.size, self.latent_dim)[:, : copies.num_tokens]
            reads.append(Read(copies.repeated(rows, length), Reading(values=copied.flatten(0, 1))))
        embeds, beside = rows_of({IMAGE: self.embed}, reads, rows, length)
        return self.trunk(embeds, table, hooks=hooks, **beside).flatten(0, 1)[spans.places]

    def _by_block(self, t: Int[Tensor, "N *blocks"], rows: int) -> Int[Tensor, " NT"]:
        """A time for each block of all rows."""
        if tuple(t.shape) not in ((rows,), (rows, self.blocks.count)):
            raise ValueError(f"t is {tuple(t.shape)}; accepted: ({rows},) or ({rows}, {self.blocks.count})")
        check_range("t", t, 1000)
        return t.flatten() if t.ndim == 2 else t.repeat_interleave(self.blocks.count)

    def _check(self, name: str, blocks: Float[Tensor, "N T S C"]) -> None:
        shape = (self.blocks.count, self.blocks.size, self.latent_dim)
        if tuple(blocks.shape[1:]) != shape:
            raise ValueError(f"{name} is {tuple(blocks.shape)}; accepted: (N, {', '.join(map(str, shape))})")
