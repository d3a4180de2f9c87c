"""Making one model's weights another's: copying, cloning, growing, inserting, replacing; and saying what became of each tensor.

    routed, report = rebuild(trunk, routed=True, origins={"layers.{}.vision_mlp.*": "layers.{}.mlp.*"})
    print(report)            # 24 copied, 12 cloned, ... and which
    report.verify()          # what was copied or cloned is equal to what it was made of
    check_unchanged(trunk, routed, embeds, text_only_table)

Names are written as in ``layouts``: ``{}`` stands for one index, ``*`` for the rest of a name.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.layouts.difference import group
from mmblocks.configurable import Configurable

B = TypeVar("B", bound=Configurable)

Origins = Mapping[str, str | None] | Callable[[str], str | None]
"""Where a tensor comes from: new name -> old name, None where it is new. A table of patterns, in which names that fit none keep
theirs, or a function."""

Rows = Literal["mean", "built"]
"""What rows added to a tensor hold: the mean of the old ones, or what the constructor put there."""


@dataclass(frozen=True)
class Report:
    """What became of every tensor.

    Attributes:
        copied: new name -> the old name whose values it has.
        cloned: likewise, of values that went to another name first.
        grown: likewise, where more rows follow the old ones.
        new: names that keep what they were built with.
        dropped: old names whose values went nowhere.
    """

    copied: dict[str, str]
    cloned: dict[str, str]
    grown: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    _tensors: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = field(repr=False, compare=False, default=({}, {}))

    def verify(self) -> None:
        """Compares what was copied, cloned or grown with what it was made of, bit for bit, as both are now.

        Raises:
            ValueError: tensors differ; they are named.
        """
        target, source = self._tensors
        origins = {**self.copied, **self.cloned, **self.grown}
        unlike = [name for name, old in origins.items() if not torch.equal(_first_rows(target[name], source[old]), source[old])]
        if unlike:
            raise ValueError(f"{len(unlike)} tensors differ from what they were made of: {', '.join(unlike[:5])}")

    def __str__(self) -> str:
        kinds = {"copied": self.copied, "cloned": self.cloned, "grown": self.grown}
        lines = {kind: group({name: f"from {_shape_of(old)}" for name, old in names.items()}) for kind, names in kinds.items()}
        lines |= {kind: group(dict.fromkeys(names, kind)) for kind, names in (("new", self.new), ("dropped", self.dropped))}
        counts = {kind: len(names) for kind, names in kinds.items()} | {"new": len(self.new), "dropped": len(self.dropped)}
        head = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return "\n".join([head, *(f"  {line}" for kind in ("cloned", "grown", "new", "dropped") for line in lines[kind])])


@torch.no_grad()
def graft(target: nn.Module, source: nn.Module, origins: Origins | None = None, *, grow: Rows | None = None) -> Report:
    """Fills the target's parameters and buffers from those of the source.

    Args:
        target: is written into.
        source: stays as it is.
        origins: where a tensor comes from; None: from its namesake, and names the source lacks are new.
        grow: lets a tensor have more rows than its origin, and says what they hold.

    Raises:
        ValueError: an origin that the source lacks, or of another shape; nothing has been written then.
    """
    ours, theirs = (module.state_dict(keep_vars=True) for module in (target, source))
    plan = _plan(ours, theirs, origins)
    _check(plan, ours, theirs, grow)
    copied: dict[str, str] = {}
    cloned: dict[str, str] = {}
    grown: dict[str, str] = {}
    uses: Counter[str] = Counter()
    for name, old in sorted(plan.items(), key=lambda pair: pair[0] != pair[1]):  # namesakes first: the others are the clones
        _first_rows(ours[name], theirs[old]).copy_(theirs[old])
        if ours[name].shape != theirs[old].shape:
            grown[name] = old
            if grow == "mean":
                ours[name][len(theirs[old]) :] = theirs[old].float().mean(0).to(ours[name])
        else:
            (cloned if uses[old] else copied)[name] = old
        uses[old] += 1
    new = tuple(name for name in ours if name not in plan)
    return Report(copied, cloned, grown, new, tuple(old for old in theirs if not uses[old]), (ours, theirs))


def rebuild(block: B, *, origins: Origins | None = None, grow: Rows | None = None, **changes: object) -> tuple[B, Report]:
    """A Block built with some arguments changed, and filled from the one given.

    Cloning weights for a modality, extending a vocabulary and inserting layers are all of this kind: the arguments say what
    the new Block is, ``origins`` where its tensors come from. Blocks among the arguments are shared by both.

    Raises:
        TypeError, ValueError: what the constructor or ``graft`` raises.
    """
    rebuilt = type(block)(**{**block.config, **changes})
    first = next(block.parameters(), None)
    if first is not None:
        rebuilt.to(device=first.device, dtype=first.dtype)
    report = graft(rebuilt, block, origins, grow=grow)
    return rebuilt.train(block.training), report


def extend_vocabulary(block: B, vocab_size: int, *, rows: Rows = "mean") -> tuple[B, Report]:
    """An embedding, a head, or a model with both, for more ids. The old rows are kept exactly.

    Raises:
        ValueError: a Block without a ``vocab_size``, or one that is not smaller.
    """
    old = block.config.get("vocab_size")
    if not isinstance(old, int) or vocab_size <= old:
        raise ValueError(f"vocab_size is {vocab_size}; accepted: more than that of {type(block).__name__}, which is {old}")
    return rebuild(block, grow=rows, vocab_size=vocab_size)


def insert_layers(
    trunk: B,
    at: int,
    count: int,
    *,
    silent: bool = False,
    layers: str = "layers",
    **changes: Any,  # for any argument of the trunk
) -> tuple[B, Report]:
    """A trunk with ``count`` more layers before layer ``at``.

    Args:
        trunk: a Block with ``num_layers`` layers in its module ``layers``.
        at: 0 puts them first, ``num_layers`` last.
        count: how many.
        silent: whether they start by passing on what they get: their ``attention.output`` and ``mlp.down`` are zero, so that the
            outputs are what they were.
        layers: the name of the module of layers.
        changes: further arguments to change.

    Raises:
        ValueError: ``at`` or ``count`` out of range, or silence asked of layers built otherwise.
    """
    num_layers = trunk.config["num_layers"]
    if not 0 <= at <= num_layers or count < 1:
        raise ValueError(f"at is {at} and count {count}; accepted: at in [0, {num_layers}], count 1 or more")

    def origin(name: str) -> str | None:
        matched = patterns.match(layers + ".{}.*", name)
        if matched is None:
            return name
        number = int(matched[0])
        if at <= number < at + count:
            return None
        return f"{layers}.{number if number < at else number - count}.{matched[1]}"

    grown, report = rebuild(trunk, origins=origin, num_layers=num_layers + count, **changes)
    if silent:
        for layer in grown.get_submodule(layers)[at : at + count]:  # type: ignore[index]
            _silence(layer)
    return grown, report


def replace(module: nn.Module, name: str, new: nn.Module) -> Report:
    """Puts another module where ``name`` is, in place, with its own weights.

    Raises:
        ValueError: there is no such module.
    """
    try:
        old = module.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"name is {name!r}; {type(module).__name__} has no such module") from error
    before = {f"{name}.{key}" for key in old.state_dict()}
    module.set_submodule(name, new)
    kept = {key: tensor for key, tensor in module.state_dict(keep_vars=True).items() if not key.startswith(f"{name}.")}
    return Report(
        {key: key for key in kept}, {}, {}, tuple(f"{name}.{key}" for key in new.state_dict()), tuple(sorted(before)), (kept, kept)
    )


def add_part(model: Configurable, role: Literal["inputs", "outputs"], name: str, part: object) -> Report:
    """Gives a ``MultimodalModel`` one more embedder or head, in place; everything else stays the same object.

    Raises:
        ValueError: a name that is taken, or that the model cannot use.
    """
    parts = getattr(model, role)  # compose.Parts, which is above this package
    if name in parts:
        raise ValueError(f"name is {name!r}; {role} has it already: {list(parts)}")
    kept = dict(model.state_dict(keep_vars=True))
    setattr(model, role, type(parts)({**dict(parts.items()), name: part}))
    new = tuple(key for key in model.state_dict() if key not in kept)
    return Report({key: key for key in kept}, {}, {}, new, (), (kept, kept))


def untie(module: nn.Module, name: str) -> Report:
    """Gives a parameter that has several names a tensor of its own under this one, in place.

    Raises:
        ValueError: there is no such parameter, or it has no other name.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tied = [other for other, parameter in parameters.items() if other != name and parameter is parameters.get(name)]
    if not tied:
        raise ValueError(f"name is {name!r}; accepted: a parameter that has other names too")
    path, _, last = name.rpartition(".")
    old = parameters[name]
    setattr(module.get_submodule(path), last, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))
    kept = module.state_dict(keep_vars=True)
    return Report({key: key for key in kept if key != name}, {name: tied[0]}, {}, (), (), (kept, kept))


@torch.no_grad()
def check_unchanged(before: Callable[..., Tensor], after: Callable[..., Tensor], *inputs: object, **options: object) -> None:
    """Compares what two models make of the same inputs, bit for bit: the path that a surgery must not have touched.

    Raises:
        ValueError: the outputs differ; by how much.
    """
    old, new = before(*inputs, **options), after(*inputs, **options)
    if old.shape != new.shape:
        raise ValueError(f"the outputs have shapes {tuple(old.shape)} before and {tuple(new.shape)} after")
    if not torch.equal(old, new):
        apart = (old.double() - new.double()).abs()
        raise ValueError(f"{int((apart > 0).sum())} of {old.numel()} outputs differ, by {float(apart.max()):.3g} at most")


def _plan(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], origins: Origins | None) -> dict[str, str]:
    """New name -> old name, for all that are not new."""
    if origins is None:
        return {name: name for name in ours if name in theirs}
    find = origins if callable(origins) else lambda name: _look_up(origins, name, theirs)
    found = {name: find(name) for name in ours}
    return {name: old for name, old in found.items() if old is not None}


def _look_up(table: Mapping[str, str | None], name: str, theirs: Mapping[str, Tensor]) -> str | None:
    for pattern, old in table.items():
        matched = patterns.match(pattern, name)
        if matched is not None:
            return None if old is None else patterns.fill(old, matched)
    return name if name in theirs else None


def _check(plan: dict[str, str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], grow: Rows | None) -> None:
    for name, old in plan.items():
        if old not in theirs:
            raise ValueError(f"{name} shall come from {old}, which the source does not have")
        mine, its = ours[name].shape, theirs[old].shape
        larger = grow is not None and len(mine) == len(its) > 0 and mine[1:] == its[1:] and mine[0] > its[0]
        if mine != its and not larger:
            raise ValueError(f"{name} is {tuple(mine)} and shall come from {old}, which is {tuple(its)}")


def _first_rows(target: Tensor, source: Tensor) -> Tensor:
    return target[: len(source)] if source.ndim else target


def _silence(layer: nn.Module) -> None:
    outputs = [(name, tensor) for name, tensor in layer.named_parameters() if "attention.output." in name or "mlp.down." in name]
    if len({name.split(".")[0] for name, _ in outputs}) < 2:
        raise ValueError(f"{type(layer).__name__} has no attention.output and mlp.down that could be zero")
    for _, tensor in outputs:
        nn.init.zeros_(tensor)


def _shape_of(name: str) -> str:
    """A name with its indices left open, so that one line can show many."""
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))
