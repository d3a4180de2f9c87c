"""What was trained of a model that is frozen otherwise, in a folder of its own: low-rank adapters, and the parameters beside them.

    attach_lora(model, ("trunk.layers.{}.attention.query",), rank=16)
    ...                                  # train
    save_adapters(model, "adapters")     # some megabytes
    again = load_adapters(MultimodalModel.from_pretrained("base"), "adapters")

Adapters of ``attach_lora``, on the model or on parts of it, are written as peft writes them, those of a part to a folder of its
name. All other parameters that have gradients, such as those of a connector
that trains too, or of low-rank maps that a trunk has by itself, are written to ``trained.safetensors`` under their own names.
"""

import json
from itertools import permutations
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmblocks.checkpoints.files import folders, untrusted
from mmblocks.checkpoints.files.safetensors_files import open_safetensors
from mmblocks.checkpoints.surgery import low_rank

M = TypeVar("M", bound=nn.Module)

CONFIG = "adapters.json"
TRAINED = "trained.safetensors"


def save_adapters(model: nn.Module, folder: str | Path) -> None:
    """Writes the adapters of a model, and whatever else of it has gradients. The folder is replaced in one step.

    Args:
        model: with adapters of ``attach_lora``, or with parameters that are frozen (``requires_grad``).
        folder: where to write.

    Raises:
        ValueError: nothing is frozen, so that the model would be written whole; nothing has gradients; parameters without values;
            adapters on a part of a part that has some.
        ImportError: a model with adapters, and peft is not installed.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.checkpoints import attach_lora, load_adapters, save_adapters
        >>> trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=16)
        >>> trunk.save_pretrained("base")
        >>> report = attach_lora(trunk, ("layers.{}.attention.query",), rank=2)
        >>> save_adapters(trunk, "adapters")
        >>> again = load_adapters(Decoder.from_pretrained("base"), "adapters")
        >>> row = torch.randn(1, 3, 16), TokenTable.text(1, 3)
        >>> torch.equal(again(*row), trunk(*row))
        True
    """
    name, parameters = type(model).__name__, dict(model.named_parameters())
    owners = low_rank.adapted_parts(model)
    own = set(low_rank.lora_names(model)) if owners else set()
    for inner, outer in permutations(owners, 2):
        if not outer or inner.startswith(f"{outer}."):
            raise ValueError(f"{inner} lies inside {outer or name}; accepted: adapters on one of them, attached together")
    trained = {_plain(key): value for key, value in parameters.items() if value.requires_grad and key not in own}
    if not own and len(trained) == len(parameters):
        raise ValueError(f"{name} has no adapters, and nothing of it is frozen; accepted: one of which a part trains")
    if not own and not trained:
        raise ValueError(f"{name} has no adapters, and nothing of it has gradients; accepted: a model of which something trains")
    empty = [key for key, value in trained.items() if value.is_meta]
    if empty:
        raise ValueError(f"{name}: {', '.join(empty[:3])} have no values here; accepted: a model that is not on the meta device")
    with folders.replacing(Path(folder)) as temporary:
        content = {"model": name, "lora": list(owners), "trained": sorted(trained)}
        (temporary / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path, owner in owners.items():
            place = temporary / path.replace(".", "/")
            place.mkdir(parents=True, exist_ok=True)
            low_rank.write_lora(owner, place)
        if trained:
            values = {key: value.detach().cpu().contiguous() for key, value in trained.items()}
            save_file(values, temporary / TRAINED, metadata={"format": "pt"})


def load_adapters(model: M, folder: str | Path) -> M:
    """Gives a model what ``save_adapters`` wrote of another with the same weights otherwise, in place; all else is frozen.

    Args:
        model: as it was before adapters were attached.
        folder: that ``save_adapters`` wrote. One of peft's adapters alone, as ``save_lora`` writes it, will do too.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: a file is missing in the folder.
        ValueError: parameters that the model does not have, or in another shape; as ``load_lora``. The model stays as it was then.
        ImportError: a folder with adapters, and peft is not installed.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.checkpoints import attach_lora, load_adapters, save_adapters
        >>> trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=16)
        >>> trunk.save_pretrained("base")
        >>> report = attach_lora(trunk, ("layers.{}.attention.query",), rank=2)
        >>> save_adapters(trunk, "adapters")
        >>> again = load_adapters(Decoder.from_pretrained("base"), "adapters")
        >>> row = torch.randn(1, 3, 16), TokenTable.text(1, 3)
        >>> torch.equal(again(*row), trunk(*row))
        True
    """
    folder = Path(folder)
    content = untrusted.read_object(folder, CONFIG, unique=True)
    if content is None:
        low_rank.load_lora(model, folder)
        return model
    owners, stored = _owners(model, folder, content), _stored(folder, content)
    shapes = {key: value.shape for key, value in model.named_parameters()}
    unlike = sorted(key for key, value in stored.items() if shapes.get(key) != value.shape)
    if unlike:
        found = f"{len(unlike)} tensors are unexpected or misshapen: {', '.join(unlike[:5])}"
        raise ValueError(f"what {folder} holds does not fit {type(model).__name__}: {found}")
    _attach(model, owners)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if _plain(key) in stored and ".lora_" not in key:
                parameter.copy_(stored[_plain(key)])
                parameter.requires_grad_()
    return model


def _attach(model: nn.Module, owners: dict[str, Path]) -> None:
    """The adapters of all parts, or none; all else is frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = {path: model.get_submodule(path) for path in owners}
    done: list[nn.Module] = []
    model.requires_grad_(False)
    try:
        for path, place in owners.items():
            low_rank.load_lora(parts[path], place)
            done.append(parts[path])
    except Exception:  # whatever is wrong with a folder from elsewhere
        for part in done:
            low_rank.detach_lora(part)
        for parameter in trained:
            parameter.requires_grad_()
        raise


def _owners(model: nn.Module, folder: Path, content: dict[str, object]) -> dict[str, Path]:
    """The parts that have adapters, and their folders."""
    names, known = content.get("lora"), {name for name, _ in model.named_modules()}
    if not isinstance(names, list) or not all(isinstance(name, str) and not set(name) & set("/\\:") for name in names):
        raise ValueError(f"{folder / CONFIG}: 'lora' is {names!r:.200}; accepted: a list of parts")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{folder} holds adapters of {', '.join(unknown[:5])}, which {type(model).__name__} does not have")
    return {name: folder / name.replace(".", "/") for name in names}


def _plain(key: str) -> str:
    """A parameter's name without what peft puts around its layer."""
    return key.replace(low_rank.BASE, ".")


def _stored(folder: Path, content: dict[str, object]) -> dict[str, Tensor]:
    """The parameters beside the adapters: exactly those that the config names."""
    names = content.get("trained")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / CONFIG}: 'trained' is {names!r:.200}; accepted: a list of names")
    if not names:
        return {}
    if not (folder / TRAINED).is_file():
        raise FileNotFoundError(f"{folder} has no {TRAINED}; accepted: a folder that save_adapters wrote")
    file = untrusted.inside(folder, folder / TRAINED, f"{folder} holds {TRAINED!r}")
    stored = {name: entry.read() for name, entry in open_safetensors(file).items()}
    if set(stored) != set(names):
        raise ValueError(f"{file} holds other tensors than {CONFIG} names; accepted: a folder that save_adapters wrote")
    return stored
