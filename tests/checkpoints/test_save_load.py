"""Round trips through a folder that ``save_pretrained`` wrote, and what loading refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mmblocks import configurable
from mmblocks.block import Block

REPOSITORY = Path(__file__).parents[2]


class Projector(Block):
    def __init__(self, *, dim: int, sizes: tuple[int, ...] = (1, 2), rule=None):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.rule = rule
        self.register_buffer("steps", torch.tensor(7))


class Model(Block):
    """Parts in every form, and a head that shares its weight with one of them."""

    def __init__(self, *, inputs: dict[str, Block], trunk: Block, layers=(), name: str = "model"):
        super().__init__()
        self.inputs = nn.ModuleDict(inputs)
        self.trunk = trunk
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(4, 4)
        self.head.weight = trunk.linear.weight


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.empty(3), persistent=False)
        self.reset_buffers(self.table.device)

    def reset_buffers(self, device):
        self.table = torch.arange(3.0, device=device)


class WithTable(Block):
    def __init__(self):
        super().__init__()
        self.rotary = Rotary()
        self.register_buffer("constant", torch.ones(2, device="cpu"), persistent=False)
        self.register_buffer("stored", torch.zeros(2, device="cpu"))


class WithoutReset(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.plain = torch.ones(2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    inputs = {"text": Projector(dim=3), "image": Projector(dim=4, sizes=[5])}
    return Model(inputs=inputs, trunk=Projector(dim=4), layers=[Projector(dim=2), Projector(dim=2)])


def same(block: Block, other: Block) -> bool:
    state, others = block.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(tensor, others[key]) for key, tensor in state.items())


def edit(path, **changes):
    """Changes entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_round_trip(model, tmp_path):
    model.train().save_pretrained(tmp_path / "new" / "model")
    loaded = Block.from_pretrained(tmp_path / "new" / "model")
    assert type(loaded) is Model
    assert same(model, loaded)
    assert not any(module.training for module in loaded.modules())
    assert loaded.config["name"] == "model"
    assert loaded.inputs["image"].config == {"dim": 4, "sizes": (5,), "rule": None}
    assert loaded.head.weight is loaded.trunk.linear.weight
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_files(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "_class_name": f"{__name__}.Model",
        "_mmblocks_version": config["_mmblocks_version"],
        "_checksums": config["_checksums"],
        "_shared_tensors": {"head.weight": "trunk.linear.weight"},
        "inputs": {"text": {"_block": "inputs/text"}, "image": {"_block": "inputs/image"}},
        "trunk": {"_block": "trunk"},
        "layers": [{"_block": "layers/0"}, {"_block": "layers/1"}],
        "name": "model",
    }
    assert list(load_file(tmp_path / "model.safetensors")) == ["head.bias"]
    with safe_open(tmp_path / "trunk" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_block_without_tensors_of_its_own_writes_none(tmp_path):
    class Pair(Block):
        def __init__(self, *, part: Block):
            super().__init__()
            self.part = part

    Pair(part=Projector(dim=2)).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "part"]
    (tmp_path / "optimizer.pt").write_bytes(b"of somebody else")
    assert Block.from_pretrained(tmp_path).part.config["dim"] == 2


def test_part_alone(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert same(model.inputs["text"], Projector.from_pretrained(tmp_path, subfolder="inputs/text"))
    assert same(model.trunk, Block.from_pretrained(str(tmp_path / "trunk")))


def test_shards(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size=50)
    names = sorted(path.name for path in (tmp_path / "trunk").iterdir())
    assert names == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "trunk" / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 4 * (16 + 4) + 8
    loaded = Block.from_pretrained(tmp_path)
    assert same(model, loaded)
    loaded.save_pretrained(tmp_path)  # in place, while its tensors are mapped to these very files
    assert same(model, loaded)
    assert same(model, Block.from_pretrained(tmp_path))
    assert not list(tmp_path.rglob("*-of-*"))
    assert not list(tmp_path.rglob("*index*"))


def test_dtypes(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = Block.from_pretrained(tmp_path)
    assert same(model, loaded)
    assert loaded.trunk.linear.weight.dtype == torch.bfloat16
    cast = Block.from_pretrained(tmp_path, dtype=torch.float64)
    assert cast.trunk.linear.weight.dtype == cast.head.bias.dtype == torch.float64
    assert cast.trunk.steps.dtype == torch.int64
    assert cast.head.weight is cast.trunk.linear.weight
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; accepted: floating"):
        Block.from_pretrained(tmp_path, dtype=torch.int8)


def test_frozen_parameters_stay_frozen(tmp_path):
    class Frozen(Block):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2), requires_grad=False)

    Frozen().save_pretrained(tmp_path)
    assert not Frozen.from_pretrained(tmp_path).weight.requires_grad


def test_loaded_weights_can_be_trained(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.trunk.linear.weight.add_(1)
    assert same(model, Model.from_pretrained(tmp_path))


def test_tensors_shared_between_parts(model, tmp_path):
    """Each part is complete by itself; together they share again."""
    model.inputs["image"].linear.weight = model.trunk.linear.weight
    model.save_pretrained(tmp_path)
    assert "linear.weight" in load_file(tmp_path / "trunk" / "model.safetensors")
    assert "linear.weight" in load_file(tmp_path / "inputs" / "image" / "model.safetensors")
    loaded = Model.from_pretrained(tmp_path)
    assert loaded.inputs["image"].linear.weight is loaded.trunk.linear.weight is loaded.head.weight

    save_file({"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4), "steps": torch.tensor(1)},
              tmp_path / "trunk" / "model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"linear\.weight shares its tensor .* two different ones"):
        Model.from_pretrained(tmp_path)


class Outer(Block):
    """Its own name for the shared tensor comes before that of the part."""

    def __init__(self, *, part: Block):
        super().__init__()
        self.weight = part.weight
        self.part = part


class Inner(Block):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.again = self.weight


def test_shared_tensor_is_stored_in_the_part(tmp_path):
    outer = Outer(part=Inner())
    outer.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert list(load_file(tmp_path / "part" / "model.safetensors")) == ["weight"]
    assert json.loads((tmp_path / "config.json").read_text())["_shared_tensors"] == {"weight": "part.weight"}
    loaded = Outer.from_pretrained(tmp_path)
    assert loaded.weight is loaded.part.weight is loaded.part.again
    assert same(outer, loaded)


@pytest.mark.parametrize("max_shard_size", [5, "5GB"])
def test_views_of_one_storage_are_tensors_of_their_own(tmp_path, max_shard_size):
    class Views(Block):
        def __init__(self):
            super().__init__()
            table = torch.arange(6.0).reshape(3, 2)
            for name, view in (("a", table[:2]), ("b", table[2:]), ("c", table[1:]), ("d", table.T), ("e", table.view(-1))):
                self.register_buffer(name, view)

    Views().save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (5 if max_shard_size == 5 else 1)
    assert same(Views(), Views.from_pretrained(tmp_path))


def test_one_part_in_two_places(tmp_path):
    part = Projector(dim=4)
    model = Model(inputs={"text": part, "image": part}, trunk=part)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["inputs"]
    loaded = Model.from_pretrained(tmp_path)
    assert loaded.trunk is loaded.inputs["text"] is loaded.inputs["image"]


def test_one_part_inside_two_parts(tmp_path):
    """Two folders on disk, since each must be complete; one tensor in memory."""
    part = Projector(dim=4)
    first, second = Model(inputs={"a": part}, trunk=Projector(dim=4)), Model(inputs={"a": part}, trunk=Projector(dim=4))
    outer = Model(inputs={"first": first, "second": second}, trunk=Projector(dim=4))
    outer.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    weights = [loaded.inputs[name].inputs["a"].linear.weight for name in ("first", "second")]
    assert weights[0] is weights[1]
    assert same(outer, loaded)


def test_overrides(model, tmp_path):
    model.save_pretrained(tmp_path)
    trunk = Projector(dim=4)
    loaded = Model.from_pretrained(tmp_path, trunk=trunk, name="renamed")
    assert loaded.trunk is trunk
    assert loaded.config["name"] == "renamed"
    assert torch.equal(loaded.inputs["text"].linear.weight, model.inputs["text"].linear.weight)
    with pytest.raises(ValueError, match=r"from_pretrained of Model: unknown argument 'nam'; did you mean 'name'\?"):
        Model.from_pretrained(tmp_path, nam="renamed")


def test_code_inside_a_part(model, tmp_path):
    model.trunk.rule = print
    model = Model(inputs=dict(model.inputs.items()), trunk=Projector(dim=4, rule=print))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"'rule' of Projector is code .*hand the part in: from_pretrained\(\.\.\., trunk=\.\.\.\)"
    ):
        Model.from_pretrained(tmp_path)
    trunk = Projector.from_pretrained(tmp_path, subfolder="trunk", rule=print)
    assert same(model, Model.from_pretrained(tmp_path, trunk=trunk))


def test_tensors_that_no_file_holds(tmp_path):
    block = WithTable()
    block.stored.fill_(5)
    block.save_pretrained(tmp_path / "with")
    loaded = WithTable.from_pretrained(tmp_path / "with")
    assert loaded.rotary.table.tolist() == [0, 1, 2]
    assert loaded.constant.tolist() == [1, 1]
    assert loaded.stored.tolist() == [5, 5]  # although the constructor gave it values
    WithoutReset().save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match=r"table, plain are in no checkpoint .* reset_buffers\(self, device\)"):
        WithoutReset.from_pretrained(tmp_path / "without")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_weights_once(tmp_path):
    """160 MB in two parts: a full state dict beside the module would need twice as much."""
    weights = {f"layers.{number}": torch.ones(1 << 20) for number in range(20)}
    for folder, part in ((tmp_path, {"_block": "part"}), (tmp_path / "part", None)):
        folder.mkdir(exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        config = {"_class_name": "__main__.Big", "_mmblocks_version": "1", "part": part}
        (folder / "config.json").write_text(json.dumps(config))
    code = f"""if True:
        import torch
        from torch import nn
        from mmblocks.block import Block
        from mmblocks.checkpoints import load

        class Big(Block):
            def __init__(self, *, part):
                super().__init__()
                self.layers = nn.ParameterList(nn.Parameter(torch.zeros(1 << 20)) for _ in range(20))
                self.part = part

        def megabytes(name):
            with open("/proc/self/status") as file:
                return int(file.read().split(name + ":")[1].split()[0]) / 1024

        before = megabytes("VmRSS")
        big = Block.from_pretrained({str(tmp_path)!r})
        assert sum(float(p.detach().sum()) for p in big.parameters()) == 40 * (1 << 20)
        print(megabytes("VmHWM") - before)
    """
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert 160 < float(result.stdout) < 160 * 1.3


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        Block.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*inputs/audio"):
        Block.from_pretrained(tmp_path, subfolder="inputs/audio")
    with pytest.raises(ValueError, match=r"subfolder is '\.\./other'"):
        Block.from_pretrained(tmp_path, subfolder="../other")


def test_wrong_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="holds a Model, which is not a Projector"):
        Projector.from_pretrained(tmp_path)


def test_unknown_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", _class_name=f"{__name__}.Modell")
    with pytest.raises(
        ValueError, match=rf"unknown class '{__name__}.Modell' \(did you mean '{__name__}.Model'\?\).*import the module"
    ):
        Block.from_pretrained(tmp_path)


def test_config_never_imports(model, tmp_path, monkeypatch):
    module = tmp_path / "harmful.py"
    module.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    model.save_pretrained(tmp_path / "model")
    for name in ("harmful.Model", "harmful", "mmblocks.harmful", "os.system", "__version__"):
        edit(tmp_path / "model" / "config.json", _class_name=name)
        with pytest.raises(ValueError, match="unknown class"):
            Block.from_pretrained(tmp_path / "model")


def test_public_names_are_found_without_an_import(monkeypatch):
    def define(module):
        assert module == "mmblocks.lazy"
        type("LazyPart", (Block,), {"__module__": module})

    monkeypatch.setattr(configurable, "home", {"LazyPart": "mmblocks.lazy"}.get)
    monkeypatch.setattr(configurable, "import_module", define)
    found = configurable.find("LazyPart")
    assert configurable.name_of(found) == "LazyPart"
    with pytest.raises(TypeError, match=r"two Blocks of mmblocks are called 'LazyPart'"):
        type("LazyPart", (Block,), {"__module__": "mmblocks.other"})
    configurable._classes.pop("LazyPart")


def test_class_that_is_defined_anew_replaces_the_old_one(tmp_path):
    def cell(value):
        class Cell(Block):
            number = value

        return Cell

    cell(1)().save_pretrained(tmp_path)
    cell(2)
    assert Block.from_pretrained(tmp_path).number == 2


def test_arguments_that_do_not_fit(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "trunk" / "config.json"
    edit(path, dims=4)
    with pytest.raises(
        ValueError,
        match=r"trunk/config.json of Projector: unknown argument 'dims'; did you mean 'dim'\? accepted: dim, sizes, rule",
    ):
        Block.from_pretrained(tmp_path)
    edit(path, dims=None, dim=None)
    with pytest.raises(ValueError, match=r"trunk/config.json of Projector: missing argument 'dim'"):
        Block.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "\xff", "[" * 100_000])
def test_config_that_is_no_object(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|holds a)"):
        Block.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc", "", ".", "a/../..", "a//b", "a\\b", 3, None, ["a"]])
def test_part_that_is_not_inside(model, tmp_path, name):
    model.save_pretrained(tmp_path / "model")
    model.trunk.save_pretrained(tmp_path / "outside")
    edit(tmp_path / "model" / "config.json", trunk={"_block": name})
    with pytest.raises(ValueError, match="accepted: the path of a subfolder"):
        Block.from_pretrained(tmp_path / "model")


def test_part_that_is_a_link(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "circle").symlink_to(".")
    edit(tmp_path / "config.json", trunk={"_block": "circle"})
    with pytest.raises(ValueError, match="'circle', a link; accepted: a folder"):
        Block.from_pretrained(tmp_path)


def test_part_that_is_missing(model, tmp_path):
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", trunk={"_block": "gone"})
    with pytest.raises(FileNotFoundError, match="names the part 'gone'"):
        Block.from_pretrained(tmp_path)
    (tmp_path / "gone").mkdir()
    with pytest.raises(ValueError, match=r"gone holds no Block"):
        Block.from_pretrained(tmp_path)


def test_tensors_that_do_not_fit(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "trunk" / "model.safetensors"
    save_file({"linear.weight": torch.ones(4, 5), "linear.bios": torch.ones(4), "steps": torch.tensor(1)}, path)
    (tmp_path / "layers" / "1" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not match") as error:
        Block.from_pretrained(tmp_path)
    assert str(error.value).splitlines() == [
        f"Projector from {tmp_path / 'trunk'} does not match:",
        "missing (1):",
        "  linear.bias: (4,)",
        "unexpected (1):",
        "  linear.bios: (4,)",
        "misshapen (1):",
        "  linear.weight: found (4, 5), expected (4, 4)",
        f"Projector from {tmp_path / 'layers' / '1'} does not match:",
        "missing (3):",
        "  steps: ()",
        "  linear.weight: (2, 2)",
        "  linear.bias: (2,)",
    ]


def test_tensors_of_another_kind(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "trunk" / "model.safetensors"
    save_file({**load_file(path), "steps": torch.tensor(1.5)}, path)
    with pytest.raises(ValueError, match=r"steps holds torch\.float32, but torch\.int64 is expected"):
        Block.from_pretrained(tmp_path)


@pytest.mark.parametrize("shared", [["head.weight"], {"head.weight": 3}, {"head.weight": "head.bias"}])
def test_shared_tensors_that_make_no_sense(model, tmp_path, shared):
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", _shared_tensors=shared)
    with pytest.raises(ValueError, match=r"_shared_tensors|another shape"):
        Block.from_pretrained(tmp_path)


def test_layout_of_an_own_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layout is 'llama', but .* was written by save_pretrained"):
        Block.from_pretrained(tmp_path, layout="llama")


class Sharded(torch.Tensor):
    """As ``fully_shard`` leaves weights."""

    def full_tensor(self):
        return torch.zeros(4, 4)


def test_sharded_weights_are_not_saved(tmp_path):
    projector = Projector(dim=4)
    projector.linear.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(Sharded))
    with pytest.raises(ValueError, match=r"linear\.weight is sharded over processes"):
        projector.save_pretrained(tmp_path / "model")
