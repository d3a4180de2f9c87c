"""Functions among the arguments: found again by name where nothing can go wrong, refused elsewhere."""

import json
import shutil
import sys
from functools import partial

import pytest
import torch

from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, text
from mmblocks.checkpoints.functions import find_function
from mmblocks.sequence import visible
from mmblocks.sequence.positions import sequential
from mmblocks.trunks.routing import by_modality


def all_before(queries, keys):
    """A rule of one's own."""
    return visible(queries, keys) & (keys.order[:, None] != 1)


class Rule:
    """A rule that is an object."""

    def __call__(self, queries, keys):
        return all_before(queries, keys)

    def method(self, queries, keys):
        return all_before(queries, keys)


alias, copied, unnamed = all_before, shutil.rmtree, lambda queries, keys: all_before(queries, keys)


def _model(mask) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=8, dim=8)},
        trunk=Decoder(dim=8, num_layers=1, num_heads=2, mlp_dim=8),
        outputs={"text": LMHead(dim=8, vocab_size=8)},
        mask=mask,
    ).eval()


@pytest.mark.parametrize("rule", [all_before, visible])
def test_a_rule_is_found_again(rule, tmp_path) -> None:
    model = _model(rule)
    model.save_pretrained(tmp_path)
    again = MultimodalModel.from_pretrained(tmp_path)
    assert again.mask is rule and again.config["mask"] is rule
    batch = model.batch_builder()([[text([1, 2, 3])]])
    assert torch.equal(again.hidden(batch), model.hidden(batch))
    assert MultimodalModel.from_pretrained(tmp_path, mask=None).mask is None


@pytest.mark.parametrize(
    "rule", [unnamed, Rule(), Rule().method, partial(all_before)], ids=["lambda", "object", "method", "partial"]
)
def test_what_has_no_name_of_its_own_is_handed_in(rule, tmp_path) -> None:
    _model(rule).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"argument 'mask' of MultimodalModel is code .*hand it in: from_pretrained\(.*, mask=\.\.\.\)"
    ):
        MultimodalModel.from_pretrained(tmp_path)
    assert MultimodalModel.from_pretrained(tmp_path, mask=rule).mask is rule


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "shutil.rmtree",
        "builtins.print",
        "builtins.eval",
        "torch.hub.load",
        "numpy.loadtxt",
        "antigravity.fly",
        "this_module.is_not_imported",
        "mmblocks.checkpoints.surgery.adapters.save_adapters",
        "mmblocks.cli.__main__.main",
        "mmblocks.sequence.masks.replace",
        f"{__name__}.alias",
        f"{__name__}.copied",
        f"{__name__}.unnamed",
        f"{__name__}.Rule",
        f"{__name__}.Rule.method",
        f"{__name__}.pytest",
        f"{__name__}.",
        f"{__name__}",
        "",
        ".",
        7,
        None,
        ["x"],
    ],
)
def test_a_file_chooses_no_code(name, tmp_path) -> None:
    import numpy as np  # noqa: F401  imported, and still not to be found
    import torch.hub  # noqa: F401

    _model(all_before).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask": {"_code": name}}))
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"is code|config\.json"):
        MultimodalModel.from_pretrained(tmp_path)
    assert not {"antigravity", "this_module", "mmblocks.cli.__main__"} & (set(sys.modules) - before)


def test_rules_of_mmblocks_are_found() -> None:
    for rule in (visible, sequential, by_modality):
        assert find_function(f"{rule.__module__}.{rule.__qualname__}") is rule
