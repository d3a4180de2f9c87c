"""MAR: states from known tokens alone, random orders, sampling with any per-token head."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mmblocks.layers.diffusion.random_orders import mask_counts, mask_of, sample_mask, sample_orders
from mmblocks.models.mar.model import MAR


def tiny(**options) -> MAR:
    torch.manual_seed(0)
    halves = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in (("layers", 1), ("heads", 2))}
    sizes = {"channels": 3, "grid": (2, 3), "num_classes": 4, "encoder_dim": 16, "decoder_dim": 12, "num_class_tokens": 2}
    model = MAR(**sizes, **halves, mlp_ratio=2.0, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


class LinearHead(nn.Module):
    """The least a head must have: one linear map, and a draw around it."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(12, 3)

    def loss(self, hidden, target, weight, **draws):
        return (self.map(hidden) - target).square().mean(dim=-1) * weight

    def sample(self, hidden, *, generator=None, noise=None, unconditional=None, guidance=None):
        made = self.map(hidden)
        if unconditional is not None:
            made = self.map(unconditional) + guidance * (made - self.map(unconditional))
        return made + (torch.randn(made.shape, generator=generator) if noise is None else noise)


CPU = torch.device("cpu")


def random_mask(count: int, rows: int = 2) -> torch.Tensor:
    return mask_of(sample_orders(rows, 6, CPU, torch.Generator().manual_seed(1)), count)


def test_masked_tokens_are_not_read() -> None:
    model, tokens = tiny(), torch.randn(2, 6, 3)
    mask, labels = random_mask(4), torch.tensor([0, 3])
    before = model(tokens, mask, labels)
    assert before.shape == (2, 6, 12)
    torch.testing.assert_close(model(tokens.masked_fill(mask[..., None], 99.0), mask, labels), before)
    assert not torch.allclose(model(tokens + 1, mask, labels), before)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_latents_are_tokens_and_back(patch_size) -> None:
    model = tiny(patch_size=patch_size)
    latents = torch.randn(2, 2 * patch_size, 3 * patch_size, 3)
    assert torch.equal(model.to_latents(model.to_tokens(latents)), latents)


def test_fewer_tokens_are_masked_from_step_to_step() -> None:
    assert mask_counts(6, 6) == [5, 4, 3, 2, 1, 0]
    assert mask_counts(6, 1) == [0]
    assert mask_counts(6, 2) == [4, 0]


@pytest.mark.parametrize(("guidance", "schedule"), [(1.0, "linear"), (2.0, "linear"), (2.0, "constant")])
def test_every_token_is_asked_for_once(guidance, schedule) -> None:
    model, head, labels = tiny(), LinearHead(), torch.tensor([1, 2])
    orders = sample_orders(2, 6, CPU, torch.Generator().manual_seed(2))
    counts = [6, *mask_counts(6, 3)]
    draws = [{"noise": torch.zeros(2 * (a - b), 3)} for a, b in pairwise(counts)]
    made = model.sample(head, labels, num_steps=3, guidance=guidance, schedule=schedule, orders=orders, step_options=draws)
    # The tokens of the last step, from those known before it.
    mask = mask_of(orders, counts[-2])
    scale = guidance if schedule == "constant" else 1 + (guidance - 1) * 5 / 6
    u, c = (head.map(model(made, mask, given)) for given in (None, labels))
    torch.testing.assert_close(made[mask], (u + scale * (c - u))[mask], atol=1e-5, rtol=1e-4)


def test_the_generator_decides_orders_and_tokens() -> None:
    def draw(seed: int) -> torch.Tensor:
        return model.sample(head, torch.tensor([1]), num_steps=4, generator=torch.Generator().manual_seed(seed))

    model, head = tiny(), LinearHead()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_masks_of_training_hide_most() -> None:
    orders = sample_orders(3, 6, CPU, torch.Generator().manual_seed(0))
    assert [int(sample_mask(orders, 0.7, uniform=value)[0].sum()) for value in (0.0, 0.5, 1.0)] == [5, 6, 6]


def test_the_loss_reaches_every_parameter() -> None:
    model, head, labels = tiny(dropout=0.0).train(), LinearHead(), torch.tensor([0, 1, 3])
    mask, drop = random_mask(4, rows=3), torch.tensor([True, False, False])
    losses = model.loss(head, torch.randn(3, 6, 3), labels, mask=mask, drop=drop)
    assert losses.shape == (3, 6) and not losses[~mask].any()
    losses.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert model.classes.classes.weight.grad.any(dim=1).tolist() == [False, True, False, True]


def test_a_mask_that_asks_for_nothing_costs_nothing() -> None:
    model = tiny()
    losses = model.loss(LinearHead(), torch.randn(2, 6, 3), torch.tensor([0, 1]), mask=torch.zeros(2, 6, dtype=torch.bool))
    assert not losses.any()


def test_bf16_and_saving(tmp_path) -> None:
    model, tokens, labels = tiny(), torch.randn(2, 6, 3), torch.tensor([0, 3])
    mask = random_mask(3)
    wanted = model(tokens, mask, labels)
    model.save_pretrained(tmp_path)
    assert torch.equal(MAR.from_pretrained(tmp_path)(tokens, mask, labels), wanted)
    made = model.bfloat16()(tokens.bfloat16(), mask, labels)
    torch.testing.assert_close(made.float(), wanted, atol=0.2, rtol=0.1)


LABEL = torch.tensor([1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny(min_mask_ratio=0.0), "min_mask_ratio 0.0; accepted"),
        (
            lambda: tiny()(torch.zeros(1, 6, 2), torch.zeros(1, 6, dtype=torch.bool)),
            r"tokens is \(1, 6, 2\), mask \(1, 6\); accepted",
        ),
        (lambda: tiny()(torch.zeros(2, 6, 3), torch.eye(6)[:2].cumsum(0).bool()), r"mask leaves \[5, 4\] tokens known"),
        (
            lambda: tiny()(torch.zeros(1, 6, 3), random_mask(2, 1), torch.tensor([4])),
            r"labels lie in \[4, 4\]; accepted: \[0, 3\]",
        ),
        (lambda: tiny().sample(LinearHead(), LABEL, num_steps=7), "num_steps is 7; accepted: 1 to 6"),
        (lambda: tiny().sample(LinearHead(), LABEL, num_steps=2, guidance=0.9), "guidance is 0.9"),
        (lambda: tiny().sample(LinearHead(), LABEL, num_steps=2, step_options=[{}]), "step_options has 1 steps; accepted: 2"),
        (lambda: tiny().to_tokens(torch.zeros(1, 3, 2, 3)), r"latents is \(1, 3, 2, 3\); accepted: \(B, 2, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
