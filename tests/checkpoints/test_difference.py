"""Differences that can be read."""

import pytest

from mmblocks.checkpoints.layouts.difference import Difference, compare, group


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ([f"layers.{i}.weight" for i in range(32)], ["layers.{0..31}.weight (32): x"]),
        (["a.0.b", "a.1.b", "a.2.b", "a.7.b"], ["a.{0..2,7}.b (4): x"]),
        ([f"a.{i}.{j}" for i in range(3) for j in (5,)], ["a.{0..2}.5 (3): x"]),
        ([f"{i}.a.{j}" for i in range(2) for j in range(2)], ["{0..1}.a.{0..1} (4): x"]),
        (["conv1.weight", "conv2.weight"], ["conv1.weight: x", "conv2.weight: x"]),
        (["a.3.b"], ["a.3.b: x"]),
    ],
)
def test_keys_that_differ_in_indices_are_grouped(keys, lines):
    assert group(dict.fromkeys(keys, "x")) == lines


def test_other_shapes_are_other_groups():
    assert group({"a.0": "(1,)", "a.1": "(2,)", "a.2": "(1,)"}) == ["a.{0,2} (2): (1,)", "a.1: (2,)"]


def test_compare():
    difference = compare({"a": (1,), "b": (2,), "c": (3,)}, {"b": (2,), "c": (4,), "d": (5,), "e": "a reason"})
    assert difference == Difference({"a": (1,)}, {"d": (5,), "e": "a reason"}, {"c": ((4,), (3,))})
    assert difference
    assert not compare({"a": (1,)}, {"a": (1,)})


def test_text():
    difference = compare({"a": (1,), "c": (3,)}, {"c": (4,), "d": (5,)})
    assert str(difference).splitlines() == [
        "missing (1):",
        "  a: (1,)",
        "unexpected (1):",
        "  d: (5,)",
        "misshapen (1):",
        "  c: found (4,), expected (3,)",
    ]


def test_long_lists_are_cut():
    lines = str(compare({f"name{i}x.weight": (1,) for i in range(15)}, {})).splitlines()
    assert len(lines) == 12
    assert lines[0] == "missing (15):"
    assert lines[-1] == "  ... and 5 more groups"
