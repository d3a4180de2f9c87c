"""Descriptions of parts: values, in config.json and out of it; and a constructor whose arguments have a shorthand."""

import copy
import inspect
import json
import pickle
import pydoc
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from mmblocks import Block, Decoder, TokenTable
from mmblocks.configurable import Description, parameters
from mmblocks.support.pickling import weightless
from mmblocks.trunks import Attention, GatedMLP, Layer, MoEDecoder, Norm, Part, Rotary, RoutedDecoder, llama_layer
from mmblocks.trunks.llama import LlamaArguments

ME = __name__


class Shape(Description):
    """A description for a Block that knows nothing of trunks."""

    size: int
    sides: tuple[int, ...] = ()
    note: str | None = None
    options: dict[str, Any] | None = None
    inner: "Shape | None" = None

    def check(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; accepted: 1 or more")


class Holder(Block):
    """Descriptions alone, in a list, in a dict."""

    def __init__(self, *, shape: Shape, more: tuple[Shape, ...] = (), named: dict[str, Shape] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape.size))


class HeldByDescription(Part):
    inner: Any = None

    def build(self, site):
        return nn.Identity()


LAYER = Layer(mixer=Attention(num_heads=2, rotary=Rotary(theta=50.0)), feed_forward=GatedMLP(hidden_dim=12))
KINDS = {"a": LAYER, "b": replace(LAYER, parallel=True)}
LLAMA = {"num_heads": 2, "mlp_dim": 12}
FORMS: dict[str, dict[str, Any]] = {
    "shorthand": {**LLAMA, "rope_theta": 50.0},
    "one kind": {"layers": LAYER},
    "kinds": {"layers": KINDS, "layer_types": ("a", "b"), "norm": Norm(kind="layer")},
}


def decoder(**options: Any) -> Decoder:
    return Decoder(dim=8, num_layers=2, **options).eval()


def saved(block: Block, folder: Path, edit: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    """The Block in a folder, whose config has been edited by hand."""
    block.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_description_is_a_value() -> None:
    sides, options = [1, 2], {"steps": [1, [2]]}
    shape = Shape(size=2, sides=sides, options=options)
    sides.append(3)
    options["steps"].append(3)
    assert shape == Shape(size=2, sides=(1, 2), options={"steps": (1, (2,))})
    assert shape != replace(shape, size=3)
    assert (shape.sides, shape.options) == ((1, 2), {"steps": (1, (2,))})
    assert list(shape.entries()) == ["size", "sides", "note", "options", "inner"]
    assert repr(replace(shape, options=None)) == "Shape(size=2, sides=(1, 2), note=None, options=None, inner=None)"
    with pytest.raises(FrozenInstanceError):
        shape.size = 3
    assert copy.deepcopy(shape) == pickle.loads(pickle.dumps(shape)) == shape
    assert hash(Rotary()) == hash(Rotary())


def test_check_is_called_whenever_one_is_made() -> None:
    with pytest.raises(ValueError, match="size is 0; accepted: 1 or more"):
        Shape(size=0)
    with pytest.raises(ValueError, match="size is -1; accepted: 1 or more"):
        replace(Shape(size=1), size=-1)


def test_fields_have_names_that_config_json_leaves_free() -> None:
    for name in ("_kind", "_block", "_own"):
        with pytest.raises(TypeError, match=f"Wrong has the field '{name}'; accepted: names that begin with a letter"):
            type("Wrong", (Description,), {"__annotations__": {name: int}})


def test_in_config_json_it_is_its_class_and_fields(tmp_path) -> None:
    inner = Shape(size=1, options={"rates": [0.5, None], "deep": {"on": True}})
    holder = Holder(shape=Shape(size=2, sides=[3], inner=inner), more=[inner], named={"x": inner, "y": Shape(size=4)})
    holder.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    plain = {"_kind": f"{ME}.Shape", "size": 1, "sides": [], "note": None, "options": None, "inner": None}
    held = {**plain, "options": {"rates": [0.5, None], "deep": {"on": True}}}
    assert content["shape"] == {**plain, "size": 2, "sides": [3], "inner": held}
    assert content["more"] == [held]
    assert content["named"] == {"x": held, "y": {**plain, "size": 4}}
    again = Block.from_pretrained(tmp_path)
    assert again.config == holder.config
    assert again.config["more"] == (inner,) and type(again.config["named"]["x"]) is Shape


def test_fields_that_a_file_leaves_out_have_their_defaults(tmp_path) -> None:
    """A file that was written before a field was added."""
    folder = saved(Holder(shape=Shape(size=2)), tmp_path, lambda content: content["shape"].pop("sides"))
    assert Holder.from_pretrained(folder).config["shape"] == Shape(size=2)


def _set(**entries: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["shape"].update(entries)


WRONG = {
    "unknown class": (_set(_kind=f"{ME}.Shap"), rf"unknown class '{ME}.Shap' \(did you mean '{ME}.Shape'\?\)"),
    "a class of another name": (_set(_kind="os.path"), "unknown class 'os.path'.*: a config never causes an import"),
    "a Block": (_set(_kind=f"{ME}.Holder"), f"'_kind' is '{ME}.Holder'; accepted: the name of a description"),
    "a public Block": (_set(_kind="Decoder"), "'_kind' is 'Decoder'; accepted: the name of a description"),
    "no name": (_set(_kind=["Shape"]), "unknown class"),
    "unknown field": (_set(sizes=3), "config.json of Shape: unknown argument 'sizes'; did you mean 'size'?"),
    "wrong type": (_set(size="2"), "config.json of Shape: size is '2'; accepted: int"),
    "a bool": (_set(size=True), "config.json of Shape: size is True; accepted: int"),
    "too large": (_set(size=2**70), "config.json of Shape: size is .*; accepted: an int of 64 bits"),
    "no list": (_set(sides=3), r"config.json of Shape: sides is 3; accepted: tuple\[int, ...\]"),
    "in a list": (_set(sides=[1, "2"]), r"config.json of Shape: sides\[1\] is '2'; accepted: int"),
    "another description": (_set(inner={"_kind": "Norm"}), r"config.json of Shape: inner is Norm\(.*; accepted: .*Shape or None"),
    "missing field": (lambda content: content["shape"].pop("size"), "config.json of Shape: missing argument 'size'"),
    "refused by check": (_set(size=0), "size is 0; accepted: 1 or more"),
    "deeper": (_set(inner={"_kind": f"{ME}.Shape", "size": None}), "config.json of Shape: size is None; accepted: int"),
    "no description": (lambda content: content.update(shape={"size": 2}), "config.json of Holder: shape is .*; accepted: Shape"),
    "in a dict": (lambda content: content.update(named={"x": 3}), r"config.json of Holder: named\['x'\] is 3; accepted: Shape"),
}


@pytest.mark.parametrize(("edit", "message"), WRONG.values(), ids=WRONG)
def test_what_a_file_gets_wrong_is_named(tmp_path, edit, message: str) -> None:
    folder = saved(Holder(shape=Shape(size=2)), tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        Block.from_pretrained(folder)


def test_a_folder_holds_no_description(tmp_path) -> None:
    folder = saved(Holder(shape=Shape(size=2)), tmp_path, lambda content: content.update(_class_name=f"{ME}.Shape"))
    with pytest.raises(TypeError, match="holds a Shape, which is not a"):
        Block.from_pretrained(folder)


@pytest.mark.parametrize("depth", [200, 5000])
def test_nesting_without_end_is_refused(tmp_path, depth) -> None:
    folder = saved(Holder(shape=Shape(size=2)), tmp_path)
    deep = f'{{"_kind": "{ME}.Shape", "size": 1, "inner": ' * depth + "null" + "}" * depth
    content = json.loads((folder / "config.json").read_text())
    content["shape"] = "HERE"
    (folder / "config.json").write_text(json.dumps(content).replace('"HERE"', deep))
    with pytest.raises(ValueError, match=r"nested more than|recursion"):
        Block.from_pretrained(folder)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            lambda: decoder(**LLAMA),
            "argument 'layers', a HeldByDescription, holds a Decoder; accepted in a description: JSON values",
        ),
        (lambda: [decoder(**LLAMA)], "argument 'layers', a HeldByDescription, holds a Decoder"),
        (lambda: nn.Linear(2, 2), r"argument 'layers/inner' is a torch.nn.modules.linear.Linear, and no Block"),
        (lambda: len, "argument 'layers/inner' is a builtins.builtin_function_or_method, which is code"),
        (lambda: torch.zeros(1), "argument 'layers/inner' is a torch.Tensor"),
        (lambda: {3: 4}, r"argument 'layers/inner' has the key 3; accepted: str"),
    ],
)
def test_what_json_cannot_hold_is_refused_when_it_is_saved(tmp_path, inner, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        decoder(layers=HeldByDescription(inner=inner())).save_pretrained(tmp_path / "trunk")
    assert not (tmp_path / "trunk").exists()


def test_the_shorthands_arguments_are_those_of_its_function() -> None:
    assert get_type_hints(LlamaArguments) == {name: hint for name, hint in get_type_hints(llama_layer).items() if name != "return"}
    assert decoder(**FORMS["shorthand"]).layers[0].attention.rotary == LAYER.mixer.rotary
    assert llama_layer(**FORMS["shorthand"]) == LAYER


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Decoder, {"layers": LAYER, **LLAMA}, "Decoder is given layers and num_heads, mlp_dim; accepted: layers, or the others"),
        (Decoder, {"layers": KINDS, "qk_norm": False}, "Decoder is given layers and qk_norm; accepted"),
        (Decoder, {}, "Decoder lacks 'num_heads', 'mlp_dim'; accepted: these, or 'layers'$"),
        (Decoder, {"layers": None}, "Decoder lacks 'num_heads', 'mlp_dim'; accepted: these, or 'layers'$"),
        (Decoder, {"num_heads": 2}, "Decoder lacks 'mlp_dim'; accepted: these, or 'layers'$"),
        (Decoder, {"layers": LAYER, "num_layers": None}, "Decoder lacks 'num_layers'; accepted: these$"),
        (Decoder, {**LLAMA, "num_head": 2}, "no argument 'num_head'; did you mean 'num_heads'?.* accepted: dim, num_layers, "),
        (Decoder, {**LLAMA, "experts": 2}, "Decoder has no argument 'experts'; accepted: dim, .*, rope_theta, .*qkv_bias$"),
        (MoEDecoder, {"num_heads": 2, "num_experts": 2}, "MoEDecoder lacks 'mlp_dim'; accepted: these$"),
        (MoEDecoder, {**LLAMA, "num_experts": 2, "layers": LAYER}, "MoEDecoder has no argument 'layers'; .*accepted: dim, "),
        (RoutedDecoder, {"num_heads": 2}, "RoutedDecoder lacks 'mlp_dim'; accepted: these$"),
        (Decoder, {"layers": 3}, "layers has 3; accepted: a description such as Layer"),
        (Decoder, {"layers": [LAYER]}, r"layers has \[Layer\(.*; accepted: a description such as Layer"),
        (Decoder, {"layers": Layer}, "layers has <class .*Layer'>; accepted: a description such as Layer"),
        (Decoder, {"layers": {"a": LAYER, "b": nn.Linear(2, 2)}}, r"layers has Linear\(.*; accepted: a description such as Layer"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together_are_named(cls, options, message: str) -> None:
    given = {name: value for name, value in {"dim": 8, "num_layers": 2, **options}.items() if value is not None or name == "layers"}
    with pytest.raises(TypeError, match=message):
        cls(**given)


@pytest.mark.unchecked
def test_parts_of_a_layer_are_parts() -> None:
    with pytest.raises(TypeError, match="mixer is Attention; accepted: a Part"):
        Layer(mixer=Attention, feed_forward=GatedMLP(hidden_dim=4))
    with pytest.raises(TypeError, match="feed_forward is a Linear; accepted: a Part"):
        Layer(mixer=Attention(num_heads=2), feed_forward=nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match=r"Part does not say how it is built; accepted: a Part with build\(self, site\)"):
        decoder(layers=Part())


def test_help_and_editors_show_every_argument() -> None:
    names = ["dim", "num_layers", "layers", "layer_types", "norm", "embed_scale", "dropout", "route", "positions"]
    signature = inspect.signature(Decoder)
    assert list(signature.parameters) == [*names, *inspect.signature(llama_layer).parameters]
    assert all(each.kind is each.KEYWORD_ONLY for each in signature.parameters.values())
    shown = pydoc.render_doc(Decoder, renderer=pydoc.plaintext)
    assert "num_heads: int, mlp_dim: int" in shown.partition("\n\n")[2].partition("\n |  \n")[0]
    assert list(inspect.signature(MoEDecoder).parameters)[:4] == ["dim", "num_layers", "num_experts", "experts_per_token"]
    assert "num_heads" in inspect.signature(MoEDecoder).parameters
    assert list(inspect.signature(Holder).parameters) == list(parameters(Holder)) == ["shape", "more", "named"]
    assert list(inspect.signature(Shape).parameters) == ["size", "sides", "note", "options", "inner"]
    assert "dim" not in inspect.signature(decoder(**LLAMA)).parameters  # what is called is an instance


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_config_makes_the_same_decoder_again(options, tmp_path) -> None:
    trunk, embeds, table = decoder(**options), torch.randn(1, 5, 8), TokenTable.text(1, 5)
    assert set(options) <= set(trunk.config) <= set(parameters(Decoder))
    assert ("layers" in trunk.config) != ("num_heads" in trunk.config)
    wanted = trunk(embeds, table)
    for again in (Decoder(**trunk.config), copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))):
        again.load_state_dict(trunk.state_dict())
        assert torch.equal(again.eval()(embeds, table), wanted)
        assert again.config == trunk.config and type(again) is Decoder
    trunk.save_pretrained(tmp_path)
    assert Decoder.from_pretrained(tmp_path).config == trunk.config


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_it_goes_to_other_processes_without_its_weights(options) -> None:
    trunk = decoder(**options)
    sent = pickle.dumps(weightless(trunk.new_cache))
    assert len(sent) < len(pickle.dumps(trunk.new_cache))
    there = pickle.loads(sent).__wrapped__.__self__
    assert there.config == trunk.config
    assert [tuple(each.shape) for each in there.parameters()] == [tuple(each.shape) for each in trunk.parameters()]


def test_layers_handed_in_when_loading_take_the_place_of_the_shorthand(tmp_path) -> None:
    """Weights of a published size under attention that is limited later."""
    trunk, embeds, table = decoder(**FORMS["shorthand"]), torch.randn(1, 9, 8), TokenTable.text(1, 9)
    trunk.save_pretrained(tmp_path / "own")
    limited = replace(LAYER, mixer=replace(LAYER.mixer, window=2))
    again = Decoder.from_pretrained(tmp_path / "own", layers=limited)
    assert again.config["layers"] == limited and "num_heads" not in again.config
    assert torch.equal(again.layers[1].mlp.up.weight, trunk.layers[1].mlp.up.weight)
    assert not torch.equal(again(embeds, table), trunk(embeds, table))
    assert torch.equal(Decoder.from_pretrained(tmp_path / "own", layers=LAYER)(embeds, table), trunk(embeds, table))
    again.save_pretrained(tmp_path / "described")
    with pytest.raises(TypeError, match="Decoder is given layers and num_heads"):
        Decoder.from_pretrained(tmp_path / "described", num_heads=2)

    trunk.to_upstream(tmp_path / "published", layout="llama")
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    (tmp_path / "published" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5, "rope_theta": 50.0}))
    published = Decoder.from_pretrained(tmp_path / "published", layout="llama", layers=limited)
    assert torch.equal(published(embeds, table), again(embeds, table))


class Renamed(Decoder):
    """A trunk of one's own that passes the shorthand on."""

    layouts = ()

    def __init__(self, *, extra: int = 3, **llama: Any) -> None:
        super().__init__(dim=8, num_layers=2, **llama)


class Fixed(Decoder):
    """A trunk of one's own that does not."""

    layouts = ()

    def __init__(self, *, size: int) -> None:
        super().__init__(dim=8, num_layers=1, layers=llama_layer(num_heads=2, mlp_dim=size))


def test_classes_of_ones_own_keep_or_leave_the_shorthand(tmp_path) -> None:
    assert list(Renamed(**LLAMA).config)[:3] == ["extra", "num_heads", "mlp_dim"]
    assert Fixed(size=4).config == {"size": 4}
    with pytest.raises(TypeError, match=r"Renamed lacks 'mlp_dim'; accepted: these$"):
        Renamed(num_heads=2)
    with pytest.raises(TypeError, match=r"Fixed.__init__\(\) got an unexpected keyword argument 'num_heads'"):
        Fixed(size=4, num_heads=2)
    for block in (Renamed(**LLAMA), Fixed(size=4)):
        block.save_pretrained(tmp_path)
        assert Block.from_pretrained(tmp_path).config == block.config
