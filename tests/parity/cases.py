"""A golden case: inputs, outputs and weights of official code, and how closely ours must follow."""

import json
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks import Block

AnyBlock = TypeVar("AnyBlock", bound=Block)


class Case:
    """One folder ``component/case`` of golden data; see its README for the format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.config: dict[str, Any] = self.description.get("config") or {}
        self.data: dict[str, Any] = self.description.get("data") or {}

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs (``in.``), outputs (``out.``), losses (``loss.``) and gradients (``grad.``)."""
        file = self.folder / "io.safetensors"
        return load_file(file) if file.is_file() else {}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The state dict in the official key layout."""
        return load_file(self.folder / "weights.safetensors")

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
            (folder / "config.json").write_text(json.dumps(self.config if config is None else config))
            save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
            return cls.from_pretrained(folder, **options)

    def check(self, name: str, got: Tensor, where: Tensor | None = None) -> None:
        """Asserts that a tensor equals the stored one within the case's tolerance; exactly for integers and booleans.

        Args:
            name: of the stored tensor, such as ``out.logits``.
            got: ours.
            where: True at entries that count.
        """
        wanted = self.io[name]
        assert got.shape == wanted.shape, f"{name}: {tuple(got.shape)} instead of {tuple(wanted.shape)}"
        got, wanted = (got, wanted) if where is None else (got[where], wanted[where])
        if not wanted.is_floating_point():
            assert torch.equal(got.to(wanted.dtype), wanted), f"{name}: {int((got != wanted).sum())} entries differ"
            return
        tolerance = self.description["tolerance"]
        per_output = tolerance.get("atol_per_output", {})
        short = name.split(".", 1)[1]
        atol = per_output.get(name, per_output.get(short, tolerance["atol"]))
        torch.testing.assert_close(got.float(), wanted.float(), atol=atol, rtol=tolerance["rtol"], msg=lambda m: f"{name}: {m}")
