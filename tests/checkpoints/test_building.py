"""Arguments from a file are compared with the constructor's annotations before anything is built."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks import Decoder
from mmblocks.block import Block
from mmblocks.checkpoints.building import check_types
from mmblocks.checkpoints.layouts.layout import Layout, Rule

T = TypeVar("T")
NUMBERS = [float("inf"), float("nan")]


class Typed(Block):
    """Takes what JSON can say."""

    layouts = (
        Layout(
            name="foreign",
            rules=(Rule("w", "linear.weight"),),
            config=lambda published: {**published, "size": int(published["size"])},
        ),
    )
    built = 0

    def __init__(
        self,
        *,
        size: int = 2,
        rate: float = 0.5,
        on: bool = False,
        name: str = "a",
        kind: Literal["l2", "dot", 3] = "l2",
        sides: tuple[int, ...] = (),
        pair: tuple[int, float] = (1, 2.0),
        maybe: int | None = None,
        scales: tuple[int | Sequence[int], ...] = (),
        names: Sequence[str] = (),
        parts: dict[str, Block] | None = None,
        options: Mapping[str, float] | None = None,
        part: nn.Module | None = None,
        noted: Annotated[int, "of something"] = 1,
        rule: Callable[[int], int] | None = None,
        free: Any = None,
        unknown: T | None = None,
        bare=None,
    ) -> None:
        super().__init__()
        type(self).built += 1
        self.part = part
        self.linear = nn.Linear(2, 2, bias=False)


WRONG = [
    ("size", "2", "an? ?int|int"),
    ("size", 2.0, "int"),
    ("size", True, "int"),
    ("size", None, "int"),
    ("size", 2**63, "an int of 64 bits"),
    ("rate", "0.5", "float"),
    ("rate", False, "float"),
    ("rate", 10**400, "an int of 64 bits"),
    *[("rate", number, "a finite number") for number in NUMBERS],
    ("on", 1, "bool"),
    ("name", 3, "str"),
    ("kind", "cosine", "'l2', 'dot', 3"),
    ("kind", 3.0, "'l2', 'dot', 3"),
    ("sides", 3, r"tuple\[int, \.\.\.\]"),
    ("sides", "34", r"tuple\[int, \.\.\.\]"),
    ("pair", [1], r"tuple\[int, float\]"),
    ("maybe", "1", "int or None"),
    ("names", "ab", r"Sequence\[str\]"),
    ("options", ["a"], r"Mapping\[str, float\] or None"),
    ("part", {"a": 1}, "Module or None"),
    ("noted", "1", "int"),
    ("rule", 3, r"Callable\[\[int\], int\] or None"),
]
INSIDE = [
    ("sides", [1, "2"], "sides[1] is '2'; accepted: int"),
    ("pair", [1, None], "pair[1] is None; accepted: float"),
    ("scales", [1, [2, "3"]], "scales[1][1] is '3'; accepted: int"),
    ("scales", [1, "3"], "scales[1] is '3'; accepted: int or Sequence[int]"),
    ("options", {"a": 1, "b": "c"}, "options['b'] is 'c'; accepted: float"),
    ("parts", {"a": 3}, "parts['a'] is 3; accepted: Block"),
    ("free", {"a": [1, float("inf")]}, "free['a'][1] is inf; accepted: a finite number"),
    ("bare", float("-inf"), "bare is -inf; accepted: a finite number"),
]
RIGHT = [
    ("size", 7),
    ("rate", 1),
    ("rate", 1e300),
    ("on", True),
    ("name", ""),
    ("kind", 3),
    ("sides", [1, 2]),
    ("pair", (1, 2)),
    ("maybe", None),
    ("maybe", 5),
    ("scales", [1, [2, 3]]),
    ("names", ["a"]),
    ("options", {"a": 1}),
    ("options", None),
    ("free", {"a": [None, "b"]}),
    ("unknown", "x"),
    ("bare", [1, {"a": 2}]),
    ("noted", 4),
]


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_what_is_not_as_annotated_is_refused(name, value, accepted) -> None:
    with pytest.raises(ValueError, match=rf"config\.json of Typed: {name} is .*; accepted: ({accepted})$"):
        check_types(Typed, {name: value}, "config.json")


@pytest.mark.parametrize(("name", "value", "message"), INSIDE)
def test_the_place_inside_is_named(name, value, message) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"config.json of Typed: {message}") + "$"):
        check_types(Typed, {name: value}, "config.json")


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_what_is_as_annotated_or_not_annotated_passes(name, value) -> None:
    check_types(Typed, {name: value}, "config.json")


def test_annotations_that_cannot_be_evaluated_and_loose_defaults_pass() -> None:
    class Strange(Block):
        def __init__(
            self,
            *,
            size: "Nowhere" = 3,
            optional: int = None,  # noqa: RUF013
            many: "list[Nowhere]" = (),
            count: "int" = 1,
        ) -> None:
            super().__init__()

    check_types(Strange, {"size": "a", "optional": None, "many": [1], "count": 2}, "config.json")
    with pytest.raises(ValueError, match=r"of Strange: count is '2'; accepted: int"):  # which its neighbours do not switch off
        check_types(Strange, {"size": "a", "count": "2"}, "config.json")
    check_types(Typed, {"maybe": None}, "config.json")


class Loose(Block):
    def __init__(self, *, size: int = None) -> None:  # noqa: RUF013
        super().__init__()


def test_a_default_that_its_annotation_denies_passes() -> None:
    check_types(Loose, {"size": None}, "config.json")
    with pytest.raises(ValueError, match="size is 'a'"):
        check_types(Loose, {"size": "a"}, "config.json")


@pytest.mark.parametrize(
    ("text", "message"), [('"0.5"', "rate is '0.5'; accepted: float"), ("1e400", "rate is inf; accepted: a finite number")]
)
def test_a_folder_of_our_own(tmp_path, text, message) -> None:
    Typed().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"rate": 0.5', f'"rate": {text}'))
    Typed.built = 0
    with pytest.raises(ValueError, match=f"^config.json of Typed: {message}$"):
        Typed.from_pretrained(tmp_path)
    assert Typed.built == 0
    assert Typed.from_pretrained(tmp_path, rate=0.25).config["rate"] == 0.25


def test_a_part_in_a_subfolder_is_named(tmp_path) -> None:
    Typed(part=Typed()).save_pretrained(tmp_path)
    file = tmp_path / "part" / "config.json"
    file.write_text(file.read_text().replace('"size": 2', '"size": "2"'))
    with pytest.raises(ValueError, match=r"^part/config\.json of Typed: size is '2'; accepted: int$"):
        Typed.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"size": 2, "rate": "fast"}, "layout 'foreign' of Typed: rate is 'fast'; accepted: float"),
        ({"size": 2, "rate": float("inf")}, "rate is inf; accepted: a finite number"),
        ({"size": 2, "sides": 3}, r"sides is 3; accepted: tuple\[int, ...\]"),
        ({"size": float("inf")}, "layout 'foreign': its config does not fit: OverflowError: cannot convert float infinity"),
    ],
)
def test_a_published_folder(tmp_path, published, message) -> None:
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published))
    with pytest.raises(ValueError, match=message):
        Typed.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", ["1e400", '"12"', "12.5", "true", "[12]", "1" + "0" * 400])
@pytest.mark.parametrize("name", ["dim", "num_layers", "num_heads", "mlp_dim"])
def test_a_trunk_of_the_library(tmp_path, name, value) -> None:
    Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=8).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    file.write_text(file.read_text().replace(f'"{name}": {content[name]}', f'"{name}": {value}'))
    with pytest.raises(ValueError, match=rf"^config\.json of Decoder: {name} is .*; accepted: "):
        Decoder.from_pretrained(tmp_path)
