"""VAR: an image as grids of codes from coarse to fine, each grid predicted at once from those before it.

Shapes: B rows, L tokens of all scales together, h and w tokens of one scale, C width of a code, K codes, D width.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.categorical import Sampling, sample_ids, truncate
from mmblocks.layers.diffusion.adaln import ModulatedLinear
from mmblocks.layers.losses.vocabulary_losses import vocabulary_losses
from mmblocks.models.var.attention import CosineAttention
from mmblocks.models.var.layout import VAR_FORMER, VAR_LAYOUTS
from mmblocks.models.var.sampling import Scale, ScaleQuantizer, VARSample, guided, smoothed
from mmblocks.sequence.masks import Everything
from mmblocks.sequence.spans import Conditions
from mmblocks.sequence.tokens import Modality, TokenTable
from mmblocks.support.checks import check_range
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP
from mmblocks.trunks.parts.modulation import AdaLN
from mmblocks.trunks.parts.norms import Norm


class VAR(Block):
    """Predicts the codes of every scale, given a class and the scales before.

    The first scale reads the class; every other one the map of all scales before it, at its own size.

    Args:
        num_codes: K.
        code_dim: C.
        num_classes: classes; one more vector stands for none.
        dim: D.
        num_layers, num_heads: of the layers.
        scales: rows and columns of each scale.
        mlp_ratio: inner width of the feed-forward layers over D.
        norm_eps: of the layer norms.
        shared_modulation: one linear map from class to shifts, scales and gates for all layers (the 512-pixel model).
        l2_norm: queries and keys of length one.
        label_dropout: how often a class is left out while training.

    Raises:
        ValueError: a width that the heads do not divide, or no scale.

    Published ``var_d{16,20,24,30}.pth`` come without config. With n layers: ``dim=64 * n, num_layers=n, num_heads=n``; and
    ``num_codes=4096, code_dim=32, num_classes=1000`` and ``scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)``.

    Source: VAR (arXiv 2404.02905; FoundationVision/VAR).

    Examples:
        >>> import torch
        >>> from mmblocks.models import VAR
        >>> model = VAR(num_codes=16, code_dim=4, num_classes=10, dim=16, num_layers=1, num_heads=2, scales=(1, 2, 3)).eval()
        >>> inputs = torch.randn(2, 4 + 9, 4)  # what the second and third scale read
        >>> tuple(model(torch.tensor([3, 7]), inputs).shape)  # logits of 1 + 4 + 9 codes
        (2, 14, 16)
    """

    layouts: ClassVar[tuple[Layout, ...]] = VAR_LAYOUTS
    former: ClassVar[Layout | None] = VAR_FORMER

    def __init__(
        self,
        *,
        num_codes: int,
        code_dim: int,
        num_classes: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        scales: tuple[Scale, ...],
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        shared_modulation: bool = False,
        l2_norm: bool = True,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % num_heads or not scales:
            raise ValueError(f"dim is {dim}, num_heads {num_heads}, scales {scales}; accepted: heads that divide dim, and a scale")
        self.scales = tuple((scale, scale) if isinstance(scale, int) else (scale[0], scale[1]) for scale in scales)
        self.counts = [rows * columns for rows, columns in self.scales]
        self.num_classes, self.num_codes, self.code_dim, self.label_dropout = num_classes, num_codes, code_dim, label_dropout
        self.embed = nn.Linear(code_dim, dim)
        self.classes = nn.Embedding(num_classes + 1, dim)
        self.start = nn.Parameter(torch.empty(self.counts[0], dim))
        self.positions = nn.Parameter(torch.empty(sum(self.counts), dim))
        self.levels = nn.Embedding(len(scales), dim)
        layer = Layer(
            mixer=_attention(num_heads, dim // num_heads, l2_norm),
            feed_forward=MLP(hidden_dim=round(dim * mlp_ratio)),
            norm=Norm(kind="layer", eps=norm_eps, weight=False),
            modulation=AdaLN(shared=shared_modulation),
        )
        self.trunk = Decoder(dim=dim, num_layers=num_layers, layers=layer)
        self.output = ModulatedLinear(dim, dim, num_codes)
        for weight in (self.classes.weight, self.start, self.positions, self.levels.weight):
            nn.init.trunc_normal_(weight, std=(1 / dim / 3) ** 0.5)

    def forward(self, labels: Int[Tensor, " B"], inputs: Float[Tensor, "B L2 C"]) -> Float[Tensor, "B L K"]:
        """Logits of all scales in one pass, in float32.

        Args:
            labels: classes; ``num_classes`` for none.
            inputs: for every scale but the first, the map of the scales before it at its size, as
                ``MultiScaleQuantizer.next_scale_inputs`` makes it; L2 is L without the tokens of the first scale.

        Raises:
            ValueError: shapes that do not fit, or a class that does not exist (checked on CPU).
        """
        return self.output(*self._states(labels, inputs)).float()

    def loss(
        self,
        labels: Int[Tensor, " B"],
        inputs: Float[Tensor, "B L2 C"],
        ids: Int[Tensor, "B L"],
        *,
        drop: Bool[Tensor, " B"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B L"]:
        """Cross entropy of every token, in float32; a few tokens' logits are held at a time, never all.

        Args:
            labels: classes.
            inputs: see ``forward``.
            ids: the codes of all scales, coarse first.
            drop: rows whose class is left out; while training sampled with ``label_dropout`` if None.
            generator: source of randomness.

        Raises:
            ValueError: as ``forward``; or other numbers of ids, or one that does not exist (checked on CPU).
        """
        if drop is None and self.training:
            drop = torch.rand(len(labels), generator=generator, device=labels.device) < self.label_dropout
        if drop is not None:
            labels = torch.where(drop, self.num_classes, labels)
        self._check_ids(ids, len(labels))
        states = self.output.modulated(*self._states(labels, inputs)).flatten(0, 1)
        codes = self.output.linear
        return vocabulary_losses(states, codes.weight, ids.flatten(), codes.bias).view_as(ids)

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, " B"],
        quantizer: ScaleQuantizer,
        *,
        guidance: float = 1.5,
        sampling: Sampling | None = None,
        smooth: bool = False,
        ids: Int[Tensor, "B L"] | None = None,
        gumbel: Sequence[Float[Tensor, "B _ K"]] | None = None,
        smoothing_gumbel: Sequence[Float[Tensor, "B _ K"]] | None = None,
        generator: Generator | None = None,
        logits: list[Tensor] | None = None,
    ) -> VARSample:
        """Codes of all scales, each scale in one step.

        Args:
            labels: classes; ``num_classes`` for none.
            quantizer: the tokenizer's bottleneck, whose codes are read again.
            guidance: ``(1 + t) * c - t * u`` of the logits, where t grows from 0 at the first scale to ``guidance`` at the last;
                0 is the class alone, in half the work.
            sampling: temperature and truncation; plain sampling if None.
            smooth: read mixtures of codes, as the Gumbel softmax gives them, sharper from scale to scale, in place of codes.
            ids: the codes, in place of sampled ones: for the model's logits of them.
            gumbel: the noise itself for each scale, standard Gumbel, in place of a generator.
            smoothing_gumbel: likewise for the mixtures.
            generator: source of randomness.
            logits: a list that the guided logits of each scale (B, l, K) are appended to.

        Raises:
            ValueError: a guidance below 0, a class that does not exist, or other numbers of scales or ids; logits that hold NaN or
                plus infinity, or are all minus infinity (checked on CPU).
        """
        rows, steps = len(labels), len(self.scales)
        for name, noises in (("gumbel", gumbel), ("smoothing_gumbel", smoothing_gumbel)):
            if noises is not None and len(noises) != steps:
                raise ValueError(f"{name} has {len(noises)} scales; accepted: {steps}")
        if ids is not None:
            self._check_ids(ids, rows)
        if not 0 <= guidance < math.inf:
            raise ValueError(f"guidance is {guidance}; accepted: 0 or more, and finite")
        sampling = Sampling() if sampling is None else sampling
        if guidance > 0:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        condition, places = self._classes(labels), self._places().split(self.counts)
        cache = self.new_cache(len(labels))
        tokens = condition[:, None] + self.start + places[0]
        total: Tensor | None = None
        chosen: list[Tensor] = []
        given = None if ids is None else ids.split(self.counts, dim=1)
        for step, size in enumerate(self.scales):
            share = step / max(steps - 1, 1)
            states = self._run(tokens, condition, self.table(len(labels), step), cache)
            scale_logits = self.output(states, condition[:, None]).float()
            scale_logits = guided(scale_logits, rows, guidance * share)
            if logits is not None:
                logits.append(scale_logits)
            if given is None:
                noise = None if gumbel is None else gumbel[step].flatten(0, 1)
                codes = sample_ids(scale_logits.flatten(0, 1), sampling, generator=generator, gumbel=noise).view(rows, -1)
            else:
                codes = given[step]
            chosen.append(codes)
            if smooth:
                noise = None if smoothing_gumbel is None else smoothing_gumbel[step]
                weights = smoothed(truncate(scale_logits.flatten(0, 1), sampling).view_as(scale_logits), share, noise, generator)
                vectors = quantizer.mix(weights.to(self.embed.weight.dtype))
            else:
                vectors = quantizer.vectors(codes)
            total, following = quantizer.add_scale(total, vectors.unflatten(1, size), step, scales=self.scales)
            if step + 1 < steps:
                following = self.embed(following.flatten(1, 2).to(self.embed.weight.dtype)) + places[step + 1]
                tokens = following.repeat(len(labels) // rows, 1, 1)
        return VARSample(torch.cat(chosen, dim=1), cast(Tensor, total))

    def table(self, rows: int, scale: int | None = None) -> TokenTable:
        """What the tokens are: of all scales, or of one."""
        device = self.positions.device
        chosen = range(len(self.scales)) if scale is None else [scale]
        order = torch.cat([torch.full((self.counts[index],), index, device=device) for index in chosen])
        places = [torch.cartesian_prod(*(torch.arange(side, device=device) for side in self.scales[n])) for n in chosen]
        grid = nn.functional.pad(torch.cat(places), (1, 0))
        table = TokenTable.text(rows, len(order), device)
        return table._replace(
            modality=torch.full_like(table.modality, Modality.VISION),
            span=torch.zeros_like(table.span),
            grid=grid.repeat(rows, 1, 1),
            order=order.repeat(rows, 1),
        )

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for all scales of ``batch`` rows."""
        return self.trunk.new_cache(batch, sum(self.counts))

    def _states(
        self, labels: Int[Tensor, " B"], inputs: Float[Tensor, "B L2 C"]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B 1 D"]]:
        """What the codes of all scales are predicted from, in one pass: states, and the class."""
        rest = sum(self.counts[1:])
        if tuple(inputs.shape[1:]) != (rest, self.code_dim):
            raise ValueError(f"inputs is {tuple(inputs.shape)}; accepted: (B, {rest}, {self.code_dim})")
        condition = self._classes(labels)
        tokens = torch.cat([condition[:, None] + self.start, self.embed(inputs)], dim=1) + self._places()
        return self._run(tokens, condition, self.table(len(labels)), None), condition[:, None]

    def _run(
        self, tokens: Float[Tensor, "B l D"], condition: Float[Tensor, "B D"], table: TokenTable, cache: KVCache | None
    ) -> Float[Tensor, "B l D"]:
        of = torch.arange(len(condition), device=condition.device)[:, None]
        mask = None if cache is None else Everything()  # scale by scale all that is there is attended to
        return self.trunk(tokens, table, cache, mask=mask, conditions=Conditions(condition, of))

    def _places(self) -> Float[Tensor, "L D"]:
        level = [self.levels.weight[index].expand(count, -1) for index, count in enumerate(self.counts)]
        return self.positions + torch.cat(level)

    def _check_ids(self, ids: Tensor, rows: int) -> None:
        if tuple(ids.shape) != (rows, sum(self.counts)):
            raise ValueError(f"ids is {tuple(ids.shape)}; accepted: ({rows}, {sum(self.counts)})")
        check_range("ids", ids, self.num_codes)

    def _classes(self, labels: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        check_range("labels", labels, self.num_classes + 1, ", the last for no class")
        return self.classes(labels)


def _attention(num_heads: int, head_dim: int, l2_norm: bool) -> Attention:
    if l2_norm:
        return CosineAttention(num_heads=num_heads, qkv_bias=True, key_bias=False, output_bias=True, rotary=None)
    # Upstream's factor 0.25 is the start of the learned sharpness, which without it stays.
    scale = 0.25 / math.sqrt(head_dim)
    return Attention(num_heads=num_heads, qkv_bias=True, key_bias=False, output_bias=True, rotary=None, scale=scale)
