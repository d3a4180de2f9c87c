"""A golden case: inputs, outputs and weights of official code, and how closely ours must follow."""

import json
import re
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks import Block
from mmblocks.checkpoints.layouts.layout import Layout


def ramp_mean(values: Tensor) -> Tensor:
    """What the cases add to the losses so that every output has a gradient: the mean of values times a ramp from -1 to 1."""
    return (values * torch.linspace(-1, 1, values.numel()).view_as(values)).mean()


_NOTES = re.compile(r"(\w+_)?(override|production|constants)(_\w+)?")
"""Entries of a case's config that are about how the case was made: no published config has them."""


AnyBlock = TypeVar("AnyBlock", bound=Block)


class Case:
    """One folder ``component/case`` of golden data; see its README for the format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.config: dict[str, Any] = self.description.get("config") or {}
        self.data: dict[str, Any] = self.description.get("data") or {}
        self.seen: set[str] = set()
        """Names of the stored results that were compared."""

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs (``in.``), outputs (``out.``), losses (``loss.``) and gradients (``grad.``)."""
        file = self.folder / "io.safetensors"
        return load_file(file) if file.is_file() else {}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The state dict in the official key layout."""
        return load_file(self.folder / "weights.safetensors")

    @property
    def has_weights(self) -> bool:
        """Whether there is a state dict with something in it."""
        return (self.folder / "weights.safetensors").is_file() and bool(self.weights)

    @property
    def is_training(self) -> bool:
        """Whether the notes say that the official module was in training mode."""
        return bool(re.search(r"\btrain(ing)?\b(\(\))? mode|\.?train\(\)", self.description.get("notes", "")))

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, under the rest of their names."""
        return {name.removeprefix(prefix): value for name, value in self.io.items() if name.startswith(prefix)}

    def load(self, cls: type[AnyBlock], config: dict[str, Any] | None = None, **options: Any) -> AnyBlock:
        """Through the loader, as a person would: the published config and weights in a folder.

        Args:
            cls: the class.
            config: what its config.json holds; None for the case's own.
            options: of ``from_pretrained``, such as ``layout``.
        """
        with TemporaryDirectory() as name:
            folder = Path(name)
            content = self.config if config is None else config
            published = {name: value for name, value in content.items() if not _NOTES.fullmatch(name)}
            (folder / "config.json").write_text(json.dumps(published))
            save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
            block = cls.from_pretrained(folder, **options)
            self._check_written_back(block, options.get("layout"))
            return block

    def _check_written_back(self, block: Block, layout: str | None) -> None:
        """In the published layout, every tensor that is not dropped has its name and its bytes again."""
        for table in self.layouts(block, layout):
            written = dict(table.convert(block.state_dict(), block.config, to="theirs"))
            for name, value in self.weights.items():
                if table.to_ours(name) != ():
                    assert torch.equal(written[name], value), name

    def check(self, name: str, got: Tensor, where: Tensor | None = None) -> None:
        """Asserts that a tensor equals the stored one within the case's tolerance; exactly for integers and booleans.

        Nothing where the case stores none of that name: which results there are differs from case to case, and ``unseen`` finds
        those that nothing was compared with.

        Args:
            name: of the stored tensor, such as ``out.logits``.
            got: ours.
            where: True at entries that count.
        """
        if name not in self.io:
            return
        wanted = self.io[name]
        self.seen.add(name)
        assert got.shape == wanted.shape, f"{name}: {tuple(got.shape)} instead of {tuple(wanted.shape)}"
        got, wanted = (got, wanted) if where is None else (got[where], wanted[where])
        if not wanted.is_floating_point():
            assert torch.equal(got.to(wanted.dtype), wanted), f"{name}: {int((got != wanted).sum())} entries differ"
            return
        tolerance = self.description["tolerance"]
        per_output = tolerance.get("atol_per_output", {})
        short = name.split(".", 1)[-1]
        atol = per_output.get(name, per_output.get(short, tolerance["atol"]))
        torch.testing.assert_close(got.float(), wanted.float(), atol=atol, rtol=tolerance["rtol"], msg=lambda m: f"{name}: {m}")

    def layouts(self, block: Block, layout: str | None = None) -> list[Layout]:
        """The layout of that name, or all that the case's weights fit in every name and shape; at least one."""
        shapes = {name: tuple(value.shape) for name, value in self.weights.items()}
        tables = [table for table in block.layouts if table.name == layout or (layout is None and not table.check(shapes, block))]
        assert tables
        return tables

    def check_gradients(self, block: Block, layout: str | None = None, **inputs: Tensor) -> None:
        """Compares every stored gradient: of inputs by name, else of parameters in the published layout, or that of the weights."""
        table = self.layouts(block, layout)[0]
        ours = {name: parameter.grad for name, parameter in block.named_parameters() if parameter.grad is not None}
        theirs = dict(table.convert(ours, block.config, to="theirs"))
        for name in self.named("grad."):
            self.check(f"grad.{name}", inputs[name].grad if name in inputs else theirs[name])

    def leave_out(self, *names: str) -> None:
        """Stored results that are not compared; the adapter says why beside the call."""
        self.seen.update(names)

    def unseen(self) -> list[str]:
        """Stored results that nothing was compared with."""
        results = (name for name in self.io if f"{name}.".startswith(("out.", "loss.", "grad.", "state.")))
        return [name for name in results if name not in self.seen]
