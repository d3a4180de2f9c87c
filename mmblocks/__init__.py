"""mmblocks: building blocks for multimodal models. Every public name is imported when it is first used."""

from importlib import import_module
from typing import Any

_HOME = {
    "Block": "block",
    "Modality": "tokens",
    "TokenTable": "tokens",
    "Latents": "tokens",
    "VisionTokens": "tokens",
    "GridFormat": "grid_format",
    "EMU3": "grid_format",
    "EMU35": "grid_format",
    "ByteTokenizer": "text_tokenizers",
    "TokenizerFile": "text_tokenizers",
    "text": "segments",
    "image": "segments",
    "codes": "segments",
    "vectors": "segments",
    "Batch": "batches",
    "BatchBuilder": "batches",
    "Sampling": "layers.categorical",
    "GREEDY": "layers.categorical",
    "SoftCodeEmbedding": "layers.soft_codes",
    "EvaTower": "layers.eva",
    "QFormer": "layers.qformer",
    "SinCosPositions": "layers.grid_positions",
    "LearnedPositions": "layers.grid_positions",
    "VisualTokenizer": "tokenizers.visual_tokenizer",
    "ConvEncoder": "tokenizers.conv_autoencoder",
    "ConvDecoder": "tokenizers.conv_autoencoder",
    "ConvVQ": "tokenizers.conv_vq",
    "VQGAN": "tokenizers.vqgan",
    "ChameleonVQ": "tokenizers.vqgan",
    "LlamaGenVQ": "tokenizers.llamagen_vq",
    "IBQ": "tokenizers.ibq",
    "Emu3VQ": "tokenizers.emu3_vq",
    "SEEDTokenizer": "tokenizers.seed",
    "LaVITTokenizer": "tokenizers.lavit",
    "Emu2Latents": "tokenizers.emu2_latents",
    "TiTok": "tokenizers.titok",
    "OneStageTiTok": "tokenizers.titok",
    "TATiTok": "tokenizers.titok",
    "MaskGITVQGAN": "tokenizers.maskgit_vqgan",
    "MingTok": "tokenizers.ming_tok",
    "UniTok": "tokenizers.unitok",
    "TATok": "tokenizers.tar",
    "DualToken": "tokenizers.dualtoken",
    "VARVQ": "tokenizers.var_vq",
    "DiffusersAutoencoder": "tokenizers.diffusers_autoencoder",
    "JPEGTokenizer": "tokenizers.jpeg",
    "OpenMAGVIT2": "tokenizers.open_magvit2",
    "OpenMAGVIT2Video": "tokenizers.open_magvit2_video",
    "VectorQuantizer": "tokenizers.bottlenecks.vector_quantizer",
    "IndexBackpropagation": "tokenizers.bottlenecks.index_backpropagation",
    "MultiCodebook": "tokenizers.bottlenecks.multi_codebook",
    "TextAlignedQuantizer": "tokenizers.bottlenecks.text_aligned",
    "RQBottleneck": "tokenizers.bottlenecks.residual_rq",
    "DualBottleneck": "tokenizers.bottlenecks.dual",
    "MultiScaleQuantizer": "tokenizers.bottlenecks.multi_scale",
    "DiagonalGaussian": "tokenizers.bottlenecks.gaussian",
    "AffineBottleneck": "tokenizers.bottlenecks.affine",
    "ScaledLatents": "tokenizers.bottlenecks.scaled_latents",
    "EMAVectorQuantizer": "tokenizers.bottlenecks.ema",
    "ClusteringVectorQuantizer": "tokenizers.bottlenecks.clustering_vector_quantizer",
    "SimVQ": "tokenizers.bottlenecks.sim_vq",
    "MultiHeadVectorQuantizer": "tokenizers.bottlenecks.multi_head",
    "LookupFreeQuantizer": "tokenizers.bottlenecks.lookup_free",
    "FiniteScalarQuantizer": "tokenizers.bottlenecks.finite_scalar",
    "ResidualQuantizer": "tokenizers.bottlenecks.residual",
    "TextEmbedding": "embedders.text",
    "EVE2PatchEmbedding": "embedders.eve2",
    "EVE1PatchEmbedding": "embedders.eve1",
    "EVE1PatchAlignment": "embedders.eve1_alignment",
    "NEOPatchEmbedding": "embedders.neo",
    "FuyuPatchEmbedding": "embedders.fuyu",
    "LinearPatchEmbedding": "embedders.linear_patches",
    "Decoder": "trunks.decoder",
    "KVCache": "trunks.kv_cache",
    "LMHead": "heads.language",
    "TextGrammar": "generation.grammar",
    "GridGrammar": "generation.grammar",
    "MultimodalModel": "compose",
    "Emu3": "models.emu3",
    "CodeIds": "code_ids",
    "TokenizerTrainer": "training.tokenizer",
    "TokenizerRecipe": "training.tokenizer_recipe",
    "PatchDiscriminator": "training.adversarial",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mmblocks")
    if name not in _HOME:
        raise AttributeError(f"module 'mmblocks' has no attribute {name!r}")
    return getattr(import_module(f"mmblocks.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
