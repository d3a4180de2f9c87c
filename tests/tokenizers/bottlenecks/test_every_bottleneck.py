"""What holds for all bottlenecks with codes."""

import pytest
import torch

from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer

BOTTLENECKS = {
    "vector": lambda: VectorQuantizer(num_codes=300, dim=16),
    "ema": lambda: EMAVectorQuantizer(num_codes=300, dim=16, metric="cosine"),
    "ibq": lambda: IndexBackpropagation(num_codes=300, dim=16),
    "sim": lambda: SimVQ(num_codes=300, dim=16),
    "tar": lambda: TextAlignedQuantizer(num_codes=300, code_dim=16, in_dim=16, out_dim=16),
    "heads": lambda: MultiHeadVectorQuantizer(dim=16, num_codes=300, num_heads=2, code_dim=8),
    "residual": lambda: ResidualQuantizer(dim=16, num_codes=300, num_quantizers=3, code_dim=8),
    "residual fsq": lambda: ResidualFiniteScalarQuantizer(levels=(8, 8, 5), num_quantizers=3, dim=16),
    "residual lfq": lambda: ResidualLookupFreeQuantizer(bits=10, num_quantizers=3, dim=16),
    "rq": lambda: RQBottleneck(num_codes=300, dim=16, depth=3),
    "dual": lambda: DualBottleneck(
        pixel=RQBottleneck(num_codes=300, dim=8, depth=2), semantic=RQBottleneck(num_codes=300, dim=8, depth=1)
    ),
    "multi": lambda: MultiCodebook(num_codebooks=2, num_codes=300, code_dim=8),
    "var": lambda: MultiScaleQuantizer(num_codes=300, dim=16, scales=(1, 2, 4, 8)),
    "fsq": lambda: FiniteScalarQuantizer(levels=(8, 8, 5), dim=16),
    "lfq": lambda: LookupFreeQuantizer(bits=(10,), dim=16),
}


@pytest.fixture(params=BOTTLENECKS)
def bottleneck(request):
    torch.manual_seed(0)
    return BOTTLENECKS[request.param]().eval()


def test_autocast_changes_no_code(bottleneck) -> None:
    features = torch.randn(2, 8, 8, 16)
    wanted = bottleneck(features)
    with torch.autocast("cpu", torch.bfloat16):
        latents = bottleneck(features)
        vectors = bottleneck.lookup(latents.ids)
        from_half = bottleneck(features.bfloat16()).z
    assert torch.equal(latents.ids, wanted.ids)
    torch.testing.assert_close(latents.z, wanted.z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors, wanted.z, atol=1e-5, rtol=1e-5)
    assert from_half.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint16])
def test_ids_are_integers_of_any_dtype(bottleneck, dtype) -> None:
    ids = bottleneck(torch.randn(2, 8, 8, 16)).ids
    assert torch.equal(bottleneck.lookup(ids.to(dtype)), bottleneck.lookup(ids))
    with pytest.raises(ValueError, match=r"ids lie in \[\d+, 30000\]; accepted: \[0, "):
        bottleneck.lookup(torch.full_like(ids, 30000).to(dtype))


@pytest.mark.unchecked
def test_ids_that_are_no_integers_are_refused(bottleneck) -> None:
    ids = bottleneck(torch.randn(2, 8, 8, 16)).ids
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=f"ids: dtype {dtype}; accepted: integers"):
            bottleneck.lookup(ids.to(dtype))


@pytest.mark.unchecked
def test_evaluation_compiles_to_one_graph(bottleneck) -> None:
    features = torch.randn(1, 8, 8, 16)
    compiled = torch.compile(bottleneck, fullgraph=True, backend="eager")
    assert torch.equal(compiled(features).ids, bottleneck(features).ids)


def test_a_code_that_is_no_number_is_refused(bottleneck) -> None:
    averages = ("sums", "embed_avg")
    state = {name: value for name, value in bottleneck.state_dict().items() if not name.endswith(averages)}
    tables = [value for value in state.values() if value.ndim > 1 and value.shape[-2] in (300, 301)]
    if not tables:
        pytest.skip("its codes are computed")
    with torch.no_grad():
        tables[0][..., 299, :] = torch.nan
    with pytest.raises(ValueError, match=r"codebook holds NaN or infinity in .* codes, such as number (299|0)"):
        bottleneck(torch.randn(2, 8, 8, 16))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_reach_the_features(bottleneck, mode: str) -> None:
    features = torch.randn(1, 8, 8, 16, requires_grad=True)
    latents = getattr(bottleneck, mode)()(features)
    (latents.z * torch.linspace(-1, 1, 16)).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision(bottleneck, mode: str, dtype: torch.dtype) -> None:
    features = torch.randn(1, 8, 8, 16).to(dtype)
    wanted = bottleneck(features.float())
    again = getattr(bottleneck, mode)()
    latents = again(features.requires_grad_())
    assert torch.equal(latents.ids, wanted.ids) or isinstance(again, DualBottleneck | RQBottleneck | ResidualQuantizer)
    assert latents.z.dtype == dtype
    assert all(loss.isfinite() for loss in (latents.loss or {}).values())
    latents.z.square().sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    if mode == "eval":
        assert torch.equal(latents.ids, wanted.ids)
        torch.testing.assert_close(latents.z.float(), wanted.z, atol=0.02, rtol=0.02)


def test_soft_choices_of_features_in_half_precision(bottleneck) -> None:
    if not hasattr(bottleneck, "assign"):
        pytest.skip("makes no soft choices")
    features = torch.randn(1, 8, 8, 16).bfloat16()
    torch.testing.assert_close(bottleneck.assign(features), bottleneck.assign(features.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.unchecked
def test_features_of_another_width_are_refused(bottleneck) -> None:
    for mode in (True, False):
        with pytest.raises(ValueError, match="features are 15 wide; accepted: 16"):
            bottleneck.train(mode)(torch.randn(1, 8, 8, 15))


def test_no_feature_is_no_loss(bottleneck) -> None:
    features = torch.zeros(0, 8, 8, 16, requires_grad=True)
    if isinstance(bottleneck, MultiHeadVectorQuantizer | ResidualQuantizer):
        with pytest.raises(ValueError, match=r"features hold \[0\] vectors"):
            bottleneck.train()(features)
        return
    latents = bottleneck.train()(features)
    assert all(loss.item() == 0 for loss in latents.loss.values())
    (latents.z.sum() + sum(latents.loss.values(), torch.zeros(()))).backward()
    assert features.grad is not None
    assert all(tensor.grad is None or not tensor.grad.any() for tensor in bottleneck.parameters())


@pytest.mark.parametrize("cls", [VectorQuantizer, IndexBackpropagation])
def test_entropies_of_no_feature_are_none(cls) -> None:
    quantizer = cls(num_codes=30, dim=4, entropy_temperature=0.5).train()
    losses = quantizer(torch.zeros(0, 2, 4, requires_grad=True)).loss
    assert "sample_entropy" in losses and all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()


def test_gradients_change_no_number(bottleneck) -> None:
    features = torch.randn(1, 8, 8, 16)
    with torch.no_grad():
        wanted = bottleneck(features).z
    torch.testing.assert_close(bottleneck(features.requires_grad_()).z, wanted, atol=1e-6, rtol=1e-6)
