from copy import deepcopy

import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.codebooks.averaging_codebook import AveragingCodebook
from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck


def bottleneck(**options) -> RQBottleneck:
    torch.manual_seed(0)
    return RQBottleneck(**{"num_codes": 30, "dim": 6, "depth": 3, **options})


@pytest.mark.parametrize(("merge", "grid"), [((1, 1), (3, 5)), ((3, 1), (1, 5)), ((1, 5), (3, 1))])
def test_codes_of_all_depths_add_up(merge, grid) -> None:
    quantizer = bottleneck(merge=merge).eval()
    features = torch.randn(2, 3, 5, 6)
    latents = quantizer(features)
    assert latents.ids.shape == (2, *grid, 3) and latents.z.shape == features.shape and latents.loss is None
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)


def test_each_depth_takes_what_is_nearest_to_the_rest() -> None:
    quantizer = bottleneck().eval()
    rest = torch.randn(1, 4, 4, 6)
    ids = quantizer(rest).ids
    for depth, codebook in enumerate(quantizer.codebooks):
        nearest = torch.cdist(rest.flatten(0, 2), codebook.codes[:-1]).argmin(dim=1)
        assert torch.equal(ids[..., depth].flatten(), nearest)
        rest = rest - codebook.codes[nearest].view(rest.shape)


def test_a_shared_codebook_is_one_and_is_saved_once(tmp_path) -> None:
    quantizer = bottleneck(shared=True).train()
    quantizer(torch.randn(2, 4, 4, 6))
    quantizer.eval().save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.codebooks[0] is again.codebooks[2]
    features = torch.randn(1, 4, 4, 6)
    assert torch.equal(again(features).z, quantizer(features).z)


def test_only_the_features_get_gradients() -> None:
    quantizer = bottleneck().train()
    features = torch.randn(1, 4, 4, 6, requires_grad=True)
    latents = quantizer(features)
    assert set(latents.loss) == {"commitment"}
    upstream = torch.randn_like(features)
    (passed,) = torch.autograd.grad((latents.z * upstream).sum(), features, retain_graph=True)
    assert torch.equal(passed, upstream)
    assert torch.autograd.grad(latents.loss["commitment"], features)[0].abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_codes_become_the_means_of_what_chooses_them_and_padding_stays() -> None:
    torch.manual_seed(0)
    codebook = AveragingCodebook(num_codes=8, dim=2, decay=0.5, restart_unused=False)
    features = torch.randn(100, 2)
    for _ in range(60):
        ids = codebook.nearest(features)
        codebook.learn(features, ids)
    means = torch.stack([features[ids == number].mean(dim=0) for number in ids.unique()])
    torch.testing.assert_close(codebook.rows(ids.unique()), means, atol=1e-4, rtol=1e-4)
    assert torch.equal(codebook.codes[-1], torch.zeros(2))


def test_unused_codes_restart_from_few_features_by_the_generator() -> None:
    features = torch.full((3, 2), 5.0)
    results = []
    for seed in (1, 1, 2):
        codebook = AveragingCodebook(num_codes=8, dim=2)
        codebook.learn(features, torch.zeros(3, dtype=torch.long), torch.Generator().manual_seed(seed))
        results.append(codebook.codes[:-1])
    torch.testing.assert_close(results[0], torch.full((8, 2), 5.0), atol=0.1, rtol=0)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("shared", [True, False])
def test_joint_depths_search_before_any_learns(shared) -> None:
    torch.manual_seed(0)
    joint = JointRQBottleneck(num_codes=30, dim=6, depth=3, shared=shared, restart_unused=False).train()
    before, features = deepcopy(joint).eval(), torch.randn(2, 4, 4, 6)
    ids = joint(features).ids
    assert torch.equal(ids, before(features).ids)  # the codes are those of before the step for every depth
    rests = [features, *(features[..., None, :] - before.depths(ids).cumsum(dim=-2)).unbind(dim=-2)[:-1]]
    pairs = [(rest.flatten(0, 2), ids[..., depth].flatten()) for depth, rest in enumerate(rests)]
    if shared:
        pairs = [tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))]
    for number, (seen, chosen) in enumerate(pairs):
        before.codebooks[number].learn(seen, chosen)
    for learned, wanted in zip(joint.codebooks, before.codebooks, strict=True):
        torch.testing.assert_close(learned.state_dict(), wanted.state_dict())


def test_averages_and_what_is_left_over_are_float32_in_half_precision() -> None:
    torch.manual_seed(0)
    quantizer = RQBottleneck(num_codes=2, dim=1, depth=1, restart_unused=False).bfloat16()
    book = quantizer.codebooks[0]
    assert book.sizes.dtype == book.sums.dtype == torch.float32
    start = torch.tensor([[-1.0], [1.0]])
    book.load_state_dict({"codes": torch.cat([start, torch.zeros(1, 1)]), "sums": start, "sizes": torch.ones(2)})
    features = torch.tensor([-5.0, 5.0]).repeat(4).view(1, 2, 4, 1).bfloat16()
    for _ in range(800):
        quantizer.train()(features)
    assert book.codes[:2].flatten().tolist() == [-5.0, 5.0]

    deep = bottleneck(num_codes=200, dim=16, depth=6).eval().bfloat16()
    features = torch.randn(2, 8, 8, 16).bfloat16()
    wide = deepcopy(deep).float()
    assert torch.equal(deep(features).ids, wide(features.float()).ids)
    assert torch.equal(deep.lookup(deep(features).ids), wide(features.float()).z.bfloat16())


@pytest.mark.unchecked
@pytest.mark.parametrize("restart_unused", [True, False])
def test_a_compiled_step_learns_nothing_from_what_is_not_finite(restart_unused) -> None:
    quantizer = bottleneck(restart_unused=restart_unused).train()
    step = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    features = torch.randn(2, 5, 4, 6)
    step(features)
    before = deepcopy(quantizer.state_dict())
    with pytest.warns(UserWarning, match="nothing was learned"):
        step(features.index_fill(2, torch.tensor([1]), torch.nan))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accepted: one number, or 3 numbers \(depth\)"):
        bottleneck(num_codes=(30, 30))
    with pytest.raises(ValueError, match="accepted with shared: one number each"):
        bottleneck(num_codes=(30, 30, 20), shared=True)
    with pytest.raises(ValueError, match="features are 3x4 places; accepted: multiples of merge, 2x2"):
        bottleneck(merge=(2, 2))(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match=r"2 codes a token .*; accepted: 3"):
        bottleneck().lookup(torch.zeros(1, 1, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"accepted: \[0, 29\]"):  # 30 is padding
        bottleneck().lookup(torch.full((1, 1, 1, 3), 30))


def test_two_bottlenecks_side_by_side(tmp_path) -> None:
    dual = DualBottleneck(pixel=bottleneck(), semantic=bottleneck(dim=4, depth=2)).train()
    features = torch.randn(2, 3, 5, 10, requires_grad=True)
    latents = dual(features, generator=torch.Generator().manual_seed(0))
    assert set(latents.loss) == {"pixel_commitment", "semantic_commitment"}
    assert dual.codebook_sizes == (30,) * 5

    latents = dual.eval()(features)
    assert torch.equal(latents.ids[..., :3], dual.pixel(features[..., :6]).ids)
    torch.testing.assert_close(dual.lookup(latents.ids), latents.z)
    dual.save_pretrained(tmp_path)
    assert torch.equal(Block.from_pretrained(tmp_path)(features).ids, latents.ids)
    with pytest.raises(ValueError, match="accepted: 5, 3 of them for pixels"):
        dual.lookup(latents.ids[..., :4])
    with pytest.raises(ValueError, match="features are 9 wide; accepted: 10"):
        dual(features[..., :9])
