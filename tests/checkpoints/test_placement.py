"""Parts on devices of their own, or offloaded: the same numbers as a Block that was loaded whole."""

import builtins

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks import MultimodalModel, image, text
from mmblocks.block import Block
from mmblocks.checkpoints import placement
from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.tokenizers import ConvDecoder, ConvEncoder, VisualTokenizer
from mmblocks.tokenizers.bottlenecks import VectorQuantizer
from tests.shared.tiny import TOKENIZER, tiny_model


class Layer(nn.Module):
    """Uses a weight of a module inside, past its forward."""

    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x):
        return x + self.scale * nn.functional.linear(self.up(self.norm(x)), self.up.weight.T)


class Net(Block):
    layouts = (
        Layout(
            name="net",
            rules=(
                Split("net.{}.norm", ("layers.{}.norm.weight", "layers.{}.norm.bias")),
                Rule("embed", "table.weight", "transpose"),
                Rule("net.{}.up.*", "layers.{}.up.*"),
                Rule("net.{}.scale", "layers.{}.scale"),
                Rule("shift", "shift"),
                Rule("head", "head.weight"),
            ),
            config=lambda published: {"dim": published["size"]},
        ),
    )

    def __init__(self, *, dim: int = 4, part: Block | None = None):
        super().__init__()
        self.table = nn.Embedding(7, dim)
        self.layers = nn.ModuleList([Layer(dim) for _ in range(3)])
        self.shift = nn.Parameter(torch.randn(dim))
        self.head = nn.Linear(dim, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("steps", torch.zeros(0), persistent=False)
        self.part = part
        self.reset_buffers("cpu" if self.shift.device.type == "cpu" else self.shift.device)

    def reset_buffers(self, device):
        self.steps = torch.arange(2.0, device=device)

    def forward(self, ids):
        x = self.table(ids) + self.shift + self.steps.sum()
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def score(self, hidden):
        """Not ``forward``, so no hook of accelerate's runs before it."""
        return hidden @ self.head.weight.T + self.shift.sum()


IDS = torch.tensor([[1, 2, 6]])
MAPS = [
    {"": "cpu"},
    {"": "disk"},
    {"": "cpu", "layers": "disk"},
    {"": "disk", "layers.1": "cpu"},
    {"": torch.device("cpu"), "layers.0.up": "disk", "layers.2": "disk"},
    {"table": "disk", "head": "disk", "layers.0": "disk", "layers.1": "cpu", "layers.2": "disk", "": "cpu"},
]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(params=["own", "published"])
def folder(request, net, tmp_path):
    if request.param == "own":
        net.save_pretrained(tmp_path / "net", max_shard_size=100)
    else:
        net.to_upstream(tmp_path / "net", max_shard_size=100)
        (tmp_path / "net" / "config.json").write_text('{"size": 4}')
    return tmp_path / "net"


@pytest.mark.parametrize("device_map", MAPS, ids=str)
def test_same_numbers(net, folder, device_map):
    loaded = Net.from_pretrained(folder, device_map=device_map)
    with torch.no_grad():
        for _ in range(2):  # again, after what was forgotten
            assert torch.equal(loaded(IDS), net(IDS))
        hidden = torch.randn(2, 4)
        assert torch.equal(loaded.score(hidden), net.score(hidden))
    on_disk = [name for name, place in device_map.items() if place == "disk"]
    away = {name for name, parameter in loaded.named_parameters() if parameter.is_meta}
    assert bool(away) == bool(on_disk)
    assert all(name.startswith(tuple(on_disk)) for name in away)


def test_cast(net, folder):
    cast = Net.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu", "layers": "disk"})
    with torch.no_grad():
        assert torch.equal(cast(IDS), Net.from_pretrained(folder, dtype=torch.bfloat16)(IDS))


def test_nothing_of_what_is_offloaded_stays(folder):
    loaded = Net.from_pretrained(folder, device_map={"": "disk"})
    with torch.no_grad():
        loaded(IDS)
        loaded.score(torch.randn(2, 4))
    assert all(parameter.is_meta for parameter in loaded.parameters())
    with pytest.raises(ValueError, match="is on the meta device and has no values"):
        loaded.save_pretrained(folder.parent / "again")


def test_part_without_values(net, folder):
    loaded = Net.from_pretrained(folder, device_map={"": "cpu", "layers.1": "meta", "layers.2": "meta"})
    assert torch.equal(loaded.layers[0](loaded.table(IDS)), net.layers[0](net.table(IDS)))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        loaded(IDS)
    assert Net.from_pretrained(folder, device_map={"": "meta"}).shift.is_meta


def test_tokenizer_with_methods_of_its_own(tmp_path):
    torch.manual_seed(0)
    options = {"channels": 32, "multipliers": (1, 1), "code_dim": 4}
    tokenizer = VisualTokenizer(
        encoder=ConvEncoder(**options),
        bottleneck=VectorQuantizer(num_codes=16, dim=4),
        decoder=ConvDecoder(**options),
        downsampling=(2, 2),
    ).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = Block.from_pretrained(tmp_path, device_map={"encoder": "disk", "bottleneck": "disk", "decoder": "cpu"})
    pixels = torch.rand(1, 3, 4, 6)
    with torch.no_grad():
        ids = loaded.encode(pixels).ids
        assert torch.equal(ids, tokenizer.encode(pixels).ids)
        assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))


class WithoutReset(Block):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_what_no_file_holds_is_not_excused(tmp_path):
    WithoutReset().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="table are in no checkpoint and have no values after loading"):
        WithoutReset.from_pretrained(tmp_path, device_map={"": "disk"})
    assert Block.from_pretrained(tmp_path, device_map={"": "meta"}).table.is_meta


def test_auto(net, folder, monkeypatch):
    assert torch.equal(Net.from_pretrained(folder, device_map="auto")(IDS), net(IDS))
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "get_balanced_memory", lambda *arguments, **options: {"cpu": 400})
    loaded = Net.from_pretrained(folder, device_map="auto")
    assert "disk" in loaded.hf_device_map.values()
    assert torch.equal(loaded(IDS), net(IDS))


def test_parts_that_are_handed_in(net, folder):
    loaded = Net.from_pretrained(folder, part=Net(), device_map={"": "disk", "part": "cpu"})
    assert torch.equal(loaded(IDS), net(IDS))
    assert not any(parameter.is_meta for parameter in loaded.part.parameters())


@pytest.mark.parametrize(
    ("device_map", "match"),
    [
        ("balanced", "device_map is 'balanced'; accepted: 'auto', or a dict"),
        ({"": "cpu", "layer.1": "disk"}, r"names 'layer.1', which is no part of Net; did you mean 'layers.1'\?"),
        ({"layers": "cpu", "table": "cpu", "head": "cpu"}, "has no place for 'shift' of Net; '' is all the rest"),
        ({"layers.0": "cpu", "": "dusk"}, "puts '' on 'dusk'; accepted: a device, 'disk' or 'meta'"),
        ({"": "cpu", "head": "disk"}, "puts table.weight on cpu and head.weight on disk, which are one tensor"),
        ({}, "has no place for 'shift'"),
        ({"": "cpu", "part": "disk"}, "puts part.shift on disk, but it was handed in"),
    ],
    ids=str,
)
def test_refusals(folder, device_map, match):
    options = {"part": Net()} if "part" in device_map else {}
    with pytest.raises(ValueError, match=match):
        Net.from_pretrained(folder, device_map=device_map, **options)


def test_one_of_device_and_device_map(folder):
    with pytest.raises(ValueError, match="accepted: one of them"):
        Net.from_pretrained(folder, device="cpu", device_map={"": "cpu"})


def test_names_of_one_tensor_that_differ_in_the_files(net, tmp_path):
    tensors = {"embed": net.table.weight.detach().T.contiguous(), "head": torch.zeros(7, 4), "shift": net.shift.detach()}
    for number, layer in enumerate(net.layers):
        tensors |= {f"net.{number}.up.weight": layer.up.weight, f"net.{number}.up.bias": layer.up.bias}
        tensors |= {f"net.{number}.norm": torch.cat([layer.norm.weight, layer.norm.bias]), f"net.{number}.scale": layer.scale}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"size": 4}')
    for device_map in ({"": "cpu"}, {"": "disk"}):
        with pytest.raises(ValueError, match="the files hold two different ones"):
            Net.from_pretrained(tmp_path, device_map=device_map)


def test_without_accelerate(folder, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "accelerate":
            raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"device_map needs accelerate: pip install 'mmblocks\[offload\]'"):
        Net.from_pretrained(folder, device_map={"": "cpu"})


def test_memory_beside_an_accelerator(net, folder, monkeypatch):
    """There "cpu" is offloaded too. The CPU, by another name, stands for the accelerator."""
    place = placement._place
    monkeypatch.setattr(placement, "_place", lambda name, where: torch.device("cpu") if where == "gpu" else place(name, where))
    loaded = Net.from_pretrained(folder, device_map={"": "gpu", "layers.0": "cpu", "layers.1": "disk"})
    away = {name.partition(".up")[0].partition(".norm")[0] for name, parameter in loaded.named_parameters() if parameter.is_meta}
    assert away == {"layers.0", "layers.1"}
    with torch.no_grad():
        assert torch.equal(loaded(IDS), net(IDS))


@pytest.mark.parametrize(
    "device_map",
    [{"": "disk"}, {"": "cpu", "inputs": "disk", "trunk.layers.1": "disk"}, {"inputs": "cpu", "trunk": "disk", "outputs": "disk"}],
    ids=str,
)
def test_composed_model(tmp_path, device_map):
    model = tiny_model().eval()
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, device_map=device_map)
    batch = model.batch_builder(TOKENIZER)([[text("what? "), image(torch.rand(3, 4, 8)), text(" a 7", target="lm")]])
    with torch.no_grad():
        assert torch.equal(loaded(batch).token_losses["lm"], model(batch).token_losses["lm"])
