"""Reading the constructor arguments of a published class: nothing that changes the numbers is passed over in silence."""

from collections.abc import Collection, Mapping
from inspect import signature
from typing import Any


def published_options(
    config: Mapping[str, Any], *, ignored: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A copy to take arguments from.

    Args:
        config: argument name -> value.
        ignored: names that change nothing here, such as weights of losses or the place of the channels.
        defaults: values with which an argument changes nothing here.
    """
    harmless = defaults or {}
    return {
        name: value for name, value in config.items() if name not in ignored and not (name in harmless and value == harmless[name])
    }


def refuse_unknown(left: Mapping[str, Any], published: str, note: str = "", *, inside: str | None = None) -> None:
    """Refuses what is left over, except what says what vector-quantize-pytorch does by default anyway.

    Args:
        left: argument name -> value.
        published: name of the library's class.
        note: said behind what is refused.
        inside: name of another class of the library, which that one hands further arguments on to.

    Raises:
        ValueError: an argument that nothing here stands for.
    """
    import vector_quantize_pytorch  # type: ignore[import-untyped]

    classes = [name for name in (inside, published) if name is not None]
    parameters = {
        name: parameter
        for one in classes
        for name, parameter in signature(getattr(vector_quantize_pytorch, one)).parameters.items()
    }
    unknown = {name: value for name, value in left.items() if name not in parameters or value != parameters[name].default}
    if unknown:
        named = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        raise ValueError(f"{published} with {named} is not known here{note}")
