"""Parts of one Block on several devices, or offloaded, through accelerate.

What is offloaded takes no place on the device that computes. It stays in the machine's memory ("cpu", where there is an
accelerator) or in the checkpoint's own files ("disk", whatever their layout: nothing is written), is read when it is used, and
forgotten afterwards.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from mmblocks.checkpoints import tensors
from mmblocks.configurable import Configurable

Where = torch.device | str | int
"""A device; "disk" for tensors that stay in their files; "meta" for those that are left out, of parts that are not used."""

AUTO = "auto"
"""Where accelerate finds room: accelerators, evenly, then memory, then the files."""

_ABSENT = ("disk", "meta")


class OneDevice:
    """The same device for all tensors of a Block; as a ``Placement``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def destination(self, placeholder: Tensor) -> torch.device:
        """Where one of the Block's tensors goes."""
        return self._device

    def computing(self, module: str) -> torch.device:
        """The device on which a module of that name works."""
        return self._device

    def is_absent(self, name: str) -> bool:
        """Whether a tensor of that name is meant to have no values."""
        return False

    def dispatch(self, block: Configurable, readers: Mapping[int, Callable[[], Tensor]]) -> None:
        """Nothing: the Block is where it works."""


class Placement:
    """Where each tensor of a Block goes.

    Args:
        block: without values.
        device_map: name of a module, or tensor -> where it goes with all in it that no other name names; or "auto".
        dtype: what the tensors will be cast to, which "auto" reckons with.
        given: ids of the tensors that were handed in.

    Attributes:
        main: the device that computes, where a part is offloaded.

    Raises:
        ImportError: accelerate is not there.
        ValueError: unknown names or devices, tensors without a place, or one tensor in two.
    """

    def __init__(
        self, block: Configurable, device_map: Mapping[str, Where] | str, dtype: torch.dtype | None, given: set[int]
    ) -> None:
        _check_accelerate()
        if isinstance(device_map, str):
            if device_map != AUTO:
                raise ValueError(f"device_map is {device_map!r}; accepted: {AUTO!r}, or a dict of names and devices")
            device_map = _automatic(block, dtype)
        places = {name: _place(name, where) for name, where in device_map.items()}
        accelerators = [place for place in places.values() if isinstance(place, torch.device)]
        self.main: torch.device | str = accelerators[0] if accelerators else "cpu"
        self.offloading = {"disk"} if not accelerators or accelerators[0].type == "mps" else {"cpu", "disk"}
        self._named = places
        self.places = _disjoint(block, places, self._computing)
        self._ids = {name: id(slot.tensor) for name, slot in tensors.slots(block).items()}
        self._destinations: dict[int, torch.device | None] = {}
        self._assign(block, given)

    def _assign(self, block: Configurable, given: set[int]) -> None:
        first: dict[int, str] = {}
        for name, slot in tensors.slots(block).items():
            place, known = self._of(name), first.setdefault(id(slot.tensor), name)
            if self._of(known) != place:
                raise ValueError(f"device_map puts {known} on {self._of(known)} and {name} on {place}, which are one tensor")
            if id(slot.tensor) in given and place in _ABSENT:
                raise ValueError(f"device_map puts {name} on {place}, but it was handed in; accepted: a device")
            if place == "disk" and not isinstance(slot.tensor, nn.Parameter):
                place = self.main  # buffers are small, and accelerate leaves them where they are used
            self._destinations[id(slot.tensor)] = None if place in _ABSENT else torch.device(place)

    def destination(self, placeholder: Tensor) -> torch.device | None:
        """Where one of the Block's tensors goes; None if it is not to be read now."""
        return self._destinations[id(placeholder)]

    def computing(self, module: str) -> torch.device:
        """The device on which a module of that name works."""
        return torch.device(self._computing(self._of(module)))

    def is_absent(self, name: str) -> bool:
        """Whether a tensor of that name has no values once all is loaded, and is not meant to."""
        return self._of(name) == "meta" or self._destinations.get(self._ids.get(name, 0), self.main) is None

    def dispatch(self, block: Configurable, readers: Mapping[int, Callable[[], Tensor]]) -> None:
        """Hands the loaded Block to accelerate.

        Args:
            block: with values, but for what is offloaded.
            readers: id of the tensor that stood in the place -> gives its values.
        """
        from accelerate import dispatch_model

        if set(self.places.values()) == {"meta"}:
            return
        sources: dict[str, Callable[[], Tensor]] = {}
        for name, slot in tensors.slots(block).items():
            if self._of(name) in self.offloading and isinstance(slot.tensor, nn.Parameter):
                sources[name] = readers.get(self._ids[name]) or partial(Tensor.detach, slot.tensor)
        values = Offloaded(sources, torch.device(self.main))
        with warnings.catch_warnings():
            # Names of single tensors are right there: they are those of modules of which parts go elsewhere.
            warnings.filterwarnings("ignore", "The following device_map keys do not match any submodules")
            dispatch_model(
                block,
                self.places,
                main_device=self.main,
                state_dict=values,
                offload_index={},
                force_hooks="disk" in self.places.values(),  # else versions before 1.15 refuse a Block that is there as a whole
            )
        for path, module in block.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            if any(prefix + name in sources for name in module._parameters):
                object.__setattr__(module, "_parameters", _Parameters(module._parameters, prefix, values))

    def _of(self, name: str) -> torch.device | str:
        """Where a module or tensor goes: as the longest name that leads to it."""
        while name and name not in self.places and name not in self._named:
            name = name.rpartition(".")[0]
        return self.places.get(name) or self._named.get(name, self.main)

    def _computing(self, place: torch.device | str) -> torch.device | str:
        return self.main if place in self.offloading else place


class Offloaded(Mapping[str, Tensor]):
    """Tensors that are read whenever they are asked for, onto the device that computes."""

    def __init__(self, sources: Mapping[str, Callable[[], Tensor]], device: torch.device) -> None:
        self._sources = sources
        self._device = device
        self._in_use: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def __getitem__(self, key: str) -> Tensor:
        found = self._in_use.get(key)  # accelerate asks twice in a row
        if found is None:
            found = self._in_use[key] = self._sources[key]().to(self._device)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class _Parameters(dict[str, Any]):
    """A module's parameters; those that are offloaded have values whenever they are asked for by name.

    accelerate gives them values around a module's ``forward``. A part has other methods too, and may use a weight of a part inside.
    """

    def __init__(self, parameters: Mapping[str, Any], prefix: str, values: Offloaded) -> None:
        super().__init__(parameters)
        self._prefix = prefix
        self._values = values

    def __getitem__(self, name: str) -> Any:
        held = super().__getitem__(name)
        if held is None or not held.is_meta or self._prefix + name not in self._values:
            return held
        return nn.Parameter(self._values[self._prefix + name], held.requires_grad)


def _check_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise ImportError("device_map needs accelerate: pip install 'mmblocks[offload]'") from error


def _automatic(block: Configurable, dtype: torch.dtype | None) -> dict[str, Where]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    # What is added to its own input must not be divided: mostly the layers of a trunk.
    layers = sorted({type(layer).__name__ for one in block.modules() if isinstance(one, nn.ModuleList) for layer in one})
    memory = get_balanced_memory(block, no_split_module_classes=layers, dtype=dtype)
    return dict(infer_auto_device_map(block, max_memory=memory, no_split_module_classes=layers, dtype=dtype))


def _place(name: str, where: Where) -> torch.device | str:
    """A device; the names of those that are none in accelerate's sense stay names."""
    if where == "disk":
        return "disk"
    try:
        device = torch.device(where)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device_map puts {name!r} on {where!r}; accepted: a device, 'disk' or 'meta'") from error
    return device.type if device.type in ("cpu", "meta") else device


def _disjoint(
    block: Configurable, places: Mapping[str, torch.device | str], computing: Callable[[torch.device | str], torch.device | str]
) -> dict[str, torch.device | str]:
    """The same with names of which none is inside another, as accelerate needs them.

    A module of which parts go elsewhere is divided into its parts. Tensors of its own are where it computes.
    """
    modules, buffers = block.named_modules(remove_duplicate=False), block.named_buffers(remove_duplicate=False)
    names = [*dict(modules), *tensors.slots(block), *dict(buffers)]
    for name in places:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"device_map names {name!r}, which is no part of {type(block).__name__}{hint}")
    found: dict[str, torch.device | str] = {}

    def divide(module: nn.Module, name: str, outer: torch.device | str | None) -> None:
        place, prefix = places.get(name, outer), f"{name}." if name else ""
        divided = any(other.startswith(prefix) and other != name for other in places)
        held = [prefix + key for key in module.state_dict(keep_vars=True) if not divided or "." not in key]
        for key in held:
            own = places.get(key, place)
            if own is None:
                raise ValueError(f"device_map has no place for {key!r} of {type(block).__name__}; '' is all the rest")
            if divided:
                found[key] = computing(own)
        if divided:
            for child, inner in module.named_children():
                divide(inner, prefix + child, place)
        elif place is not None:
            found[name] = place

    divide(block, "", None)
    return found
