"""The pictures of ways of writing an image are what the tables say, and stand on their page."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from mmblocks import vectors
from mmblocks.heads import OrthusDiffusionHead, RegressionHead
from mmblocks.sequence import visible
from scripts.ways import FOLDER, KINDS, Way, batch_of, draw, pictures, tokens_of, ways
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "ways-of-writing.md"
WAYS = ways()
PICTURES = pictures()


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_committed_picture_is_that_of_the_tables(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PICTURES[path], "run python -m scripts.ways"


def test_each_picture_stands_on_the_page_and_no_other_is_kept() -> None:
    shown = re.findall(r"!\[[^]]+\]\(images/ways/([\w-]+)\.svg\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(WAYS) == sorted(path.stem for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", WAYS)
def test_as_many_squares_as_pairs(name: str) -> None:
    """Counted in the picture itself, by the colours that the legend names."""
    table = batch_of(WAYS[name]).table
    seen, kinds = visible(table)[0], [token.kind for token in tokens_of(WAYS[name], batch_of(WAYS[name]))]
    squares: dict[str, int] = {}
    for path in ElementTree.fromstring(draw(WAYS[name])).iter("{http://www.w3.org/2000/svg}path"):
        colour = path.get("fill", "none")
        squares[colour] = squares.get(colour, 0) + path.get("d", "").count("M")
    assert squares.pop("none") == int((~seen).sum())
    pairs: dict[str, int] = {}
    for column, kind in enumerate(kinds):
        pairs[KINDS[kind][0]] = pairs.get(KINDS[kind][0], 0) + int(seen[:, column].sum())
    assert squares == pairs


def test_a_row_is_named_token_by_token() -> None:
    named = [tuple(token) for token in tokens_of(WAYS["denoising-time-token"], batch_of(WAYS["denoising-time-token"]))]
    assert named[:4] == [("text", "a", ""), ("text", "b", ""), ("time", "t", ""), ("noised", "1", "1")]
    assert named[6:9] == [("noised", "4", "4"), ("time", "t", ""), ("true", "1", "")]
    assert named[11:] == [("true", "4", "c"), ("text", "c", "d"), ("text", "d", "")]


@pytest.mark.parametrize(
    "head",
    [RegressionHead(dim=8, target_dim=4), OrthusDiffusionHead(dim=8, token_dim=4, width=8, num_blocks=1)],
    ids=lambda head: type(head).__name__,
)
def test_heads_of_single_tokens_share_a_row(head: object) -> None:
    """That of the next token, as the page says."""
    latents = vectors(torch.zeros(2, 2, 4), input="latents", target="image")
    title = WAYS["one-after-the-other"].title
    assert draw(Way(title, head, [latents])) == draw(WAYS["one-after-the-other"])
