"""ACDiT: blocks, masks, sampling with and without a cache."""

from functools import partial

import pytest
import torch

from mmblocks.models.acdit.model import ACDiT
from mmblocks.models.acdit.positions import block_order
from mmblocks.sequence.masks import visible
from mmblocks.trunks.hooks import TrunkHooks

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' schedulers


def tiny(**options) -> ACDiT:
    torch.manual_seed(0)
    sizes = {"latent_dim": 3, "dim": 24, "num_layers": 2, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
    model = ACDiT(**sizes, **{"grid": (1, 4, 6), "block_size": 4, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


VIDEO = {"grid": (3, 2, 2), "block_size": 4, "square_blocks": False, "axis_shares": (2, 2, 2)}


def test_square_blocks_come_row_by_row() -> None:
    assert block_order((1, 4, 4), 4, square=True)[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("options", [{}, VIDEO], ids=["image", "video"])
def test_blocks_are_a_map_again(options) -> None:
    model = tiny(**options)
    size = model.blocks.grid[1:] if model.blocks.grid[0] == 1 else model.blocks.grid
    latents = torch.randn(2, *size, 3)
    assert torch.equal(model.blocks.join(model.blocks.split(latents)), latents)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("options", [{}, VIDEO], ids=["image", "video"])
def test_sampling_is_the_same_without_a_cache(options, guidance) -> None:
    model, labels = tiny(**options), torch.tensor([1, 4])
    made = [
        model.sample(labels, num_steps=3, guidance=guidance, cached=cached, generator=torch.Generator().manual_seed(1))
        for cached in (True, False)
    ]
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)


def test_a_block_depends_on_the_clean_ones_before_it_alone() -> None:
    model = tiny()
    clean, noised, t = torch.randn(1, 6, 4, 3), torch.randn(1, 6, 4, 3), torch.full((1, 6), 500)
    before = model(clean, noised, t, torch.tensor([2]))
    clean[:, 3] += 1
    after = model(clean, noised, t, torch.tensor([2]))
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])


def test_hooks_see_what_is_computed_and_change_what_they_should() -> None:
    model, seen = tiny(), {}
    clean, noised, t = torch.randn(2, 6, 4, 3), torch.randn(2, 6, 4, 3), torch.full((2, 6), 500)
    readers = {kind: {n: partial(seen.__setitem__, (kind, n)) for n in range(2)} for kind in ("hidden", "attention", "heads")}
    plain = model(clean, noised, t)
    torch.testing.assert_close(model(clean, noised, t, hooks=TrunkHooks(**readers)), plain, atol=1e-5, rtol=1e-4)
    assert seen["hidden", 0].shape == (2, 44, 24) and seen["heads", 1].shape == (2, 2, 44, 12)  # the last block has no copy
    assert torch.equal(seen["attention", 1] > 0, visible(model.row.tables(2))[:, None].expand(-1, 2, -1, -1))

    options = {"num_steps": 2, "noise": torch.randn(6, 2, 4, 3), "hooks": TrunkHooks(heads={1: lambda found: found * 0})}
    made = [model.sample(torch.tensor([1, 4]), cached=cached, **options) for cached in (True, False)]
    with torch.no_grad():
        model.trunk.layers[1].attention.output.weight.zero_()
    wanted = model.sample(torch.tensor([1, 4]), **{**options, "hooks": TrunkHooks(attention={0: lambda _: None})})
    for each in made:
        torch.testing.assert_close(each, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="accepted: 0 to 2"):
        model(clean, noised, t, hooks=TrunkHooks(hidden={3: print}))


def test_training_drops_classes_and_reaches_every_parameter() -> None:
    model, clean = tiny().train(), torch.randn(4, 6, 4, 3)
    drop = torch.tensor([True, False, False, False])
    loss = model.loss(clean, torch.tensor([0, 1, 2, 3]), drop=drop, generator=torch.Generator().manual_seed(0))
    assert loss.shape == (4, 6, 4)
    loss.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    used = model.head.classes.weight.grad.any(dim=1)
    assert used.tolist() == [False, True, True, True, False, True]


def test_bf16_and_saving(tmp_path) -> None:
    model, clean, t = tiny(), torch.randn(2, 6, 4, 3), torch.tensor([3, 700])
    wanted = model(clean, clean, t)
    model.save_pretrained(tmp_path)
    assert torch.equal(ACDiT.from_pretrained(tmp_path)(clean, clean, t), wanted)
    made = model.bfloat16()(clean.bfloat16(), clean.bfloat16(), t)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), wanted, atol=0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny(block_size=5), "block_size is 5; accepted: divisors of 24"),
        (lambda: tiny(block_size=6), "block_size is 6; accepted for square blocks"),
        (lambda: tiny(axis_shares=(1, 1, 1)), r"axis_shares \(1, 1, 1\); accepted: a multiple, 2 shares"),
        (lambda: tiny()(*torch.zeros(2, 1, 6, 4, 2), torch.tensor([1])), r"clean is .* accepted: \(N, 6, 4, 3\)"),
        (lambda: tiny().loss(torch.zeros(1, 6, 4, 3), t=torch.tensor([1000])), r"t lies in \[1000, 1000\]; accepted: \[0, 999\]"),
        (lambda: tiny().loss(torch.zeros(1, 6, 4, 3), torch.tensor([6])), r"labels lie in \[6, 6\]; accepted: \[0, 5\]"),
        (lambda: tiny().sample(torch.tensor([1]), guidance=0.5), "guidance is 0.5"),
        (lambda: tiny().sample(torch.tensor([1]), noise=torch.zeros(1, 6, 4, 3)), r"accepted: \(6, 1, 4, 3\)"),
        (lambda: tiny().blocks.split(torch.zeros(1, 6, 4, 3)), r"the map has \(6, 4\) tokens; accepted: \(1, 4, 6\) or \(4, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
