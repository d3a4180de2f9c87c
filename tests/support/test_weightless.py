"""Methods for other processes: structure and settings come along, weights do not."""

import pickle
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmblocks.support.pickling import KEPT_BYTES, weightless

MEGABYTE = 2**20


class Part(nn.Module):
    """Everything that a method may read of its module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.table = nn.Embedding(MEGABYTE, 1)
        self.tied = self.inner
        self.register_buffer("mean", torch.arange(MEGABYTE)[3:6])
        self.register_buffer("large", torch.zeros(MEGABYTE, dtype=torch.bool))
        self.register_buffer("own", torch.ones(2), persistent=False)
        self.unregistered = torch.zeros(MEGABYTE)
        self.hidden = [nn.Linear(512, 512)]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def described(self, times: int) -> tuple[object, ...]:
        shapes = tuple(self.inner.weight.shape), self.table.weight.dtype, len(self.large), self.hidden[0].weight.numel()
        return times * self.mean.tolist(), shapes, self.tied is self.inner, self.own.tolist(), self.training

    def made_there(self) -> Tensor:
        return torch.zeros(2, device=self.table.weight.device, dtype=self.table.weight.dtype)

    def reads(self, name: str) -> Tensor:
        return self.get_parameter(name).sum()

    def reads_plain(self) -> float:
        return float(self.unregistered[0])

    @weightless
    def decorated(self, added: int) -> int:
        """The width, and something."""
        return self.inner.in_features + added


class Child(Part):
    @weightless
    def decorated(self, added: int) -> int:
        return 100 + super().decorated(added)


class Locked(Part):
    """Holds what pickle cannot write, unless it is left out as the class says."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = lambda: None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in super().__getstate__().items() if name != "lock"}


def travelled(call):
    content = pickle.dumps(call)
    assert len(content) < MEGABYTE // 50
    return pickle.loads(content)


@pytest.fixture
def part() -> Part:
    return Part()


def test_attributes_come_along(part: Part) -> None:
    part.eval()
    there = travelled(weightless(part.described))
    assert there(2) == part.described(2)
    assert there.__wrapped__.__self__.described(1)[0] == [3, 4, 5]
    assert travelled(there)(2) == part.described(2)


def test_weights_do_not(part: Part) -> None:
    assert travelled(weightless(part.made_there))().equal(part.made_there())
    reads = travelled(weightless(part.reads))
    for name in ("table.weight", "inner.bias"):
        with pytest.raises(ValueError, match=r"sum.* reads a weight, and weights do not go to other processes; accepted: shape"):
            reads(name)
    with pytest.raises(ValueError, match="reads a weight"):
        travelled(weightless(part.reads_plain))()
    parameter = reads.__wrapped__.__self__.inner.weight
    assert isinstance(parameter, nn.Parameter) and parameter.requires_grad and "(3, 4)" in repr(parameter)


def test_small_tensors_keep_their_values_up_to_a_size(part: Part) -> None:
    part.register_buffer("just", torch.ones(KEPT_BYTES, dtype=torch.uint8))
    part.register_buffer("more", torch.ones(KEPT_BYTES + 1, dtype=torch.uint8))
    there = travelled(weightless(part.described)).__wrapped__.__self__
    assert there.just.sum() == KEPT_BYTES
    with pytest.raises(ValueError, match="reads a weight"):
        there.more.sum()


def test_decorated(part: Part) -> None:
    assert part.decorated(1) == travelled(part.decorated)(1) == 5
    child = Child()
    assert child.decorated(1) == travelled(child.decorated)(1) == 105
    assert Part.decorated(part, 2) == 6 and travelled(Part.decorated)(part, 2) == 6
    assert part.decorated == part.decorated != child.decorated and len({part.decorated, part.decorated}) == 1
    assert part.decorated.__name__ == "decorated" and Part.decorated.__doc__ == "The width, and something."


def test_in_its_own_process_it_is_the_method(part: Part) -> None:
    call = weightless(part.reads)
    assert call("inner.bias").equal(part.inner.bias.sum())
    part.inner.bias.data.fill_(2)
    assert call("inner.bias") == 6


def test_callables_of_all_kinds(part: Part) -> None:
    assert travelled(weightless(partial(part.described, 3)))() == part.described(3)
    assert travelled(weightless(weightless(part.described)))(1) == part.described(1)
    assert travelled(weightless(len))("abc") == 3
    assert travelled(weightless(nn.Flatten())).__wrapped__.start_dim == 1


def test_hooks_and_wrappers_stay(part: Part) -> None:
    part.register_forward_hook(lambda *_: None)
    part.inner.forward = lambda x: x
    part.to = lambda *_: part
    part.compile(backend="eager")
    part.hidden[0] = torch.compile(part.hidden[0], backend="eager")
    part.hidden += [nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))]  # of a class of its own, that refuses pickle
    # fully_shard makes a class likewise, and needs a process group.
    part.inner.__class__ = type("FSDPLinear", (nn.Linear,), {"__module__": "torch.distributed.fsdp"})
    there = travelled(weightless(part.described))
    assert there(1)[0] == [3, 4, 5]
    module = there.__wrapped__.__self__
    assert not module._forward_hooks and "forward" not in vars(module.inner) and "to" not in vars(module)
    assert type(module.hidden[0]) is type(module.hidden[1]) is nn.Linear


def test_a_class_says_itself_what_is_left_out() -> None:
    assert travelled(weightless(Locked().described))(1)[0] == [3, 4, 5]


def test_what_pickle_cannot_write_is_refused_when_it_is_pickled(part: Part) -> None:
    class Local(Part):
        pass

    part.odd = lambda: 0
    unknown = type("Unknown", (Part,), {"__module__": "nowhere"})()
    for refused in (part.described, Local().described, unknown.described, lambda: 0):
        with pytest.raises(TypeError, match=r"cannot go to another process: .*; accepted: what pickle can write"):
            pickle.dumps(weightless(refused))
    assert weightless(part.described)(1)[0] == [3, 4, 5]


def test_one_gigabyte() -> None:
    part = Part()
    part.table.weight = nn.Parameter(torch.empty(2**28))  # never touched, so it takes no memory
    assert travelled(weightless(part.made_there))().tolist() == [0, 0]


class Named(nn.Module):
    """Attributes that are called as methods of all modules are, one of them a method indeed."""

    def __init__(self) -> None:
        super().__init__()
        self.half, self.type = 7, "vit"
        self.forward = self.described
        self.kept = weightless(self.described)

    def described(self) -> tuple[int, str]:
        """What it is."""
        return self.half, self.type


def test_attributes_with_names_of_methods_come_along() -> None:
    assert travelled(weightless(Named().described))() == (7, "vit")


def test_a_module_may_keep_its_own_method() -> None:
    module = Named()
    there = travelled(module.kept)
    assert there() == (7, "vit")
    owner = there.__wrapped__.__self__
    assert owner.kept.__wrapped__.__self__ is owner

    copy = deepcopy(module)
    copy.half = 8
    assert copy.kept() == (8, "vit") and module.kept() == (7, "vit")


def test_copies_hold_their_weights() -> None:
    part = Part()
    copy = deepcopy(part.decorated)
    assert torch.equal(copy.__wrapped__.__self__.inner.weight, part.inner.weight)


def test_the_documentation_is_the_callables() -> None:
    assert Part().decorated.__doc__ == "The width, and something."
    assert weightless(Named().described).__doc__ == "What it is."


def test_modules_that_are_not_complete_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot go to another process"):
        pickle.dumps(weightless(nn.LazyLinear(3).extra_repr))
