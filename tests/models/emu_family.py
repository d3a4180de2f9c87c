"""Small models of the Emu family with random weights, and their authors' files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.models import Emu, Emu2
from mmblocks.models.emu.format import EMU, EmuFormat
from mmblocks.models.emu2.format import EMU2

IDS = {"<s>": 1, "</s>": 2, "[IMG]": 3, "[/IMG]": 4, "[VIDEO]": 5, "[USER]": 6, "[ASSISTANT]": 7}
FORM, FORM2 = replace(EMU, ids=IDS, size=(8, 8)), replace(EMU2, ids=IDS, size=(8, 8))

LLAMA: dict[str, Any] = {"vocab_size": 24, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24, "norm_eps": 1e-4}
SIDE = (28, 28)
EMU_SIZES: dict[str, Any] = {
    **LLAMA,
    "embed_dim": 6,
    "vision": {"image_size": SIDE, "dim": 12, "num_layers": 2, "num_heads": 2, "mlp_dim": 20},
    "former": {"num_queries": 3, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, "head_dim": 4, "mlp_dim": 8},
}
EMU2_SIZES: dict[str, Any] = {
    **LLAMA,
    "num_tokens": 4,
    "frame_tokens": 1,
    "vision": {"image_size": SIDE, "patch_size": 7, "dim": 12, "num_layers": 2, "num_heads": 2, "mlp_dim": 20},
}


def randomised(block: Block) -> Any:  # the class of what it is given
    """The Block with other weights than zeros and ones, in evaluation mode."""
    torch.manual_seed(0)
    for name, parameter in block.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    return block.eval()


def emu(**options: Any) -> Emu:
    model: Emu = randomised(Emu(**{**EMU_SIZES, **options}))
    return model


def emu2(**options: Any) -> Emu2:
    model: Emu2 = randomised(Emu2(**{**EMU2_SIZES, **options}))
    return model


def images(count: int = 1) -> Tensor:
    return torch.rand(count, 3, *SIDE, generator=torch.Generator().manual_seed(1))


def layout_of(cls: type[Block], name: str) -> Layout:
    (layout,) = (layout for layout in cls.layouts if layout.name == name)
    return layout


def published(block: Block, layout: str) -> dict[str, Tensor]:
    """The tensors under their authors' names."""
    found = layout_of(type(block), layout).convert(block.state_dict(), block.config, to="theirs")
    return {name: value.contiguous() for name, value in found}


def write(tensors: dict[str, Tensor], file: Path, *, wrapped: bool = False) -> None:
    """As the authors do: a pickled file, with everything under "module" or not, or safetensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        torch.save({"module": tensors} if wrapped else tensors, file)


def check_written_back(block: Block, tensors: dict[str, Tensor], folder: Path, *, apart_from: str = "") -> None:
    """``to_upstream`` gives every tensor of a file its name and its bytes again."""
    block.to_upstream(folder)
    written = load_file(folder / "model.safetensors")
    assert {*written} == {*tensors}
    assert all(torch.equal(written[name], value) for name, value in tensors.items() if name != apart_from)


def prompts(form: EmuFormat) -> list[list[Any]]:
    """Of several lengths, with images and without."""
    from mmblocks import text

    one, two = images(2)
    start = form.write([])
    return [
        [*form.write([one]), text([9, 10]), *form.shown(two), text([11])],
        start,
        [*form.write([two]), text([12, 13, 14])],
    ]
