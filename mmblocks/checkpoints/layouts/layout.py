"""How the tensors of a published checkpoint are called, next to what a Block calls them: a table that works in both directions.

    llama = Layout(
        name="llama",
        rules=(
            Rule("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attention.query.weight"),
            Split("model.layers.{}.mlp.gate_up_proj.weight", ("layers.{}.mlp.gate.weight", "layers.{}.mlp.up.weight")),
            Rule("model.norm.*", "norm.*"),
        ),
        ignored=("lm_head.weight", "model.layers.{}.self_attn.rotary_emb.inv_freq"),
        config=lambda published: {"num_layers": published["num_hidden_layers"]},
    )

``{}`` stands for one integer index, ``{name}`` for a name without dots, ``*`` for the rest of a name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.layouts.difference import Difference, Shape, compare
from mmblocks.checkpoints.layouts.harmless import check_read
from mmblocks.checkpoints.layouts.preprocessing import Preprocessor
from mmblocks.checkpoints.layouts.published_config import OtherModelError, PublishedConfig, plain
from mmblocks.checkpoints.layouts.rules import Arguments, Rule, Side, Source, Split
from mmblocks.checkpoints.tensors import slots
from mmblocks.configurable import Configurable

__all__ = ["Derived", "Layout", "Rule", "Split"]


class _Found(NamedTuple):
    """Which rule fits a name, which of the rule's names it is, and what the placeholders stand for."""

    rule: int
    part: int
    values: tuple[str, ...]
    num_spelled_out: int


@dataclass(frozen=True)
class Derived:
    """A published tensor that follows from the arguments, such as a table of positions: it is compared, not read.

    Attributes:
        theirs: its name, or a pattern.
        difference: the tensor and the Block's arguments -> the largest difference from what the Block computes. It raises
            ``ValueError`` where the two cannot be compared.
        tolerance: the largest difference that counts as none, beside the rounding of the published tensor's dtype.
        made: the Block's arguments -> the tensors by name, for files whose own code asks for them. None: it does without, and
            none are written.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import Derived
        >>> table = Derived("places", lambda found, arguments: (found - torch.arange(arguments["length"])).abs().max().item())
        >>> table.check("places", torch.arange(4.0), {"length": 4})  # an error where they differ
        >>> table.difference(torch.zeros(4), {"length": 4})
        3.0
    """

    theirs: str
    difference: Callable[[Tensor, Arguments], float]
    tolerance: float = 1e-4
    made: Callable[[Arguments], Mapping[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        patterns.placeholders(self.theirs)

    def matches(self, key: str) -> bool:
        """Whether this is the tensor of that published name."""
        return patterns.match(self.theirs, key) is not None

    def check(self, key: str, tensor: Tensor, arguments: Arguments) -> None:
        """Raises ``ValueError`` where the tensor is another one than follows from the arguments."""
        try:
            difference = self.difference(tensor, arguments)
        except ValueError as error:
            raise ValueError(f"{key} is not what follows from the config: {error}") from error
        rounding = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0
        if not difference <= self.tolerance + rounding:
            raise ValueError(
                f"{key} differs by up to {difference:.3g} from what follows from the config; accepted: {self.tolerance:g} and"
                " rounding. The file was made with other arguments than its config names"
            )


@dataclass(frozen=True)
class Layout:
    """What a published checkpoint looks like, and how it becomes a Block and back.

    Attributes:
        name: what ``from_pretrained(..., layout=name)`` calls it.
        rules: the table; the first rule that fits a name is used.
        ignored: published names that are dropped: other parts' tensors, or derived ones. Where a rule fits too, the pattern
            that spells out more of the name wins, so that ``model.*`` may be ignored all around ``model.visual.*``.
        derived: published tensors that are dropped too, but must equal what the arguments lead to, where they lie in a file that is
            read for others.
        config: published config (``{}`` where there is none) -> constructor arguments. It raises ``ValueError`` or
            ``KeyError`` for the config of another model. An entry that it does not read is refused, see ``harmless``. None: the
            arguments are given to ``from_pretrained``.
        published_config: the way back, from the Block's arguments to the published config.
        unwrap: the key under which a ``.pt`` or ``.bin`` file holds its tensors, such as ``"state_dict"``;
            with dots where it is nested: ``"model.sd"``. Several with ``|`` between them, ``"model|state_dict|"``, where files
            differ: the first that is there counts, and an empty one is the top of the file.
        same: pairs of published names of one tensor. One is enough; where a file holds both they must be equal.
        harmless: names, or patterns, of entries of the config that change no numbers of the Block: other parts', mostly. With dots
            for entries inside entries: ``"vision_config.*"``. Those of ``checkpoints.layouts.harmless`` need not be named again.
        config_file: where ``config`` is read from and ``published_config`` written to, if that is not config.json; config.json is
            other parts' then. Several names for a config of several files: it has an entry for each, by its name without ".json".
        weights: the name, without its ending, of the files of tensors that are written. Files of any name are read; where a folder
            holds several, that of this name.
        otherwise: what else loads a checkpoint whose config is refused; it ends the message.
        preprocessor: how preprocessor_config.json beside the weights is read and written, for a Block whose ``preprocess`` follows
            it; see ``checkpoints.layouts.preprocessing``. None: that file is other parts'. Where there is no file, the class's
            defaults stay.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import Layout, Rule
        >>> layout = Layout("theirs", (Rule("blocks.{}.fc.*", "layers.{}.linear.*"),), ignored=("head.*",))
        >>> published = {"blocks.0.fc.weight": torch.zeros(2, 2), "head.weight": torch.zeros(3)}
        >>> [name for name, _ in layout.convert(published, {})]
        ['layers.0.linear.weight']
        >>> layout.to_theirs("layers.3.linear.bias")
        ('blocks.3.fc.bias',)
    """

    name: str
    rules: tuple[Rule | Split, ...]
    ignored: tuple[str, ...] = ()
    config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    published_config: Callable[[Arguments], dict[str, Any]] | None = None
    unwrap: str | None = None
    derived: tuple[Derived, ...] = ()
    same: tuple[tuple[str, str], ...] = ()
    harmless: tuple[str, ...] = ()
    config_file: str | tuple[str, ...] = "config.json"
    weights: str = "model"
    otherwise: str = ""
    preprocessor: Preprocessor | None = None

    def __post_init__(self) -> None:
        for pattern in (*self.ignored, *self.harmless):
            patterns.placeholders(pattern)

    @property
    def config_files(self) -> tuple[str, ...]:
        """The names of the files that the config stands in."""
        return (self.config_file,) if isinstance(self.config_file, str) else self.config_file

    def joined(self, read: Callable[[str], Mapping[str, Any] | None]) -> dict[str, Any]:
        """The config, of what each of its files holds: none is as good as an empty one."""
        if isinstance(self.config_file, str):
            return dict(read(self.config_file) or {})
        return {name.removesuffix(".json"): dict(read(name) or {}) for name in self.config_file}

    def parted(self, published: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The way back: what each file holds."""
        if isinstance(self.config_file, str):
            return {self.config_file: published}
        return {name: published[name.removesuffix(".json")] for name in self.config_file}

    def derives(self, key: str) -> bool:
        """Whether a published tensor is one of those that are compared alone."""
        return any(derived.matches(key) for derived in self.derived)

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ``ValueError`` where two names of one published tensor hold two different ones."""
        for one, other in self.same:
            if one in tensors and other in tensors and not torch.equal(tensors[one], tensors[other]):
                raise ValueError(f"{one} and {other} differ; accepted: one tensor under two names, or one of the names alone")

    def check_derived(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> None:
        """Raises ``ValueError`` where a published tensor is not what follows from a Block's arguments."""
        for key in tensors:
            for derived in self.derived:
                if derived.matches(key):
                    derived.check(key, tensors[key], arguments)

    def to_ours(self, key: str) -> tuple[str, ...] | None:
        """Our names for a published one: one, several for a split, none if it is ignored. None if nothing fits."""
        found = self._find(key, "theirs")
        if self._ignores(key, found):
            return ()
        return None if found is None else self._filled(found, "ours")

    def to_theirs(self, key: str) -> tuple[str, ...] | None:
        """The published name for one of ours. None if no rule fits."""
        found = self._find(key, "ours")
        return None if found is None else self._filled(found, "theirs")

    def arguments(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments from the published config.

        Raises:
            ValueError: an entry that ``config`` does not read, and that is not known to change no numbers; further, as all other
                errors, what ``config`` raises.
        """
        tracked = PublishedConfig(published)
        try:
            arguments: dict[str, Any] = {} if self.config is None else plain(self.config(tracked))
            check_read(tracked, self.harmless, f"the layout {self.name!r}")
        except ValueError as error:
            if not self.otherwise or isinstance(error, OtherModelError):
                raise
            raise ValueError(f"{error}. {self.otherwise}") from error
        return arguments

    def fits(self, keys: Iterable[str], config: Mapping[str, Any]) -> bool:
        """Whether every published name is known, some rule is used, and the published config is understood."""
        names = [self.to_ours(key) for key in keys]
        if None in names or not any(names):
            return False
        try:
            self.arguments(config)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
            return False
        return True

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """The published names that are neither in the table nor ignored."""
        return [key for key in keys if self.to_ours(key) is None]

    def sources(self, keys: Iterable[str], arguments: Arguments, to: Side = "ours") -> dict[str, Source]:
        """Where each tensor on side ``to`` comes from, given the names on the other side. Leaves out unknown names.

        Raises:
            ValueError: two names map onto one, or a tensor to be joined lacks a part.
        """
        side: Side = "theirs" if to == "ours" else "ours"
        gathered: dict[tuple[int, tuple[str, ...]], dict[int, str]] = {}
        for key in keys:
            found = self._find(key, side)
            if found is not None and not (side == "theirs" and self._ignores(key, found)):
                gathered.setdefault((found.rule, found.values), {})[found.part] = key

        plan: dict[str, Source] = {}
        for (number, values), parts in gathered.items():
            rule = self.rules[number]
            origin = tuple(patterns.fill(name, values) for name in rule.names(side))
            lacking = [name for part, name in enumerate(origin) if part not in parts]
            if lacking:
                raise ValueError(f"layout {self.name!r}: {', '.join(parts.values())} without {', '.join(lacking)}")
            for part, name in enumerate(rule.names(to)):
                target = patterns.fill(name, values)
                if target in plan:
                    both = ", ".join((*plan[target].keys, *origin))
                    raise ValueError(f"layout {self.name!r}: {both} all map onto {target}")
                plan[target] = rule.source(origin, to, part, arguments)
        return plan

    def convert(self, tensors: Mapping[str, Tensor], arguments: Arguments, to: Side = "ours") -> Iterator[tuple[str, Tensor]]:
        """The tensors under their names on side ``to``, one at a time: ``tensors`` may read them only when asked."""
        for key, source in self.sources(tensors, arguments, to).items():
            yield key, source.read(tensors)

    def check(self, shapes: Mapping[str, Sequence[int]], block: Configurable) -> Difference:
        """What is wrong with a published checkpoint of these names and shapes as a ``block``; unexpected names are theirs."""
        sources = self.sources(shapes, block.config)
        expected = {key: slot.tensor for key, slot in slots(block).items()}
        # A tensor that has two names needs only one of them in the file.
        present = {id(expected[key]) for key in sources if key in expected}
        needed = {key: tensor for key, tensor in expected.items() if key in sources or id(tensor) not in present}
        difference = compare(_shapes(needed), converted_shapes(sources, _on_meta(shapes)))
        unknown = {key: tuple(shapes[key]) for key in self.unknown(shapes)}
        return replace(difference, unexpected={**difference.unexpected, **unknown})

    def check_back(self, shapes: Mapping[str, Sequence[int]], block: Configurable) -> Difference:
        """What is wrong with ``block`` as a published checkpoint of these names and shapes; unexpected names may be ours."""
        ours = {key: slot.tensor for key, slot in slots(block).items()}
        sources = self.sources(ours, block.config, to="theirs")
        wanted = {key: tuple(shape) for key, shape in shapes.items() if self.to_ours(key) != ()}
        # Of a tensor that has two names, the published file may hold only one.
        written = {id(ours[key]) for name in wanted if name in sources for key in sources[name].keys}
        needed = {
            name: source
            for name, source in sources.items()
            if name in wanted or not all(id(ours[key]) in written for key in source.keys)
        }
        difference = compare(wanted, converted_shapes(needed, _on_meta(_shapes(ours))))
        unknown = {
            key: tuple(tensor.shape)
            for key, tensor in ours.items()
            if self._find(key, "ours") is None and id(tensor) not in written
        }
        return replace(difference, unexpected={**difference.unexpected, **unknown})

    def _find(self, key: str, side: Side) -> _Found | None:
        for number, rule in enumerate(self.rules):
            for part, pattern in enumerate(rule.names(side)):
                values = patterns.match(pattern, key)
                if values is not None:
                    return _Found(number, part, values, patterns.num_spelled_out(pattern, key, values))
        return None

    def _ignores(self, key: str, found: _Found | None) -> bool:
        if self.derives(key):
            return True
        for pattern in self.ignored:
            values = patterns.match(pattern, key)
            if values is None:
                continue
            if found is None or patterns.num_spelled_out(pattern, key, values) > found.num_spelled_out:
                return True
        return False

    def _filled(self, found: _Found, side: Side) -> tuple[str, ...]:
        return tuple(patterns.fill(name, found.values) for name in self.rules[found.rule].names(side))


def converted_shapes(sources: Mapping[str, Source], tensors: Mapping[str, Tensor]) -> dict[str, Shape | str]:
    """Shapes after conversion, from meta tensors; the reason instead where a tensor cannot be converted."""
    shapes: dict[str, Shape | str] = {}
    for key, source in sources.items():
        try:
            shapes[key] = tuple(source.read(tensors).shape)
        except (ValueError, RuntimeError) as error:  # RuntimeError: torch refuses the shapes
            shapes[key] = str(error).splitlines()[0]
    return shapes


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _on_meta(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}
