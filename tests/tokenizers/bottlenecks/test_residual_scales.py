"""Residual levels and bits, next to vector-quantize-pytorch's own."""

from typing import Any

import pytest
import torch
import vector_quantize_pytorch as library
from torch import Tensor

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks import ResidualFiniteScalarQuantizer, ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.scales import ResidualScales

FSQ = [
    {"levels": [5, 5, 3], "num_quantizers": 3, "dim": 10},
    {"levels": [5, 5, 3], "num_quantizers": 3},
    {"levels": [2, 4], "num_quantizers": 1, "dim": 7},
    {"levels": [8, 5, 5, 5], "num_quantizers": 5, "dim": 4},
    {"levels": [3, 6], "num_quantizers": 4, "dim": 6, "groups": 3},
    {"levels": [4, 3], "num_quantizers": 2, "dim": 10, "groups": 2},
    {"levels": [5, 3], "num_quantizers": 3, "bound_hard_clamp": False},
    {"levels": [5, 3], "num_quantizers": 3, "bound_hard_clamp": False, "soft_clamp_input_value": 1.5, "dim": 3},
    {"levels": [5, 3], "num_quantizers": 3, "bound_hard_clamp": False, "soft_clamp_input_value": [1.5, 0.75]},
    {"levels": [5, 3, 2], "num_quantizers": 6, "quantize_dropout": True, "dim": 5},
    {"levels": [5, 3], "num_quantizers": 6, "quantize_dropout": True, "quantize_dropout_cutoff_index": 2, "dim": 4, "groups": 2},
    {"levels": [5, 3], "num_quantizers": 7, "quantize_dropout": True, "quantize_dropout_multiple_of": 3},
]
LFQ = [
    {"codebook_size": 32, "num_quantizers": 3, "dim": 5},
    {"codebook_size": 16, "num_quantizers": 4, "dim": 9, "entropy_loss_weight": 0.2, "commitment_loss_weight": 0.3},
    {"codebook_size": 8, "num_quantizers": 2, "dim": 8, "groups": 2, "commitment_loss_weight": 1.0, "diversity_gamma": 0.5},
    {"codebook_size": 64, "num_quantizers": 3, "dim": 6, "spherical": True, "commitment_loss_weight": 0.25},
    {"codebook_size": 8, "num_quantizers": 3, "dim": 3, "soft_clamp_input_value": 2.0},
    {"codebook_size": 16, "num_quantizers": 5, "dim": 7, "quantize_dropout": True, "commitment_loss_weight": 0.25},
    {"codebook_size": 2, "num_quantizers": 1, "dim": 1},
]
CASES = [
    *((ResidualFiniteScalarQuantizer, "ResidualFSQ", config) for config in FSQ),
    *((ResidualLookupFreeQuantizer, "ResidualLFQ", config) for config in LFQ),
]


def both(cls: type[ResidualScales], name: str, config: dict[str, Any]) -> tuple[ResidualScales, Any]:
    """Ours with the arguments and the weights of theirs."""
    torch.manual_seed(1)
    theirs = getattr(library, f"Grouped{name}" if "groups" in config else name)(**config)
    table = next(known for known in cls.layouts if known.name.endswith("_grouped") == ("groups" in config))
    ours = cls(**table.arguments(config))
    ours.load_state_dict(dict(table.convert(theirs.state_dict(), ours.config)))
    return ours, theirs


def as_ours(ids: Tensor, config: dict[str, Any]) -> Tensor:
    """Theirs put groups first."""
    return torch.cat([*ids], dim=-1) if "groups" in config else ids


def weights(config: dict[str, Any]) -> dict[str, float]:
    """Of our terms in the library's loss of one quantizer."""
    entropy = config.get("entropy_loss_weight", 0.1)
    return {
        "sample_entropy": entropy,
        "codebook_entropy": -entropy * config.get("diversity_gamma", 1.0),
        "commitment": config.get("commitment_loss_weight", 0.0),
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("cls", "name", "config"), CASES)
def test_same_as_the_library(cls, name, config, training) -> None:
    ours, theirs = (module.train(training) for module in both(cls, name, config))
    for seed in range(3):
        x = torch.randn(2, 13, ours.dim, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.manual_seed(seed)
        latents = ours(one)
        torch.manual_seed(seed)
        z, ids, *losses = theirs(other)
        assert torch.equal(latents.ids, as_ours(ids, config).long())
        torch.testing.assert_close(latents.z, z, atol=1e-6, rtol=1e-5)
        assert (latents.loss is None) == (not training)
        loss, wanted = latents.z.square().sum(), z.square().sum()
        if losses and training:
            aux = sum(weights(config)[term] * value for term, value in latents.loss.items())
            torch.testing.assert_close(aux, losses[0].mean(), atol=1e-5, rtol=1e-4)
            loss, wanted = loss + aux, wanted + losses[0].mean()
        if training or name == "ResidualFSQ":
            loss.backward()
            wanted.backward()
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        rebuilt = ours.lookup(latents.ids)
        if not config.get("spherical"):  # the library's lookup leaves out the length of spherical codes
            torch.testing.assert_close(rebuilt, theirs.get_output_from_indices(ids), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(rebuilt, latents.z.detach(), atol=1e-5, rtol=1e-5)
    (table, *_) = (known for known in cls.layouts if known.name.endswith("_grouped") == ("groups" in config))
    grads = dict(table.convert({key: p.grad for key, p in ours.named_parameters() if p.grad is not None}, ours.config, to="theirs"))
    for key, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[key], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [FSQ[0], FSQ[1]])
def test_channels_first_are_ours_moved(config) -> None:
    ours, _ = both(ResidualFiniteScalarQuantizer, "ResidualFSQ", config)
    _, theirs = both(ResidualFiniteScalarQuantizer, "ResidualFSQ", {**config, "is_channel_first": True})
    x = torch.randn(2, ours.dim, 3, 5)
    latents = ours.eval()(x.movedim(1, -1))
    z, ids = theirs.eval()(x)
    assert latents.ids.shape == (2, 3, 5, 3)
    torch.testing.assert_close(latents.z.movedim(-1, 1), z)
    assert torch.equal(latents.ids.movedim(-1, 1), ids.long())


@pytest.mark.parametrize(("cls", "name", "config"), [CASES[9], CASES[10], CASES[-2]])
def test_fewer_quantizers(cls, name, config) -> None:
    """What is kept can be given, drawn from a generator, and looked up without what was left out."""
    ours, theirs = both(cls, name, config)
    x, groups = torch.randn(2, 4, ours.dim), config.get("groups", 1)
    kept = [int((ours(x, generator=torch.Generator().manual_seed(seed)).ids[0, 0] >= 0).sum()) // groups for seed in range(40)]
    first = config.get("quantize_dropout_cutoff_index", 0)
    assert set(kept) == set(range(first + 1, config["num_quantizers"] + 1))
    with torch.no_grad():
        assert (ours(x).ids >= 0).all()  # without gradients nothing is left out
    latents = ours.eval()(x, num_kept=2)
    per_group = latents.ids.unflatten(-1, (groups, -1))
    assert (per_group[..., :2] >= 0).all() and (per_group[..., 2:] == -1).all()
    short = per_group[..., :2].flatten(-2)
    torch.testing.assert_close(ours.lookup(short), latents.z.detach(), atol=1e-5, rtol=1e-5)
    if groups == 1:
        torch.testing.assert_close(ours.lookup(short), theirs.get_output_from_indices(short), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("cls", "name", "config"), [CASES[4], CASES[8], CASES[13]])
def test_saved_and_loaded(cls, name, config, tmp_path) -> None:
    ours, _ = both(cls, name, config)
    ours.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    x = torch.randn(1, 2, 3, ours.dim)
    assert again.config == ours.config
    assert torch.equal(again(x).z, ours.eval()(x).z)
    assert again.codebook_sizes == (again.num_codes,) * again(x).ids.shape[-1]


@pytest.mark.parametrize(("cls", "name", "config"), [CASES[0], CASES[5], CASES[13], CASES[14]])
@pytest.mark.parametrize(("weights", "given"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_features_of_another_dtype_than_the_weights(cls, name, config, weights, given) -> None:
    ours, _ = both(cls, name, config)
    assert isinstance(ours.groups[0].project_in, torch.nn.Linear)
    latents = ours.to(weights)(torch.randn(2, 3, ours.dim, dtype=given))
    assert latents.z.dtype == given and latents.z.isfinite().all()


@pytest.mark.parametrize(("cls", "name", "config"), [CASES[0], *CASES[-7:-2]])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_feature_costs_nothing(cls, name, config, shape) -> None:
    ours, _ = both(cls, name, config)
    features = torch.zeros(*shape, ours.dim, requires_grad=True)
    latents = ours.train()(features)
    assert latents.ids.shape == (*shape, len(ours.codebook_sizes))
    assert set(latents.loss) == ({"commitment", "sample_entropy", "codebook_entropy"} if name == "ResidualLFQ" else set())
    for value in latents.loss.values():
        assert value == 0
        value.backward(retain_graph=True)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2, soft_clamp=1.0), "soft_clamp is 1.0 with hard_clamp"),
        (
            lambda: ResidualFiniteScalarQuantizer(levels=(3, 3), num_quantizers=2, hard_clamp=False, soft_clamp=(1.0,) * 3),
            "accepted: a number above 0, or 2 of them",
        ),
        (lambda: ResidualFiniteScalarQuantizer(levels=(1, 3), num_quantizers=2), "accepted: 2 or more each"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=0), "num_quantizers is 0"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2, dim=5, num_groups=2), "multiples of 2"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2, dropout_first=2), "dropout_first is 2"),
        (lambda: ResidualLookupFreeQuantizer(bits=3, num_quantizers=2, soft_clamp=0.5), "soft_clamp is 0.5; accepted: 1 or more"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2)(torch.zeros(1, 2, 2)), "2 wide; accepted: 1"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2)(torch.zeros(1, 2, 1), num_kept=3), "from 1 to 2"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2)(torch.full((1, 2, 1), torch.inf)), "NaN|infinite"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2).lookup(torch.tensor([[[1]]])), "2 numbers a token"),
        (lambda: ResidualFiniteScalarQuantizer(levels=(3,), num_quantizers=2).lookup(torch.tensor([[[1, -1]]])), r"\[0, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("cls", "config", "message"),
    [
        (ResidualFiniteScalarQuantizer, {**FSQ[0], "noise_dropout": 0.5}, "noise_dropout is 0.5; accepted: 0.0"),
        (ResidualFiniteScalarQuantizer, {**FSQ[0], "orthogonal_rotation": True}, "orthogonal_rotation is True; accepted: False"),
        (ResidualFiniteScalarQuantizer, {**FSQ[0], "num_codebooks": 2}, "num_codebooks is 2; accepted: 1"),
        (ResidualLookupFreeQuantizer, {**LFQ[0], "codebook_size": 12}, "codebook_size is 12; accepted: powers of two"),
        (ResidualLookupFreeQuantizer, {**LFQ[0], "frac_per_sample_entropy": 0.5}, "frac_per_sample_entropy is 0.5; accepted: 1.0"),
    ],
)
def test_options_of_the_library_that_are_refused(cls, config, message) -> None:
    for table in cls.layouts:
        with pytest.raises(ValueError, match=message):
            table.arguments(config)
