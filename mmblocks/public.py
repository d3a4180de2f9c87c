"""Every public name, and the module that defines it: the one list behind ``mmblocks``, its groups and their stubs.

    import mmblocks as mm
    mm.tokenizers.IBQ, mm.heads.LMHead, mm.Decoder

A module is imported when one of its names is first used. ``make stubs`` writes what type checkers read.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

GROUPS: dict[str, dict[str, str]] = {
    "sequence": {
        "Modality": "tokens",
        "TokenTable": "tokens",
        "Latents": "tokens",
        "VisionTokens": "tokens",
        "text": "segments",
        "image": "segments",
        "codes": "segments",
        "vectors": "segments",
        "label": "segments",
        "drop_conditions": "dropout",
        "Batch": "batches",
        "BatchBuilder": "batches",
        "SpanLayout": "spans",
        "Spans": "spans",
        "Reading": "spans",
        "Pass": "spans",
        "Conditions": "spans",
        "ImageLayout": "tokens",
        "MaskRule": "masks",
        "Dense": "masks",
        "Causal": "masks",
        "Intervals": "masks",
        "visible": "masks",
        "document_begins": "documents",
        "PositionScheme": "positions",
        "sequential": "positions",
        "mrope": "positions",
    },
    "vocabulary": {
        "GridFormat": "grid_format",
        "EMU3": "grid_format",
        "EMU35": "grid_format",
        "chameleon_format": "grid_format",
        "raster_format": "grid_format",
        "DepthCodeFormat": "depth_code_format",
        "ByteTokenizer": "text_tokenizers",
        "TokenizerFile": "text_tokenizers",
        "CodeIds": "code_ids",
    },
    "tokenizers": {
        "VisualTokenizer": "visual_tokenizer",
        "ConvEncoder": "conv.conv_autoencoder",
        "ConvDecoder": "conv.conv_autoencoder",
        "ConvVQ": "conv_vq",
        "VQGAN": "vqgan",
        "ChameleonVQ": "vqgan",
        "LlamaGenVQ": "llamagen_vq",
        "IBQ": "ibq",
        "Emu3VQ": "emu3.tokenizer",
        "SEEDTokenizer": "towers.seed",
        "LaVITTokenizer": "lavit.tokenizer",
        "Emu2Latents": "emu2_latents",
        "TiTok": "titok.tokenizer",
        "OneStageTiTok": "titok.tokenizer",
        "FirstStageTiTok": "titok.first_stage",
        "TATiTok": "titok.tokenizer",
        "MaskGITVQGAN": "titok.maskgit_vqgan",
        "MingTok": "ming_tok.tokenizer",
        "UniTok": "towers.unitok",
        "TATok": "towers.tar",
        "DualToken": "towers.dualtoken",
        "VARVQ": "var.tokenizer",
        "DiffusersAutoencoder": "diffusers_autoencoder",
        "JPEGTokenizer": "jpeg",
        "OpenMAGVIT2": "open_magvit2.tokenizer",
        "OpenMAGVIT2Video": "open_magvit2.video",
    },
    "tokenizers.bottlenecks": {
        "VectorQuantizer": "vector_quantizer",
        "IndexBackpropagation": "index_backpropagation",
        "MultiCodebook": "multi_codebook",
        "TextAlignedQuantizer": "text_aligned",
        "RQBottleneck": "residual.rq",
        "JointRQBottleneck": "residual.rq",
        "DualBottleneck": "dual",
        "MultiScaleQuantizer": "multi_scale",
        "DiagonalGaussian": "gaussian",
        "AffineBottleneck": "affine",
        "ScaledLatents": "scaled_latents",
        "EMAVectorQuantizer": "ema",
        "ClusteringVectorQuantizer": "clustering_vector_quantizer",
        "SimVQ": "sim_vq",
        "MultiHeadVectorQuantizer": "multi_head",
        "LookupFreeQuantizer": "lookup_free",
        "FiniteScalarQuantizer": "finite_scalar",
        "ResidualQuantizer": "residual.quantizer",
        "ResidualFiniteScalarQuantizer": "residual.finite_scalar",
        "ResidualLookupFreeQuantizer": "residual.lookup_free",
    },
    "embedders": {
        "TextEmbedding": "text",
        "EVE2PatchEmbedding": "eve2",
        "EVE1PatchEmbedding": "eve1",
        "EVE1PatchAlignment": "eve1_alignment",
        "NEOPatchEmbedding": "neo",
        "FuyuPatchEmbedding": "fuyu",
        "LinearPatchEmbedding": "linear_patches",
        "EncoderEmbedder": "encoder_embedder",
        "RenderedTextEmbedding": "rendered_text",
        "StructuredEmbedder": "structured",
        "ClassLabelEmbedding": "class_label",
        "CaptionEmbedding": "caption",
        "DepthCodeEmbedding": "depth_codes",
        "ClipEmbedder": "clip",
        "LearnedPlaces": "learned_places",
    },
    "encoders": {
        "EVACLIP": "eva_clip",
        "EVACLIPVision": "eva_clip_vision",
        "EVACLIPText": "eva_clip_text",
        "TimmEncoder": "timm_encoder",
        "OpenClipEncoder": "open_clip_encoder",
        "EncoderGroup": "fused",
        "ChannelFusion": "fused",
        "TokenInterleave": "fused",
        "TokenConcat": "fused",
        "DualResolution": "fused",
        "TiledEncoder": "high_resolution",
        "NativeResolution": "high_resolution",
        "embed_folder": "image_folder",
    },
    "connectors": {
        "MLPProjector": "mlp",
        "AveragePool": "average_pool",
        "AdaptivePool": "average_pool",
        "PixelShuffle": "pixel_shuffle",
        "ConnectorChain": "chain",
        "CausalFormer": "causal_former",
        "Emu2UpProjection": "emu2",
        "Emu2DownProjection": "emu2",
        "QFormerConnector": "qformer",
        "PerceiverResampler": "perceiver",
        "SpatioTemporalPool": "spatio_temporal_pool",
        "SpatialAggregator": "spatial_aggregator",
        "TokenFlexProjector": "token_flex",
    },
    "trunks": {
        "Decoder": "decoder",
        "KVCache": "caches.kv_cache",
        "NEOTrunk": "neo.trunk",
        "RoutedDecoder": "routed.routed_decoder",
        "ChameleonTrunk": "chameleon",
        "TransformersTrunk": "transformers.trunk",
        "MoEDecoder": "routed.moe_decoder",
        "ModalityLoRADecoder": "routed.modality_lora",
        "SlideLoRADecoder": "routed.modality_lora",
        "PrunedDecoder": "pruned.decoder",
        "StaticCache": "caches.static_cache",
        "WindowedCache": "caches.windowed_cache",
        "cache_bytes": "caches.kv_cache",
        "LlamaGenTrunk": "llamagen",
        "TrunkHooks": "hooks",
        "HookedTrunk": "hooks",
        "GatedCrossAttentionDecoder": "gated_decoder",
        "NEOAttention": "neo.trunk",
        "GridRotary": "llamagen",
        "hidden_states": "hooks",
        "llama_layer": "llama",
        "Layer": "layer",
        "AdaLN": "parts.modulation",
        "Attention": "parts.attention",
        "Rotary": "parts.rotary",
        "Norm": "parts.norms",
        "GatedMLP": "parts.feed_forward",
        "MLP": "parts.feed_forward",
        "MixtureOfExperts": "parts.mixture_of_experts",
        "GatedCrossAttentionLayer": "parts.cross_attention",
        "Linear": "parts.linears",
        "LowRank": "parts.linears",
        "GatedLowRank": "parts.linears",
        "Part": "parts.part",
        "Site": "parts.part",
        "ForwardContext": "context",
        "Memory": "caches.kv_cache",
        "load_balance": "parts.mixture_of_experts",
    },
    "heads": {
        "LMHead": "language",
        "DenoisingHead": "denoising",
        "MARDiffusionHead": "mar",
        "OrthusDiffusionHead": "orthus",
        "NOVAFlowHead": "nova",
        "RegressionHead": "regression",
        "Placeholders": "regression",
        "MaskedTokenHead": "masked",
        "SpanDenoisingHead": "span_denoising",
        "MaskedCodesHead": "masked_spans",
        "MaskedVectorsHead": "masked_vectors",
        "PlaceholderHead": "placeholders",
        "MetricFlowHead": "metric_flow",
        "EmbeddingHead": "embedding",
        "MatchingHead": "embedding",
        "OutputMapper": "output_mapper",
        "GeneratorHead": "generator",
        "NextScaleHead": "next_scale",
        "TiedLMHead": "vocabularies",
        "ModalityLMHead": "vocabularies",
        "MultiTokenHead": "vocabularies",
        "DepthCodeHead": "depth_codes",
    },
    "pixels": {
        "ConditionalUNet": "conditional_unet",
        "DiffusionDecoder": "diffusion_decoder",
        "DiffusersDenoiser": "diffusers_denoiser",
        "StateGenerator": "state_generator",
    },
    "models": {
        "ACDiT": "acdit.model",
        "VAR": "var.transformer",
        "MAR": "mar.model",
        "Phi3Decoder": "omnigen.trunk",
        "Phi3Rotary": "omnigen.trunk",
        "VelocityHead": "omnigen.trunk",
        "JointDenoiser": "joint_denoiser",
        "Emu3": "emu3.model",
        "NEO": "neo",
        "EVE1": "eve",
        "EVE2": "eve",
        "Orthus": "orthus",
        "OmniGen": "omnigen.model",
        "VARImageModel": "var.model",
        "LlamaGen": "llamagen",
        "LlamaGenT2I": "llamagen",
    },
    "layers": {
        "LossBalance": "losses.balance",
        "Sampling": "categorical",
        "GREEDY": "categorical",
        "SoftCodeEmbedding": "soft_codes",
        "EvaTower": "towers.eva",
        "QFormer": "attention.query_transformer",
        "SinCosPositions": "images.grid_positions",
        "LearnedPositions": "images.grid_positions",
        "TokenShuffle": "reduction.token_folding",
        "TokenUnshuffle": "reduction.token_folding",
        "DiffusersSampler": "diffusion.denoising_samplers",
        "GatedCrossAttention": "attention.gated_cross_attention",
    },
    "generation": {
        "Generation": "options",
        "TextGrammar": "grammar",
        "GridGrammar": "grid_grammar",
        "ModalSampling": "choosing",
        "ClassifierFree": "guidance",
        "ThreeWay": "guidance",
        "VisualContrastive": "guidance",
        "MutualInformation": "guidance",
        "VectorBlock": "continuous",
        "VectorGrammar": "continuous",
        "UnionGrammar": "union_grammar",
        "beam_search": "beam",
    },
    "training": {
        "TokenizerTrainer": "tokenizer",
        "TokenizerRecipe": "tokenizer_recipe",
        "PatchDiscriminator": "adversarial",
        "clip_loss": "contrastive",
        "siglip_loss": "siglip",
        "TrainingStage": "stages",
        "EVE1_STAGES": "stages",
        "EVE2_STAGES": "stages",
    },
    "checkpoints": {
        "list_pretrained": "hub.catalogue",
        "attach_lora": "surgery.low_rank",
        "merge_lora": "surgery.low_rank",
        "save_adapters": "surgery.adapters",
        "load_adapters": "surgery.adapters",
        "Pretrained": "hub.catalogue",
        "Origin": "origin",
        "write_golden": "golden",
        "compare_golden": "golden",
        "Layout": "layouts.layout",
        "Rule": "layouts.layout",
        "Split": "layouts.layout",
        "Derived": "layouts.layout",
    },
}
"""By package: name -> the module inside it."""

TOP: dict[str, str] = {
    "Block": "block",
    "MultimodalModel": "compose",
    "Batch": "sequence.batches",
    "BatchBuilder": "sequence.batches",
    "TokenTable": "sequence.tokens",
    "Latents": "sequence.tokens",
    "VisionTokens": "sequence.tokens",
    "GridFormat": "vocabulary.grid_format",
    "ByteTokenizer": "vocabulary.text_tokenizers",
    "TokenizerFile": "vocabulary.text_tokenizers",
    "text": "sequence.segments",
    "image": "sequence.segments",
    "codes": "sequence.segments",
    "vectors": "sequence.segments",
    "label": "sequence.segments",
    "Sampling": "layers.categorical",
    "GREEDY": "layers.categorical",
    "Generation": "generation.options",
    "TextGrammar": "generation.grammar",
    "GridGrammar": "generation.grid_grammar",
    "Decoder": "trunks.decoder",
    "LMHead": "heads.language",
    "TextEmbedding": "embedders.text",
    "list_pretrained": "checkpoints.hub.catalogue",
    "weightless": "support.pickling",
}
"""The names that most programs need, at the top."""

MODULES = ("roles",)
"""Modules whose names are public too: ``mm.roles.Trunk``."""


Getter = Callable[[str], Any]


def home(name: str) -> str | None:
    """The full name of the module that defines a public class or function; None if there is none of that name."""
    for group, names in GROUPS.items():
        if name in names:
            return f"mmblocks.{group}.{names[name]}"
    return f"mmblocks.{TOP[name]}" if name in TOP else None


def find(name: str) -> Any:
    """A public class or function, wherever it stands.

    Raises:
        AttributeError: there is none of that name.
    """
    module = home(name)
    if module is None:
        raise AttributeError(f"mmblocks has no public name {name!r}")
    return getattr(import_module(module), name)


def lazily(group: str) -> tuple[Getter, Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when they are first used."""
    names = GROUPS[group]

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module 'mmblocks.{group}' has no attribute {name!r}")
        return getattr(import_module(f"mmblocks.{group}.{names[name]}"), name)

    return get, lambda: sorted(names), list(names)


def all_names() -> dict[str, str]:
    """Every public name of a package or of the top, and the module that defines it."""
    grouped = {name: f"mmblocks.{group}.{module}" for group, names in GROUPS.items() for name, module in names.items()}
    return {name: f"mmblocks.{module}" for name, module in TOP.items()} | grouped
