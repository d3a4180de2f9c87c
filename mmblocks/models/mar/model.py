"""MAR: continuous tokens in random order, many at a time; an encoder reads those that are known, a decoder predicts the rest.

Shapes: B rows, L tokens, C channels of a token, D width of the encoder, D2 of the decoder, H and W latents.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.generation.guidance import SpanGuide, as_guidance
from mmblocks.generation.lone_spans import write_alone
from mmblocks.heads.masked_vectors import MaskedVectorsHead
from mmblocks.heads.span_parts import ClassTokens, SpanPositions
from mmblocks.layers.diffusion.random_orders import mask_counts, sample_mask, sample_orders
from mmblocks.models.mar.halves import Halves, HalvesArguments
from mmblocks.models.mar.layout import MAR_FORMER, MAR_LAYOUTS
from mmblocks.roles import Head
from mmblocks.sequence.lone_spans import IMAGE, LoneSpans
from mmblocks.sequence.masks import Everything
from mmblocks.sequence.spans import SpanLayout
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import check_range, check_shape, is_readable
from mmblocks.support.deprecation import former_keywords
from mmblocks.trunks.masked_autoencoder import Known


class MAR(Block):
    """States of all tokens, given some of them and a class; a per-token head makes tokens of states.

    The head is no part of the trunk: any whose ``loss`` and ``sample`` take one state a token will do, as published
    ``MARDiffusionHead``.

    Args:
        channels, patch_size: of a latent, and latents a side of a token; C is ``channels * patch_size**2``.
        grid: rows and columns of tokens.
        num_classes: classes.
        num_class_tokens: how many tokens the class takes, before the image's.
        label_dropout: how often a class is left out while training.
        min_mask_ratio: the smallest share of tokens that are masked while training.
        halves: the arguments of ``Halves``.

    Published files carry no config: see ``mar_base``, ``mar_large`` and ``mar_huge`` in LTH14/mar for the sizes. Latents are those
    of its KL-16, multiplied by 0.2325.

    Source: MAR (arXiv 2406.11838; LTH14/mar).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import MARDiffusionHead
        >>> from mmblocks.models import MAR
        >>> encoder, decoder = ({f"{half}_dim": 16, f"{half}_layers": 1, f"{half}_heads": 2} for half in ("encoder", "decoder"))
        >>> model = MAR(channels=4, grid=(2, 3), num_classes=10, num_class_tokens=2, **encoder, **decoder).eval()
        >>> head = MARDiffusionHead(dim=16, token_dim=4, width=8, num_blocks=1, steps=3)
        >>> tokens = model.to_tokens(torch.randn(2, 2, 3, 4))
        >>> tuple(model.loss(head, tokens, torch.tensor([3, 7])).shape)
        (2, 6)
        >>> tuple(model.to_latents(model.sample(head, torch.tensor([3]), num_steps=2)).shape)
        (1, 2, 3, 4)
    """

    layouts: ClassVar[tuple[Layout, ...]] = MAR_LAYOUTS
    former: ClassVar[Layout | None] = MAR_FORMER
    shorthand = Halves

    def __init__(
        self,
        *,
        channels: int,
        grid: tuple[int, int],
        num_classes: int,
        patch_size: int = 1,
        num_class_tokens: int = 64,
        label_dropout: float = 0.1,
        min_mask_ratio: float = 0.7,
        **halves: Unpack[HalvesArguments],
    ) -> None:
        super().__init__()
        sizes = Halves(**halves)
        if num_class_tokens < 1 or not 0 < min_mask_ratio <= 1:
            found = f"num_class_tokens is {num_class_tokens}, min_mask_ratio {min_mask_ratio}"
            raise ValueError(f"{found}; accepted: 1 or more, and above 0 to 1")
        self.patch_size, self.channels, self.grid = patch_size, channels, (grid[0], grid[1])
        self.token_dim, self.num_tokens = channels * patch_size**2, grid[0] * grid[1]
        self.num_classes, self.min_mask_ratio = num_classes, min_mask_ratio
        dim = sizes.encoder_dim
        self.classes = ClassTokens(num_classes=num_classes, dim=dim, num_tokens=num_class_tokens, dropout=label_dropout)
        self.embed = nn.Linear(self.token_dim, dim)
        self.trunk = sizes.trunk(num_class_tokens + self.num_tokens)
        self.positions = SpanPositions(num_tokens=self.num_tokens, dim=sizes.decoder_dim)
        self.apply(_init)

    def forward(
        self,
        tokens: Float[Tensor, "B L C"],
        mask: Bool[Tensor, "B L"],
        labels: Int[Tensor, " B"] | None = None,
        *,
        drop: Bool[Tensor, " B"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B L D2"]:
        """A state for every token.

        Args:
            tokens: the image; what is masked is not read.
            mask: True where a token is unknown, at as many places in each row.
            labels: classes; none at all where it is None.
            drop: rows whose class is left out; while training sampled with ``label_dropout`` if None.
            generator: source of randomness.

        Raises:
            ValueError: shapes that do not fit; rows masked at different numbers of places, or a class that does not exist (checked
                on CPU).
        """
        return self.decode(self.encode(tokens, mask, labels, drop=drop, generator=generator), mask)

    def encode(
        self,
        tokens: Float[Tensor, "B L C"],
        mask: Bool[Tensor, "B L"],
        labels: Int[Tensor, " B"] | None = None,
        *,
        drop: Bool[Tensor, " B"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B known D"]:
        """States of the class tokens and of the tokens that are known; see ``forward``."""
        rows, accepted = len(tokens), (self.num_tokens, self.token_dim)
        if tuple(tokens.shape[1:]) != accepted or tuple(mask.shape) != (rows, self.num_tokens):
            found = f"tokens is {tuple(tokens.shape)}, mask {tuple(mask.shape)}"
            raise ValueError(f"{found}; accepted: (B, {accepted[0]}, {accepted[1]}) and (B, {accepted[0]})")
        if labels is None:
            labels = torch.full((rows,), self.num_classes, device=tokens.device)
        else:
            check_shape("labels", labels, rows)
            check_range("labels", labels, self.num_classes)
        if drop is None:
            drop = self.classes.sample_drop(len(labels), labels.device, generator)
        embeds = torch.cat([self.classes(labels, drop=drop), self.embed(tokens)], dim=1)
        return self.trunk.encode(embeds, *self._known(mask), Everything())

    def decode(self, encoded: Float[Tensor, "B known D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D2"]:
        """A state for every token, from those of the known ones."""
        return self.positions(self.trunk.decode(encoded, *self._known(mask), Everything())[:, self.classes.num_tokens :])

    def loss(
        self,
        head: Head,
        tokens: Float[Tensor, "B L C"],
        labels: Int[Tensor, " B"] | None = None,
        *,
        mask: Bool[Tensor, "B L"] | None = None,
        drop: Bool[Tensor, " B"] | None = None,
        generator: Generator | None = None,
        **options: object,  # of the head's own loss
    ) -> Float[Tensor, "B L"]:
        """The head's loss at the masked tokens, zero elsewhere.

        Args:
            head: a per-token head.
            tokens: the image.
            labels: classes.
            drop: see ``forward``.
            mask: what is masked; sampled if None, see ``masks.sample_mask``.
            generator: source of all randomness.
            options: what the head takes beside.
        """
        if mask is None:
            orders = sample_orders(len(tokens), self.num_tokens, tokens.device, generator)
            mask = sample_mask(orders, self.min_mask_ratio, generator=generator)
        states = self(tokens, mask, labels, drop=drop, generator=generator)
        weight = mask.flatten().to(torch.float32)
        if generator is not None:
            options["generator"] = generator
        return head.loss(states.flatten(0, 1), tokens.flatten(0, 1), weight, **options).view(mask.shape)

    @former_keywords(draws="step_options")
    @torch.no_grad()
    def sample(
        self,
        head: Head,
        labels: Int[Tensor, " B"],
        *,
        num_steps: int = 64,
        guidance: float = 1.0,
        schedule: Literal["linear", "constant"] = "linear",
        orders: Int[Tensor, "B L"] | None = None,
        step_options: Sequence[Mapping[str, Tensor]] | None = None,
        generator: Generator | None = None,
        **options: object,  # of the head's own sample
    ) -> Float[Tensor, "B L C"]:
        """Tokens, more of them from step to step.

        Args:
            head: a per-token head, with ``sample(states, generator=...)``; for guidance it must take ``unconditional`` states and
                ``guidance`` too.
            labels: classes.
            num_steps: steps; the number of tokens still masked falls as a cosine.
            guidance: the head's scale; 1 is none, in half the work.
            schedule: "linear" lets the scale grow from 1 with the share of tokens known; "constant" does not.
            orders: the last tokens of a row come first; sampled if None.
            step_options: what each step's call of the head is given beside, in place of a generator, such as its noise. A step
                predicts tokens of all rows, row by row.
            generator: source of all randomness.
            options: what every call of the head is given, such as ``temperature``.

        Raises:
            ValueError: a guidance below 1, fewer than one step or more than tokens, or orders of another shape.
        """
        rows, weight = len(labels), self.embed.weight
        if not guidance >= 1 or schedule not in ("linear", "constant"):
            raise ValueError(f"guidance is {guidance}, schedule {schedule!r}; accepted: 1 or more, 'linear' or 'constant'")
        check_range("labels", labels, self.num_classes)
        mask_counts(self.num_tokens, num_steps)  # refuses other numbers
        if step_options is not None and len(step_options) != num_steps:
            raise ValueError(f"step_options has {len(step_options)} steps; accepted: {num_steps}")
        if orders is not None:
            check_shape("orders", orders, rows, self.num_tokens)
        writer = self.writer(head, num_steps=num_steps, growing_guidance=schedule == "linear")
        if guidance > 1:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        guide = SpanGuide(guidance=as_guidance(guidance if guidance > 1 else None), writes="vectors")
        spans, table = self.row.rows(rows, len(labels) // rows)
        writing = writer.write(
            spans._replace(given={"label": labels}),
            guide=guide,
            orders=orders,
            options=options,
            step_options=step_options,
            generator=generator,
        )
        made = write_alone(writing, spans, table, writer.span, self.trunk, {IMAGE: self.embed})
        return made.view(rows, self.num_tokens, -1).to(weight.dtype)

    def multimodal(self, head: Head) -> MultimodalModel:
        """A model of these very parts and a per-token head, whose head "image" writes images of the input "image"."""
        return MultimodalModel(inputs={IMAGE: self.embed}, trunk=self.trunk, outputs={IMAGE: self.writer(head)})

    def writer(self, head: Head, *, num_steps: int = 64, growing_guidance: bool = True) -> MaskedVectorsHead:
        """The head of whole spans around a per-token head; see ``MaskedVectorsHead``."""
        return MaskedVectorsHead(
            head=head,
            dim=self.trunk.dim,
            num_steps=num_steps,
            min_mask_ratio=self.min_mask_ratio,
            growing_guidance=growing_guidance,
            told="trunk",
            classes=self.classes,
            positions=self.positions,
        )

    @property
    def row(self) -> LoneSpans:
        """How a row is laid out: tokens of the class, then the image."""
        layout = SpanLayout(writes="vectors", context="read", lead=self.classes.num_tokens, attends="all")
        return LoneSpans.of(layout, self.grid, device=self.embed.weight.device)

    def to_tokens(self, latents: Float[Tensor, "B H W channels"]) -> Float[Tensor, "B L C"]:
        """A tokenizer's latents, channels last, as tokens.

        Raises:
            ValueError: latents of another size.
        """
        size = tuple(side * self.patch_size for side in self.grid)
        if tuple(latents.shape[1:]) != (*size, self.channels):
            raise ValueError(f"latents is {tuple(latents.shape)}; accepted: (B, {size[0]}, {size[1]}, {self.channels})")
        sides = {"p": self.patch_size, "q": self.patch_size}
        return rearrange(latents, "b (h p) (w q) c -> b (h w) (c p q)", **sides)

    def to_latents(self, tokens: Float[Tensor, "B L C"]) -> Float[Tensor, "B H W channels"]:
        """Tokens as latents for the tokenizer's decoder."""
        sides = {"h": self.grid[0], "p": self.patch_size, "q": self.patch_size}
        return rearrange(tokens, "b (h w) (c p q) -> b (h p) (w q) c", **sides)

    def _known(self, mask: Bool[Tensor, "B L"]) -> tuple[TokenTable, Known, Int[Tensor, "B M"]]:
        """The table of class tokens and tokens, which of them are known, and their positions."""
        counts = (~mask).sum(dim=1)
        if is_readable(mask) and bool((counts != counts[:1]).any()):
            raise ValueError(f"mask leaves {counts.tolist()} tokens known; accepted: as many in each row")
        table = self.row.tables(len(mask))
        unknown = pad(mask, (self.classes.num_tokens, 0))
        return table, Known.of(unknown, table), torch.arange(table.shape[1], device=mask.device).expand(len(mask), -1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
