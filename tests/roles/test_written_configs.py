"""The configs that parts write: every entry is read again, and another value changes what is built, is refused, or is harmless."""

import pytest
import torch

from mmblocks.checkpoints.layouts.harmless import is_harmless
from mmblocks.public import find
from tests.parity.test_config_keys import leaves, matters
from tests.roles.role_examples import EXAMPLES

NAMES = ("mm_vision_tower", "mm_vision_tower_clip", "attn_resolutions")
"""Of EVE's towers: sizes are read from them where they do not stand beside, as they do in what is written. And sides with
attention, none in the example, to which one may be added that no level has."""

LAYOUTS = [
    (name, layout) for name in EXAMPLES for layout in getattr(find(name), "layouts", ()) if layout.published_config is not None
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=[f"{name}-{layout.name}" for name, layout in LAYOUTS])
def test_no_entry_is_passed_over(name: str, layout) -> None:
    block = EXAMPLES[name].make()
    try:
        with torch.device("meta"):
            config = layout.published_config(block.config)
            arguments = layout.arguments(config)
    except ValueError as error:
        pytest.skip(f"the example is not of this layout: {error}")
    with torch.device("meta"):
        silent = [
            ".".join(path)
            for path, value in leaves(config)
            if path[-1] not in NAMES
            and not is_harmless(".".join(path), value, layout.harmless)
            and not matters(layout, config, arguments, path, value)
        ]
    assert not silent
