"""Which pieces of a model go to which of several devices, by their sizes alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = ("K", "M", "G", "T")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What lies on one device as a whole.

    Attributes:
        name: of the module.
        held: bytes of weights and cache.
        working: bytes that its device needs beside, while it runs; pieces of a device run one after the other.
        beside: an earlier piece with which it shares a tensor.
    """

    name: str
    held: int
    working: int = 0
    beside: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceLoad:
    """What one device is to hold.

    Attributes:
        size: bytes that it has.
        needed: bytes that it needs: weights, cache and activations.
        pieces: names of the modules, in order.
    """

    size: int
    needed: int
    pieces: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The names, runs of layers as one."""

        def stem(name: str) -> str:
            before, _, last = name.rpartition(".")
            return before if last.isdecimal() else ""

        runs = []
        for key, names in groupby(self.pieces, stem):
            run = list(names)
            runs += [f"{run[0]} to {run[-1].rpartition('.')[2]}"] if key and len(run) > 1 else run
        return ", ".join(runs)


def as_bytes(size: int | str) -> int:
    """A size of memory: bytes, or a number with KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    Raises:
        ValueError: no size, or none above 0.

    Examples:
        >>> from mmblocks.pipelines.placing import as_bytes
        >>> as_bytes("24GB"), as_bytes("1.5 GiB")
        (24000000000, 1610612736)
    """
    found = _SIZE.fullmatch(str(size).strip())
    number, unit = (0.0, "") if found is None else (float(found[1]), (found[2] or "").upper())
    power = _UNITS.index(unit[0]) + 1 if unit else 0
    value = int(number * (1024 if unit.endswith("I") else 1000) ** power)
    if value <= 0:
        raise ValueError(
            f"a device's size is {size!r}; accepted: bytes, or a number with KB, MB, GB, KiB, MiB or GiB, such as 24GB"
        )
    return value


def place(pieces: Sequence[Piece], devices: Sequence[int | str]) -> tuple[DeviceLoad, ...]:
    """The pieces in order, each on the first device that still has room and is no earlier one; shared tensors stay together.

    Raises:
        ValueError: no device, a size that is none, or too little room; the message says how much is lacking.
    """
    sizes = [as_bytes(size) for size in devices]
    if not sizes:
        raise ValueError("devices is empty; accepted: the size of one device or more, such as 24GB")
    held, working = [0] * len(sizes), [0] * len(sizes)
    names: list[list[str]] = [[] for _ in sizes]
    homes: dict[str, int] = {}
    current = 0
    for index, piece in enumerate(pieces):

        def fits(device: int, piece: Piece = piece) -> bool:
            return held[device] + piece.held + max(working[device], piece.working) <= sizes[device]

        home = homes.get(piece.beside or "")
        if home is None:
            while current < len(sizes) and not fits(current):
                current += 1
            home = current
        if home == len(sizes) or not fits(home):
            raise ValueError(_shortfall(pieces[index:], held, working, sizes, homes.get(piece.beside or "")))
        held[home] += piece.held
        working[home] = max(working[home], piece.working)
        names[home].append(piece.name)
        homes[piece.name] = home
    return tuple(
        DeviceLoad(size=size, needed=held[number] + working[number], pieces=tuple(names[number]))
        for number, size in enumerate(sizes)
    )


def shown(size: int) -> str:
    """Bytes as people read them."""
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def _shortfall(left: Sequence[Piece], held: Sequence[int], working: Sequence[int], sizes: Sequence[int], home: int | None) -> str:
    """How much more room the pieces that are left need: on the last device, or where one of them has to be."""
    number = len(sizes) - 1 if home is None else home
    wanted = held[number] + sum(piece.held for piece in left) + max([working[number], *(piece.working for piece in left)])
    listed = ", ".join(shown(size) for size in sizes)
    more = wanted - sizes[number]
    return (
        f"the model does not fit devices of {listed}: {shown(more)} are lacking, from {left[0].name} on, which takes"
        f" {shown(left[0].held)} and {shown(left[0].working)} while it runs; accepted: {shown(wanted)} in place of"
        f" {shown(sizes[number])} on device {number}, or a further device, a smaller dtype, or fewer tokens"
    )
