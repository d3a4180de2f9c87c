"""VAR: an image as grids of codes from coarse to fine, each grid predicted at once from those before it.

Shapes: B rows, L tokens of all scales together, h and w tokens of one scale, C width of a code, K codes, D width.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.generation.lone_spans import write_alone
from mmblocks.heads.next_scale import NextScaleHead
from mmblocks.heads.scale_sampling import ScaleQuantizer, ScaleSampler
from mmblocks.heads.scale_tokens import Scale, ScaleTokens
from mmblocks.layers.categorical import Sampling
from mmblocks.models.var.attention import CosineAttention
from mmblocks.models.var.layout import VAR_FORMER, VAR_LAYOUTS
from mmblocks.sequence.lone_spans import IMAGE, LoneSpans
from mmblocks.sequence.spans import Conditions
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import MLP
from mmblocks.trunks.parts.modulation import AdaLN
from mmblocks.trunks.parts.norms import Norm


class VARSample(NamedTuple):
    """What was sampled.

    Attributes:
        ids: the codes of all scales, coarse first.
        z: the map that they add up to, for the tokenizer's decoder; with ``smooth`` that of the mixtures.
    """

    ids: Int[Tensor, "B L"]
    z: Float[Tensor, "B H W C"]


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

        Its parts are those of any model: here with a text before the picture.

        >>> from mmblocks import LMHead, MultimodalModel, TextEmbedding
        >>> from mmblocks.heads import NextScaleHead
        >>> from mmblocks.tokenizers.bottlenecks import MultiScaleQuantizer
        >>> head = NextScaleHead(dim=16, quantizer=MultiScaleQuantizer(num_codes=16, dim=4, scales=(1, 2, 3)), tokens=model.tokens)
        >>> words, text_head = TextEmbedding(vocab_size=9, dim=16), LMHead(dim=16, vocab_size=9)
        >>> mixed = MultimodalModel(inputs={"text": words}, trunk=model.trunk, outputs={"text": text_head, "image": head})
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
        self.tokens = ScaleTokens(
            dim=dim,
            num_codes=num_codes,
            code_dim=code_dim,
            scales=scales,
            num_classes=num_classes,
            label_dropout=label_dropout,
        )
        self.num_codes, self.code_dim, self.num_classes, self.scales = num_codes, code_dim, num_classes, self.tokens.scales
        layer = Layer(
            mixer=_attention(num_heads, dim // num_heads, l2_norm),
            feed_forward=MLP(hidden_dim=round(dim * mlp_ratio)),
            norm=Norm(kind="layer", eps=norm_eps, weight=False),
            modulation=AdaLN(shared=shared_modulation),
        )
        self.trunk = Decoder(dim=dim, num_layers=num_layers, layers=layer)

    def forward(self, labels: Int[Tensor, " B"], inputs: Float[Tensor, "B L2 C"]) -> Float[Tensor, "B L K"]:
        """Logits of all scales in one pass, in float32.

        Args:
            labels: classes; ``num_classes`` for none.
            inputs: for every scale but the first, the map of the scales before it at its size, as
                ``MultiScaleQuantizer.next_scale_inputs`` makes it; L2 is L without the tokens of the first scale.

        Raises:
            ValueError: shapes that do not fit, or a class that does not exist (checked on CPU).
        """
        condition = self.tokens.condition(labels)
        return self.tokens.logits(self._states(condition, inputs), condition[:, None])

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
        if drop is None:
            drop = self.tokens.sample_drop(len(labels), labels.device, generator)
        condition = self.tokens.condition(labels, drop=drop)
        self.tokens.check_ids(ids, len(labels))
        return self.tokens.losses(self._states(condition, inputs), ids, condition)

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
        rows, counts = len(labels), self.tokens.counts
        for name, noises in (("gumbel", gumbel), ("smoothing_gumbel", smoothing_gumbel)):
            if noises is not None and len(noises) != len(counts):
                raise ValueError(f"{name} has {len(noises)} scales; accepted: {len(counts)}")
        if ids is not None:
            self.tokens.check_ids(ids, rows)
        if not 0 <= guidance < math.inf:
            raise ValueError(f"guidance is {guidance}; accepted: 0 or more, and finite")
        choose = ScaleSampler(
            quantizer=quantizer,
            sampling=Sampling() if sampling is None else sampling,
            sources=(generator,),
            smooth=smooth,
            dtype=self.tokens.start.dtype,
            ids=None if ids is None else ids.split(counts, dim=1),
            gumbel=gumbel,
            smoothing_gumbel=smoothing_gumbel,
        )

        def guide(found: Float[Tensor, "G N K"], strength: float = 1.0) -> Float[Tensor, "N K"]:
            t = guidance * strength
            made = found[0] if len(found) == 1 else (1 + t) * found[0] - t * found[1]
            if logits is not None:
                logits.append(made.unflatten(0, (rows, -1)))
            return made

        if guidance > 0:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        spans, table = self.row.rows(rows, len(labels) // rows)
        writing = self.tokens.write(quantizer, rows, self.tokens.condition(labels), guide, choose)
        cache = self.trunk.new_cache(len(labels), self.tokens.num_tokens)
        return VARSample(*write_alone(writing, spans, table, self.tokens.span, self.trunk, {}, cache))

    def multimodal(self, quantizer: Block) -> MultimodalModel:
        """A model of these very parts that writes the codes of a tokenizer's bottleneck, as the head "image"."""
        head = NextScaleHead(dim=self.trunk.dim, quantizer=quantizer, tokens=self.tokens)
        return MultimodalModel(inputs={"codes": torch.nn.Identity()}, trunk=self.trunk, outputs={IMAGE: head})

    @property
    def row(self) -> LoneSpans:
        """How a row is laid out."""
        return LoneSpans.of(self.tokens.span, (self.tokens.num_tokens,), device=self.tokens.start.device)

    def _states(self, condition: Float[Tensor, "B D"], inputs: Float[Tensor, "B L2 C"]) -> Float[Tensor, "B L D"]:
        """What the codes of all scales are predicted from, in one pass."""
        rest = sum(self.tokens.counts[1:])
        if tuple(inputs.shape[1:]) != (rest, self.code_dim):
            raise ValueError(f"inputs is {tuple(inputs.shape)}; accepted: (B, {rest}, {self.code_dim})")
        of = torch.arange(len(condition), device=condition.device)[:, None]
        table = self.row.tables(len(condition))
        return self.trunk(self.tokens(inputs, condition), table, conditions=Conditions(condition, of))


def _attention(num_heads: int, head_dim: int, l2_norm: bool) -> Attention:
    if l2_norm:
        return CosineAttention(num_heads=num_heads, qkv_bias=True, key_bias=False, output_bias=True, rotary=None)
    # Upstream's factor 0.25 is the start of the learned sharpness, which without it stays.
    scale = 0.25 / math.sqrt(head_dim)
    return Attention(num_heads=num_heads, qkv_bias=True, key_bias=False, output_bias=True, rotary=None, scale=scale)
