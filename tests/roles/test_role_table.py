"""Every public class with a role, in every situation: it works and gives the right thing, or says what it does not take.

A new class enters by a line in ``tests/roles/role_examples.py``.
"""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from mmblocks import Block
from mmblocks.public import all_names, find
from tests.roles.role_examples import EMBEDDERS, EXAMPLES, FOLDERS, TOKENIZERS, TRUNKS, WITHOUT, Example, hidden

every = pytest.mark.parametrize("name", EXAMPLES)
of_pixels = pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.is_pixels])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def built(example: Example) -> Block:
    torch.manual_seed(0)
    return example.make().eval()


def refusal(example: Example, part: Block, value: Tensor) -> str | None:
    """What the part says if it refuses the value; None if it takes it. Any other error than ours is none of them."""
    try:
        example.call(part, value)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)


def test_every_public_class_with_a_role_is_in_the_table() -> None:
    found = {name: find(name) for name, module in all_names().items() if module.startswith(FOLDERS)}
    public = {name for name, one in found.items() if isinstance(one, type) and issubclass(one, Block)}
    missing = sorted(public - EXAMPLES.keys() - WITHOUT.keys())
    assert not missing, f"{', '.join(missing)}: add an Example of each to EXAMPLES in tests/roles/role_examples.py"
    assert not (EXAMPLES.keys() | WITHOUT.keys()) - all_names().keys()  # some of whole models too


@every
@pytest.mark.unchecked
def test_one_row_alone(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    together, alone = example.call(part, value), example.call(part, value[:1])
    assert together.is_floating_point() and together.isfinite().all() and len(together) == 2 and len(alone) == 1
    if example.is_rowwise:
        close(alone, together[:1])


@every
@pytest.mark.unchecked
def test_no_row(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    said = refusal(example, part, value[:0])
    if said is None:
        assert example.call(part, value[:0]).shape == (0, *example.call(part, value).shape[1:])
    else:
        assert "accepted: " in said


@every
@pytest.mark.unchecked
def test_memory_in_another_order(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    apart = value.new_empty(*value.shape, 2)[..., 0].copy_(value)
    turned = value.transpose(0, -1).contiguous().transpose(0, -1)
    assert not apart.is_contiguous()
    for other in (apart, turned):
        close(example.call(part, other), example.call(part, value))


@every
@pytest.mark.unchecked
def test_inference_mode(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    wanted = example.call(part, value)
    with torch.inference_mode():
        assert torch.equal(example.call(part, value.clone()), wanted)
    assert torch.equal(example.call(part, value), wanted)  # nothing of inference mode is left


@every
@pytest.mark.unchecked
def test_pickled(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    assert torch.equal(example.call(pickle.loads(pickle.dumps(part)), value), example.call(part, value))


@every
@pytest.mark.unchecked
def test_four_threads(name: str) -> None:
    example = EXAMPLES[name]
    part = built(example)
    inputs = [example.value().roll(shift, dims=-1) for shift in range(4)]
    wanted = [example.call(part, value) for value in inputs]

    def in_thread(value: Tensor) -> Tensor:
        with torch.no_grad():
            return example.call(part, value)

    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(in_thread, inputs), wanted, strict=True):
            assert torch.equal(found, one)


@every
@pytest.mark.unchecked
def test_in_bfloat16(name: str) -> None:
    example = EXAMPLES[name]
    found = example.call(built(example).bfloat16(), example.value().bfloat16())
    assert found.isfinite().all() and len(found) == 2


@every
@pytest.mark.unchecked
def test_nan_is_never_a_number(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    value[0].fill_(torch.nan)
    if refusal(example, part, value) is None:
        assert not example.is_pixels and example.call(part, value)[0].isnan().any()


@of_pixels
@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_are_cast(name: str, dtype: torch.dtype) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value().to(dtype)
    found, wanted = example.call(part, value), example.call(part, value.float())
    assert found.dtype in (wanted.dtype, dtype)
    close(found.float(), wanted)


@of_pixels
@pytest.mark.unchecked
def test_float32_pixels_into_bfloat16(name: str) -> None:
    example = EXAMPLES[name]
    assert example.call(built(example).bfloat16(), example.value()).isfinite().all()


@of_pixels
@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_integers_are_no_pixels(name: str, dtype: torch.dtype) -> None:
    example = EXAMPLES[name]
    with pytest.raises(TypeError, match="accepted: floating point"):
        example.call(built(example), example.value().to(dtype))


@of_pixels
@pytest.mark.unchecked
def test_a_single_pixel(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()[..., :1, :1]
    said = refusal(example, part, value)
    if said is None:
        assert example.call(part, value).isfinite().all()
    else:
        assert "accepted: " in said


@of_pixels
@pytest.mark.unchecked
def test_gradients_reach_the_pixels(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value().requires_grad_()
    if name == "JPEGTokenizer":
        return  # bytes
    with torch.enable_grad():
        example.call(part, value).square().sum().backward()
    assert value.grad is not None and value.grad.abs().sum() > 0 and value.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, example in EMBEDDERS.items() if example.is_pixels])
@pytest.mark.unchecked
def test_a_batch_is_a_list_of_images(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()
    for found, wanted in zip(part(value), part(list(value)), strict=True):
        assert torch.equal(found, wanted)
    for wrong in (value[0], *([] if name == "ClipEmbedder" else [value[None]])):  # which is one clip
        with pytest.raises(ValueError, match=r"shape .*; accepted: "):
            part(wrong)


@pytest.mark.parametrize("name", [name for name, example in TRUNKS.items() if example.call is hidden])
@pytest.mark.unchecked
def test_no_token(name: str) -> None:
    example = EXAMPLES[name]
    part, value = built(example), example.value()[:, :0]
    said = refusal(example, part, value)
    assert example.call(part, value).shape == value.shape if said is None else "accepted: " in said


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.unchecked
def test_no_codes(name: str) -> None:
    example = EXAMPLES[name]
    part = built(example)
    if not getattr(part, "codebook_sizes", ()) or name in ("JPEGTokenizer", "FirstStageTiTok"):
        return
    ids = part.encode(example.value()).ids
    options = {"text": torch.ones(0, 3, 7)} if name == "TATiTok" else {}
    try:
        assert len(part.decode(ids[:0], **options)) == 0
    except ValueError as error:
        said = str(error)
    else:
        said = "accepted: "
    assert "accepted: " in said
