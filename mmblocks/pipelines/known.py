"""Published whole models: under which ids they are, which of our classes read them, and which front speaks for them."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a component is.

    Attributes:
        block: the public name of the class that reads it.
        id: the Hub's id; None for the model's own repository.
        subfolder: in it.
        layout: the name of the layout, where several fit.
    """

    block: str
    id: str | None = None
    subfolder: str | None = None
    layout: str | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published whole model.

    Attributes:
        front: ``module:name`` of the front, in ``mmblocks``.
        model: the model.
        ids: patterns of the Hub's ids; the part after the organisation is compared with a folder's name too.
        components: by name, the other parts.
        text_tokenizer: where the text tokenizer is; None for the model's own repository.
        specials: ``module:name`` of the special tokens' ids, where the tokenizer's file does not hold them.
    """

    front: str
    model: Source
    ids: tuple[str, ...]
    components: MappingProxyType[str, Source] = field(default_factory=lambda: MappingProxyType({}))
    text_tokenizer: str | None = None
    specials: str | None = None

    def front_object(self) -> object:
        """The front, whose module is imported for it."""
        return resolved(self.front)

    def special_ids(self) -> dict[str, int]:
        """The ids of special tokens that no file holds."""
        return {} if self.specials is None else dict(resolved(self.specials))


def resolved(place: str) -> Any:
    """What ``module:name`` in ``mmblocks`` says; a class is called without arguments."""
    module, _, name = place.partition(":")
    found = getattr(import_module(f"mmblocks.{module}"), name)
    return found() if isinstance(found, type) else found


def list_fronts() -> dict[str, tuple[str, ...]]:
    """The names of published fronts, and the Hub's ids that each is for.

    Examples:
        >>> from mmblocks import list_fronts
        >>> list_fronts()["emu3-gen"]
        ('BAAI/Emu3-Gen',)
    """
    return {name: known.ids for name, known in sorted(KNOWN.items())}


def find(id_or_path: str, front: str | None) -> tuple[str, Known]:
    """What is known of a model of that name.

    Raises:
        ValueError: nothing, or no front of that name.
    """
    if front is not None:
        if front not in KNOWN:
            raise ValueError(f"front is {front!r}; accepted: {', '.join(sorted(KNOWN))}, or a front of your own")
        return front, KNOWN[front]
    name = id_or_path.rstrip("/").rpartition("/")[2].lower()
    found = [one for one, known in KNOWN.items() if any(fnmatchcase(name, own.rpartition("/")[2].lower()) for own in known.ids)]
    if len(found) != 1:
        what = f"several fronts, {', '.join(found)}, are" if found else "no front is"
        accepted = f"front= one of {', '.join(sorted(KNOWN))}, or a front of your own"
        raise ValueError(f"{what} known for {id_or_path!r}; accepted: {accepted}")
    return found[0], KNOWN[found[0]]


def _emu3(front: str, name: str) -> Known:
    return Known(
        front=f"models.emu3.front:{front}",
        model=Source(block="Emu3", layout="emu3"),
        ids=(f"BAAI/{name}",),
        components=MappingProxyType({"image_tokenizer": Source(block="Emu3VQ", id="BAAI/Emu3-VisionTokenizer")}),
        specials="models.emu3.prompts:SPECIAL_IDS",
    )


def _emu35(name: str) -> Known:
    return Known(
        front="models.emu3.front:Emu35Front",
        model=Source(block="Emu3", layout="emu3.5"),
        ids=(f"BAAI/{name}",),
        components=MappingProxyType({"image_tokenizer": Source(block="IBQ", id="BAAI/Emu3.5-VisionTokenizer")}),
        specials="models.emu3.prompts:SPECIAL_IDS",
    )


def _reads(front: str, block: str, *ids: str) -> Known:
    return Known(front=f"models.chat_fronts:{front}", model=Source(block=block), ids=ids)


def _own_tokenizer(front: str, block: str, tokenizer: str, *ids: str) -> Known:
    """A model whose repository holds its image tokenizer too."""
    components = MappingProxyType({"image_tokenizer": Source(block=tokenizer)})
    return Known(front=front, model=Source(block=block), ids=ids, components=components)


def _bagel(front: str, *ids: str) -> Known:
    """A repository whose autoencoder lies beside the model's weights."""
    components = MappingProxyType({"image_tokenizer": Source(block="FluxAutoencoder")})
    return Known(front=f"models.bagel.front:{front}", model=Source(block="Bagel"), ids=ids, components=components)


KNOWN: dict[str, Known] = {
    "janus": _own_tokenizer("models.janus.front:JANUS_FRONT", "Janus", "LlamaGenVQ", "deepseek-ai/Janus-1.3B"),
    "janus-pro": _own_tokenizer("models.janus.front:JanusFront", "Janus", "LlamaGenVQ", "deepseek-*/Janus-Pro-*"),
    "chameleon": _own_tokenizer("models.chameleon.front:ChameleonFront", "Chameleon", "ChameleonVQ", "facebook/chameleon-*"),
    "anole": _own_tokenizer("models.chameleon.front:ANOLE_FRONT", "Chameleon", "ChameleonVQ", "*/Anole-7b-*-hf"),
    "lumina-mgpt": Known(
        front="models.chameleon.front:LUMINA_MGPT_FRONT",
        model=Source(block="Chameleon"),
        ids=("Alpha-VLLM/Lumina-mGPT-7B-768*",),
        components=MappingProxyType({"image_tokenizer": Source(block="ChameleonVQ", id="facebook/chameleon-7b")}),
    ),
    "bagel": _bagel("BagelFront", "ByteDance-Seed/BAGEL-7B-MoT"),
    "bagel-think": _bagel("BAGEL_THINKING"),
    "eve1": _reads("EVE1_FRONT", "EVE1", "BAAI/EVE-7B-v1.0", "BAAI/EVE-7B-HD-v1.0"),
    "eve2": _reads("EVE2_FRONT", "EVE2", "BAAI/EVE-7B-HD-v2.0"),
    "neo": _reads("NEO_FRONT", "NEO", "Paranioar/NEO1_0-*-SFT"),
    "emu3-gen": _emu3("Emu3GenFront", "Emu3-Gen"),
    "emu3-chat": _emu3("EMU3_CHAT", "Emu3-Chat"),
    "emu3-stage1": _emu3("EMU3_STAGE1", "Emu3-Stage1"),
    "emu3.5": _emu35("Emu3.5"),
    "emu3.5-image": _emu35("Emu3.5-Image"),
}
"""Fronts by name."""
