"""Which token goes to which expert, where a trunk has weights by expert.

Shapes: B batch, L tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmblocks.configurable import Description
from mmblocks.ops.routed_linear import RowGroups, group_rows
from mmblocks.sequence.tokens import Modality, TokenTable

RouteRule = Callable[[TokenTable], Tensor]
"""A table -> (B, L) int64: the index of the expert that each token goes to."""


def by_modality(table: TokenTable, experts: Sequence[str] = ("text", "vision")) -> Int[Tensor, "B L"]:
    """The expert that is named after the token's modality; the first one for padding and for modalities that have none."""
    group = torch.zeros_like(table.modality)
    for index, name in enumerate(experts):
        group = torch.where(table.modality == Modality[name.upper()].value, index, group)
    return group


def text_when_alone(table: TokenTable) -> Int[Tensor, "B L"]:
    """By modality, but to the text weights where a pass reads one token only, whatever it is: what EVEv2's own code does.

    Mono-InternVL's own code goes further, and sends all that is read after a cache to the text weights.

    Source: baaivision/EVE.
    """
    group = by_modality(table)
    return torch.zeros_like(group) if table.shape[1] == 1 else group


def group_tokens(table: TokenTable, experts: Sequence[str], route: RouteRule | None) -> RowGroups | None:
    """The tokens of all rows, sorted by expert; None where all go to one."""
    if len(experts) < 2:
        return None
    group = by_modality(table, experts) if route is None else route(table)
    return group_rows(group.flatten(), len(experts))


def experts_of(parts: Iterable[Description]) -> tuple[str, ...]:
    """The experts that parts name, in their order; none where all tokens share all weights.

    Raises:
        ValueError: parts whose experts differ, as each token goes to one in the whole trunk.
    """
    named = {names for part in parts for names in _named(part) if names}
    several = {names for names in named if len(names) > 1}
    if len(several) > 1 or any(not set(names) <= set(*several) for names in named if several):
        raise ValueError(f"experts of parts are {sorted(named)}; accepted: the same in all parts, or one of them")
    return next(iter(several or named), ())


def _named(value: object) -> Iterator[tuple[str, ...]]:
    """The names of experts in a description, however deep. A part of one's own may call something else so, such as a number."""
    if isinstance(value, Description):
        for name, entry in value.entries().items():
            if name in ("experts", "names") and isinstance(entry, tuple) and all(isinstance(one, str) for one in entry):
                yield entry
            else:
                yield from _named(entry)
    elif isinstance(value, Mapping | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _named(entry)


def check_experts(experts: Sequence[str], route: RouteRule | None) -> None:
    """Refuses names of experts that mean nothing.

    Raises:
        ValueError: equal names, ones that are no identifiers, or ones that are no modality where no rule says who goes there.
    """
    if len(set(experts)) != len(experts) or not all(name.isidentifier() for name in experts):
        raise ValueError(f"experts is {tuple(experts)}; accepted: one or more different identifiers")
    known = [modality.name.lower() for modality in Modality]
    strange = [name for name in experts if name not in known]
    if strange and route is None:
        raise ValueError(f"experts has {strange}, which are no modalities: give route, or names among {known}")
