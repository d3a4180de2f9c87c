"""preprocessor_config.json: read whole, beside the weights, and written back."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import preprocessing
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.preprocessing import (
    Preprocessor,
    normalisation,
    published_normalisation,
    shortest_edge,
    square,
)
from mmblocks.checkpoints.layouts.published_config import PublishedConfig, only


def _read(entries, arguments):
    preprocessing.check_processor(entries, "WhaleImageProcessor")
    only(entries, "do_resize", True)
    return {"image_size": shortest_edge(entries, "size", 8 * arguments["dim"]), **normalisation(entries)}


def _written(arguments):
    return {"size": {"shortest_edge": arguments["image_size"]}, **published_normalisation(arguments["mean"], arguments["std"])}


class Whale(Block):
    layouts = (
        Layout(
            "whale",
            (Rule("stem.*", "linear.*"),),
            config=lambda published: {"dim": published["hidden_size"]},
            published_config=lambda ours: {"hidden_size": ours["dim"]},
            preprocessor=Preprocessor(_read, _written, harmless=("do_pad",)),
        ),
    )

    def __init__(self, *, dim: int, image_size: int = 5, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3):
        super().__init__()
        self.linear = nn.Linear(dim, dim)


@pytest.fixture
def folder(tmp_path):
    save_file({"stem.weight": torch.ones(2, 2), "stem.bias": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 2}')
    return tmp_path


def prepared(folder, entries, name=preprocessing.FILE):
    (folder / name).write_text(json.dumps(entries))
    return folder


def test_defaults_where_there_is_no_file(folder):
    assert Whale.from_pretrained(folder).config["image_size"] == 5


def test_entries_become_arguments_unless_they_are_handed_in(folder):
    prepared(folder, {"image_processor_type": "WhaleImageProcessorFast", "size": {"shortest_edge": 7}, "do_pad": True})
    assert Whale.from_pretrained(folder).config["image_size"] == 7
    assert Whale.from_pretrained(folder, image_size=9).config["image_size"] == 9
    assert Whale.from_pretrained(prepared(folder, {})).config["image_size"] == 16  # the processor's own default


def test_newer_files_nest_it(folder):
    prepared(folder, {"size": 7})
    prepared(folder, {"processor_class": "WhaleProcessor"}, preprocessing.NESTED)
    assert Whale.from_pretrained(folder).config["image_size"] == 7
    prepared(folder, {"image_processor": {"size": 8}, "video_processor": {"size": 1}}, preprocessing.NESTED)
    assert Whale.from_pretrained(folder).config["image_size"] == 8
    prepared(folder, {"image_processor": [8]}, preprocessing.NESTED)
    with pytest.raises(ValueError, match=r"image_processor is \[8\]; accepted: an object"):
        Whale.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"my_filter": 3}, "preprocessor_config.json does not know: preprocessor_config.json/my_filter = 3"),
        ({"do_resize": False}, "preprocessor_config.json: do_resize is False; accepted: True"),
        ({"size": {"height": 7, "width": 7}}, "accepted: a number, or equal shortest_edge"),
        ({"size": {"shortest_edge": 7, "longest_edge": 9}}, "accepted: a number, or equal shortest_edge"),
        ({"size": True}, "size is True; accepted: a number, or equal shortest_edge"),
        ({"image_processor_type": "SharkImageProcessor"}, "image_processor_type is 'SharkImageProcessor'; accepted: WhaleImage"),
        ({"image_std": [0.5, 0, 1]}, "image_std is [0.5, 0, 1]; accepted: a number, or three, above zero"),
        ({"image_mean": [0.5]}, "image_mean is [0.5]; accepted: a number, or three"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'; accepted"),
        ({"rescale_factor": 7e305}, "rescale_factor is 7e+305 with image_std"),
        ([1], "holds a list; expected an object"),
    ],
)
def test_what_is_not_followed_is_refused(folder, entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Whale.from_pretrained(prepared(folder, entries))


def test_entries_that_the_caller_leaves_out(folder):
    prepared(folder, {"size": 7, "my_filter": {"window": 3}})
    assert Whale.from_pretrained(folder, ignored_entries=["preprocessor_config.json/my_filter.window"]).config["image_size"] == 7
    assert Whale.from_pretrained(folder, ignored_entries=["preprocessor_config.json"]).config["image_size"] == 5
    with pytest.raises(ValueError, match="ignored_entries names 'my_size'; the config has: size, my_filter"):
        Whale.from_pretrained(folder, ignored_entries=["preprocessor_config.json/my_size"])
    (folder / preprocessing.FILE).unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        Whale.from_pretrained(folder, ignored_entries=["preprocessor_config.json"])


def test_there_and_back(folder, tmp_path):
    whale = Whale.from_pretrained(prepared(folder, {"size": 7, "image_mean": [0.1, 0.2, 0.3], "image_std": 0.5}))
    whale.to_upstream(tmp_path / "written")
    assert Whale.from_pretrained(tmp_path / "written").config == whale.config


@pytest.mark.parametrize(
    ("entries", "mean", "std"),
    [
        ({}, 0.5, 0.5),
        ({"rescale_factor": 0.0078, "image_mean": 1, "image_std": [1.0, 1.0, 1.0]}, 1 / 1.989, 1 / 1.989),
        ({"do_rescale": False}, 0.5 / 255, 0.5 / 255),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 1 / 255),
        ({"rescale_factor": 0.00392156862745098, "image_mean": None}, 0.5, 0.5),
    ],
)
def test_normalisation_is_that_of_levels(entries, mean, std):
    found = normalisation(PublishedConfig(entries))
    assert found["mean"] == pytest.approx((mean,) * 3) and found["std"] == pytest.approx((std,) * 3)
    pixels = torch.linspace(0, 1, 9)
    levels = pixels * 255 * (entries.get("rescale_factor", 1 / 255) if entries.get("do_rescale", True) else 1)
    if entries.get("do_normalize", True):
        levels = (levels - (entries.get("image_mean") or 0.5)) / 0.5 if "image_std" not in entries else levels - 1
    torch.testing.assert_close((pixels - found["mean"][0]) / found["std"][0], levels)


def test_sides_of_squares():
    assert square({"size": {"height": 7, "width": 7}}, "size") == square({"size": 7}, "size") == square({}, "size", 7) == 7
    for size in ({"height": 7, "width": 8}, {"shortest_edge": 7}, {"height": 7}, 0, "7"):
        with pytest.raises(ValueError, match="accepted: a number, or equal height and width"):
            square({"size": size}, "size")
