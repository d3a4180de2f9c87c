"""A module's methods for other processes, without the module's weights.

pickle writes a bound method together with all of its object, so that a layout rule or a ``preprocess`` would carry gigabytes
which it never reads. Here the object is written with its structure and settings, and without the values of its weights.
"""

import pickle
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from io import BytesIO
from operator import attrgetter
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, nn

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
R = TypeVar("R", covariant=True)

KEPT_BYTES = 1024
"""Tensors up to this size that are no parameters keep their values: means of channels, tables of a few numbers."""

_OWN = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""What every module begins with, and gets again: registered hooks, above all."""

_WRAPPERS = frozenset({"_compiled_call_impl", "_hf_hook", "_old_forward"})
"""What ``compile`` and accelerate leave in a module, for ``forward`` alone."""


class weightless(Generic[P, R]):  # noqa: N801  read as a decorator, like property
    """A callable, such as a bound method of a module, that pickles without the weights of any module in it.

        pool.map(weightless(my_module.layout), heights, widths)

    In a class it is a decorator: the method then pickles so wherever it is handed. ``layout`` and ``preprocess`` of all parts are
    decorated.

        class MyEncoder(nn.Module):
            @weightless
            def preprocess(self, image): ...

    In its own process it is the callable itself. What another process gets is a copy of the module as it is when it is pickled: of
    the same class, with the same attributes and parts. Its parameters, and other tensors of more than ``KEPT_BYTES``, have shape,
    dtype and a device there, the CPU, but reading their values is an error; smaller tensors keep theirs. Hooks are left out, and so
    is what ``torch.compile`` and accelerate put around ``forward``. Arrays of numpy and other objects travel whole.

    What keeps such a method, and is pickled by others (``torch.save`` of a whole module), keeps it with a module of its own.

    Args:
        call: the callable. pickle has to find its class, or itself, by name.

    Raises:
        TypeError: when it is pickled: something in it cannot be.
        ValueError: when another process calls it: it reads the values of weights, which are not there.

    Examples:
        >>> import pickle
        >>> import torch
        >>> from mmblocks import weightless
        >>> from mmblocks.embedders import EVE2PatchEmbedding
        >>> embedder = EVE2PatchEmbedding(dim=64, hidden_dim=64)
        >>> sent = pickle.dumps(weightless(embedder.layout))
        >>> len(sent) < 10_000 < len(pickle.dumps(embedder))
        True
        >>> torch.equal(pickle.loads(sent)(64, 32).grid, embedder.layout(64, 32).grid)
        True
    """

    def __init__(self, call: Callable[P, R]) -> None:
        self.__wrapped__ = call
        self.__doc__ = call.__doc__

    @property
    def __name__(self) -> str:
        return qualified_name(self.__wrapped__).rpartition(".")[2]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As the callable."""
        return self.__wrapped__(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[P, R]: ...

    @overload
    def __get__(self: "weightless[Concatenate[Any, Q], R]", instance: object, owner: type) -> "weightless[Q, R]": ...

    def __get__(self, instance: object, owner: type) -> Any:
        """Binds it as a function of a class is bound."""
        function: Any = self.__wrapped__  # a function, or whatever else has __get__
        if instance is None:
            return function
        if torch.compiler.is_compiling():  # a graph is not pickled, and not every release of torch traces the lines below
            return partial(function, instance)
        return weightless(function.__get__(instance, owner))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, weightless) and self.__wrapped__ == other.__wrapped__

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "weightless[P, R]":
        """With weights: a copy of a module that keeps its own method is bound to the copy."""
        return weightless(deepcopy(self.__wrapped__, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (_pickled(self.__wrapped__),)


class _Absent(Tensor):
    """The stand-in of a tensor that does not travel: it has shape, dtype and a device, and no values."""

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool, is_parameter: bool) -> "_Absent":
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, requires_grad=requires_grad, device=torch.device("cpu"))
        self._is_param = is_parameter  # what isinstance(..., nn.Parameter) looks at
        return self

    @classmethod
    def __torch_dispatch__(cls, function: object, *_: object) -> Any:
        raise ValueError(f"{function} reads a weight, and weights do not go to other processes; accepted: shape, dtype and device")

    def __repr__(self) -> str:  # type: ignore[override]  # as object has it
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"


class _Pickler(pickle.Pickler):
    """Writes modules without hooks and wrappers, and weights without values."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, nn.Module):
            return _module(value)
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, weightless):  # one that a module keeps of itself, say: it belongs to the module that is being written
            return weightless, (value.__wrapped__,)
        return NotImplemented


def qualified_name(call: object) -> str:
    """The name of a function in its module; of another object its class's."""
    return getattr(call, "__qualname__", type(call).__qualname__)  # a partial has none


def _pickled(call: object) -> bytes:
    file = BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(call)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError) as error:  # RecursionError is one
        raise TypeError(f"{qualified_name(call)} cannot go to another process: {error}; accepted: what pickle can write") from error
    return file.getvalue()


def _unpickled(content: bytes) -> Any:
    call = pickle.loads(content)
    # A decorated method is decorated again when it is looked up in its object.
    return call if isinstance(call, weightless) else weightless(call)


def _module(module: nn.Module) -> Any:
    """How a module is written; see ``object.__reduce__``."""
    compiled = module._modules.get("_orig_mod")  # what torch.compile returns holds the module so
    if compiled is not None:
        return _itself, (compiled,)
    cls = _importable(type(module))
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return NotImplemented
    state = cls.__getstate__(module)
    if not isinstance(state, dict):
        return NotImplemented
    kept = {name: value for name, value in state.items() if name not in _OWN | _WRAPPERS and not _replaces_method(name, value)}
    # A dict of its own kind may read offloaded values when it is asked for them; this takes none.
    kept["_parameters"] = dict(module._parameters.items())
    return _bare, (cls,), kept


def _bare(cls: type[nn.Module]) -> nn.Module:
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def _itself(value: T) -> T:
    return value


def _replaces_method(name: str, value: object) -> bool:
    """Whether an attribute covers a method of all modules: wrappers of ``forward``, ``to`` and the like."""
    return callable(value) and callable(getattr(nn.Module, name, None))  # whichever attribute it is


def _importable(cls: type[nn.Module]) -> type[nn.Module]:
    """The class, or the one from which torch made a class of its own at run time, as ``fully_shard`` and parametrizations do."""
    made = (one for one in cls.__mro__ if issubclass(one, nn.Module))
    return next(one for one in made if one.__module__.partition(".")[0] != "torch" or _is_found(one))


def _is_found(cls: type) -> bool:
    try:
        return attrgetter(cls.__qualname__)(sys.modules.get(cls.__module__)) is cls
    except AttributeError:
        return False


def _tensor(tensor: Tensor) -> Any:
    """How a tensor is written."""
    is_parameter = isinstance(tensor, nn.Parameter)
    if is_parameter or tensor.numel() * tensor.element_size() > KEPT_BYTES or isinstance(tensor, _Absent) or tensor.is_meta:
        return _Absent, (tuple(tensor.shape), tensor.dtype, tensor.requires_grad, is_parameter)
    # A copy, since a view would be written with all that it is a view of.
    return tensor.detach().to("cpu", copy=True).__reduce_ex__(pickle.HIGHEST_PROTOCOL)
