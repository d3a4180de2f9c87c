"""Golden numbers: what methods of a Block gave for given inputs, in a small file beside its weights.

    write_golden(tokenizer, "my-tokenizer/golden.safetensors", {"encode": {"pixels": pixels}, "decode": {"latents": ids}})

``mmblocks verify my-tokenizer`` calls the methods again, wherever it is run, and compares. The tensors are called
``<method>.in.<argument>`` and ``<method>.out.<field>``; how the arguments are put together is JSON in the metadata.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.checkpoints.files.safetensors_files import open_safetensors
from mmblocks.configurable import ABOUT_FILES, Configurable
from mmblocks.sequence import tokens

LARGEST_NUMBER = 2**20
"""Integers among the arguments of a call."""

_CALLS = "golden"
_TENSOR, _RECORD = "_tensor", "_record"
_KINDS = (tokens.Latents, tokens.TokenTable, tokens.VisionTokens)
_RECORDS = {record.__name__: record for record in _KINDS}

T = TypeVar("T")


@runtime_checkable
class _Named(Protocol):
    """A tuple with names."""

    def _asdict(self) -> dict[str, Any]: ...


class Golden(NamedTuple):
    """How far outputs are from those in the file.

    Attributes:
        differences: output -> largest absolute difference; 0 for integers that are equal.
        wrong: output -> in words, for each that is not as it was.
    """

    differences: dict[str, float]
    wrong: dict[str, str]


@torch.no_grad()
def write_golden(
    block: Configurable, file: str | Path, calls: Mapping[str, Mapping[str, Any]], *, atol: float = 1e-4, rtol: float = 1e-4
) -> Path:
    """Calls methods of a Block, which is in evaluation mode meanwhile, and writes their inputs and outputs.

    Args:
        block: the Block, on the CPU.
        file: where to write to, such as ``"my-tokenizer/golden.safetensors"``.
        calls: public method, or ``"forward"`` -> its arguments by name: tensors, numbers, None, ``Latents``, ``TokenTable``,
            ``VisionTokens``, and lists and dicts of these.
        atol: how far an output may be from what it was; integers must be equal.
        rtol: the same, as a fraction of what it was.

    Returns:
        The file's path.

    Raises:
        TypeError: an argument of another kind, or a method that gives no tensors.
        ValueError: no such method, one that gives something else each time, or an integer above ``LARGEST_NUMBER``.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import compare_golden, write_golden
        >>> from mmblocks.connectors import MLPProjector
        >>> projector = MLPProjector(in_dim=4, dim=8)
        >>> file = write_golden(projector, "golden.safetensors", {"forward": {"features": torch.randn(3, 4)}})
        >>> compare_golden(projector, file).wrong
        {}
    """
    file = Path(file)
    found: dict[str, Tensor] = {}
    described = {}
    was_training = block.training
    block.eval()
    try:
        for name, arguments in calls.items():
            method = _method(block, name)
            described[name] = {key: _encoded(value, f"{name}.in.{key}", found) for key, value in arguments.items()}
            outputs, again = (dict(_leaves(method(**arguments), f"{name}.out")) for _ in range(2))
            if not outputs:
                raise TypeError(f"{name} of {type(block).__name__} gives no tensors")
            changed = [key for key in outputs if not torch.equal(outputs[key], again[key])]
            if changed:
                raise ValueError(f"{changed[0]} of {type(block).__name__} is another each time; hand in what is drawn at random")
            found |= outputs
    finally:
        block.train(was_training)
    text = json.dumps({"atol": atol, "rtol": rtol, "calls": described})
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in found.items()}, file, metadata={_CALLS: text})
    return file


@torch.no_grad()
def compare_golden(block: Configurable, file: str | Path) -> Golden:
    """Calls the methods that a file of ``write_golden`` names, and compares what they give.

    Raises:
        ValueError: the file is no such file, or names what the Block does not have.

    Examples:
        >>> import torch
        >>> from mmblocks.checkpoints import compare_golden, write_golden
        >>> from mmblocks.connectors import MLPProjector
        >>> calls = {"forward": {"features": torch.randn(3, 4)}}
        >>> file = write_golden(MLPProjector(in_dim=4, dim=8), "golden.safetensors", calls)
        >>> len(compare_golden(MLPProjector(in_dim=4, dim=8), file).wrong)  # another projector
        1
    """
    file = Path(file)
    stored = {key: entry.read() for key, entry in open_safetensors(file).items()}
    atol, rtol, calls = _described(file)
    differences: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for name, arguments in calls.items():
        method = _method(block, name)
        try:
            given = {key: _decoded(value, stored) for key, value in arguments.items()}
            outputs = dict(_leaves(method(**given), f"{name}.out"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file}: {name} of {type(block).__name__} does not take these inputs: {error}") from error
        expected = {key for key in stored if key.startswith(f"{name}.out")}
        for key in sorted(expected | outputs.keys()):
            if key not in outputs or key not in stored:
                wrong[key] = "is not there any more" if key in stored else "is new"
                continue
            differences[key], problem = _compared(outputs[key].cpu(), stored[key], atol, rtol)
            if problem:
                wrong[key] = problem
    return Golden(differences, wrong)


def _method(block: Configurable, name: str) -> Callable[..., Any]:
    """A method of the part itself. A file must not choose ``push_to_hub``, or what every module has."""
    if name == "forward":
        return block
    ours = not name.startswith("_") and name not in ABOUT_FILES and not hasattr(Configurable, name)  # named by the file
    if not ours or not callable(getattr(type(block), name, None)):  # of the class: a property is not computed
        raise ValueError(f"{type(block).__name__} has no method {name!r} for golden numbers; accepted: public methods of its own")
    return getattr(block, name)  # named by the file


def _compared(found: Tensor, expected: Tensor, atol: float, rtol: float) -> tuple[float, str]:
    """The largest difference, and what is wrong, if anything."""
    if found.shape != expected.shape or found.dtype.is_floating_point != expected.dtype.is_floating_point:
        return float("inf"), f"is {found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    if not expected.is_floating_point():
        differing = int((found != expected).sum())
        return float(differing > 0), f"differs in {differing} of {expected.numel()} places" if differing else ""
    ours, theirs = found.double(), expected.double()
    largest = float((ours - theirs).abs().max()) if ours.numel() else 0.0
    close = torch.isclose(ours, theirs, atol=atol, rtol=rtol).all()
    return largest, "" if close else f"differs by up to {largest:.3g}"


def _encoded(value: object, path: str, found: dict[str, Tensor]) -> Any:
    """An argument as JSON; its tensors go to ``found``."""
    if isinstance(value, Tensor):
        found[path] = value
        return {_TENSOR: path}
    if value is None or type(value) in (bool, int, float):
        return _checked_number(value)
    if isinstance(value, _KINDS) and type(value) in _KINDS:
        return {_RECORD: type(value).__name__, **_encoded(value._asdict(), path, found)}
    if isinstance(value, Mapping):
        return {str(key): _encoded(item, f"{path}.{key}", found) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return [_encoded(item, f"{path}.{number}", found) for number, item in enumerate(value)]
    raise TypeError(
        f"{path} is a {type(value).__name__}; accepted: tensors, numbers, {', '.join(_RECORDS)}, lists and dicts of them"
    )


def _decoded(value: object, stored: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and _TENSOR in value:
        if value[_TENSOR] not in stored:
            raise ValueError(f"there is no tensor {value[_TENSOR]!r}")
        return stored[value[_TENSOR]]
    if isinstance(value, dict):
        fields = {key: _decoded(item, stored) for key, item in value.items() if key != _RECORD}
        record = _RECORDS.get(value.get(_RECORD, ""))
        return fields if record is None else record(**fields)
    if isinstance(value, list):
        return [_decoded(item, stored) for item in value]
    if isinstance(value, str):  # could be the name of a file
        raise ValueError(f"text such as {value!r} is no tensor or number")
    return _checked_number(value)


def _checked_number(value: T) -> T:
    """A number may be how often a method does something: a file must not make it run without end."""
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"the number {value} is too large; accepted: integers of at most {LARGEST_NUMBER}")
    return value


def _described(file: Path) -> tuple[float, float, dict[str, dict[str, Any]]]:
    with safe_open(file, framework="pt") as content:
        text = (content.metadata() or {}).get(_CALLS, "")
    try:
        described = json.loads(text)
        atol, rtol, calls = float(described["atol"]), float(described["rtol"]), described["calls"]
        sound = all(math.isfinite(limit) and limit >= 0 for limit in (atol, rtol))
        sound = sound and all(isinstance(arguments, dict) for arguments in calls.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{file} holds no golden numbers; accepted: a file that write_golden has written")
    return atol, rtol, calls


def _leaves(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a method gives."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping | _Named):
        for key, item in (value if isinstance(value, Mapping) else value._asdict()).items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
