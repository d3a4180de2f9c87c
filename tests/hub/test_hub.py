"""Loading from a hub and pushing to one, with all that can go wrong in between."""

import json
import socket

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from server import Hub, Running
from torch import nn

from mmblocks.block import Block
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.layouts.layout import Layout, Rule


class Stem(Block):
    """A part of a published model.

    The rest of the text is no summary.
    """

    layouts = (
        Layout(
            name="whale",
            rules=(Rule("model.stem.*", "linear.*"),),
            ignored=("model.layers.{}.weight", "lm_head.weight"),
            config=lambda published: {"dim": published["hidden_size"]},
            published_config=lambda ours: {"hidden_size": ours["dim"]},
        ),
    )

    def __init__(self, *, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)


class Pair(Block):
    def __init__(self, *, left: Block, right: Block):
        super().__init__()
        self.left, self.right = left, right


# huggingface_hub's own use of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def whale(hub):
    """A published checkpoint in three shards, of which the stem is in the first."""
    shards = {
        "model-00001-of-00003.safetensors": {"model.stem.weight": torch.ones(2, 2), "model.stem.bias": torch.ones(2)},
        "model-00002-of-00003.safetensors": {"model.layers.0.weight": torch.ones(3, 3)},
        "model-00003-of-00003.safetensors": {"lm_head.weight": torch.ones(5, 3)},
    }
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    files = {name: save(tensors, metadata={"format": "pt"}) for name, tensors in shards.items()}
    files |= {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b'{"hidden_size": 2}',
        "README.md": b"whale",
    }
    return hub.commit("sea/whale", files)


def test_only_the_shards_of_the_part(hub, whale):
    stem = Stem.from_pretrained("sea/whale")
    assert torch.equal(stem.linear.weight, torch.ones(2, 2))
    assert hub.paths() == ["config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"]
    assert stem.origin == ("sea/whale", "whale", whale)
    assert str(stem.origin) == f"sea/whale at {whale} in the layout 'whale'"


def test_pinned_revision_needs_no_network(hub, whale, monkeypatch):
    first = Stem.from_pretrained("sea/whale", revision=whale)

    def blocked(*arguments):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "create_connection", blocked)
    hub.requests.clear()
    assert same(first, Stem.from_pretrained("sea/whale", revision=whale))
    assert hub.requests == []


def test_offline(hub, whale, monkeypatch):
    first = Stem.from_pretrained("sea/whale")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same(first, Stem.from_pretrained("sea/whale"))
    assert hub.requests == []
    with pytest.raises(ConnectionError, match=r"sea/shark on .* cannot be reached"):
        Stem.from_pretrained("sea/shark")


def test_hub_that_is_gone(hub, whale, monkeypatch):
    first = Stem.from_pretrained("sea/whale")
    with Running(Hub()) as other:
        pass  # an address at which nobody answers any more
    monkeypatch.setattr(constants, "ENDPOINT", other.url)
    assert same(first, Stem.from_pretrained("sea/whale"))
    with pytest.raises(ConnectionError, match="cannot be reached"):
        Stem.from_pretrained("sea/shark")


def test_newer_commit_is_seen(hub, whale):
    Stem.from_pretrained("sea/whale")
    files = hub.files("sea/whale")[1]
    changed = save({"model.stem.weight": torch.zeros(2, 2), "model.stem.bias": torch.ones(2)})
    newer = hub.commit("sea/whale", {**files, "model-00001-of-00003.safetensors": changed})
    assert Stem.from_pretrained("sea/whale").origin.revision == newer
    assert torch.equal(Stem.from_pretrained("sea/whale", revision=whale).linear.weight, torch.ones(2, 2))


def test_push_and_load(hub):
    pair = Pair(left=Stem(dim=3), right=Stem(dim=4))
    address = pair.push_to_hub("me/pair")
    commit, files = hub.files("me/pair")
    assert address == f"{hub.url}/me/pair/commit/{commit}"
    assert set(files) >= {"config.json", "README.md", "left/config.json", "left/model.safetensors", "right/model.safetensors"}
    assert same(pair, Block.from_pretrained("me/pair"))
    card = files["README.md"].decode()
    assert "library_name: mmblocks" in card
    assert "Pair.from_pretrained('me/pair')" in card
    assert "Not converted from a published checkpoint" in card


def test_one_part_of_a_folder(hub):
    pair = Pair(left=Stem(dim=3), right=Stem(dim=4))
    pair.push_to_hub("me/pair")
    for name, options in (("me/pair", {"subfolder": "left"}), ("me/pair/left", {})):
        assert same(pair.left, Stem.from_pretrained(name, **options))
    assert set(hub.paths()) == {"left/config.json", "left/model.safetensors"}
    replaced = Pair.from_pretrained("me/pair", left=Stem(dim=1))
    assert replaced.left.linear.weight.shape == (1, 1)


def test_push_again_with_fewer_shards(hub):
    Stem(dim=8).push_to_hub("me/stem", max_shard_size=100)
    assert "model.safetensors.index.json" in hub.files("me/stem")[1]
    hub.commit("me/stem", {**hub.files("me/stem")[1], "README.md": b"by hand"})
    smaller = Stem(dim=2)
    smaller.push_to_hub("me/stem")
    files = hub.files("me/stem")[1]
    assert set(files) == {"config.json", "README.md", "model.safetensors"}
    assert files["README.md"] == b"by hand"
    assert same(smaller, Stem.from_pretrained("me/stem"))


def test_card_of_a_published_origin(hub, whale):
    Stem.from_pretrained("sea/whale", revision=whale).push_to_hub("me/stem")
    card = hub.files("me/stem")[1]["README.md"].decode()
    assert f"Loaded from sea/whale at {whale} in the layout 'whale'." in card
    assert "A part of a published model." in card
    assert "no summary" not in card
    assert Stem.from_pretrained("me/stem").origin == ("sea/whale", "whale", whale)


def test_name_of_the_catalogue(hub, whale, monkeypatch):
    entry = catalogue.Pretrained(
        name="stem.whale",
        block=f"{__name__}.Stem",
        layout="whale",
        id="sea/whale",
        revision=whale,
        license="mit",
        paper="1234.56789",
    )
    monkeypatch.setattr(catalogue, "_entries", lambda: {"stem.whale": entry})
    stem = Block.from_pretrained("stem.whale")
    assert type(stem) is Stem
    stem.push_to_hub("me/stem")
    card = hub.files("me/stem")[1]["README.md"].decode()
    assert "license: mit" in card and "1234.56789" in card


def test_wrong_token(hub, whale):
    hub.token = "another"
    with pytest.raises((FileNotFoundError, PermissionError), match="token in use") as caught:
        Stem.from_pretrained("sea/whale")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises((FileNotFoundError, PermissionError), match="token in use"):
        Stem(dim=2).push_to_hub("sea/whale")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("sea/shark", {}, "there is no sea/shark on"),
        ("sea/whale", {"revision": "v9"}, "has no revision 'v9'"),
        ("sea/whale", {"subfolder": "tail"}, "holds nothing called 'tail'"),
        ("sea/whale/tail", {}, "holds nothing called 'tail'"),
        ("sea", {}, "no such folder: sea; accepted: a folder, organisation/name on the Hub"),
        ("../whale", {}, "no such folder"),
        ("sea/../whale", {}, "no such folder"),
    ],
)
def test_what_is_not_there(hub, whale, name, options, match):
    with pytest.raises(FileNotFoundError, match=match) as caught:
        Stem.from_pretrained(name, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_revision_of_a_local_folder(tmp_path):
    Stem(dim=2).save_pretrained(tmp_path / "stem")
    with pytest.raises(ValueError, match=r"revision is 'main', but .* is a local folder"):
        Stem.from_pretrained(str(tmp_path / "stem"), revision="main")


def test_truncated_body(hub, whale, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries several times
    hub.damage = {"*00001*": "truncated"}
    with pytest.raises(ConnectionError) as caught:
        Stem.from_pretrained("sea/whale")
    assert len(str(caught.value).splitlines()) == 1
    hub.damage = {}
    Stem.from_pretrained("sea/whale")


@pytest.mark.parametrize("path", ["*00001*", "config.json"])
def test_corrupted_body_of_the_right_length(hub, whale, path):
    hub.damage = {path: "corrupted"}
    with pytest.raises(ValueError, match="was damaged on the way: its checksum is not the one that the Hub states"):
        Stem.from_pretrained("sea/whale")
    hub.damage = {}
    assert torch.equal(Stem.from_pretrained("sea/whale").linear.weight, torch.ones(2, 2))


def test_credentials_do_not_follow_a_redirect(hub, whale):
    """To another host files may come from, but no token goes to it."""
    with Running(Hub()) as other:
        other.commits = hub.commits
        hub.damage = {"*00001*": "redirect"}
        hub.elsewhere = other.url.replace("127.0.0.1", "localhost")
        Stem.from_pretrained("sea/whale")
        assert any(verb == "GET" for verb, _, _ in other.requests)
        assert {authorization for _, _, authorization in other.requests} == {None}
    assert {authorization for _, _, authorization in hub.requests} == {"Bearer right"}


def test_no_layout_downloads_nothing_large(hub, whale):
    files = hub.files("sea/whale")[1]
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["vision.weight"] = "model-00002-of-00003.safetensors"
    hub.commit("sea/whale", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(ValueError, match=r"sea/whale/model.safetensors.index.json fits no layout of Stem \(whale\)"):
        Stem.from_pretrained("sea/whale")
    assert not any(path.endswith("safetensors") for path in hub.paths())
    with pytest.raises(ValueError, match="Pair has no layouts"):
        Pair.from_pretrained("sea/whale")


def test_index_that_leads_out(hub, whale):
    files = hub.files("sea/whale")[1]
    index = {"weight_map": {"model.stem.weight": "../../outside.safetensors"}}
    hub.commit("sea/whale", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(ValueError, match=r"accepted: names of \.safetensors files in the same folder"):
        Stem.from_pretrained("sea/whale")


def test_to_upstream(hub, whale, tmp_path):
    stem = Stem.from_pretrained("sea/whale")
    stem.to_upstream(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {"hidden_size": 2}
    assert same(stem, Stem.from_pretrained(tmp_path / "back"))
    save_file({"extra": torch.ones(1)}, tmp_path / "unrelated.safetensors")
    with pytest.raises(ValueError, match="layout is 'fish'; Stem has: whale"):
        stem.to_upstream(tmp_path / "back", layout="fish")
