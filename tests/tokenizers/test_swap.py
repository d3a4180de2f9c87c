"""Any bottleneck fits between any encoder and decoder of its width: one training step, codes and back, saved and loaded."""

import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers import ConvDecoder, ConvEncoder, VisualTokenizer
from mmblocks.tokenizers.bottlenecks.affine import AffineBottleneck
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck
from mmblocks.tokenizers.bottlenecks.scaled_latents import ScaledLatents
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer

DISCRETE = {
    "vq": lambda: VectorQuantizer(num_codes=16, dim=8),
    "vq by angle": lambda: VectorQuantizer(num_codes=16, dim=8, metric="cosine"),
    "clustering": lambda: ClusteringVectorQuantizer(num_codes=16, dim=8),
    "ema": lambda: EMAVectorQuantizer(num_codes=16, dim=8),
    "sim": lambda: SimVQ(num_codes=16, dim=8),
    "heads": lambda: MultiHeadVectorQuantizer(num_codes=16, dim=8, num_heads=2),
    "ibq": lambda: IndexBackpropagation(num_codes=16, dim=8),
    "lfq": lambda: LookupFreeQuantizer(bits=(8,)),
    "lfq of two numbers": lambda: LookupFreeQuantizer(bits=(3, 5)),
    "fsq": lambda: FiniteScalarQuantizer(levels=(5, 4, 3), dim=8),
    "residual": lambda: ResidualQuantizer(num_codes=16, dim=8, num_quantizers=3),
    "rq": lambda: RQBottleneck(num_codes=16, dim=8, depth=3),
    "scales": lambda: MultiScaleQuantizer(num_codes=16, dim=8, scales=(1, 2, (4, 6)), num_blends=1),
    "codebooks": lambda: MultiCodebook(num_codebooks=2, num_codes=16, code_dim=4),
    "text-aligned": lambda: TextAlignedQuantizer(num_codes=16, code_dim=4, in_dim=8, out_dim=8),
}
CONTINUOUS = {
    "gaussian": (DiagonalGaussian, 16),
    "scaled": (lambda: ScaledLatents(dim=8, scale=0.5), 16),
    "affine": (lambda: AffineBottleneck(std=2.0), 8),
}


def between_convolutions(bottleneck: Block, width: int = 8) -> VisualTokenizer:
    torch.manual_seed(0)
    network = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "latent_channels": 8}
    return VisualTokenizer(
        encoder=ConvEncoder(**network, code_dim=width),
        bottleneck=bottleneck,
        decoder=ConvDecoder(**network, code_dim=8),
        downsampling=(2, 2),
    )


def check_training_step(tokenizer: VisualTokenizer, pixels: torch.Tensor) -> None:
    tokenizer.train()
    latents = tokenizer.encode(pixels)
    loss = (tokenizer.decode(latents) - pixels).square().mean() + sum((latents.loss or {}).values())
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", DISCRETE)
def test_codes(name: str, tmp_path) -> None:
    tokenizer = between_convolutions(DISCRETE[name]())
    pixels = torch.rand(2, 3, 8, 12)
    check_training_step(tokenizer, pixels)

    tokenizer.eval()
    with torch.no_grad():
        latents = tokenizer.encode(pixels)
        decoded = tokenizer.decode(latents.ids)
        torch.testing.assert_close(decoded, tokenizer.decode(latents), atol=1e-5, rtol=1e-4)
        assert latents.loss is None and decoded.shape == pixels.shape
        for number, size in enumerate(tokenizer.codebook_sizes):
            ids = latents.ids if len(tokenizer.codebook_sizes) == 1 else latents.ids[..., number]
            assert ids.min() >= 0 and ids.max() < size

        tokenizer.save_pretrained(tmp_path, max_shard_size=600)
        assert any(tmp_path.rglob("*.index.json"))
        loaded = VisualTokenizer.from_pretrained(tmp_path)
        assert torch.equal(loaded.encode(pixels).ids, latents.ids)
        assert torch.equal(loaded.decode(latents.ids), decoded)


@pytest.mark.parametrize("name", DISCRETE)
def test_one_nan_reaches_no_codebook(name: str) -> None:
    bottleneck = DISCRETE[name]().train()
    before = {key: value.clone() for key, value in bottleneck.state_dict().items()}
    features = torch.randn(1, 4, 6, 8)
    features[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        bottleneck(features)
    assert all(torch.equal(before[key], value) for key, value in bottleneck.state_dict().items())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_latents(name: str, tmp_path) -> None:
    make, width = CONTINUOUS[name]
    tokenizer = between_convolutions(make(), width)
    pixels = torch.rand(2, 3, 8, 12)
    check_training_step(tokenizer, pixels)

    tokenizer.eval()
    with torch.no_grad():
        latents = tokenizer.encode(pixels)
        assert latents.ids is None and latents.z.shape == (2, 4, 6, 8)
        tokenizer.save_pretrained(tmp_path, max_shard_size=600)
        assert any(tmp_path.rglob("*.index.json"))
        loaded = VisualTokenizer.from_pretrained(tmp_path)
        assert torch.equal(loaded.decode(loaded.encode(pixels)), tokenizer.decode(latents))
    with pytest.raises(ValueError, match="no codes"):
        tokenizer.decode(torch.zeros(1, 4, 6, dtype=torch.long))


@pytest.mark.parametrize("name", DISCRETE)
@torch.no_grad()
def test_ids_decode_in_bfloat16(name: str) -> None:
    tokenizer = between_convolutions(DISCRETE[name]()).eval().bfloat16()
    ids = tokenizer.encode(torch.rand(1, 3, 8, 12).bfloat16()).ids
    assert tokenizer.decode(ids).dtype == torch.bfloat16
