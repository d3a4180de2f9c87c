"""Low-rank adapters (LoRA) on the linear layers of a finished model, through peft: attached, saved apart, merged into the weights.

    report = attach_lora(trunk, ("layers.{}.attention.query", "layers.{}.attention.value"), rank=16)
    ...                                  # train: the adapters alone have gradients
    save_lora(trunk, "adapter")          # as peft writes them, for PeftModel.from_pretrained too
    merge_lora(trunk)                    # the trunk is as it was built, with other weights

The layers are peft's own, so whatever peft does with a model it does with these; a model that ``peft.get_peft_model`` was given
can be saved and merged here as well. Needs the extra ``train``. For adapters of one modality's tokens see
``trunks.routed.modality_lora``.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import save_file
from torch import Tensor, nn

from mmblocks.checkpoints.files import folders, untrusted
from mmblocks.checkpoints.files.safetensors_files import open_safetensors
from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.surgery.graft import Report

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
"""What peft's files call the model that was adapted."""

_ADAPTER = "default"
"""peft's name for an adapter that was given none."""

_CODE = ("megatron_config", "layer_replication", "arrow_config")
"""Settings that make peft import a module, copy layers, or want other adapters."""

_STARTS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
"""Settings of how adapters start. Those from a file have started already, so they are not passed on."""

_UNCHANGED = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the weights of the layer itself as they are, so that any other does as well."""

_CHANGED = re.compile(r"pissa(_niter_[0-9]{1,2})?|olora")
"""Those that change these weights, and need nothing but them for it."""

_A = re.compile(r"(?P<layer>.*)\.lora_(embedding_)?A(\.weight)?")
"""What an adapter's first matrix is called; its rank comes first in the shape."""

BASE = ".base_layer."
"""Where peft keeps the layer itself."""


@runtime_checkable
class _Config(Protocol):
    """``peft.LoraConfig``."""

    modules_to_save: Sequence[str] | None


def attach_lora(
    module: nn.Module, layers: Sequence[str], *, rank: int, alpha: float | None = None, dropout: float = 0.0, **options: object
) -> Report:
    """Puts adapters on linear layers, in place, and freezes all else. The outputs stay what they are until the adapters learn.

    Args:
        module: a model or a part.
        layers: names of linear layers, or patterns as in ``layouts``.
        rank: of the adapters.
        alpha: their scale, times the rank; the rank if None.
        dropout: before the adapters, while training.
        options: further arguments of ``peft.LoraConfig``, such as ``use_rslora``.

    Raises:
        ImportError: peft is not installed.
        ValueError: a rank below 1, a pattern that fits no linear layer, or a module that has adapters already.

    Examples:
        >>> from mmblocks import Decoder
        >>> from mmblocks.checkpoints import attach_lora
        >>> trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=16)
        >>> report = attach_lora(trunk, ("layers.{}.attention.query",), rank=2)
        >>> sum(parameter.requires_grad for parameter in trunk.parameters())  # two matrices in each of two layers
        4
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; accepted: 1 or more")
    _check_plain(module)
    # Not of its subclasses: torch's own attention reads the weight of one and never calls it.
    linear = [name for name, part in module.named_modules() if type(part) is nn.Linear]
    for pattern in layers:
        if not any(patterns.match(pattern, name) is not None for name in linear):
            raise ValueError(f"layers has {pattern!r}; no linear layer of {type(module).__name__} is called so")
    chosen = [name for name in linear if any(patterns.match(pattern, name) is not None for pattern in layers)]
    names = "|".join(re.escape(name) for name in chosen)  # of a list, peft would take every layer whose name ends so
    scale = rank if alpha is None else alpha
    return _inject(module, _peft().LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=names, **options))


def lora_names(module: nn.Module) -> list[str]:
    """Names of the adapters' parameters: for ``freeze``, where other parts shall train beside them."""
    return [
        f"{layer}.{name}"
        for layer, part in _adapted(module).items()
        for name, _ in part.named_parameters()
        if not name.startswith("base_layer.")
    ]


def adapted_parts(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that ``attach_lora`` was given, by name: a model, or parts of it. peft is not imported where there is none."""
    return {name: part for name, part in module.named_modules() if "peft_config" in vars(part)}


def detach_lora(module: nn.Module) -> None:
    """Takes the adapters away without adding them to the weights."""
    _take_away(module, merge=False)


def save_lora(module: nn.Module, folder: str | Path) -> None:
    """Writes the adapters alone, as peft does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    The folder is replaced in one step.

    Raises:
        ImportError: peft is not installed.
        ValueError: there are no adapters.
    """
    if not _adapted(module):
        raise ValueError(f"{type(module).__name__} has no adapters; attach_lora gives it some")
    if "peft_config" not in vars(module):
        parts = ", ".join(adapted_parts(module))
        raise ValueError(f"the adapters were attached to {parts}; accepted: these parts one by one, or save_adapters for all")
    with folders.replacing(Path(folder)) as temporary:
        write_lora(module, temporary)


def write_lora(module: nn.Module, folder: Path) -> None:
    """The two files of ``save_lora``, into a folder that is there."""
    state = {_PREFIX + name: tensor.contiguous() for name, tensor in _state(module).items()}
    module.peft_config[_ADAPTER].save_pretrained(str(folder))  # type: ignore[union-attr, index]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(module: nn.Module, folder: str | Path) -> Report:
    """Attaches the adapters that ``save_lora`` or peft wrote, in place, and freezes all else.

    Raises:
        ImportError: peft is not installed.
        FileNotFoundError: a file is missing in the folder.
        ValueError: adapters of another kind or for other layers, those that start from data or quantization (where
            ``init_lora_weights`` still is ``corda``, ``loftq`` or ``lora_ga``), or a module that has some already; it stays as it
            was then.
    """
    peft, folder = _peft(), Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; accepted: a folder that save_lora or peft wrote")
    stored = _stored(folder)
    matches = ((_A.fullmatch(name), tensor) for name, tensor in stored.items())
    content = _checked_config(folder, {match["layer"]: tensor.shape[0] for match, tensor in matches if match is not None})
    config = peft.LoraConfig.from_peft_type(**content)
    config.inference_mode = False  # which would freeze the adapters too
    _check_plain(module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    report = _inject(module, config)
    wanted, found = ({name: tensor.shape for name, tensor in state.items()} for state in (_state(module), stored))
    if wanted != found:
        _take_away(module, merge=False)
        for parameter in trained:
            parameter.requires_grad_()
        unlike = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        difference = f"{len(unlike)} tensors are missing, unexpected or misshapen: {', '.join(unlike[:5])}"
        raise ValueError(f"the adapters in {folder} do not fit {type(module).__name__}: {difference}")
    peft.set_peft_model_state_dict(module, stored)
    return report


def merge_lora(module: nn.Module) -> Report:
    """Adds every adapter to its layer's weight and takes it away, in place: the module is as it was built, and can be saved.

    What was frozen stays so. In the report the layers' weights are new, and the adapters are dropped.

    Examples:
        >>> from mmblocks import Decoder
        >>> from mmblocks.checkpoints import attach_lora, merge_lora
        >>> trunk = Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=16)
        >>> names = list(trunk.state_dict())
        >>> report = attach_lora(trunk, ("layers.{}.mlp.down",), rank=2)
        >>> merge_lora(trunk).new
        ('layers.0.mlp.down.weight', 'layers.1.mlp.down.weight')
        >>> list(trunk.state_dict()) == names
        True
    """
    before = dict(module.state_dict(keep_vars=True))
    merged = {f"{name}.weight" for name in _take_away(module, merge=True)}
    after = dict(module.state_dict(keep_vars=True))
    origins = {name.replace(BASE, "."): name for name in before}
    copied = {name: origins[name] for name in after if name not in merged}
    dropped = tuple(name for name in before if name not in copied.values())
    return Report(copied, {}, {}, tuple(name for name in after if name in merged), dropped, (after, before))


def _stored(folder: Path) -> dict[str, Tensor]:
    file = untrusted.inside(folder, folder / WEIGHTS, f"{folder} holds {WEIGHTS!r}")
    return {name.removeprefix(_PREFIX): entry.read() for name, entry in open_safetensors(file).items()}


def _checked_config(folder: Path, stored: Mapping[str, int]) -> dict[str, Any]:
    """A config is data from elsewhere: it must not choose code, nor make peft build more than the file of weights holds.

    Args:
        folder: that holds it.
        stored: the ranks in the file of weights, by layer.
    """
    file = untrusted.inside(folder, folder / CONFIG, f"{folder} holds {CONFIG!r}")
    content = untrusted.read_json(file, unique=True)
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{folder} holds {kind!r:.200}; accepted: LORA")
    for name in _CODE:
        if content.get(name):
            raise ValueError(f"{file}: {name} is {content[name]!r:.200}; accepted: none, for it has peft run or import other code")
    start = content.get("init_lora_weights", True)
    if start in _UNCHANGED:
        start = True
    elif not isinstance(start, str) or not _CHANGED.fullmatch(start):
        raise ValueError(f"{file}: init_lora_weights is {start!r:.200}; accepted: {_UNCHANGED}, 'pissa' and 'olora'")
    kept = {name: value for name, value in content.items() if name not in (*_STARTS, "runtime_config")}
    return kept | {"init_lora_weights": start} | _checked_ranks(content, stored, file)


def _checked_ranks(content: Mapping[str, Any], stored: Mapping[str, int], file: Path) -> dict[str, Any]:
    """``r`` and ``rank_pattern``, without what no layer in the file of weights has: peft might build others with it."""
    given, largest = content.get("rank_pattern") or {}, max(stored.values(), default=0)
    if not isinstance(given, dict):
        raise ValueError(f"{file}: rank_pattern is {given!r:.200}; accepted: ranks by pattern of layers")
    find = _peft().utils.other.get_pattern_key
    try:
        used = {find(given, layer) for layer in stored}
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{file}: rank_pattern has a name that is no pattern: {error}") from error
    ranks = {None: content.get("r"), **given}
    for pattern, number in ranks.items():
        is_used = pattern in used if pattern is not None else bool(used - set(given))
        if type(number) is not int or number < 1 or (is_used and number > largest):
            raise ValueError(f"{file}: a rank is {number!r:.200}; accepted: 1 to {largest}, the largest in {WEIGHTS}")
    return {"r": min(ranks[None], largest), "rank_pattern": {pattern: rank for pattern, rank in given.items() if pattern in used}}


def _check_plain(module: nn.Module) -> None:
    if _adapted(module):
        raise ValueError(f"{type(module).__name__} has adapters already; accepted: one set at a time, so merge_lora first")


def _inject(module: nn.Module, config: _Config) -> Report:
    if config.modules_to_save:
        raise ValueError(f"modules_to_save is {config.modules_to_save}; accepted: none; freeze chooses what else trains")
    before = dict(module.state_dict(keep_vars=True))
    _peft().inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    after = dict(module.state_dict(keep_vars=True))
    copied = {name: old for name in after if (old := name.replace(BASE, ".")) in before}
    return Report(copied, {}, {}, tuple(name for name in after if name not in copied), (), (after, before))


def _take_away(module: nn.Module, *, merge: bool) -> list[str]:
    """Puts every adapted layer's own self in its place again; their names."""
    adapted = _adapted(module)
    for name, layer in adapted.items():
        if merge and not layer.merged:
            layer.merge(safe_merge=True)
        module.set_submodule(name, layer.get_base_layer())
    vars(module).pop("peft_config", None)
    return list(adapted)


def _adapted(module: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name."""
    kind = _peft().tuners.tuners_utils.BaseTunerLayer
    return {name: part for name, part in module.named_modules() if isinstance(part, kind)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors, as peft's files name them."""
    state: dict[str, Tensor] = _peft().get_peft_model_state_dict(module, adapter_name=_ADAPTER, save_embedding_layers=False)
    return state


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'mmblocks[train]'") from error
