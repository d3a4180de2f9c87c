import pytest
import torch
from torch.nn.functional import normalize

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cosine_sim": True}, {"rotation_trick": False, "decay": 0.6}, {"rotation_trick": False, "use_cosine_sim": True}],
)
def test_steps_are_those_of_vector_quantize_pytorch(options) -> None:
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    config = {"dim": 6, "codebook_size": 40, **options}
    theirs = VectorQuantize(**config)
    layout = EMAVectorQuantizer.layouts[0]
    ours = EMAVectorQuantizer(**layout.arguments(config))
    ours.load_state_dict(dict(layout.convert(theirs.state_dict(), ours.config)))
    for step in range(5):
        x = features(2, 60, 6, seed=step).requires_grad_()
        again = x.detach().clone().requires_grad_()
        z, ids, loss = theirs(x)
        latents = ours(again)
        assert torch.equal(latents.ids, ids)
        torch.testing.assert_close(latents.z, z)
        torch.testing.assert_close(latents.loss["commitment"], loss)
        upstream = features(2, 60, 6, seed=100)
        (z * upstream).sum().backward()
        (latents.z * upstream).sum().backward()
        torch.testing.assert_close(again.grad, x.grad)
        for name, value in layout.convert(ours.state_dict(), ours.config, to="theirs"):
            torch.testing.assert_close(value, theirs.state_dict()[name])


def test_evaluation_moves_nothing_and_looks_up_what_it_quantised() -> None:
    quantizer = EMAVectorQuantizer(num_codes=9, dim=4, metric="cosine").eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = quantizer(features(2, 3, 5, 4))
    assert latents.loss is None and latents.ids.shape == (2, 3, 5)
    assert torch.equal(quantizer.lookup(latents.ids), latents.z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert quantizer.assign(features(2, 4)).argmax(-1).tolist() == quantizer.nearest(features(2, 4)).tolist()


def test_the_first_batch_places_the_codes() -> None:
    centres = 10 * features(16, 4, seed=1)
    batch = (centres.repeat(20, 1) + 0.01 * features(320, 4))[None]
    quantizer = EMAVectorQuantizer(num_codes=16, dim=4, kmeans_init=True)
    error = (quantizer(batch, generator=torch.Generator().manual_seed(3)).z - batch).square().mean()
    assert error < centres.var() / 10 and quantizer.placed
    placed = quantizer.codes.clone()
    quantizer(batch)
    torch.testing.assert_close(quantizer.codes, placed, atol=0.05, rtol=0.05)


def test_fewer_features_than_codes_place_all_codes_at_features() -> None:
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4, kmeans_init=True)
    batch = features(1, 3, 4)
    latents = quantizer(batch, generator=torch.Generator().manual_seed(0))
    assert quantizer.placed and latents.z.isfinite().all()
    assert torch.cdist(quantizer.codes, batch[0]).amin(1).max() < 2 and quantizer.codes.isfinite().all()


def test_bfloat16_features_choose_what_their_directions_choose_in_float32() -> None:
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(num_codes=2000, dim=16, metric="cosine").eval()
    x = features(1, 500, 16).bfloat16()
    latents = quantizer(x)
    assert torch.equal(latents.ids, quantizer(x.float()).ids) and latents.z.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "option",
    [
        {"affine_param": True},
        {"codebook_dim": 3},
        {"codebook_diversity_loss_weight": 0.1},
        {"commitment_use_cross_entropy_loss": True},
        {"directional_reparam": True},
        {"ema_update": False},
        {"freeze_codebook": True},
        {"heads": 2},
        {"kmeans_iters": 3, "kmeans_init": True},
        {"learnable_codebook": True},
        {"manual_ema_update": True},
        {"num_quantizers": 2},
        {"orthogonal_reg_weight": 0.1},
        {"reinmax": 1},
        {"route_gradients_to_input": False},
        {"stochastic_sample_codes": True},
        {"straight_through": True},
        {"sync_update_v": 0.5},
    ],
)
def test_options_that_change_the_steps_are_refused(option) -> None:
    config = {"dim": 4, "codebook_size": 8}
    layout = EMAVectorQuantizer.layouts[0]
    with pytest.raises(ValueError, match=f"{next(iter(option))} (is|=) .*MultiHeadVectorQuantizer takes"):
        layout.arguments({**config, **option})
    assert layout.arguments({**config, "ema_update": True, "freeze_codebook": False, "sample_codebook_temp": 1.0})["decay"] == 0.8


@pytest.mark.parametrize("num_features", [3, 200])
def test_dead_codes_move_to_different_features(num_features: int) -> None:
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(num_codes=30, dim=4, dead_below=1.0, decay=0.5)
    quantizer.usage.zero_()
    x = features(1, num_features, 4) + 5
    quantizer(x, generator=torch.Generator().manual_seed(0))
    moved = [code for code in quantizer.codes if any(torch.equal(code, feature) for feature in x[0])]
    assert len(moved) == min(num_features, 30) - (num_features == 200)  # one code was nearest to all 200
    assert len(torch.stack(moved).unique(dim=0)) == len(moved)
    again = EMAVectorQuantizer(num_codes=30, dim=4, dead_below=1.0)
    assert (again.usage >= 1).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"kmeans_init": True}])
def test_a_batch_that_is_not_finite_changes_nothing(value, options) -> None:
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4, dead_below=2.0, **options)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    x = features(2, 20, 4)
    x[1, 3, 2] = value
    with pytest.raises(ValueError, match=r"finite|NaN"):
        quantizer(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


def test_averages_stay_float32_when_the_module_is_cast(tmp_path) -> None:
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4, decay=0.999)
    sums = quantizer.sums.clone()
    half = quantizer.bfloat16()
    assert half.codes.dtype == torch.bfloat16 and torch.equal(half.sums, sums)
    latents = half(features(2, 20, 4).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and half.usage.dtype == torch.float32
    assert torch.equal(half.eval()(features(2, 20, 4).bfloat16()).z.float(), half.lookup(half.nearest(features(2, 20, 4))).float())
    half.save_pretrained(tmp_path)
    loaded = Block.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.sums.dtype == torch.float32 and loaded.train()(features(1, 3, 4).bfloat16()).z.isfinite().all()


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4, metric="cosine", estimator="rotation")
    quantizer(features(2, 20, 4))
    quantizer.eval().save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config and not list(again.parameters())
    assert all(torch.equal(value, quantizer.state_dict()[name]) for name, value in again.state_dict().items())


def test_cosine_codes_have_length_one() -> None:
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4, metric="cosine")
    for seed in range(3):
        quantizer(features(2, 20, 4, seed=seed))
    torch.testing.assert_close(quantizer.codes, normalize(quantizer.codes, dim=1))


@pytest.mark.unchecked
def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="accepted: l2, cosine"):
        EMAVectorQuantizer(num_codes=8, dim=4, metric="dot")
    with pytest.raises(ValueError, match="accepted: straight_through, rotation"):
        EMAVectorQuantizer(num_codes=8, dim=4, estimator="gumbel")
    with pytest.raises(ValueError, match="holds no vector; accepted: at least one"):
        EMAVectorQuantizer(num_codes=8, dim=4).fit(features(0, 4))


@pytest.mark.unchecked
def test_a_training_step_is_one_graph_and_ignores_what_is_not_finite() -> None:
    torch.manual_seed(0)
    plain = EMAVectorQuantizer(num_codes=8, dim=4)
    compiled = EMAVectorQuantizer(num_codes=8, dim=4)
    compiled.load_state_dict(plain.state_dict())
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    x = features(2, 20, 4)
    torch.testing.assert_close(step(x).z, plain(x).z)
    torch.testing.assert_close(compiled.codes, plain.codes)
    x[0, 0, 0] = torch.nan
    compiled.dead_below = 2.0
    with pytest.warns(UserWarning, match="nothing was learned"):
        step(x)
    assert torch.equal(compiled.sums, plain.sums) and compiled.codes.isfinite().all()


def test_replaced_codes_stay_where_they_were_put() -> None:
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(num_codes=8, dim=4).train()
    features = torch.randn(32, 4)
    used = torch.tensor([3, 0, 1, 0, 2, 2, 2, 2])
    assert quantizer.replace_unused(features, used, torch.Generator().manual_seed(0)) == 2
    put = quantizer.codes[[1, 3]].clone()
    quantizer(put[None])  # each is chosen by itself
    torch.testing.assert_close(quantizer.codes[[1, 3]], put, atol=1e-4, rtol=1e-4)
