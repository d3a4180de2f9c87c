"""Sizes that cannot be: every part says which of its arguments is wrong, and what would be accepted."""

from typing import Any

import pytest
import torch

from mmblocks import Block
from mmblocks.heads import LMHead
from mmblocks.support.constructor_errors import with_names
from mmblocks.tokenizers import VQGAN, ConvEncoder, LlamaGenVQ, MaskGITVQGAN, OpenMAGVIT2
from tests.roles.role_examples import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")


def _odd(value: object) -> list[Any]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [0, -1]
    if isinstance(value, float):
        return [float("nan"), -1.0]
    if isinstance(value, tuple) and value and all(isinstance(side, int) for side in value):
        return [(), (-1,) * len(value)]
    return []


@pytest.mark.unchecked
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_cannot_be_built_says_why(name) -> None:
    part = EXAMPLES[name].make()
    if not isinstance(part, Block):
        pytest.skip("its own class does not record arguments")
    unclear: list[Any] = []
    for argument, value in part.config.items():
        for odd in _odd(value):
            try:
                with torch.device("meta"):
                    type(part)(**{**part.config, argument: odd})
            except (ValueError, TypeError) as error:
                trace = error.__traceback__
                while trace is not None and trace.tb_next is not None:
                    trace = trace.tb_next
                if trace is None or not trace.tb_frame.f_globals["__name__"].startswith("mmblocks."):
                    unclear.append((argument, odd, error))
    assert unclear == []


@pytest.mark.parametrize("kind", [ConvEncoder, VQGAN, LlamaGenVQ, MaskGITVQGAN, OpenMAGVIT2])
@pytest.mark.parametrize("channels", [0, 8, 48])
def test_channels_are_whole_groups(kind, channels) -> None:
    with pytest.raises(ValueError, match=r"channels is \d+ .*; accepted: multiples of 32"):
        kind(channels=channels)


class Own(Block):
    """A part of a user's."""

    def __init__(self, *, dim: int, kind: str = "sum") -> None:
        super().__init__()
        if kind == "own":
            raise ValueError("kind is 'own'; accepted: 'sum'")
        if kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if kind == "assert":
            assert dim == 7, "dim must be 7"
        if kind == "index":
            ()[dim]
        self.map = torch.nn.Linear(dim, 4 // dim)


def test_errors_that_are_no_matter_of_sizes_stay_as_they_are() -> None:
    with pytest.raises(
        ValueError, match=r"^Own cannot be built: dim is -1; accepted: sizes of 1 or more .RuntimeError: .*negative"
    ):
        Own(dim=-1)
    with pytest.raises(ValueError, match=r"^Own cannot be built: dim is 0; accepted: .*ZeroDivisionError"):
        Own(dim=0)
    for kind, error in {"own": ValueError, "memory": torch.OutOfMemoryError, "assert": AssertionError, "index": IndexError}.items():
        with pytest.raises(error) as found:
            Own(dim=2, kind=kind)
        assert found.type is error and "cannot be built" not in str(found.value)
    assert Own(dim=2).config == {"dim": 2, "kind": "sum"}


def test_a_part_of_another_library_that_does_not_fit() -> None:
    def build(self: object, *, width: int, num_heads: int) -> None:
        torch.nn.MultiheadAttention(width, num_heads)

    with pytest.raises(ValueError, match=r"object cannot be built: width is 6, num_heads is 4; accepted: sizes that go together"):
        with_names(build)(object(), width=6, num_heads=4)


def test_a_base_class_names_the_class_that_is_built() -> None:
    class Derived(LMHead):
        pass

    with pytest.raises(ValueError, match=r"^Derived cannot be built: vocab_size is -3"):
        Derived(dim=4, vocab_size=-3)
