"""What the options of the commands name: the Block, its arguments, a device, a dtype."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from mmblocks.block import Block
from mmblocks.checkpoints.hub import catalogue
from mmblocks.cli import fitting


def block_class(name: str, block: str | None, revision: str | None, subfolder: str | None) -> type[Block]:
    """The class that is named, or that a local folder or the catalogue tells.

    Raises:
        FileNotFoundError, ValueError: there is no such folder; none or several classes fit, or none has that name.
    """
    if block is None and catalogue.find(name) is not None:
        return Block
    path = fitting.local_path(name, revision, subfolder)
    return fitting.choose(path or Path(name), block) if block is not None or path is not None else Block


def load(
    name: str,
    block: str | None,
    layout: str | None,
    revision: str | None,
    subfolder: str | None,
    arguments: str,
    device: torch.device | None = None,
) -> Block:
    """The Block with its weights.

    Raises:
        FileNotFoundError, ValueError, TypeError, OSError: as ``Block.from_pretrained``, and for arguments that are no JSON object.
    """
    given = arguments_of(arguments)
    cls = block_class(name, block, revision, subfolder)
    where = torch.device("cpu") if device is None else device
    return cls.from_pretrained(name, layout=layout, revision=revision, subfolder=subfolder, device=where, **given)


def arguments_of(text: str) -> dict[str, Any]:
    """Constructor arguments from a JSON object.

    Raises:
        ValueError: it is none, or names what the command has options for.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"--arguments is {text!r}; accepted: a JSON object, such as '{{\"depth\": 24}}'")
    options = sorted(given.keys() & inspect.signature(Block.from_pretrained).parameters.keys())
    if options:
        raise ValueError(f"--arguments names {options[0]!r}; accepted: arguments of the Block's constructor")
    return given


def device_of(name: str) -> torch.device:
    """A device that this machine has.

    Raises:
        ValueError: it has none of that name.
    """
    accepted = "accepted: a device of this machine, such as cpu or cuda"
    if name == "meta":
        raise ValueError(f"--device is {name!r}, which holds no values; {accepted}")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device is {name!r} ({reason}); {accepted}") from error
    return device


def dtype_of(name: str | None) -> torch.dtype | None:
    """A dtype of floating point.

    Raises:
        ValueError: it is none.
    """
    found = None if name is None else getattr(torch, name, None)  # named by the user
    if name is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"--dtype is {name!r}; accepted: such as float32, float16, bfloat16")
    return found
