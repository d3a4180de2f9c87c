"""Layouts in both directions, and loading published folders through them."""

import json
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import check_model
from mmblocks.checkpoints.layouts.transforms import Transform, transforms


class Layer(nn.Module):
    def __init__(self, dim: int, kv_dim: int):
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, kv_dim)
        self.value = nn.Linear(dim, kv_dim)
        self.point = nn.Linear(dim, dim, bias=False)


def _config(published):
    check_model(published, "toy")
    return {"dim": published["hidden_size"], "kv_dim": published["kv_size"], "num_layers": published["num_hidden_layers"]}


def _published_config(arguments):
    return {
        "hidden_size": arguments["dim"],
        "kv_size": arguments["kv_dim"],
        "num_hidden_layers": arguments["num_layers"],
    }


REST = (
    Rule("model.layers.{}.conv.weight", "layers.{}.point.weight", "squeeze_1x1"),
    Rule("model.norm.*", "norm.*"),
)
IGNORED = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.{}.rotary.inv_freq")

SEPARATE = Layout(
    name="separate",
    rules=(
        Rule("model.layers.{}.q_proj.*", "layers.{}.query.*"),
        Rule("model.layers.{}.k_proj.*", "layers.{}.key.*"),
        Rule("model.layers.{}.v_proj.*", "layers.{}.value.*"),
        *REST,
    ),
    ignored=IGNORED,
    config=_config,
    published_config=_published_config,
)
FUSED = Layout(
    name="fused",
    rules=(
        Split(
            "model.layers.{}.qkv.*",
            ("layers.{}.query.*", "layers.{}.key.*", "layers.{}.value.*"),
            sizes=lambda arguments: (arguments["dim"], arguments["kv_dim"], arguments["kv_dim"]),
        ),
        *REST,
    ),
    ignored=IGNORED,
    config=_config,
    unwrap="state_dict",
)


class Toy(Block):
    layouts: ClassVar[tuple[Layout, ...]] = (SEPARATE, FUSED)

    def __init__(self, *, dim: int, kv_dim: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, kv_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)


CONFIG = {"hidden_size": 4, "kv_size": 2, "num_hidden_layers": 2, "model_type": "toy"}


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Toy(dim=4, kv_dim=2, num_layers=2).eval()


def published(block: Block, layout: Layout) -> dict[str, torch.Tensor]:
    """The block as a published checkpoint, other parts' tensors included."""
    state = {key: tensor.contiguous() for key, tensor in layout.convert(block.state_dict(), block.config, to="theirs")}
    return state | {"lm_head.weight": torch.ones(9, 4), "model.layers.1.rotary.inv_freq": torch.ones(2)}


def write(folder, state, config=CONFIG):
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")


def same(block: Block, other: Block) -> bool:
    state, others = block.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(tensor, others[key]) for key, tensor in state.items())


def shapes(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_names_in_both_directions():
    assert SEPARATE.to_ours("model.layers.31.k_proj.bias") == ("layers.31.key.bias",)
    assert SEPARATE.to_theirs("layers.31.key.bias") == ("model.layers.31.k_proj.bias",)
    assert FUSED.to_ours("model.layers.3.qkv.weight") == tuple(f"layers.3.{part}.weight" for part in ("query", "key", "value"))
    assert FUSED.to_theirs("layers.3.key.weight") == ("model.layers.3.qkv.weight",)
    assert SEPARATE.to_ours("lm_head.weight") == ()
    assert SEPARATE.to_ours("model.layers.0.rotary.inv_freq") == ()
    for unknown in ("lm_head.weight2", "xmodel.norm.weight", "model.layers.x.k_proj.bias", "model.layers.0.rotary.freqs"):
        assert SEPARATE.to_ours(unknown) is None
    assert SEPARATE.to_theirs("layers.0.gate.weight") is None


def test_pattern_that_spells_out_more_wins():
    around = Layout("around", (Rule("model.visual.*", "*"),), ignored=("model.*",))
    inside = Layout("inside", (Rule("visual.*", "*"),), ignored=("visual.rope.*",))
    assert around.to_ours("model.visual.norm.weight") == ("norm.weight",)
    assert around.to_ours("model.layers.0.weight") == ()
    assert inside.to_ours("visual.norm.weight") == ("norm.weight",)
    assert inside.to_ours("visual.rope.freqs") == ()


def test_first_rule_that_fits_is_used():
    layout = Layout("x", (Rule("a.{}.norm.weight", "norms.{}.weight"), Rule("a.*", "rest.*")))
    assert layout.to_ours("a.3.norm.weight") == ("norms.3.weight",)
    assert layout.to_ours("a.3.norm.bias") == ("rest.3.norm.bias",)


@pytest.mark.parametrize("layout", [SEPARATE, FUSED], ids=lambda layout: layout.name)
def test_state_in_both_directions(block, layout):
    theirs = published(block, layout)
    assert theirs["model.layers.0.conv.weight"].shape == (4, 4, 1, 1)
    back = dict(layout.convert(theirs, block.config))
    assert back.keys() == block.state_dict().keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in block.state_dict().items())


def test_fused_tensor_holds_the_parts_one_below_the_other(block):
    fused = published(block, FUSED)["model.layers.1.qkv.weight"]
    layer = block.layers[1]
    assert torch.equal(fused, torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))


def test_interleaved_split():
    """Two heads, each with two rows of a and one of b."""
    rule = Split("f", ("a", "b"), sizes=lambda arguments: (4, 2), num_groups=lambda arguments: arguments["num_heads"])
    layout = Layout("x", (rule,))
    fused = torch.tensor([[0], [1], [10], [2], [3], [11]])
    ours = dict(layout.convert({"f": fused}, {"num_heads": 2}))
    assert ours["a"].flatten().tolist() == [0, 1, 2, 3]
    assert ours["b"].flatten().tolist() == [10, 11]
    assert torch.equal(dict(layout.convert(ours, {"num_heads": 2}, to="theirs"))["f"], fused)
    with pytest.raises(ValueError, match=r"parts of \(4, 2\) rows cannot be divided into 4 groups"):
        dict(layout.convert({"f": fused}, {"num_heads": 4}))


def test_split_into_equal_parts():
    layout = Layout("x", (Split("f", ("a", "b")),))
    assert {key: tensor.tolist() for key, tensor in layout.convert({"f": torch.arange(4)}, {})} == {"a": [0, 1], "b": [2, 3]}
    with pytest.raises(ValueError, match=r"5 rows cannot be split into 2 parts of \(2, 2\)"):
        dict(layout.convert({"f": torch.arange(5)}, {}))


def test_split_lacks_a_part(block):
    state = block.state_dict()
    del state["layers.1.key.weight"]
    with pytest.raises(
        ValueError, match=r"'fused': layers\.1\.query\.weight, layers\.1\.value\.weight without layers\.1\.key\.weight"
    ):
        FUSED.sources(state, block.config, to="theirs")


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("same", (2, 3), (2, 3)),
        ("transpose", (2, 3), (3, 2)),
        ("squeeze_1", (2, 3, 1), (2, 3)),
        ("squeeze_1x1", (2, 3, 1, 1), (2, 3)),
        ("squeeze_1x1x1", (2, 3, 1, 1, 1), (2, 3)),
    ],
)
def test_transforms_undo_themselves(name, theirs, ours):
    tensor = torch.arange(6.0).reshape(theirs)
    changed = transforms[name].forward(tensor)
    assert changed.shape == ours
    assert torch.equal(transforms[name].backward(changed), tensor)
    assert transforms[name].forward(tensor.to("meta")).shape == ours


@pytest.mark.parametrize(("name", "shape"), [("squeeze_1x1", (2, 3, 3, 3)), ("squeeze_1x1", (2, 3)), ("transpose", (2, 3, 1))])
def test_transforms_refuse_other_shapes(name, shape):
    with pytest.raises(ValueError, match=r"but got \(2, 3"):
        transforms[name].forward(torch.ones(shape))


def test_new_transform(monkeypatch):
    monkeypatch.setitem(transforms, "flip", Transform(lambda tensor: tensor.flip(0), lambda tensor: tensor.flip(0)))
    layout = Layout("x", (Rule("a", "b", "flip"),))
    assert dict(layout.convert({"a": torch.arange(3)}, {}))["b"].tolist() == [2, 1, 0]


def test_a_placeholder_may_stand_for_a_name():
    layout = Layout("x", (Rule("time.{name}.mlp.{}.*", "heads.{name}.time.{}.*"),))
    assert layout.to_ours("time.my_image.mlp.2.weight") == ("heads.my_image.time.2.weight",)
    assert layout.to_theirs("heads.caption.time.0.bias") == ("time.caption.mlp.0.bias",)
    assert layout.to_ours("time.an.image.mlp.2.weight") is None


def test_tables_that_make_no_sense():
    for theirs, ours in (("a.{}", "b"), ("a.{}.*", "b.{}"), ("a.*", "b.{}")):
        with pytest.raises(ValueError, match="do not have the same placeholders"):
            Rule(theirs, ours)
        with pytest.raises(ValueError, match="do not have the same placeholders"):
            Split(theirs, (theirs, ours))
    with pytest.raises(ValueError, match=r"transform is 'turn'; accepted: same, transpose"):
        Rule("a", "b", "turn")
    with pytest.raises(ValueError, match="can only be the end"):
        Rule("*.a", "*.b")
    with pytest.raises(ValueError, match="can only be the end"):
        Layout("x", (), ignored=("*.inv_freq",))


def test_two_tensors_onto_one():
    layout = Layout("x", (Rule("a", "c"), Rule("b", "c")))
    with pytest.raises(ValueError, match="layout 'x': a, b all map onto c"):
        layout.sources(["a", "b"], {})


@pytest.mark.parametrize("layout", [SEPARATE, FUSED], ids=lambda layout: layout.name)
def test_check_covers_both_directions(block, layout):
    manifest = shapes(published(block, layout))
    with torch.device("meta"):
        empty = Toy(**_config(CONFIG))
    assert not layout.check(manifest, empty)
    assert not layout.check_back(manifest, empty)


def test_check_names_what_is_wrong(block):
    manifest = shapes(published(block, SEPARATE))
    del manifest["model.layers.1.q_proj.bias"]
    manifest |= {"model.norm.scale": (4,), "norm.weight": (4,), "model.layers.0.k_proj.weight": (4, 4)}
    manifest["model.layers.1.conv.weight"] = (4, 4, 3, 3)
    difference = SEPARATE.check(manifest, block)
    assert difference.missing == {"layers.1.query.bias": (4,)}
    assert difference.unexpected == {"norm.scale": (4,), "norm.weight": (4,)}
    assert difference.misshapen == {
        "layers.0.key.weight": ((4, 4), (2, 4)),
        "layers.1.point.weight": ("expected a kernel of size one, but got (4, 4, 3, 3)", (4, 4)),
    }
    back = SEPARATE.check_back(manifest, block)
    assert back.missing == {"model.norm.scale": (4,), "norm.weight": (4,)}
    assert back.unexpected == {"model.layers.1.q_proj.bias": (4,)}
    assert back.misshapen == {
        "model.layers.0.k_proj.weight": ((2, 4), (4, 4)),
        "model.layers.1.conv.weight": ((4, 4, 1, 1), (4, 4, 3, 3)),
    }


def test_check_back_names_tensors_without_a_rule(block):
    block.extra = nn.Parameter(torch.ones(3))
    manifest = shapes(published(block, SEPARATE))
    assert SEPARATE.check_back(manifest, block).unexpected == {"extra": (3,)}
    assert SEPARATE.check(manifest, block).missing == {"extra": (3,)}


@pytest.mark.parametrize("layout", [SEPARATE, FUSED], ids=lambda layout: layout.name)
def test_published_folder(block, tmp_path, layout):
    write(tmp_path, published(block, layout))
    loaded = Toy.from_pretrained(tmp_path)
    assert same(block, loaded)
    assert loaded.config == {"dim": 4, "kv_dim": 2, "num_layers": 2}
    assert not loaded.training
    for parameter in loaded.parameters():  # a piece of a larger tensor would keep all of it alive
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.is_contiguous()
    assert SEPARATE.published_config(loaded.config) == {key: CONFIG[key] for key in list(CONFIG)[:3]}
    loaded.save_pretrained(tmp_path)
    assert same(block, Block.from_pretrained(tmp_path))


def test_published_folder_in_shards(block, tmp_path):
    weight_map = {}
    for number, (key, tensor) in enumerate(published(block, FUSED).items()):
        weight_map[key] = f"part-{number}.safetensors"
        save_file({key: tensor}, tmp_path / weight_map[key])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert same(block, Toy.from_pretrained(tmp_path, layout="fused"))


def test_published_pickles(block, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(published(block, SEPARATE), tmp_path / "pytorch_model.bin")
    assert same(block, Toy.from_pretrained(tmp_path))
    torch.save({"state_dict": published(block, FUSED), "epoch": 3}, tmp_path / "pytorch_model.bin")
    assert same(block, Toy.from_pretrained(tmp_path))


def test_published_file_without_a_config(block, tmp_path):
    class Bare(Toy):
        layouts = (Layout("bare", SEPARATE.rules, IGNORED),)

        def __init__(self, *, dim: int, kv_dim: int, num_layers: int):
            super().__init__(dim=dim, kv_dim=kv_dim, num_layers=num_layers)

    torch.save(published(block, SEPARATE), tmp_path / "toy.pt")
    assert same(block, Bare.from_pretrained(tmp_path / "toy.pt", **block.config))
    with pytest.raises(ValueError, match=r"layout 'bare' of Bare: missing argument 'kv_dim', 'num_layers'"):
        Bare.from_pretrained(tmp_path, dim=4)


def test_dtype_of_published_tensors(block, tmp_path):
    write(tmp_path, {key: tensor.to(torch.float16) for key, tensor in published(block, FUSED).items()})
    assert {p.dtype for p in Toy.from_pretrained(tmp_path).parameters()} == {torch.float16}
    assert {p.dtype for p in Toy.from_pretrained(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_no_layout_fits(block, tmp_path):
    state = published(block, SEPARATE)
    state["model.gate.weight"] = torch.ones(1)
    write(tmp_path, state)
    with pytest.raises(ValueError, match=r"fits no layout of Toy \(separate, fused\)") as error:
        Toy.from_pretrained(tmp_path)
    assert "layout 'separate': unexpected (1):\n  model.gate.weight: (1,)\n" in str(error.value)
    assert "model.layers.{0..1}.k_proj.weight (2): (2, 4)" in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)in the layout 'separate' does not match:.*model\.gate\.weight"):
        Toy.from_pretrained(tmp_path, layout="separate")
    with pytest.raises(ValueError, match="layout is 'seperate'; Toy has: separate, fused"):
        Toy.from_pretrained(tmp_path, layout="seperate")


class Many(Block):
    """Layouts that differ by a prefix."""

    layouts: ClassVar[tuple[Layout, ...]] = tuple(Layout(name, (Rule(f"{name}.*", "*"),)) for name in ("a", "b", "c"))

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


def test_the_nearest_layouts_come_first_and_in_full(tmp_path):
    state = {f"c.{key}": value for key, value in Many().state_dict().items()}
    write(tmp_path, {**state, "c.third": torch.ones(1), "b.third": torch.ones(1)}, {})
    with pytest.raises(ValueError, match=r"fits no layout of Many \(a, b, c\)") as error:
        Many.from_pretrained(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["layout 'c': unexpected (1):", "  b.third: (1,)"]
    assert lines[3].startswith("layout 'b': unexpected (5):")
    assert lines[-1] == "layout 'a': unexpected (6)"


def test_foreign_tensors_or_config(block, tmp_path):
    write(tmp_path, {"lm_head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"layout 'fused': none of its tensors is there"):
        Toy.from_pretrained(tmp_path)
    write(tmp_path, published(block, SEPARATE), {"hidden_size": 4})
    with pytest.raises(ValueError, match=r"layout 'separate': its config does not fit: KeyError: 'kv_size'"):
        Toy.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layout 'separate' of Toy: the published config lacks 'kv_size'"):
        Toy.from_pretrained(tmp_path, layout="separate")
    with pytest.raises(ValueError, match=r"from_pretrained of Toy: unknown argument 'depth'; accepted: dim"):
        Toy.from_pretrained(tmp_path, depth=3)
    with pytest.raises(ValueError, match=r"was not written by save_pretrained, and Block has no layouts"):
        Block.from_pretrained(tmp_path)


def test_config_of_diffusers_is_not_ours(block, tmp_path):
    write(tmp_path, published(block, SEPARATE), CONFIG | {"_diffusers_version": "0.36"})
    assert same(block, Toy.from_pretrained(tmp_path))


_OTHERS = ("hidden_size", "kv_size", "num_hidden_layers", "model_type")


class Normed(Block):
    """Two layouts that know the same names; the config or the tensors decide."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("plain", (Rule("w", "weight"), Rule("n", "norm")), config=lambda published: {"norm": False}, harmless=_OTHERS),
        Layout("normed", (Rule("w", "weight"), Rule("n", "norm")), config=lambda published: {"norm": True}, harmless=_OTHERS),
    )

    def __init__(self, *, norm: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm = nn.Parameter(torch.ones(2)) if norm else None


def test_several_layouts_fit_by_name(tmp_path):
    write(tmp_path, {"w": torch.ones(2)})
    assert Normed.from_pretrained(tmp_path).config == {"norm": False}
    write(tmp_path, {"w": torch.ones(2), "n": torch.ones(2)})
    assert Normed.from_pretrained(tmp_path).config == {"norm": True}
    with pytest.raises(ValueError, match="fits several layouts of Normed: plain, normed; choose one"):
        Normed.from_pretrained(tmp_path, norm=True)
    write(tmp_path, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"(?s)fits no layout of Normed\nlayout 'plain':\nmisshapen.*layout 'normed':\nmissing"):
        Normed.from_pretrained(tmp_path)


class Tied(Block):
    """Published files may hold a tensor that has two names once or twice."""

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("tied", (Rule("embed", "embed"), Rule("head", "head"))),)

    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.ones(2))
        self.head = self.embed


@pytest.mark.parametrize("names", [["embed"], ["head"], ["embed", "head"]])
def test_shared_tensor_in_a_published_file(tmp_path, names):
    write(tmp_path, {name: torch.full((2,), 5.0) for name in names}, None)
    loaded = Tied.from_pretrained(tmp_path)
    assert loaded.head is loaded.embed
    assert loaded.head.tolist() == [5, 5]
    (layout,) = Tied.layouts
    assert not layout.check(dict.fromkeys(names, (2,)), loaded)
    assert not layout.check_back(dict.fromkeys(names, (2,)), loaded)


def test_shared_tensor_with_two_values(tmp_path):
    write(tmp_path, {"embed": torch.ones(2), "head": torch.zeros(2)}, None)
    with pytest.raises(ValueError, match="head shares its tensor with another name, but the files hold two different ones"):
        Tied.from_pretrained(tmp_path)


class Ramp(Block):
    """A scale, next to which its published files hold the ramp that is scaled."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ramp",
            (Rule("model.scale", "scale"),),
            derived=(Derived("model.ramp.{}", lambda table, arguments: _ramp_difference(table, arguments["size"])),),
            config=lambda published: {"size": published["size"]},
        ),
    )

    def __init__(self, *, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def _ramp_difference(table: torch.Tensor, size: int) -> float:
    if len(table) != size:
        raise ValueError(f"{len(table)} numbers; accepted: {size}")
    return float((table - torch.arange(size)).abs().max())


def test_tensors_that_follow_from_the_config_are_compared(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"size": 4}))

    def load(ramp: torch.Tensor) -> Ramp:
        save_file({"model.scale": torch.tensor(2.0), "model.ramp.0": ramp}, tmp_path / "model.safetensors")
        return Ramp.from_pretrained(tmp_path)

    assert load(torch.arange(4.0)).scale == 2 and load(torch.arange(4.0) + 5e-5).scale == 2
    assert load((torch.arange(4.0) * 1.0001).half()).scale == 2
    with pytest.raises(ValueError, match=r"model.ramp.0 differs by up to 0.3 from what follows from the config"):
        load(torch.arange(4.0) * 1.1)
    with pytest.raises(ValueError, match=r"model\.ramp\.0 is not what follows from the config: 3 numbers; accepted: 4"):
        load(torch.arange(3.0))
    with pytest.raises(ValueError, match="differs by up to nan"):
        load(torch.tensor([0.0, torch.nan, 2.0, 3.0]))


class Echo(Block):
    """A head that published files may hold under the embedding's name too."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("echo", (Rule("embed", "head"),), ignored=("head",), same=(("embed", "head"),)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.ones(2))


def test_two_names_of_one_tensor_are_compared(tmp_path) -> None:
    for names in (["embed"], ["embed", "head"]):
        write(tmp_path, {name: torch.full((2,), 5.0) for name in names}, None)
        assert Echo.from_pretrained(tmp_path).head.tolist() == [5, 5]
    write(tmp_path, {"embed": torch.ones(2), "head": torch.zeros(2)}, None)
    with pytest.raises(ValueError, match="in the layout 'echo': embed and head differ; accepted: one tensor under two names"):
        Echo.from_pretrained(tmp_path)


def test_in_shards_what_follows_is_compared_where_a_file_is_read_anyway(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"size": 4}))
    shards = {"model.scale": "a.safetensors", "model.ramp.0": "a.safetensors", "model.ramp.1": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    save_file({"model.scale": torch.tensor(2.0), "model.ramp.0": torch.arange(4.0)}, tmp_path / "a.safetensors")
    assert Ramp.from_pretrained(tmp_path).scale == 2  # the other shard need not be there
    save_file({"model.scale": torch.tensor(2.0), "model.ramp.0": torch.zeros(4)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"model.ramp.0 differs by up to 3"):
        Ramp.from_pretrained(tmp_path)
