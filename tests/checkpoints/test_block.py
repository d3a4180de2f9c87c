"""What a Block records, and what it refuses."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from mmblocks import configurable
from mmblocks.block import Block


class Linear(Block):
    def __init__(self, *, dim: int, scales: tuple[float, ...] = (1.0, 2.0), options: dict | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim))


class Model(Block):
    def __init__(self, *, inputs: dict[str, Block], trunk: Block, layers: list[Block] | tuple[Block, ...] = ()):
        super().__init__()
        self.inputs = nn.ModuleDict(inputs)
        self.trunk = trunk
        self.layers = nn.ModuleList(layers)


class Named(Model):
    """Builds its parts itself."""

    def __init__(self, *, dim: int):
        super().__init__(inputs={"text": Linear(dim=dim)}, trunk=Linear(dim=dim))


def test_config_holds_every_argument_in_order():
    assert Linear(options={"a": [1, None]}, dim=3).config == {"dim": 3, "scales": (1.0, 2.0), "options": {"a": (1, None)}}
    assert list(Linear(options=None, dim=3).config) == ["dim", "scales", "options"]


def test_subclass_records_its_own_arguments():
    assert Named(dim=2).config == {"dim": 2}


def test_config_does_not_follow_the_callers_list():
    sizes = [1.0]
    block = Linear(dim=2, scales=sizes)
    sizes.append(2.0)
    block.config["options"] = "changed"
    assert block.config == {"dim": 2, "scales": (1.0,), "options": None}


def test_config_shows_the_parts_that_are_there_now():
    model = Model(inputs={"text": Linear(dim=2)}, trunk=Linear(dim=2), layers=[Linear(dim=2)])
    model.trunk = Linear(dim=3)
    model.inputs["image"] = Linear(dim=4)
    del model.inputs["text"]
    model.layers.append(Linear(dim=5))
    assert model.config["trunk"] is model.trunk
    assert model.config["inputs"] == {"image": model.inputs["image"]}
    assert [layer.config["dim"] for layer in model.config["layers"]] == [2, 5]


def test_positional_arguments_are_refused():
    with pytest.raises(
        TypeError, match=r"Linear takes keyword arguments only: Linear\(dim=\.\.\., scales=\.\.\., options=\.\.\.\)"
    ):
        Linear(3)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="dims"):
        Linear(dims=3)


def test_constructor_must_take_keywords_alone():
    def positional(self, dim):
        pass

    def star(self, *dims):
        pass

    def keywords(self, **dims):
        pass

    for init in (positional, star, keywords):
        with pytest.raises(TypeError, match=r"Wrong.__init__ takes .*dim.* keyword-only"):
            type("Wrong", (Block,), {"__init__": init})


def test_constructor_must_leave_reserved_names():
    def dtype(self, *, dtype):
        pass

    def private(self, *, _block):
        pass

    for init, name in ((dtype, "dtype"), (private, "_block")):
        with pytest.raises(TypeError, match=f"takes '{name}', a name that"):
            type("Wrong", (Block,), {"__init__": init})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_are_whole_and_apart(copied):
    model = Model(inputs={"text": Linear(dim=2)}, trunk=Linear(dim=3))
    twin = copied(model)
    assert twin.config["trunk"] is twin.trunk is not model.trunk
    assert twin.config["inputs"]["text"] is twin.inputs["text"]
    assert twin.trunk.config == model.trunk.config
    assert torch.equal(twin.trunk.weight, model.trunk.weight)


def test_class_that_a_library_swapped_is_still_known(tmp_path):
    """FSDP and parametrisations give a module a class of their own."""
    block = Linear(dim=2)
    block.__class__ = type("Wrapped", (Linear,), {})
    block.save_pretrained(tmp_path)
    assert type(Block.from_pretrained(tmp_path)) is Linear


class Rule:
    def __call__(self):
        pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nn.Linear(1, 1), r"'options' is a torch.nn.modules.linear.Linear, and no Block; wrap it"),
        ({"audio": nn.Linear(1, 1)}, r"'options/audio' is a torch.nn.modules.linear.Linear, and no Block"),
        ([print], r"'options/0' is a builtins.builtin_function_or_method, which is code; give it an argument of its own"),
        (torch.float32, r"'options' is a torch.dtype.*accepted: None, bool"),
        ({1: 2}, r"'options' has the key 1; accepted: str"),
        (float("inf"), r"'options' is a builtins.float: inf"),
        (torch.ones(1), r"'options' is a torch.Tensor"),
    ],
)
def test_arguments_that_cannot_be_written(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        Linear(dim=2, options=value).save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", ".", "..", "../up", "a/b", ".hidden", "a\\b"])
def test_keys_that_cannot_name_a_folder(tmp_path, key):
    model = Linear(dim=2, options={key: Linear(dim=2)})
    model.child = model.config["options"][key]
    with pytest.raises(ValueError, match="cannot name a folder"):
        model.save_pretrained(tmp_path / "new")


@pytest.mark.parametrize("key", ["_block", "_code"])
def test_keys_that_config_json_keeps(tmp_path, key):
    with pytest.raises(ValueError, match="keeps for itself"):
        Linear(dim=2, options={key: "trunk"}).save_pretrained(tmp_path / "new")


@pytest.mark.parametrize(
    ("code", "name"), [(partial(print, "x"), "functools.partial"), (Rule(), "Rule"), (print, "builtins.print")]
)
def test_code_is_noted_and_handed_in_again(tmp_path, code, name):
    Linear(dim=2, options=code).save_pretrained(tmp_path)
    assert name in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=rf"'options' of Linear is code \(.*{name}\).*from_pretrained\(.*, options=\.\.\.\)"):
        Linear.from_pretrained(tmp_path)
    assert Linear.from_pretrained(tmp_path, options=code).config["options"] is code


def test_part_that_was_replaced_unseen(tmp_path):
    class Hidden(Block):
        def __init__(self, *, part):
            super().__init__()
            self.renamed = part

    block = Hidden(part=Linear(dim=2))
    block.renamed = Linear(dim=2)
    with pytest.raises(ValueError, match=r"the Linear it was given as 'part' is not in it any more.*self\.part"):
        block.save_pretrained(tmp_path / "new")


def test_tensors_without_values_are_not_saved(tmp_path):
    with torch.device("meta"):
        block = Linear(dim=2)
    with pytest.raises(ValueError, match="weight is on the meta device"):
        block.save_pretrained(tmp_path / "new")


def test_what_a_block_does_with_files_is_listed() -> None:
    """Files may name methods of parts (golden numbers), but none of these."""
    own = {name for name in vars(Block) if not name.startswith("_")} - {"layouts", "origin", "former"}
    assert own == set(configurable.ABOUT_FILES)
