"""Saving a tokenizer's training, and reading it back: all that decides what the next step will do.

A folder holds ``tokenizer/`` and ``discriminator/``, which ``Block.from_pretrained`` reads, ``state.safetensors`` with the
optimizers' and generators' states and the counters, and ``trainer.json`` with the recipe.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from mmblocks.block import Block
from mmblocks.checkpoints import write
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training.tokenizer_recipe import TokenizerRecipe

if TYPE_CHECKING:
    from mmblocks.training.tokenizer import TokenizerTrainer

_FORMAT = 1
_NOTES, _TENSORS = "trainer.json", "state.safetensors"


class Saved(NamedTuple):
    """What a folder holds."""

    notes: dict[str, Any]
    tensors: dict[str, Tensor]
    recipe: TokenizerRecipe
    tokenizer: VisualTokenizer
    discriminator: Block | None


def save(trainer: "TokenizerTrainer", folder: Path) -> None:
    """Replaces ``folder`` in one step."""
    notes = {
        "format": _FORMAT,
        "recipe": asdict(trainer.recipe),
        "num_steps": trainer.num_steps,
        "num_skipped": trainer.num_skipped,
        "device": trainer.device.type,
        "codebook_is_laid": trainer.codebook.is_laid,
        "batches_counted": trainer.codebook.usage.num_batches,
        "perceptual": trainer.perceptual is not None,
        "frozen": {part: _frozen(block) for part, (block, _) in _trained(trainer).items()},
    }
    with write.replacing(folder) as temporary:
        for part, (block, _) in _trained(trainer).items():
            block.save_pretrained(temporary / part)
        # Each in a storage of its own, which safetensors insists on.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _tensors(trainer).items()}
        save_file(tensors, temporary / _TENSORS)
        (temporary / _NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def read(folder: Path, device: torch.device) -> Saved:
    """What ``save`` wrote.

    Raises:
        FileNotFoundError: no trainer was saved there.
        ValueError: a file is not what was saved.
    """
    if not (folder / _NOTES).is_file():
        raise FileNotFoundError(f"{folder} holds no training to resume: it has no {_NOTES}")
    try:
        notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
        recipe = TokenizerRecipe(**{**notes["recipe"], "betas": tuple(notes["recipe"]["betas"])})  # JSON knows lists only
        tensors = load_file(folder / _TENSORS)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    if notes["format"] != _FORMAT:
        raise ValueError(f"{folder / _NOTES} has format {notes['format']}; accepted: {_FORMAT}")
    blocks = {part: _read_block(folder / part, frozen, device) for part, frozen in notes["frozen"].items()}
    tokenizer = blocks["tokenizer"]
    if not isinstance(tokenizer, VisualTokenizer):
        raise ValueError(f"{folder / 'tokenizer'} holds a {type(tokenizer).__name__}; accepted: a VisualTokenizer")
    return Saved(notes, tensors, recipe, tokenizer, blocks.get("discriminator"))


def restore(trainer: "TokenizerTrainer", saved: Saved) -> None:
    """Brings a new trainer to the state that was saved, and torch's global generators with it.

    Raises:
        ValueError: tensors of the state are missing or unexpected, or another kind of device.
    """
    notes, tensors = saved.notes, dict(saved.tensors)
    if notes["device"] != trainer.device.type:
        raise ValueError(f"device is {trainer.device.type}; accepted: {notes['device']}, on which the training was saved")
    trainer.num_steps, trainer.num_skipped = notes["num_steps"], notes["num_skipped"]
    trainer.codebook.is_laid = notes["codebook_is_laid"]
    trainer.codebook.usage.num_batches = notes["batches_counted"]
    try:
        if "waiting" in tensors:
            trainer.codebook.waiting = [tensors.pop("waiting").to(trainer.device)]
        for part, (block, optimizer) in _trained(trainer).items():
            _restore_optimizer(part, block, optimizer, tensors)
        trainer.generator.set_state(tensors.pop("generator"))
        torch.set_rng_state(tensors.pop("rng.cpu"))
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop("rng.cuda"), trainer.device)
        for name, target in _counters(trainer).items():
            target.copy_(tensors.pop(name))
    except KeyError as error:
        raise ValueError(f"{_TENSORS} lacks {error}") from error
    if tensors:
        raise ValueError(f"{_TENSORS} has tensors that nothing needs: {', '.join(sorted(tensors)[:5])}")


def _tensors(trainer: "TokenizerTrainer") -> dict[str, Tensor]:
    tensors = _counters(trainer) | {"generator": trainer.generator.get_state(), "rng.cpu": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.device)
    if trainer.codebook.waiting:
        tensors["waiting"] = torch.cat(trainer.codebook.waiting)
    for part, (block, optimizer) in _trained(trainer).items():
        names: dict[Tensor, str] = {parameter: name for name, parameter in block.named_parameters()}
        for parameter, state in optimizer.state.items():
            tensors |= {f"{part}/{key}/{names[parameter]}": value for key, value in state.items()}
    return tensors


def _counters(trainer: "TokenizerTrainer") -> dict[str, Tensor]:
    """Tensors that change in place."""
    counters = {f"usage.{book}": counts for book, counts in trainer.codebook.usage.counts.items()}
    if trainer.adversary is not None:
        counters |= {f"lecam.{name}": average for name, average in trainer.adversary.lecam.named_buffers()}
    return counters


def _trained(trainer: "TokenizerTrainer") -> dict[str, tuple[Block, Optimizer]]:
    """What is trained, by the name of its subfolder."""
    trained: dict[str, tuple[Block, Optimizer]] = {"tokenizer": (trainer.tokenizer, trainer.optimizer)}
    if trainer.adversary is not None:
        trained["discriminator"] = trainer.adversary.discriminator, trainer.adversary.optimizer
    return trained


def _frozen(block: Block) -> list[str]:
    return [name for name, parameter in block.named_parameters() if not parameter.requires_grad]


def _read_block(folder: Path, frozen: list[str], device: torch.device) -> Block:
    block = Block.from_pretrained(folder, device=device)
    for tensor in [*block.parameters(), *block.buffers()]:
        tensor.data = tensor.data.clone()  # loaded tensors are views of the files, which training shall not write to
    for name in frozen:
        block.get_parameter(name).requires_grad_(False)
    return block


def _restore_optimizer(part: str, block: Block, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Takes what is the optimizer's out of ``tensors``. A parameter that has had no gradient yet has no state."""
    names = {parameter: name for name, parameter in block.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        keys = [f"{part}/{key}/{names[parameter]}" for key in ("step", "exp_avg", "exp_avg_sq")]
        if keys[0] in tensors:
            state[number] = {key.split("/")[1]: tensors.pop(key) for key in keys}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
