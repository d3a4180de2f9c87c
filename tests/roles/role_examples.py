"""One small example of each public class that has a role, for ``test_role_table.py``. A new class gets its line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mmblocks
from mmblocks import Block, TextEmbedding, TokenTable
from mmblocks.encoders import EVACLIPText
from mmblocks.layers.diffusion.metric_path import MetricPath
from mmblocks.sequence.spans import Spans
from tests.encoders import test_timm_encoder
from tests.heads import test_denoising, test_next_scale
from tests.models import test_acdit, test_mar, test_var
from tests.support.test_pickling import TOWER, eva
from tests.tokenizers import test_diffusers_autoencoder, test_flux_autoencoder, test_grids, test_lavit, test_swap
from tests.tokenizers import test_emu2_latents as test_emu2
from tests.tokenizers.bottlenecks import test_every_bottleneck
from tests.tokenizers.titok import test_titok
from tests.tokenizers.towers import test_seed

FOLDERS = tuple(f"mmblocks.{name}." for name in ("tokenizers", "encoders", "embedders", "connectors", "trunks", "heads"))
"""Where the classes live whose names have to be in ``EXAMPLES`` or ``WITHOUT``."""

Call = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Example:
    """A part and what it is given.

    Attributes:
        make: builds the part; twice the same.
        value: what it is given, images or rows along the first axis.
        call: the part's result, with as many rows; draws are the same at every call.
        is_pixels: whether the value is RGB in [0, 1], which a part casts to its own dtype.
        is_rowwise: whether a row's result does not depend on the rows beside it.
    """

    make: Callable[[], Block]
    value: Callable[[], Tensor]
    call: Call
    is_pixels: bool = False
    is_rowwise: bool = True


def pixels(*size: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def next_scale_loss(part: Block, x: Tensor) -> Tensor:
    spans = test_next_scale.spans_of(len(x), torch.ones(len(x)).long(), torch.ones(11 * len(x)).long())
    return part.loss(x.flatten(0, 1), spans, part.corrupt(spans)).view(len(x), 11)


def spans_loss(values: Tensor, by_span: int = 3, **given: Any) -> Call:
    """The loss of spans of 3 tokens with these values: so many numbers a span."""

    def call(part: Any, x: Tensor) -> Tensor:
        count, places = len(x), torch.arange(3 * len(x))
        own = values.repeat(count, *[1] * (values.ndim - 1))
        grid = torch.zeros(3 * count, 3, dtype=torch.long)
        spans = Spans("x", ((3,),) * count, (3,) * count, grid, places, places[:0], places, own, {}, None)
        random = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in given.items()}
        return part.loss(x.flatten(0, 1), spans, part.corrupt(spans, **random)).view(count, by_span)

    return call


def values(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def through(part: Any, x: Tensor) -> Tensor:
    """Pixels to codes or latents and back."""
    return part.decode(part.encode(x))


def of_three_patches(part: Any, x: Tensor) -> Tensor:
    """LaVIT's codes of patches that are drawn, and back."""
    return part.decode(part.encode(x, gumbel=test_lavit.draws(*[{2, 3, 23}] * len(x))))


def tokens_of(part: Any, x: Tensor) -> Tensor:
    """One image's tokens after the other's."""
    return part(x).embeds.unflatten(0, (len(x), -1))


def hidden(part: Any, x: Tensor) -> Tensor:
    return part(x, TokenTable.text(*x.shape[:2]))


def loss_of(part: Any, x: Tensor, **options: Any) -> Tensor:
    """Against continuous targets of width 3, drawn alike."""
    return part.loss(x, torch.ones(len(x), 3, dtype=x.dtype), **options)


def drawn_loss(part: Any, x: Tensor) -> Tensor:
    return loss_of(part, x, generator=torch.Generator().manual_seed(0))


def choice_loss(part: Any, x: Tensor) -> Tensor:
    return part.loss(x, torch.arange(len(x)) % 2)


def tokenizer(name: str, size: tuple[int, ...] = (16, 16), call: Call = through) -> Example:
    return Example((test_grids.MAKERS | test_grids.CONTINUOUS)[name], pixels(*size), call, is_pixels=True)


TOKENIZERS = {
    "VisualTokenizer": Example(
        lambda: test_swap.between_convolutions(test_swap.DISCRETE["fsq"]()), pixels(8, 8), through, is_pixels=True
    ),
    **{name: tokenizer(name) for name in ("VQGAN", "ChameleonVQ", "LlamaGenVQ", "IBQ", "ConvVQ", "MaskGITVQGAN", "OpenMAGVIT2")},
    "OpenMAGVIT2Video": tokenizer("OpenMAGVIT2Video", (1, 8, 12)),
    "Emu3VQ": tokenizer("Emu3VQ", (16, 16)),
    "UniTok": tokenizer("UniTok", (32, 32)),
    "TATok": tokenizer("TATok", (70, 70)),
    "DualToken": tokenizer("DualToken", (30, 30)),
    "VARVQ": tokenizer("VARVQ", (8, 8)),
    "TiTok": tokenizer("TiTok"),
    "OneStageTiTok": tokenizer("OneStageTiTok"),
    "FirstStageTiTok": tokenizer("FirstStageTiTok", call=lambda part, x: part.encode(x).z),
    "TATiTok": Example(
        test_titok.MAKERS["text"],
        pixels(16, 16),
        lambda part, x: part.decode(part.encode(x), text=torch.ones(len(x), 3, 7)),
        is_pixels=True,
    ),
    "SEEDTokenizer": tokenizer("SEEDTokenizer", test_seed.SIZE),
    "LaVITTokenizer": tokenizer(
        "LaVITTokenizer",
        test_lavit.SIZE,
        of_three_patches,
    ),
    "Emu2Latents": Example(test_emu2.tokenizer, pixels(28, 28), lambda part, x: part.encode(x).z, is_pixels=True),
    "MingTok": tokenizer("MingTok"),
    "DiffusersAutoencoder": Example(lambda: test_diffusers_autoencoder.tokenizer("sd"), pixels(8, 8), through, is_pixels=True),
    "FluxAutoencoder": Example(
        lambda: mmblocks.tokenizers.FluxAutoencoder(arguments=test_flux_autoencoder.ARGUMENTS),
        pixels(8, 16),
        through,
        is_pixels=True,
    ),
    "JPEGTokenizer": Example(lambda: mmblocks.tokenizers.JPEGTokenizer(), pixels(8, 8), through, is_pixels=True),
    "ConvEncoder": Example(
        lambda: mmblocks.tokenizers.ConvEncoder(channels=32, multipliers=(1, 1), num_blocks=1, code_dim=4),
        values(3, 8, 8),
        lambda part, x: part(x),
    ),
    "ConvDecoder": Example(
        lambda: mmblocks.tokenizers.ConvDecoder(channels=32, multipliers=(1, 1), num_blocks=1, code_dim=4),
        values(2, 3, 4),
        lambda part, x: part(x),
    ),
}


def quantised(part: Any, x: Tensor) -> Tensor:
    return part(x).z


def bottleneck(name: str) -> Example:
    return Example(test_every_bottleneck.BOTTLENECKS[name], values(8, 8, 16), quantised)


BOTTLENECKS = {
    "VectorQuantizer": bottleneck("vector"),
    "IndexBackpropagation": bottleneck("ibq"),
    "MultiCodebook": bottleneck("multi"),
    "TextAlignedQuantizer": bottleneck("tar"),
    "RQBottleneck": bottleneck("rq"),
    "JointRQBottleneck": Example(
        lambda: mmblocks.tokenizers.bottlenecks.JointRQBottleneck(num_codes=30, dim=16, depth=2), values(8, 8, 16), quantised
    ),
    "DualBottleneck": bottleneck("dual"),
    "MultiScaleQuantizer": bottleneck("var"),
    "DiagonalGaussian": Example(lambda: mmblocks.tokenizers.bottlenecks.DiagonalGaussian(), values(8, 8, 16), quantised),
    "AffineBottleneck": Example(lambda: mmblocks.tokenizers.bottlenecks.AffineBottleneck(mean=1.0), values(8, 8, 16), quantised),
    "ScaledLatents": Example(lambda: mmblocks.tokenizers.bottlenecks.ScaledLatents(dim=8, scale=2.0), values(8, 8, 16), quantised),
    "EMAVectorQuantizer": bottleneck("ema"),
    "ClusteringVectorQuantizer": Example(
        lambda: mmblocks.tokenizers.bottlenecks.ClusteringVectorQuantizer(num_codes=30, dim=16), values(8, 8, 16), quantised
    ),
    "SimVQ": bottleneck("sim"),
    "MultiHeadVectorQuantizer": bottleneck("heads"),
    "LookupFreeQuantizer": bottleneck("lfq"),
    "FiniteScalarQuantizer": bottleneck("fsq"),
    "ResidualQuantizer": bottleneck("residual"),
    "ResidualFiniteScalarQuantizer": bottleneck("residual fsq"),
    "ResidualLookupFreeQuantizer": bottleneck("residual lfq"),
}


def encoder(make: Callable[[], Block], size: tuple[int, int] = (28, 28), call: Call = lambda part, x: part(x)) -> Example:
    return Example(make, pixels(*size), call, is_pixels=True)


def of_both(part: Any, x: Tensor) -> Tensor:
    return torch.cat([one.flatten(1) for one in part(x)], dim=1)


ENCODERS = {
    "EVACLIPVision": encoder(eva),
    "EVACLIP": encoder(
        lambda: mmblocks.encoders.EVACLIP(
            vision=mmblocks.encoders.EVACLIPVision(tower=TOWER, embed_dim=8),
            text=EVACLIPText(embed_dim=8, vocab_size=64, context_length=8, dim=16, num_heads=2, num_layers=1),
        ),
        call=lambda part, x: part.vision(x),
    ),
    "SigLIPVision": encoder(lambda: mmblocks.encoders.SigLIPVision(image_size=28, dim=16, num_layers=1, num_heads=2, mlp_dim=32)),
    "SigLIPAnySize": encoder(lambda: mmblocks.encoders.SigLIPAnySize(image_size=42, dim=16, num_layers=1, num_heads=2, mlp_dim=32)),
    "TimmEncoder": encoder(lambda: test_timm_encoder.encoder("test_vit"), (160, 160)),
    "EncoderGroup": encoder(lambda: mmblocks.encoders.EncoderGroup(encoders={"one": eva(), "two": eva()}), call=of_both),
    "ChannelFusion": encoder(lambda: mmblocks.encoders.ChannelFusion(encoders={"one": eva(), "two": eva()})),
    "TokenInterleave": encoder(lambda: mmblocks.encoders.TokenInterleave(encoders={"one": eva(), "two": eva()}, dim=7)),
    "TokenConcat": encoder(lambda: mmblocks.encoders.TokenConcat(encoders={"one": eva(), "two": eva()}, dim=7)),
    "DualResolution": encoder(
        lambda: mmblocks.encoders.DualResolution(encoders={"low": eva(), "high": eva(image_size=(56, 56))}), (56, 56)
    ),
    "TiledEncoder": encoder(lambda: mmblocks.encoders.TiledEncoder(encoder=eva()), (28, 56)),
    "NativeResolution": encoder(
        lambda: mmblocks.encoders.NativeResolution(
            encoder=test_timm_encoder.encoder("test_vit", any_size=True, image_size=None), multiple=16
        ),
        (32, 64),
    ),
}


def embedder(make: Callable[[], Block], size: tuple[int, int]) -> Example:
    return Example(make, pixels(*size), tokens_of, is_pixels=True)


EMBEDDERS = {
    "EVE1PatchEmbedding": embedder(lambda: mmblocks.embedders.EVE1PatchEmbedding(dim=8, hidden_dim=16), (56, 84)),
    "EVE2PatchEmbedding": embedder(lambda: mmblocks.embedders.EVE2PatchEmbedding(dim=8, hidden_dim=16), (32, 64)),
    "NEOPatchEmbedding": embedder(lambda: mmblocks.embedders.NEOPatchEmbedding(dim=8, hidden_dim=16), (32, 64)),
    "FuyuPatchEmbedding": embedder(lambda: mmblocks.embedders.FuyuPatchEmbedding(dim=8), (30, 60)),
    "LinearPatchEmbedding": embedder(
        lambda: mmblocks.embedders.LinearPatchEmbedding(dim=8, patch_size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), (4, 6)
    ),
    "ClipEmbedder": embedder(
        lambda: mmblocks.embedders.ClipEmbedder(embedder=mmblocks.embedders.NEOPatchEmbedding(dim=8, hidden_dim=16)), (32, 32)
    ),
    "RenderedTextEmbedding": embedder(lambda: mmblocks.embedders.RenderedTextEmbedding(dim=8), (16, 48)),
    "StructuredEmbedder": embedder(
        lambda: mmblocks.embedders.StructuredEmbedder(
            embedder=mmblocks.embedders.NEOPatchEmbedding(dim=8, hidden_dim=16), dim=8, max_size=(9, 9), row_ends=True
        ),
        (32, 64),
    ),
    "EncoderEmbedder": embedder(
        lambda: mmblocks.embedders.EncoderEmbedder(encoder=eva(), connector=mmblocks.connectors.MLPProjector(in_dim=16, dim=8)),
        (28, 28),
    ),
    "FramedImages": embedder(
        lambda: mmblocks.embedders.FramedImages(
            embedder=mmblocks.embedders.NEOPatchEmbedding(dim=8, hidden_dim=16),
            markers=mmblocks.layers.Markers(table=TextEmbedding(vocab_size=8, dim=8), ids=(1, 2)),
            places=mmblocks.layers.SinCosTable(dim=8, side=4),
        ),
        (32, 64),
    ),
    "CaptionEmbedding": Example(
        lambda: mmblocks.embedders.CaptionEmbedding(caption_dim=6, dim=8), values(5, 6), lambda part, x: part(x)
    ),
}


def connector(make: Callable[[], Block], grid: tuple[int, ...]) -> Example:
    return Example(make, values(*grid, 6), lambda part, x: part(x))


STACK: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "mlp_dim": 10}
CONNECTORS = {
    "MLPProjector": connector(lambda: mmblocks.connectors.MLPProjector(in_dim=6, dim=8), (3, 5)),
    "AveragePool": connector(lambda: mmblocks.connectors.AveragePool(num_tokens=4), (7, 9)),
    "AdaptivePool": connector(lambda: mmblocks.connectors.AdaptivePool(size=(2, 3)), (7, 4)),
    "PixelShuffle": connector(lambda: mmblocks.connectors.PixelShuffle(factor=3), (3, 6)),
    "ConnectorChain": connector(
        lambda: mmblocks.connectors.ConnectorChain(
            parts=[mmblocks.connectors.PixelShuffle(), mmblocks.connectors.MLPProjector(in_dim=24, dim=8)]
        ),
        (2, 6),
    ),
    "CausalFormer": connector(
        lambda: mmblocks.connectors.CausalFormer(
            in_dim=6, dim=8, num_queries=5, hidden_dim=12, head_dim=4, input_norm=True, **STACK
        ),
        (2, 3),
    ),
    "Emu2UpProjection": connector(lambda: mmblocks.connectors.Emu2UpProjection(image_dim=6, dim=8, num_tokens=4), (5, 4)),
    "Emu2DownProjection": connector(lambda: mmblocks.connectors.Emu2DownProjection(image_dim=8, dim=6), (5,)),
    "QFormerConnector": connector(
        lambda: mmblocks.connectors.QFormerConnector(dim=8, in_dim=6, num_queries=5, hidden_dim=12, **STACK), (7,)
    ),
    "PerceiverResampler": connector(
        lambda: mmblocks.connectors.PerceiverResampler(dim=6, num_latents=5, head_dim=4, **STACK), (2, 3)
    ),
    "SpatioTemporalPool": connector(lambda: mmblocks.connectors.SpatioTemporalPool(), (3, 2, 5)),
    "SpatialAggregator": Example(
        lambda: mmblocks.connectors.SpatialAggregator(
            in_dims=(6,), dim=8, windows=(1,), grid=(2, 3), hidden_dim=8, num_layers=1, num_heads=2
        ),
        values(2, 3, 6),
        lambda part, x: part([x]),
    ),
    "TokenFlexProjector": connector(lambda: mmblocks.connectors.TokenFlexProjector(in_dim=6, dim=8, num_tokens=9), (7, 4)),
}

SIZES: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}


def trunk(make: Callable[[], Block]) -> Example:
    return Example(make, values(5, 16), hidden)


TRUNKS = {
    "Decoder": trunk(lambda: mmblocks.Decoder(**SIZES)),
    "NEOTrunk": trunk(lambda: mmblocks.trunks.NEOTrunk(**SIZES, head_dim=16)),
    "RoutedDecoder": trunk(lambda: mmblocks.trunks.RoutedDecoder(**SIZES)),
    "ChameleonTrunk": trunk(lambda: mmblocks.trunks.ChameleonTrunk(**SIZES)),
    "MoEDecoder": trunk(lambda: mmblocks.trunks.MoEDecoder(**SIZES, num_experts=2)),
    "ModalityLoRADecoder": trunk(lambda: mmblocks.trunks.ModalityLoRADecoder(**SIZES, rank=2)),
    "SlideLoRADecoder": trunk(lambda: mmblocks.trunks.SlideLoRADecoder(**SIZES, rank=2)),
    "PrunedDecoder": trunk(lambda: mmblocks.trunks.PrunedDecoder(trunk=mmblocks.Decoder(**SIZES), pruning=((1, 0.5),))),
    "Phi3Decoder": trunk(lambda: mmblocks.models.Phi3Decoder(**SIZES)),
    "LlamaGenTrunk": trunk(lambda: mmblocks.trunks.LlamaGenTrunk(**SIZES)),
    "GatedCrossAttentionDecoder": trunk(
        lambda: mmblocks.trunks.GatedCrossAttentionDecoder(
            trunk=mmblocks.Decoder(**SIZES), context_dim=8, every=2, num_heads=2, head_dim=8, mlp_dim=16
        )
    ),
    "ACDiT": Example(
        test_acdit.tiny,
        values(6, 4, 3),
        lambda part, x: part(x, x, torch.zeros(len(x), 6, dtype=torch.long), torch.zeros(len(x), dtype=torch.long)),
    ),
    "VAR": Example(test_var.tiny, values(10, 4), lambda part, x: part(torch.zeros(len(x), dtype=torch.long), x)),
    "MaskedAutoencoder": Example(
        lambda: mmblocks.trunks.MaskedAutoencoder(
            encoder=mmblocks.Decoder(dim=16, num_layers=1, num_heads=4, mlp_dim=48),
            decoder=mmblocks.Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=16),
            num_positions=8,
        ),
        values(5, 16),
        lambda part, x: part(x, TokenTable.text(*x.shape[:2])),
    ),
    "MAR": Example(
        test_mar.tiny,
        values(6, 3),
        lambda part, x: part(x, torch.zeros(len(x), 6).bool(), torch.zeros(len(x), dtype=torch.long)),
    ),
}


def head(make: Callable[[], Block], call: Call, **options: Any) -> Example:
    return Example(make, values(10), call, **options)


HEADS = {
    "LMHead": head(lambda: mmblocks.LMHead(dim=10, vocab_size=13), choice_loss),
    "TiedLMHead": head(lambda: mmblocks.heads.TiedLMHead(table=TextEmbedding(vocab_size=13, dim=10)), choice_loss),
    "ModalityLMHead": head(lambda: mmblocks.heads.ModalityLMHead(dim=10, vocab_size=13), choice_loss),
    "ProjectedLMHead": head(lambda: mmblocks.heads.ProjectedLMHead(dim=10, vocab_size=13, hidden_dim=7), choice_loss),
    "MaskedTokenHead": head(lambda: mmblocks.heads.MaskedTokenHead(dim=10, vocab_size=13), choice_loss),
    "MetricFlowHead": head(lambda: mmblocks.heads.MetricFlowHead(dim=10, path=MetricPath(num_codes=13, code_dim=2)), choice_loss),
    "MatchingHead": head(lambda: mmblocks.heads.MatchingHead(dim=10), choice_loss),
    "MultiTokenHead": head(
        lambda: mmblocks.heads.MultiTokenHead(dim=10, vocab_size=13, num_tokens=2),
        lambda part, x: part.loss(x, torch.ones(len(x), 2, dtype=torch.long)),
    ),
    "DepthCodeHead": head(
        lambda: mmblocks.heads.DepthCodeHead(
            dim=10, sizes=(5, 4), trunk=mmblocks.Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=8)
        ),
        lambda part, x: part.loss(x, torch.ones(len(x), 2, dtype=torch.long)),
    ),
    "DenoisingHead": head(test_denoising.flow, drawn_loss, is_rowwise=False),
    "MARDiffusionHead": head(test_denoising.mar, drawn_loss, is_rowwise=False),
    "OrthusDiffusionHead": head(test_denoising.orthus, drawn_loss, is_rowwise=False),
    "NOVAFlowHead": head(test_denoising.nova, drawn_loss, is_rowwise=False),
    "SpanDenoisingHead": Example(
        lambda: mmblocks.heads.SpanDenoisingHead(dim=16, channels=4),
        values(3, 16),
        spans_loss(torch.ones(3, 4), t=torch.tensor([400]), noise=torch.zeros(3, 4)),
    ),
    "FramedDenoisingHead": Example(
        lambda: mmblocks.heads.FramedDenoisingHead(
            dim=16,
            channels=4,
            path=mmblocks.layers.StraightFlow(),
            markers=mmblocks.layers.Markers(table=TextEmbedding(vocab_size=8, dim=16), ids=(1, 2)),
        ),
        values(3, 16),
        spans_loss(torch.ones(3, 4), t=torch.tensor([0.4]), noise=torch.zeros(3, 4)),
    ),
    "MaskedCodesHead": Example(
        lambda: mmblocks.heads.MaskedCodesHead(head=mmblocks.LMHead(dim=16, vocab_size=9), mask_id=9),
        values(3, 16),
        spans_loss(torch.tensor([1, 2, 3]), 1, t=torch.tensor([0.5]), order=torch.tensor([0.1, 0.3, 0.2])),
    ),
    "MaskedVectorsHead": Example(
        lambda: mmblocks.heads.MaskedVectorsHead(head=mmblocks.heads.RegressionHead(dim=16, target_dim=4), dim=16),
        values(3, 16),
        spans_loss(torch.ones(3, 4), 1, share=torch.tensor([0.7]), order=torch.tensor([0.1, 0.3, 0.2])),
    ),
    "PlaceholderHead": Example(
        lambda: mmblocks.heads.PlaceholderHead(head=mmblocks.heads.RegressionHead(dim=16, target_dim=4), num_tokens=3, dim=16),
        values(3, 16),
        spans_loss(torch.ones(3, 4)),
    ),
    "NextScaleHead": Example(test_next_scale.head_of_codes, values(11, 16), next_scale_loss),
    "RegressionHead": head(lambda: mmblocks.heads.RegressionHead(dim=10, target_dim=3), loss_of),
    "EmbeddingHead": head(lambda: mmblocks.heads.EmbeddingHead(dim=10, embed_dim=3), loss_of, is_rowwise=False),
}

EXAMPLES: dict[str, Example] = TOKENIZERS | BOTTLENECKS | ENCODERS | EMBEDDERS | CONNECTORS | TRUNKS | HEADS

WITHOUT = {
    "EVACLIPText": "reads ids",
    "TextEmbedding": "reads ids",
    "ProjectedEmbedding": "reads ids: tests/embedders/test_projected.py",
    "DepthCodeEmbedding": "reads codes",
    "ClassLabelEmbedding": "reads labels",
    "OpenClipEncoder": "its own models are large: tests/encoders/test_open_clip_encoder.py registers small ones",
    "EVE1PatchAlignment": "a loss between states of a trunk and features of a teacher",
    "TransformersTrunk": "needs a model of transformers: tests/trunks/test_transformers_trunk.py",
    "VelocityHead": "reads one image's states at a time",
    "ModulatedOutput": "a part of a head: tests/generation/test_span_patches.py",
    "JointDenoiser": "reads a mapping of modalities",
    "Placeholders": "gives vectors and reads none",
    "OutputMapper": "reads rows of queries: tests/heads/test_embedding.py",
    "GeneratorHead": "writes spans: tests/heads/test_generator.py",
    "ClassTokens": "reads labels",
    "LearnedPlaces": "reads places too: tests/embedders/test_learned_places.py",
    "FixedPlaces": "reads places too: tests/models/test_bagel.py",
    "ScaleTokens": "reads the codes of all scales: tests/models/test_var.py",
    "SpanPositions": "reads spans: tests/models/test_mar.py",
}
"""Public classes with a role that the table has no place for, and why."""
