"""A model without values, its parts by name, and what of its tensors each of them has."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from mmblocks.layers.parts import Parts

WHOLE = "model"
"""The name of what a model has outside of its parts."""


def on_meta(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy without values, in a dtype as ``from_pretrained`` casts it."""
    passing = {id(module._buffers[name]) for module in model.modules() for name in module._non_persistent_buffers_set}
    instead: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        cast = dtype if dtype is not None and tensor.is_floating_point() and id(tensor) not in passing else tensor.dtype
        empty = torch.empty_like(tensor, dtype=cast, device="meta")
        instead[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(model, instead).eval()


def part_names(model: nn.Module, beside: Mapping[str, nn.Module]) -> list[str]:
    """Names inside ``{WHOLE: model, **beside}``; objects that are no modules have no weights, and no place."""
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{part}" for part, _ in child.named_children()] if isinstance(child, Parts) else [name]
        names += [f"{WHOLE}.{one}" for one in inner]
    return [*names, WHOLE, *beside]


def owned_tensors(whole: nn.Module, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """By module, those of its tensors that no earlier one has; what lies in a longer name's module is that one's."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    seen: set[int] = set()
    longest = sorted(names, key=len, reverse=True)
    for name, tensor in named_tensors(whole):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[next(one for one in longest if f"{name}.".startswith(f"{one}."))].append(tensor)
    return {name: held for name, held in found.items() if held or name != WHOLE}


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def short_name(name: str) -> str:
    """A name in the model itself."""
    return name.removeprefix(f"{WHOLE}.")


def layers_of(trunk: nn.Module, name: str) -> list[str]:
    """The names of a trunk's layers: of its first list of modules."""
    for path, module in trunk.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            return [f"{name}.{path}.{index}" for index in range(len(module))]
    return []


def shares_of(cache: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """The cache by layer; in equal shares where it is not known by layer."""
    if len(cache) == len(names):
        return dict(zip(names, cache, strict=True))
    total = sum(cache)
    return {name: total * (index + 1) // len(names) - total * index // len(names) for index, name in enumerate(names)}
