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
        file: in it, the one file of weights, where there are others.
        is_given: whether it is nowhere that is known, so that it has to be handed in.
        diffusers: whether it is read with ``from_diffusers``, of several folders.
    """

    block: str
    id: str | None = None
    subfolder: str | None = None
    layout: str | None = None
    file: str | None = None
    is_given: bool = False
    diffusers: bool = False


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published whole model.

    Attributes:
        front: ``module:name`` of the front, in ``mmblocks``.
        model: the model, or a whole that holds it.
        ids: patterns of the Hub's ids; the part after the organisation is compared with a folder's name too. None where the front
            has to be named.
        parts: components by the names of the submodules of that whole; none where it is the model itself.
        components: by name, the parts from elsewhere.
        text_tokenizer: where the text tokenizer is; None for the model's own repository.
        text_subfolder: in the model's own repository, where it is not at the top.
        reads_text: whether there is a text tokenizer at all.
        specials: ``module:name`` of the special tokens' ids, where the tokenizer's file does not hold them.
    """

    front: str
    model: Source
    ids: tuple[str, ...]
    parts: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    components: MappingProxyType[str, Source] = field(default_factory=lambda: MappingProxyType({}))
    text_tokenizer: str | None = None
    text_subfolder: str | None = None
    reads_text: bool = True
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


_VAE = MappingProxyType({"image_tokenizer": Source(block="DiffusersAutoencoder", subfolder="vae")})


def _of_classes(front: str, block: str, **components: Source) -> Known:
    """A model of classes. Its authors publish files of several sizes side by side, none of which says its size."""
    return Known(
        front=f"models.{front}",
        model=Source(block=block),
        ids=(),
        components=MappingProxyType(components),
        reads_text=False,
    )


_VAR_TOKENIZER = Source(block="VARVQ", id="FoundationVision/var", file="vae_ch160v4096z32.pth")
_LLAMAGEN_TOKENIZER = Source(block="LlamaGenVQ", id="FoundationVision/LlamaGen", file="vq_ds16_c2i.pt")
_DIT_AUTOENCODER = Source(block="DiffusersAutoencoder", id="facebook/DiT-XL-2-256", subfolder="vae")
_MAR_HEAD = Source(block="MARDiffusionHead", layout="mar")

_PAINTER = MappingProxyType({"model": "model", "decoder": "decoder"})

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
    "bagel": _own_tokenizer("models.bagel.front:BagelFront", "Bagel", "FluxAutoencoder", "ByteDance-Seed/BAGEL-7B-MoT"),
    "bagel-think": _own_tokenizer("models.bagel.front:BAGEL_THINKING", "Bagel", "FluxAutoencoder"),
    "eve1": _reads("EVE1_FRONT", "EVE1", "BAAI/EVE-7B-v1.0", "BAAI/EVE-7B-HD-v1.0"),
    "eve2": _reads("EVE2_FRONT", "EVE2", "BAAI/EVE-7B-HD-v2.0"),
    "neo": _reads("NEO_FRONT", "NEO", "Paranioar/NEO1_0-*-SFT"),
    "orthus": _own_tokenizer("models.orthus_front:OrthusFront", "Orthus", "ChameleonVQ", "SJTU-Deng-Lab/Orthus-7B-instruct"),
    "orthus-base": _own_tokenizer("models.orthus_front:ORTHUS_BASE_FRONT", "Orthus", "ChameleonVQ", "SJTU-Deng-Lab/Orthus-7B-base"),
    "omnigen": Known(
        front="models.omnigen.front:OmniGenFront",
        model=Source(block="OmniGen", layout="omnigen"),
        parts=MappingProxyType({"model": "model"}),
        ids=("Shitao/OmniGen-v1",),
        components=_VAE,
    ),
    "omnigen-diffusers": Known(
        front="models.omnigen.front:OmniGenFront",
        model=Source(block="OmniGen", subfolder="transformer", layout="omnigen-diffusers"),
        parts=MappingProxyType({"model": "model"}),
        ids=("Shitao/OmniGen-v1-diffusers",),
        components=_VAE,
        text_subfolder="tokenizer",
    ),
    "emu": Known(
        front="models.emu.front:EmuFront",
        model=Source(block="EmuGen", subfolder="pretrain", diffusers=True),
        parts=_PAINTER,
        ids=("BAAI/Emu",),
        specials="models.emu.format:EMU_IDS",
    ),
    "emu-instruct": Known(  # a file beside the other's folder, which has to be named
        front="models.emu.front:EMU_INSTRUCT_FRONT",
        model=Source(block="Emu"),
        ids=(),
        specials="models.emu.format:EMU_INSTRUCT_IDS",
    ),
    "emu2": Known(
        front="models.emu2.front:EMU2_FRONT",
        model=Source(block="Emu2", layout="emu2-hub"),
        ids=("BAAI/Emu2",),
        specials="models.emu2.format:EMU2_IDS",
    ),
    "emu2-chat": Known(
        front="models.emu2.front:EMU2_CHAT_FRONT",
        model=Source(block="Emu2", layout="emu2-hub"),
        ids=("BAAI/Emu2-Chat",),
        specials="models.emu2.format:EMU2_CHAT_IDS",
    ),
    "emu2-gen": Known(
        front="models.emu2.front:Emu2GenFront",
        model=Source(block="Emu2Gen", diffusers=True),
        parts=_PAINTER,
        ids=("BAAI/Emu2-Gen",),
        text_subfolder="tokenizer",
        specials="models.emu2.format:EMU2_IDS",
    ),
    "llamagen": _of_classes("class_fronts:LlamaGenFront", "LlamaGen", image_tokenizer=_LLAMAGEN_TOKENIZER),
    "llamagen-384": _of_classes("class_fronts:LLAMAGEN_384_FRONT", "LlamaGen", image_tokenizer=_LLAMAGEN_TOKENIZER),
    "var": _of_classes("var.front:VARFront", "VAR", image_tokenizer=_VAR_TOKENIZER),
    "mar": _of_classes(
        "mar.front:MARFront", "MAR", decoder=_MAR_HEAD, image_tokenizer=Source(block="DiffusersAutoencoder", is_given=True)
    ),
    "acdit": _of_classes("acdit.front:ACDiTFront", "ACDiT", image_tokenizer=_DIT_AUTOENCODER),
    "emu3-gen": _emu3("Emu3GenFront", "Emu3-Gen"),
    "emu3-chat": _emu3("EMU3_CHAT", "Emu3-Chat"),
    "emu3-stage1": _emu3("EMU3_STAGE1", "Emu3-Stage1"),
    "emu3.5": _emu35("Emu3.5"),
    "emu3.5-image": _emu35("Emu3.5-Image"),
}
"""Fronts by name."""
