import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder, ConvEncoder
from mmblocks.tokenizers.conv.stripes import set_memory_budget

NETWORK = {"channels": 32, "multipliers": (1, 2, 1), "num_blocks": 1, "attention_levels": (2,), "latent_channels": 4}


def encoder(**arguments) -> ConvEncoder:
    return distinct(ConvEncoder(**NETWORK, **arguments)).eval()


def decoder(**arguments) -> ConvDecoder:
    return distinct(ConvDecoder(**NETWORK, **arguments)).eval()


def distinct(module: torch.nn.Module) -> torch.nn.Module:
    """Norms that start as the identity would hide a condition that goes nowhere."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("budget", [1, 30_000, 90_000, 2**30])
@pytest.mark.parametrize("size", [(20, 28), (23, 13)])
@torch.no_grad()
def test_stripes_equal_the_whole(size, budget) -> None:
    """From one row at a time, over maps that are held in part, to all maps held."""
    reads, draws = encoder(code_dim=6), decoder(code_dim=6)
    pixels = torch.rand(2, 3, *size)
    features = reads(pixels)
    decoded = draws(features)
    for part in (reads, draws):
        set_memory_budget(part, budget)
    torch.testing.assert_close(reads(pixels), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(draws(features), decoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beside", [(5, 7), (3, 4)])
@pytest.mark.parametrize("budget", [1, 90_000])
@torch.no_grad()
def test_stripes_of_conditioned_norms(beside, budget) -> None:
    """A condition of the features' size, and one whose rows do not divide the map's."""
    draws = decoder(code_dim=None, condition_dim=3)
    features, condition = torch.randn(2, 5, 7, 4), torch.randn(2, 3, *beside)
    decoded = draws(features, condition)
    set_memory_budget(draws, budget)
    torch.testing.assert_close(draws(features, condition), decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_statistics_of_values_far_from_zero() -> None:
    reads = encoder(code_dim=None)
    reads.conv_in.bias.fill_(300.0)
    pixels = torch.rand(1, 3, 32, 16)
    features = reads(pixels)
    set_memory_budget(reads, 1)
    torch.testing.assert_close(reads(pixels), features, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_half_precision() -> None:
    reads = encoder(code_dim=None).bfloat16()
    pixels = torch.rand(1, 3, 16, 16).bfloat16()
    features = reads(pixels)
    set_memory_budget(reads, 10_000)
    torch.testing.assert_close(reads(pixels), features, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_no_more_is_held_than_the_budget_and_a_few_stripes() -> None:
    """Wide maps, so that the last one, of three colours, is small beside what it is computed from."""
    wide = {**NETWORK, "channels": 128, "multipliers": (1, 1, 1), "attention_levels": ()}
    reads, draws = ConvEncoder(**wide, code_dim=None).eval(), ConvDecoder(**wide, code_dim=None).eval()
    pixels, budget = torch.rand(1, 3, 160, 32), 128 * 160 * 32 * 4
    with LiveBytes() as whole:
        draws(reads(pixels))
    for part in (reads, draws):
        set_memory_budget(part, budget)
    with LiveBytes() as striped:
        draws(reads(pixels))
    assert striped.peak < 1.5 * budget < 0.4 * whole.peak


def test_what_stripes_cannot_do() -> None:
    reads = encoder(code_dim=None)
    with pytest.raises(ValueError, match="num_bytes is 0; accepted: a positive number, or None"):
        set_memory_budget(reads, 0)
    with pytest.raises(ValueError, match="Linear holds no ConvEncoder and no ConvDecoder"):
        set_memory_budget(torch.nn.Linear(1, 1), 1)
    set_memory_budget(reads, 10_000)
    with pytest.raises(ValueError, match=r"accepted: calls under torch.no_grad\(\)"):
        reads(torch.rand(1, 3, 8, 8))
    reads.requires_grad_(False)
    assert reads(torch.rand(1, 3, 8, 8)).isfinite().all()
    reads.levels[0].blocks[0].norm1 = torch.nn.BatchNorm2d(32, affine=False)
    with pytest.raises(TypeError, match="norm is BatchNorm2d with 0 conditions; accepted with a memory budget: GroupNorm"):
        reads(torch.rand(1, 3, 8, 8))


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return results

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes
