"""Each modality at its own time: all together, some given others, one alone."""

import pytest
import torch

from mmblocks import Block, Decoder
from mmblocks.layers.diffusion.denoising_samplers import AncestralSampler, DiffusersSampler
from mmblocks.layers.diffusion.learned_variance import LearnedVariancePath
from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.models.joint_denoiser import JointDenoiser
from mmblocks.trunks import RoutedDecoder

SHAPES = {"image": (2, 3, 4), "caption": (3, 2)}
TRUNK = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 24}
EULER = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=4)


def tiny(seed: int = 0, **options) -> JointDenoiser:
    torch.manual_seed(seed)
    return JointDenoiser(**{"trunk": Decoder(**TRUNK), "dim": 16, "shapes": SHAPES, "sampler": EULER} | options)


def data(rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, *shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("trunk", [Decoder, RoutedDecoder])
@pytest.mark.parametrize("path", [None, DiffusionPath(prediction="velocity")])
def test_losses_reach_every_parameter(rows, trunk, path) -> None:
    model = tiny(trunk=trunk(**TRUNK), path=path)
    losses = model.loss(data(rows), generator=torch.Generator().manual_seed(2))
    assert list(losses) == list(SHAPES) and all(loss.shape == (rows,) for loss in losses.values())
    sum(loss.sum() for loss in losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_prediction_depends_on_every_modality_and_every_time() -> None:
    model, values = tiny(), data()
    times = {name: torch.full((3,), 500.0) for name in SHAPES}
    plain = model(values, times)["image"]
    assert plain.shape == values["image"].shape
    for other in (
        model(values, times | {"caption": times["caption"] - 400}),
        model(values | {"caption": data()["caption"] + 1}, times),
    ):
        assert not torch.allclose(other["image"], plain, atol=1e-4)
    seen = model.table(1)
    assert seen.modality[0].tolist() == [0] * 7 + [1] * 4 and seen.grid[0, 6].tolist() == [0, 1, 2]


def two_numbers(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A coin, and a number close to it."""
    coin = torch.randint(2, (128, 1, 1), generator=generator) * 2.0 - 1
    return {"coin": coin, "number": coin + 0.1 * torch.randn(128, 1, 1, generator=generator)}


@pytest.fixture(scope="module")
def learned() -> JointDenoiser:
    model = tiny(3, shapes={"coin": (1, 1), "number": (1, 1)}, sampler=DiffusersSampler(**EULER.config | {"num_steps": 8}))
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=2e-2), torch.Generator().manual_seed(3)
    for _ in range(80):
        loss = sum(loss.mean() for loss in model.loss(two_numbers(generator), generator=generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_one_model_samples_jointly_and_on_condition(learned, guidance) -> None:
    generator = torch.Generator().manual_seed(4)
    both = learned.sample(200, guidance=guidance, generator=generator)
    coin, number = both["coin"].flatten(), both["number"].flatten()
    assert (coin.sign() == number.sign()).float().mean() > 0.9
    given = two_numbers(generator)["coin"]
    found = learned.sample(128, given={"coin": given}, guidance=guidance, generator=generator)
    assert list(found) == ["number"]
    assert (found["number"].sign() == given.sign()).float().mean() > 0.9


def test_one_modality_alone_takes_both_sides(learned) -> None:
    found = learned.sample(200, wanted=["number"], generator=torch.Generator().manual_seed(5))["number"].flatten()
    assert 0.3 < (found > 0).float().mean() < 0.7 and found.abs().mean() > 0.7


@pytest.mark.parametrize("sampler", [EULER, AncestralSampler(steps=3)])
def test_draws_can_be_handed_in(sampler) -> None:
    model = tiny(path=DiffusionPath() if isinstance(sampler, AncestralSampler) else None, sampler=sampler)
    once, again = (model.sample(3, noise=data(), generator=torch.Generator().manual_seed(6)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) and once[name].isfinite().all() for name in SHAPES)
    t = {"image": torch.tensor([0, 500, 999]), "caption": torch.tensor([999, 3, 0])}
    losses = [model.loss(data(), t=t, noise=data()) for _ in range(2)]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in SHAPES)


def test_what_is_left_out_is_not_read() -> None:
    model = tiny()
    noise = data()
    found = model.sample(3, wanted=["image"], noise=noise)["image"]
    assert torch.equal(found, model.sample(3, wanted=["image"], noise=noise | {})["image"])
    assert not torch.equal(found, model.sample(3, given={"caption": noise["caption"]}, noise=noise)["image"])  # told it is clean


def test_saved_models_come_back_and_half_precision_works(tmp_path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    t = {name: torch.tensor([1, 2, 3]) for name in SHAPES}
    for one, other in zip(
        model.loss(data(), t=t, noise=data()).values(), again.loss(data(), t=t, noise=data()).values(), strict=True
    ):
        assert torch.equal(one, other)
    half = {name: value.bfloat16() for name, value in data().items()}
    losses = model.bfloat16().loss(half)
    assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses.values())
    assert model.sample(2, guidance=2.0)["image"].isfinite().all()


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    model, values = tiny(), data()
    with pytest.raises(ValueError, match=r"values has \['image'\]; accepted: \['image', 'caption'\]"):
        model.loss({"image": values["image"]})
    with pytest.raises(ValueError, match=r"values\['caption'\] has shape \(2, 3, 2\); accepted: \(3, 3, 2\)"):
        model.loss(values | {"caption": values["caption"][:2]})
    with pytest.raises(ValueError, match=r"t\['caption'\] has shape \(2,\); accepted: \(3,\)"):
        model.loss(values, t={"image": torch.zeros(3).long(), "caption": torch.zeros(2).long()})
    with pytest.raises(ValueError, match=r"t lies in \[0, 1000\]"):
        model.loss(values, t={"image": torch.tensor([0, 1, 1000]), "caption": torch.zeros(3).long()})
    with pytest.raises(ValueError, match=r"noise\['image'\] has shape"):
        model.loss(values, noise=values | {"image": values["image"][..., :1]})
    with pytest.raises(ValueError, match="caption holds NaN"):
        model.loss(values | {"caption": values["caption"] * float("nan")})
    with pytest.raises(ValueError, match=r"guidance is \(0.5,\); accepted: 1"):
        model.sample(3, guidance=0.5)
    with pytest.raises(ValueError, match=r"guidance is 2\.0 for 'image' alone"):
        model.sample(3, wanted=["image"], guidance=2.0)
    with pytest.raises(ValueError, match="at least one wanted"):
        model.sample(3, given=values)
    with pytest.raises(ValueError, match="none twice"):
        model.sample(3, given={"image": values["image"]}, wanted=["image"])
    with pytest.raises(ValueError, match=r"given\['image'\] has shape"):
        model.sample(2, given={"image": values["image"]})
    with pytest.raises(ValueError, match="with one to three axes"):
        tiny(shapes={"image": (4,)})
    with pytest.raises(ValueError, match="2 values per channel"):
        tiny(path=LearnedVariancePath())
