"""Plans of memory against what the CPU's allocator hands out, and where a model is placed."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmblocks import Block, Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, TextGrammar, TokenTable, text
from mmblocks.heads import TiedLMHead
from mmblocks.pipelines import plan_memory
from mmblocks.pipelines.placing import Piece, as_bytes, place
from mmblocks.support.allocations import Allocations
from mmblocks.trunks import Attention, Layer, MixtureOfExperts
from tests.roles.test_around import language_model
from tests.shared.tiny import tiny_model

VOCABULARY, DIM = 1500, 128


def small_model(**options: Any) -> MultimodalModel:
    torch.manual_seed(0)
    shape = {"num_layers": 3, "num_heads": 8, "num_kv_heads": 4, "mlp_dim": 384}
    trunk = Decoder(dim=DIM, **(options or shape))
    embedding = TextEmbedding(vocab_size=VOCABULARY, dim=DIM)
    return MultimodalModel(inputs={"text": embedding}, trunk=trunk, outputs={"text": LMHead(dim=DIM, vocab_size=VOCABULARY)}).eval()


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that the CPU's allocator has handed out at once, as torch's profiler notes it, the second time."""
    with torch.no_grad():  # which the checks of types take from generators
        work()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            work()
    live = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def generated(model: MultimodalModel, batch: int, length: int) -> Callable[[], object]:
    grammar, options = TextGrammar(model.inputs["text"].vocab_size, stop=()), Generation(max_tokens=1)
    return lambda: list(model.generate([[text([5] * length)]] * batch, grammar, options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "length"), [(1, 33), (2, 257), (3, 90)])
def test_within_a_tenth_of_what_generation_takes(batch: int, length: int, dtype: torch.dtype) -> None:
    model = small_model()
    plan = plan_memory(model, batch=batch, length=length, dtype=dtype)
    model.to(dtype)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peak = allocated(generated(model, batch, length))
    assert plan.weights == weights
    assert plan.total == pytest.approx(weights + peak, rel=0.1)
    assert plan.cache + plan.activations == pytest.approx(peak, rel=0.1)  # without the weights, which are nearly all of it


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "nemotron", "gpt2", "mixtral"])
def test_language_models_of_transformers(kind: str) -> None:
    theirs = language_model(kind, tied=True)
    model = MultimodalModel.around(theirs)
    plan = plan_memory(model, batch=2, length=50)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())
    peak = allocated(generated(model, 2, 50))
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert plan.weights == weights and plan.total == pytest.approx(weights + peak, rel=0.1)
    assert plan.cache == model.trunk.new_cache(2, 50).num_bytes or kind in ("nemotron", "gpt2", "mixtral")
    with torch.device("meta"):
        empty = type(theirs)(theirs.config)
    without = MultimodalModel.around(empty)
    assert plan_memory(without, batch=2, length=50) == plan


def test_each_part_is_what_the_allocator_says() -> None:
    model, batch, length = small_model(), 2, 65
    plan = {part.name: part for part in plan_memory(model, batch=batch, length=length).parts}
    ids, table = torch.zeros(batch * length, dtype=torch.long), TokenTable.text(batch, length)
    with torch.no_grad():
        embeds = model.inputs["text"](ids).view(batch, length, -1)
        hidden = model.trunk(embeds, table, model.trunk.new_cache(batch, length))[:, -1]

        def read() -> object:
            return model.trunk(embeds, table, model.trunk.new_cache(batch, length))

        assert plan["trunk"].cache == model.trunk.new_cache(batch, length).num_bytes
        found = allocated(read) + embeds.nbytes - plan["trunk"].cache
        assert plan["trunk"].activations == pytest.approx(found, rel=0.05)
        assert plan["outputs.text"].activations >= allocated(lambda: model.outputs["text"].logits(hidden))


def test_the_model_is_left_alone() -> None:
    model = small_model()
    before = deepcopy(model.state_dict())
    model.train()
    plan_memory(model, dtype=torch.bfloat16, length=8)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bytes_follow_dtype_batch_and_length() -> None:
    model = small_model()
    one, half = (plan_memory(model, length=64, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert one.weights == 2 * half.weights and one.cache == 2 * half.cache and one.parameters == half.parameters
    more = plan_memory(model, length=64, batch=3)
    assert more.weights == one.weights and more.cache == 3 * one.cache and more.activations > 2.5 * one.activations
    assert plan_memory(model, length=128).cache == 2 * one.cache


def test_parts_that_do_not_run_have_no_activations() -> None:
    model = tiny_model()
    other = nn.Linear(3, 5)
    plan = plan_memory(model, length=24, beside={"image_tokenizer": other})
    parts = {part.name: part for part in plan.parts}
    assert list(parts) == ["inputs.text", "inputs.vision", "trunk", "outputs.lm", "image_tokenizer"]
    assert parts["inputs.vision"].activations is None and parts["image_tokenizer"].weights == 20 * 4
    plain = plan_memory(other, dtype=torch.bfloat16)
    assert (plain.parameters, plain.weights, plain.cache, plain.activations) == (20, 40, 0, 0)


def test_a_trunk_that_looks_at_values() -> None:
    experts = MixtureOfExperts(hidden_dim=32, num_experts=4, experts_per_token=2)
    model = small_model(num_layers=2, layers=Layer(mixer=Attention(num_heads=4), feed_forward=experts))
    plan = plan_memory(model, length=16)
    assert plan.unknown.startswith("trunk looks at values")
    assert plan.cache == model.trunk.new_cache(1, 16).num_bytes
    assert {part.name: part.activations for part in plan.parts}["trunk"] is None
    with pytest.raises(ValueError, match="activations are not known, since trunk looks at values"):
        plan_memory(model, length=16, devices=["1GB"])


def test_it_is_placed_layer_by_layer(tmp_path: Path) -> None:
    model = small_model()
    whole = plan_memory(model, length=40)
    sizes = [whole.total // 2, whole.total]
    plan = plan_memory(model, length=40, devices=sizes)
    first, second = plan.devices
    assert first.pieces[0] == "inputs.text" and second.pieces[-2:] == ("trunk", "outputs.text")
    assert all(load.needed <= load.size for load in plan.devices)
    names = [name for load in plan.devices for name in load.pieces]
    assert names == ["inputs.text", "trunk.layers.0", "trunk.layers.1", "trunk.layers.2", "trunk", "outputs.text"]
    held = sum(load.needed for load in plan.devices)
    assert whole.total <= held <= whole.total + whole.activations
    model.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path, device_map=dict.fromkeys(plan.device_map, "cpu"))
    assert torch.equal(again.trunk.norm.weight, model.trunk.norm.weight)


def test_one_device_that_just_fits() -> None:
    model = small_model()
    total = plan_memory(model, length=40).total
    (load,) = plan_memory(model, length=40, devices=[total]).devices
    assert load.needed == total and load.summary == "inputs.text, trunk.layers.0 to 2, trunk, outputs.text"
    with pytest.raises(ValueError, match=r"1 B are lacking, from outputs\.text on"):
        plan_memory(model, length=40, devices=[total - 1])


def test_what_shares_a_tensor_stays_together() -> None:
    model = small_model()
    tied = MultimodalModel(
        inputs=dict(model.inputs.items()), trunk=model.trunk, outputs={"text": TiedLMHead(table=model.inputs["text"])}
    ).eval()
    plan = plan_memory(tied, length=40)
    assert {part.name: part.weights for part in plan.parts}["outputs.text"] == 0
    first, second = plan_memory(tied, length=40, devices=[plan.total // 2 + plan.activations, plan.total]).devices
    assert first.pieces[0] == "inputs.text" and first.pieces[-1] == "outputs.text"
    assert second.pieces[-1] == "trunk"


def test_devices_are_filled_in_order() -> None:
    pieces = [Piece(name=name, held=held, working=working) for name, held, working in (("a", 50, 30), ("b", 40, 5), ("c", 10, 1))]
    loads = place(pieces, [80, 60])
    assert [load.pieces for load in loads] == [("a",), ("b", "c")]
    assert [load.needed for load in loads] == [80, 55]
    assert [load.pieces for load in place(pieces, [200, 10])] == [("a", "b", "c"), ()]
    with pytest.raises(ValueError, match=r"devices of 80 B, 50 B: 5 B are lacking, from c on.*55 B in place of 50 B on device 1"):
        place(pieces, [80, 50])
    with pytest.raises(ValueError, match=r"45 B are lacking, from a on.*a further device"):
        place(pieces[:2], [75])


@pytest.mark.parametrize(
    ("size", "wanted"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("80gb", 8 * 10**10), (512, 512), ("7K", 7000)]
)
def test_sizes(size: int | str, wanted: int) -> None:
    assert as_bytes(size) == wanted


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "0GB", "24XB", "nan", 0, -5, "24GB 3"])
def test_what_is_no_size(size: int | str) -> None:
    with pytest.raises(ValueError, match=r"a device's size is .*; accepted: bytes"):
        as_bytes(size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch is 0; accepted: 1 or more"),
        ({"length": -1}, "length is -1; accepted: 1 or more"),
        ({"dtype": torch.int8}, "dtype is torch.int8; accepted: floating-point"),
        ({"devices": ["much"]}, "a device's size is 'much'"),
        ({"beside": {"model": nn.Linear(1, 1)}}, "beside has a part called 'model'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_memory(small_model(), **options)


def test_no_device() -> None:
    with pytest.raises(ValueError, match="devices is empty"):
        place([], [])


def test_allocations_count_what_is_there_at_once() -> None:
    x, attended = torch.empty(100, device="meta"), torch.empty(3, 1, 2, 1000, 4, device="meta")
    with Allocations() as memory:
        y = x + 1
        assert (memory.live, memory.peak) == (400, 400)
        y.add_(1)
        view = y[:10].view(2, 5)
        assert (memory.live, memory.peak) == (400, 400)
        z = y.to(torch.float64)
        assert memory.live == 1200
        del y
        assert memory.live == 1200
        del view
        assert (memory.live, memory.peak) == (800, 1200)
        memory.restart()
        del z
        assert (memory.live, memory.peak) == (0, 800)
        torch.nn.functional.scaled_dot_product_attention(*attended)
        assert memory.peak == 2 * 1000 * 4 * 4
        torch.zeros(1000)
    assert memory.live == 0


def test_own_tensors_of_a_block() -> None:
    class Own(Block):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(6))
            self.inner = nn.Linear(2, 2)

    plan = plan_memory(Own(), devices=[100])
    assert {part.name: part.weights for part in plan.parts} == {"inner": 24, "model": 24}
    assert plan.device_map == {"inner": 0, "": 0}
