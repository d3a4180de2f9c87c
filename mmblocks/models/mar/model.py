"""MAR: continuous tokens in random order, many at a time; an encoder reads those that are known, a decoder predicts the rest.

Shapes: B rows, L tokens, C channels of a token, D width of the encoder, D2 of the decoder, H and W latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.diffusion.random_orders import mask_counts, mask_of, sample_mask, sample_orders
from mmblocks.models.mar.halves import Halves, HalvesArguments
from mmblocks.models.mar.layout import MAR_LAYOUTS
from mmblocks.roles import Head
from mmblocks.support.checks import check_range, is_readable
from mmblocks.support.deprecation import former_keywords


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
        encoder_dim, decoder_dim, norm_eps = sizes.encoder_dim, sizes.decoder_dim, sizes.norm_eps
        if num_class_tokens < 1 or not 0 < min_mask_ratio <= 1:
            found = f"num_class_tokens is {num_class_tokens}, min_mask_ratio {min_mask_ratio}"
            raise ValueError(f"{found}; accepted: 1 or more, and above 0 to 1")
        self.patch_size, self.channels, self.grid = patch_size, channels, (grid[0], grid[1])
        self.token_dim, self.num_tokens = channels * patch_size**2, grid[0] * grid[1]
        self.num_classes, self.num_class_tokens = num_classes, num_class_tokens
        self.label_dropout, self.min_mask_ratio = label_dropout, min_mask_ratio
        length = self.num_tokens + num_class_tokens
        self.classes = nn.Embedding(num_classes, encoder_dim)
        self.no_class = nn.Parameter(torch.empty(encoder_dim))
        self.embed = nn.Linear(self.token_dim, encoder_dim)
        self.embed_norm = nn.LayerNorm(encoder_dim, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.empty(length, encoder_dim))
        self.encoder_layers = sizes.encoder()
        self.encoder_norm = nn.LayerNorm(encoder_dim, eps=norm_eps)
        self.decoder_embed = nn.Linear(encoder_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_positions = nn.Parameter(torch.empty(length, decoder_dim))
        self.decoder_layers = sizes.decoder()
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=norm_eps)
        self.head_positions = nn.Parameter(torch.empty(self.num_tokens, decoder_dim))
        positions = (self.encoder_positions, self.decoder_positions, self.head_positions)
        for parameter in (self.no_class, self.mask_token, *positions):
            nn.init.normal_(parameter, std=0.02)
        self.apply(_init)
        nn.init.normal_(self.classes.weight, std=0.02)

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
        known = self._known(tokens, mask)
        classes = self._classes(labels, len(tokens), drop, generator)
        first = classes[:, None].expand(-1, self.num_class_tokens, -1)
        x = self.embed_norm(torch.cat([first, self.embed(tokens)], dim=1) + self.encoder_positions)
        x = x.gather(1, known[..., None].expand(-1, -1, x.shape[-1]))
        for layer in self.encoder_layers:
            x = layer(x)
        return self.encoder_norm(x)

    def decode(self, encoded: Float[Tensor, "B known D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D2"]:
        """A state for every token, from those of the known ones."""
        known = self._known(None, mask)
        x = self.decoder_embed(encoded)
        if known.shape[1] != x.shape[1]:
            raise ValueError(f"encoded has {x.shape[1]} states; accepted: {known.shape[1]}, as mask says")
        everything = self.mask_token.to(x.dtype).repeat(len(x), len(self.decoder_positions), 1)
        x = everything.scatter(1, known[..., None].expand_as(x), x) + self.decoder_positions
        for layer in self.decoder_layers:
            x = layer(x)
        return self.decoder_norm(x)[:, self.num_class_tokens :] + self.head_positions

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
        rows, length, weight = len(labels), self.num_tokens, self.embed.weight
        if not guidance >= 1 or schedule not in ("linear", "constant"):
            raise ValueError(f"guidance is {guidance}, schedule {schedule!r}; accepted: 1 or more, 'linear' or 'constant'")
        counts = mask_counts(self.num_tokens, num_steps)
        if step_options is not None and len(step_options) != num_steps:
            raise ValueError(f"step_options has {len(step_options)} steps; accepted: {num_steps}")
        if orders is None:
            orders = sample_orders(rows, length, weight.device, generator)
        if tuple(orders.shape) != (rows, length):
            raise ValueError(f"orders is {tuple(orders.shape)}; accepted: ({rows}, {length})")
        tokens = torch.zeros(rows, length, self.token_dim, dtype=weight.dtype, device=weight.device)
        mask = mask_of(orders, length)
        copies = 2 if guidance > 1 else 1
        drop = torch.arange(copies * rows, device=labels.device) >= rows  # the second half has no class
        for step, count in enumerate(counts):
            after = mask_of(orders, count)
            predicted = mask & ~after
            given: dict[str, Any] = {**options, **(step_options[step] if step_options is not None else {"generator": generator})}
            states = self(tokens.repeat(copies, 1, 1), mask.repeat(copies, 1), labels.repeat(copies), drop=drop)
            if guidance > 1:
                known = (length - max(count, 1)) / length if schedule == "linear" else 1.0
                given |= {"unconditional": states[rows:][predicted], "guidance": 1 + (guidance - 1) * known}
            made = head.sample(states[:rows][predicted], **given)
            tokens = tokens.masked_scatter(predicted[..., None], made.to(tokens.dtype))
            mask = after
        return tokens

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

    def _known(self, tokens: Tensor | None, mask: Tensor) -> Int[Tensor, "B known"]:
        """Places of the class tokens and of the tokens that are not masked."""
        length = self.num_tokens
        if mask.shape[1] != length or (tokens is not None and tuple(tokens.shape) != (*mask.shape, self.token_dim)):
            found = "" if tokens is None else f"tokens is {tuple(tokens.shape)}, "
            raise ValueError(f"{found}mask {tuple(mask.shape)}; accepted: (B, {length}, {self.token_dim}) and (B, {length})")
        counts = (~mask).sum(dim=1)
        if is_readable(mask) and bool((counts != counts[:1]).any()):
            raise ValueError(f"mask leaves {counts.tolist()} tokens known; accepted: as many in each row")
        places = mask.int().argsort(dim=1, stable=True)[:, : int(counts[0]) if len(counts) else 0] + self.num_class_tokens
        first = torch.arange(self.num_class_tokens, device=mask.device).expand(len(mask), -1)
        return torch.cat([first, places], dim=1)

    def _classes(self, labels: Tensor | None, rows: int, drop: Tensor | None, generator: Generator | None) -> Float[Tensor, "B D"]:
        if labels is None:
            return self.no_class.expand(rows, -1)
        if labels.shape != (rows,):
            raise ValueError(f"labels is {tuple(labels.shape)}; accepted: ({rows},)")
        check_range("labels", labels, self.num_classes)
        if drop is None and self.training:
            drop = torch.rand(rows, generator=generator, device=labels.device) < self.label_dropout
        classes = self.classes(labels)
        return classes if drop is None else torch.where(drop[:, None], self.no_class, classes)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
