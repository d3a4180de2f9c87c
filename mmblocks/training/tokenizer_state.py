"""Saving a tokenizer's training, and reading it back: all that decides what the next step will do.

A folder holds ``tokenizer/`` and ``discriminator/``, which ``Block.from_pretrained`` reads, ``state.safetensors`` with the
optimizers' and generators' states and the counters, and ``trainer.json`` with the recipe and the checksums of all these files.
"""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer

from mmblocks.block import Block
from mmblocks.checkpoints.files import folders, untrusted
from mmblocks.checkpoints.files.safetensors_files import open_safetensors
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training import tokenizer_notes
from mmblocks.training.adversarial import Adversary
from mmblocks.training.tokenizer_codebook import CodebookCare
from mmblocks.training.tokenizer_losses import Perceptual
from mmblocks.training.tokenizer_notes import Notes
from mmblocks.training.tokenizer_recipe import TokenizerRecipe

_TENSORS = "state.safetensors"


@runtime_checkable
class Training(Protocol):
    """What of a ``TokenizerTrainer`` decides what its next step will do."""

    num_steps: int
    num_skipped: int
    recipe: TokenizerRecipe
    tokenizer: VisualTokenizer
    optimizer: AdamW
    adversary: Adversary | None
    perceptual: Perceptual | None
    codebook: CodebookCare
    generator: torch.Generator
    device: torch.device


class Saved(NamedTuple):
    """What a folder holds."""

    notes: Notes
    tensors: dict[str, Tensor]
    tokenizer: VisualTokenizer
    discriminator: Block | None


def save(trainer: Training, folder: Path) -> None:
    """Replaces ``folder`` in one step."""
    notes = Notes(
        recipe=trainer.recipe,
        num_steps=trainer.num_steps,
        num_skipped=trainer.num_skipped,
        device=trainer.device.type,
        codebook_is_laid=trainer.codebook.is_laid,
        batches_counted=trainer.codebook.usage.num_batches,
        perceptual=trainer.perceptual is not None,
        frozen={part: _frozen(block) for part, (block, _) in _trained(trainer).items()},
    )
    with folders.replacing(folder) as temporary:
        for part, (block, _) in _trained(trainer).items():
            block.save_pretrained(temporary / part)
        # Each in a storage of its own, which safetensors insists on.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _tensors(trainer).items()}
        save_file(tensors, temporary / _TENSORS)
        tokenizer_notes.write(temporary, notes)


def read(folder: Path, device: torch.device) -> Saved:
    """What ``save`` wrote.

    Raises:
        FileNotFoundError: no trainer was saved there, or a file is gone.
        ValueError: a file is not what was saved.
    """
    return folders.consistently(folder, lambda: _read(folder, device))


def _read(folder: Path, device: torch.device) -> Saved:
    notes = tokenizer_notes.read(folder)
    file = folder / _TENSORS
    if not file.is_file():
        raise FileNotFoundError(f"{folder} cannot be resumed: it has no {_TENSORS}")
    entries = open_safetensors(untrusted.inside(folder, file, f"{folder} holds {_TENSORS!r}"))
    tensors = {name: entry.read().clone() for name, entry in entries.items()}  # no views of the file
    blocks = {part: _read_block(folder / part, frozen, device) for part, frozen in notes.frozen.items()}
    tokenizer = blocks["tokenizer"]
    if not isinstance(tokenizer, VisualTokenizer):
        raise ValueError(f"{folder / 'tokenizer'} holds a {type(tokenizer).__name__}; accepted: a VisualTokenizer")
    return Saved(notes, tensors, tokenizer, blocks.get("discriminator"))


def restore(trainer: Training, saved: Saved) -> None:
    """Brings a new trainer to the state that was saved, and torch's global generators with it.

    Raises:
        ValueError: tensors of the state are missing or unexpected, or another kind of device.
    """
    notes, tensors = saved.notes, dict(saved.tensors)
    if notes.device != trainer.device.type:
        raise ValueError(f"device is {trainer.device.type}; accepted: {notes.device}, on which the training was saved")
    trainer.num_steps, trainer.num_skipped = notes.num_steps, notes.num_skipped
    trainer.codebook.is_laid = notes.codebook_is_laid
    trainer.codebook.usage.num_batches = notes.batches_counted
    if "waiting" in tensors:
        waiting = tensors.pop("waiting")
        if waiting.ndim != 2 or not waiting.is_floating_point():
            raise ValueError(f"{_TENSORS}: waiting is {_described(waiting)}; accepted: features (N, D)")
        trainer.codebook.waiting = [waiting.to(trainer.device)]
    for part, (block, optimizer) in _trained(trainer).items():
        _restore_optimizer(part, block, optimizer, tensors)
    for name, target in _counters(trainer).items():
        target.copy_(_taken(tensors, name, target))
    _restore_generators(trainer, tensors)
    if tensors:
        raise ValueError(f"{_TENSORS} has tensors that nothing needs: {', '.join(sorted(tensors)[:5])}")


def _restore_generators(trainer: Training, tensors: dict[str, Tensor]) -> None:
    state = _taken(tensors, "generator", trainer.generator.get_state())
    cpu = _taken(tensors, "rng.cpu", torch.get_rng_state())
    try:
        trainer.generator.set_state(state)
        torch.set_rng_state(cpu)
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(_taken(tensors, "rng.cuda", torch.cuda.get_rng_state(trainer.device)), trainer.device)
    except RuntimeError as error:
        raise ValueError(f"{_TENSORS} holds no state of a generator: {str(error).splitlines()[0]}") from error


def _taken(tensors: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Takes a tensor out of ``tensors``, if it is one that was saved: neither is copied to another shape, nor cast."""
    if name not in tensors:
        raise ValueError(f"{_TENSORS} lacks {name!r}")
    found = tensors.pop(name)
    if found.shape != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{_TENSORS}: {name} is {_described(found)}; accepted: {_described(like)}")
    return found


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _tensors(trainer: Training) -> dict[str, Tensor]:
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


def _counters(trainer: Training) -> dict[str, Tensor]:
    """Tensors that change in place."""
    counters = {f"usage.{book}": counts for book, counts in trainer.codebook.usage.counts.items()}
    if trainer.adversary is not None:
        counters |= {f"lecam.{name}": average for name, average in trainer.adversary.lecam.named_buffers()}
    return counters


def _trained(trainer: Training) -> dict[str, tuple[Block, Optimizer]]:
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
        try:
            parameter = block.get_parameter(name)
        except AttributeError as error:
            raise ValueError(f"{folder.parent / tokenizer_notes.FILE}: frozen has {name!r:.200}, which {folder} has not") from error
        parameter.requires_grad_(False)
    return block


def _restore_optimizer(part: str, block: Block, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Takes what is the optimizer's out of ``tensors``. A parameter that has had no gradient yet has no state."""
    names = {parameter: name for name, parameter in block.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
        place = names[parameter]
        if f"{part}/step/{place}" not in tensors:
            continue
        step = _taken(tensors, f"{part}/step/{place}", torch.zeros((), dtype=torch.float32))
        if not step.isfinite() or step < 0:
            raise ValueError(f"{_TENSORS}: {part}/step/{place} is {step.item()}; accepted: at least 0")
        averages = {key: _taken(tensors, f"{part}/{key}/{place}", parameter) for key in ("exp_avg", "exp_avg_sq")}
        state[number] = {"step": step, **averages}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
