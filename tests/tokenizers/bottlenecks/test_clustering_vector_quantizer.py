import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer


def quantizer(**options) -> ClusteringVectorQuantizer:
    torch.manual_seed(0)
    return ClusteringVectorQuantizer(num_codes=16, dim=3, **options).train()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_unused_codes_move_to_the_features_nearest_to_them(metric) -> None:
    moving = quantizer(metric=metric, decay=0.5)
    before, features = moving.codes.detach().clone(), torch.randn(4, 5, 3)
    ids = moving(features).ids
    used = torch.zeros(16, dtype=torch.bool).index_fill(0, ids.flatten(), True)
    flat = features.flatten(0, 1)
    scaled = [torch.nn.functional.normalize(x, dim=-1) if metric == "cosine" else x for x in (before, flat)]
    nearest = flat[torch.cdist(*scaled).argmin(1)]
    assert used.any() and not used.all()
    torch.testing.assert_close(moving.codes[~used], nearest[~used], atol=0.01, rtol=0.01)
    torch.testing.assert_close(moving.codes[used], before[used], atol=0.01, rtol=0.01)
    assert moving.usage.sum() == pytest.approx(0.5)


def test_results_are_those_before_the_move() -> None:
    moving, plain = quantizer(), VectorQuantizer(num_codes=16, dim=3).train()
    plain.codes.data.copy_(moving.codes)
    features = torch.randn(1, 7, 3, requires_grad=True)
    gradients = []
    for bottleneck in (moving, plain):
        latents = bottleneck(features)
        (latents.z.square().sum() + sum(latents.loss.values())).backward()
        gradients += [(latents.z, features.grad.clone(), bottleneck.codes.grad)]
        features.grad = None
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_evaluation_moves_nothing(tmp_path) -> None:
    moving = quantizer()
    moving(torch.randn(2, 4, 3))
    codes, usage = moving.codes.detach().clone(), moving.usage.clone()
    moving.eval()(torch.randn(2, 4, 3))
    moving.save_pretrained(tmp_path / "codes")
    again = Block.from_pretrained(tmp_path / "codes")
    assert torch.equal(again.codes, codes) and torch.equal(again.usage, usage) and again.config == moving.config


def test_usage_stays_float32_when_the_module_is_cast() -> None:
    half = quantizer().bfloat16()
    half(torch.randn(2, 4, 3).bfloat16())
    assert half.usage.dtype == torch.float32 and half.codes.dtype == torch.bfloat16 and half.codes.isfinite().all()


@pytest.mark.unchecked
def test_a_compiled_step_moves_nothing_to_what_is_not_finite() -> None:
    moving = quantizer()
    step = torch.compile(moving, backend="aot_eager")
    step(torch.randn(2, 4, 3))
    codes, usage = moving.codes.detach().clone(), moving.usage.clone()
    with pytest.warns(UserWarning, match="nothing was learned"):
        step(torch.full((2, 4, 3), torch.inf))
    assert torch.equal(moving.codes, codes) and torch.equal(moving.usage, usage)


def test_replaced_codes_are_finite() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantizer().replace_unused(torch.full((3, 3), torch.nan), torch.zeros(16, dtype=torch.long))
