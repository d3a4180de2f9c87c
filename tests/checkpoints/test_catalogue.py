"""The catalogue says nothing that the classes contradict."""

import pytest

import mmblocks
from mmblocks.checkpoints.hub import catalogue
from mmblocks.checkpoints.layouts.layout import Layout

ENTRIES = mmblocks.list_pretrained()


def test_patterns():
    names = [entry.name for entry in mmblocks.list_pretrained("*VQ*")]
    assert "emu3_vq.baai" in names
    assert names == sorted(names)
    assert {entry.block for entry in mmblocks.list_pretrained("IBQ")} == {"IBQ"}
    assert all(entry.id.startswith("BAAI/") for entry in mmblocks.list_pretrained("BAAI/*"))
    assert len(ENTRIES) > 60
    assert mmblocks.list_pretrained("nothing") == []


@pytest.mark.parametrize("name", sorted({entry.block for entry in ENTRIES}))
def test_classes_have_the_layouts(name):
    entries = [entry for entry in ENTRIES if entry.block == name]
    layouts = {layout.name: layout for layout in entries[0].block_class().layouts}
    for entry in entries:
        assert isinstance(layouts.get(entry.layout), Layout), entry
        architecture, _, tag = entry.name.rpartition(".")
        assert architecture and tag and entry.name == entry.name.lower()
        assert entry.num_parameters is None or entry.num_parameters > 1000


def test_an_entry_without_an_id_says_where_it_is():
    entry = next(entry for entry in ENTRIES if entry.id is None)
    with pytest.raises(FileNotFoundError, match=f"{entry.name} is on no Hub that is known; download it, and name the file"):
        mmblocks.Block.from_pretrained(entry.name)
    assert catalogue.find("nothing") is None
