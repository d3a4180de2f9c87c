"""Roles: what is listed under one can be composed, and what cannot play one is refused when a model is put together."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmblocks import ByteTokenizer, LMHead, MultimodalModel, TextEmbedding, text
from mmblocks.models import VelocityHead
from mmblocks.roles import Connector, Embedder, Encoder, Head, PixelDecoder, Tokenizer, Trunk, lacks
from tests.models import test_var
from tests.roles.role_examples import EXAMPLES, WITHOUT
from tests.shared.tiny import tiny_model

ROLES: dict[str, tuple[type, tuple[str, ...]]] = {
    "tokenizer": (Tokenizer, ()),
    "embedder": (Embedder, ("forward",)),  # of ids and vectors too, which have no layout
    "encoder": (Encoder, ()),
    "connector": (Connector, ()),
    "trunk": (Trunk, ()),
    "head": (Head, ()),
    "pixel decoder": (PixelDecoder, ()),
}
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([a-z ]+) \| (`[^|]+) \|", README, re.MULTILINE)
LISTED = [(role, name) for role, names in ROWS for name in re.findall(r"`(\w+)`", names) if role in ROLES]


@pytest.mark.parametrize(("role", "name"), LISTED)
def test_what_the_readme_lists_plays_its_role(role: str, name: str) -> None:
    if name not in EXAMPLES:
        assert name in WITHOUT or role == "pixel decoder"  # built in tests of their own
        return
    part = EXAMPLES[name].make()
    found, methods = ROLES[role]
    assert not lacks(part, found, *methods)
    if role == "trunk":
        _learns(part)


def _learns(trunk: Any) -> None:
    """A model of a trunk between an embedding and a head; all of the trunk's weights get a gradient but those of images."""
    parts = {"inputs": {"text": TextEmbedding(vocab_size=256, dim=16)}, "outputs": {"text": LMHead(dim=16, vocab_size=256)}}
    model = MultimodalModel(trunk=trunk, **parts)
    batch = model.batch_builder(ByteTokenizer())([[text("seven", target="text")], [text("is it", target="text")]])
    loss = model(batch).losses["text"]
    loss.backward()
    assert loss.isfinite() and any(parameter.grad is not None for parameter in trunk.parameters())


def test_all_roles_are_listed() -> None:
    assert {role for role, _ in LISTED} == set(ROLES)


class Blind(nn.Module):
    """A trunk whose author forgot the mask."""

    def forward(self, embeds: torch.Tensor, table: Any, cache: Any = None) -> torch.Tensor:
        return embeds


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"trunk": test_var.tiny()},
            r"trunk is a VAR, which cannot be used here: its forward takes \(labels, .*\), not \(emb",
        ),
        ({"trunk": Blind()}, r"its forward takes \(embeds, table, cache=None\), not \(embeds, table, cache=None, \*, mask=None\)"),
        ({"trunk": Blind()}, r"; it has no new_cache\(batch, capacity\)\. See mmblocks\.roles"),
        (
            {"outputs": {"image": VelocityHead(dim=32)}},
            r"outputs\['image'\] is a VelocityHead.*it has no loss\(hidden, target, weight=",
        ),
        ({"outputs": {"image": nn.Linear(2, 2)}}, r"it has no sample\(hidden, \*, generator=None\)"),
        ({"inputs": {"text": 3}}, r"inputs\['text'\] is a int, which cannot be used here: it has no forward\(images\)"),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_play_a_role_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_model(**parts)


def test_functions_and_partial_signatures_count() -> None:
    assert not lacks(lambda ids: ids, Embedder, "forward")
    assert not lacks(lambda *args, **kwargs: None, Encoder)
    assert lacks(lambda: None, Encoder) == ["its forward takes (), not (pixels)"]
    assert len(lacks(object(), Tokenizer)) == 2
