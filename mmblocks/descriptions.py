"""Descriptions: small values that say how a part is to be built, and that are JSON in a config.

A Block's arguments are JSON, other Blocks, and descriptions. Where one part is built many times, such as the layers of a trunk, it
is described once:

    Decoder(dim=512, num_layers=8, layers=Layer(mixer=Attention(num_heads=8), feed_forward=GatedMLP(hidden_dim=2048)))
"""

from dataclasses import dataclass, fields
from typing import Any, dataclass_transform

from mmblocks.configurable import register


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Description:
    """A frozen dataclass whose fields are JSON values, other descriptions, or tuples and dicts of these.

    A subclass is made a dataclass by being defined, and is found by name when a config is read, like a Block's class:

        class Decay(Mixer):
            rate: float = 0.9

            def build(self, site: Site) -> nn.Module: ...

        Decay(rate=0.5)      # in config.json: {"_kind": "my_module.Decay", "rate": 0.5}

    Lists are kept as tuples. ``check`` is called when all fields are set.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclass(frozen=True, kw_only=True)(cls)
        register(cls)

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        self.check()

    def check(self) -> None:
        """Refuses values that do not go together; a subclass says which.

        Raises:
            ValueError: with what is accepted.
        """

    def entries(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
