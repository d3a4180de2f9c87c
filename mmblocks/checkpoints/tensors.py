"""Where a module keeps its tensors, which of them are one and the same, and which a Block calls its own."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmblocks.configurable import Configurable, parts


class Slot(NamedTuple):
    """One place for a parameter or a persistent buffer."""

    owner: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        """What is in the place."""
        parameter = self.owner._parameters.get(self.name)
        return self.owner._buffers[self.name] if parameter is None else parameter  # type: ignore[return-value]

    def put(self, tensor: Tensor) -> None:
        """Replaces what is in the place; a parameter by a parameter."""
        setattr(self.owner, self.name, tensor)


def slots(module: nn.Module) -> dict[str, Slot]:
    """All places of a module under the names of its ``state_dict``; one that two paths lead to has two names."""
    return {key: slot for path, owner in _walk(module) for key, slot in _slots_of(path, owner)}


def own_slots(block: Configurable) -> dict[str, Slot]:
    """The places that belong to a Block itself and not to one of the Blocks it was given."""
    homes = _homes(block)
    return {key: slot for path, owner in _walk(block) if homes[path] is None for key, slot in _slots_of(path, owner)}


def shared(block: Configurable) -> dict[str, str]:
    """Names that share their tensor with another: name -> the name under which it is stored.

    The latter is the first of them, preferably inside a Block that was given, since that must be complete by itself. Two names
    inside the same one are that Block's business. Two different views of one storage are two tensors.
    """
    homes = _homes(block)
    named = [(key, slot, homes[path]) for path, owner in _walk(block) for key, slot in _slots_of(path, owner)]
    stored: dict[tuple[Any, ...], tuple[str, Configurable | None]] = {}
    for key, slot, home in sorted(named, key=lambda entry: entry[2] is None):
        stored.setdefault(_identity(slot), (key, home))
    return {
        key: stored[_identity(slot)][0]
        for key, slot, home in named
        if key != stored[_identity(slot)][0] and (home is None or home is not stored[_identity(slot)][1])
    }


def ids(value: object) -> set[int]:
    """The ids of all tensors of the Blocks inside an argument."""
    return {id(slot.tensor) for part in parts(value) for slot in slots(part).values()}


def left_on_meta(module: nn.Module) -> list[str]:
    """Names of all tensors without values, those that no checkpoint holds included."""
    found = []
    for path, owner in module.named_modules():
        for name, value in (*owner._parameters.items(), *owner._buffers.items(), *vars(owner).items()):
            if isinstance(value, Tensor) and value.is_meta:
                found.append(f"{path}.{name}".removeprefix("."))
    return found


def _walk(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return module.named_modules(remove_duplicate=False)


def _slots_of(path: str, owner: nn.Module) -> Iterator[tuple[str, Slot]]:
    persistent = ((name, value) for name, value in owner._buffers.items() if name not in owner._non_persistent_buffers_set)
    for name, value in (*owner._parameters.items(), *persistent):
        if value is not None:
            yield f"{path}.{name}".removeprefix("."), Slot(owner, name)


def _homes(block: Configurable) -> dict[str, Configurable | None]:
    """For the path of each module inside ``block`` the Block it was given that holds the module, None for its own."""
    given = {id(part): part for part in parts(block.config)}
    homes: dict[str, Configurable | None] = {"": None}
    for path, module in _walk(block):
        if path:  # a parent always comes before its children
            home = homes[path.rpartition(".")[0]]
            homes[path] = given.get(id(module)) if home is None else home
    return homes


def _identity(slot: Slot) -> tuple[Any, ...]:
    """Equal for places that hold the same tensor."""
    tensor = slot.tensor
    if tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    kind = isinstance(tensor, nn.Parameter)
    return (kind, tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
