"""Networks that are recorded and replayed: when, on which buffers, and for how long. On a CPU with a stand-in for CUDA's graphs."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.ops import cuda_graphs
from mmblocks.ops.cuda_graphs import repeated, replaying, which

POOL = (0, 1)


class Captured:
    """In place of CUDA: what was captured runs again on the same buffers, and writes to the same output."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function, device, pool):
        self.captures += 1
        assert pool == POOL
        output = function()

        def replay() -> None:
            self.replays += 1
            output.copy_(function())

        return replay, output


@pytest.fixture
def graphs(monkeypatch) -> Captured:
    found = Captured()
    monkeypatch.setattr(cuda_graphs, "capture", found)
    monkeypatch.setattr(cuda_graphs, "new_pool", lambda: POOL)
    monkeypatch.setattr(cuda_graphs, "_why_not_on", lambda inputs: "")
    return found


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_a_shape_is_captured_once_and_replayed(graphs) -> None:
    linear, inputs = nn.Linear(3, 2), [torch.randn(n, 3) for n in (4, 4, 5, 4)]
    with replaying():
        step = repeated(linear)
        found = [step(x) for x in inputs]
    for x, made in zip(inputs, found, strict=True):  # an earlier result is not written over by a later call
        torch.testing.assert_close(made, linear(x))
    assert (graphs.captures, graphs.replays) == (2, 4)
    with replaying():
        repeated(linear)(inputs[0])
    assert (graphs.captures, graphs.replays) == (2, 5)


def test_inputs_are_copied_and_weights_are_read_where_they_lie(graphs) -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    with replaying():
        repeated(linear)(x)
        linear.weight.mul_(2)
        x.mul_(3)
        torch.testing.assert_close(repeated(linear)(x), linear(x))
        assert graphs.captures == 1
        linear.weight = nn.Parameter(linear.weight + 1)  # elsewhere
        torch.testing.assert_close(repeated(linear)(x), linear(x))
        assert graphs.captures == 2


def test_dtype_autocast_and_mode_have_recordings_of_their_own(graphs) -> None:
    identity, x = nn.Dropout(0.5), torch.randn(4)
    with replaying():
        step = repeated(identity.eval())
        assert step(x.half()).dtype == torch.float16 and step(x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            step(x)
        identity.train()
        step(x)
        with torch.inference_mode():
            kept = step(x)
        step(kept.clone())
    assert graphs.captures == 4


def test_the_oldest_recording_is_given_up(graphs, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "CAPACITY", 2)
    with replaying():
        step = repeated(nn.Identity())
        for count in (1, 2, 1, 3, 1, 2):
            step(torch.zeros(count))
    assert graphs.captures == 4  # of 1, 2, 3 and, given up for 3, 2 again


def test_recordings_belong_to_their_module_alone(graphs, monkeypatch) -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    with replaying():
        repeated(linear)(x)
        other = copy.deepcopy(linear)
        other.weight.zero_()
        torch.testing.assert_close(repeated(other)(x), other(x))
        assert graphs.captures == 2
        # CUDA's graphs, unlike the stand-in, do not hold what they captured: neither must anything else.
        monkeypatch.setattr(cuda_graphs, "capture", lambda function, device, pool: (lambda: None, function()))
        short_lived = nn.Linear(3, 2)
        repeated(short_lived)(x)
    gone = weakref.ref(short_lived)
    del short_lived
    gc.collect()
    assert gone() is None


def test_a_head_samples_the_same(graphs) -> None:
    from mmblocks.heads import MARDiffusionHead

    torch.manual_seed(0)
    head = MARDiffusionHead(dim=6, token_dim=4, width=8, num_blocks=1, steps=5)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden, other = torch.randn(2, 3, 6)
    draws = {"noise": torch.randn(3, 4), "step_noise": torch.randn(5, 3, 4)}
    for options in ({}, {"unconditional": other, "guidance": 2.0}):
        plain = head.sample(hidden, **draws, **options)
        with replaying():
            assert torch.equal(head.sample(hidden, **draws, **options), plain)
    assert (graphs.captures, graphs.replays) == (2, 10)


def test_where_nothing_can_be_replayed_the_module_is_called_and_the_reason_is_given(caplog) -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert repeated(linear) is linear
    assert which(linear, x) == ("called", "no recordings were requested; request them with replaying() or MMBLOCKS_CUDA_GRAPHS=1")
    cuda_graphs._said.clear()
    with replaying(), caplog.at_level(logging.DEBUG, logger="mmblocks.ops.cuda_graphs"):
        assert which(linear, x) == ("called", "tensors on cpu; it takes one cuda device")
        for _ in range(2):
            torch.testing.assert_close(repeated(linear)(x), linear(x))
        with torch.enable_grad():
            assert which(linear, x).reason == "gradients are recorded; a replay has none"
            assert repeated(linear)(x).requires_grad
        with replaying(False):
            assert repeated(linear) is linear
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    assert caplog.records[0].message == "Linear is called: tensors on cpu; it takes one cuda device"


@pytest.mark.unchecked
def test_under_torch_compile_the_module_is_called(graphs) -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    with replaying():
        compiled = torch.compile(lambda x: repeated(linear)(x), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), linear(x))
    assert not graphs.captures


@pytest.mark.unchecked
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = AdaLNMLP(dim=16, condition_dim=32, width=64, num_blocks=3).cuda()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    for rows in (5, 64, 5):
        x, time, condition = (torch.randn(*shape, device="cuda") for shape in ((1, rows, 16), (64,), (1, rows, 64)))
        with replaying():
            assert which(net, x, time, condition).way == "replayed"
            step = repeated(net)
            step(x, time, condition)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = [step(x * number, time, condition) for number in range(3)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for number, made in enumerate(found):
            torch.testing.assert_close(made, net(x * number, time, condition), atol=1e-4, rtol=1e-4)
