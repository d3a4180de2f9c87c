"""How much memory a model takes, told before any of it is allocated.

Everything is built and run on the meta device, where tensors have sizes and no values; see ``support.allocations``.

Shapes: B rows, L tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mmblocks.compose import MultimodalModel
from mmblocks.generation.id_heads import IdHead
from mmblocks.pipelines.owned import WHOLE, layers_of, named_tensors, on_meta, owned_tensors, part_names, shares_of, short_name
from mmblocks.pipelines.placing import DeviceLoad, Piece, place
from mmblocks.sequence.masks import Causal
from mmblocks.sequence.tokens import TokenTable, vectors_of
from mmblocks.support.allocations import Allocations
from mmblocks.trunks.caches.kv_cache import KVCache

TEXT = "text"
"""The input that reads a prompt's ids."""

NONE: Mapping[str, nn.Module] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class PartMemory:
    """What one part takes, in bytes.

    Attributes:
        name: as in ``named_modules``.
        parameters: their number. What is shared with an earlier part is not counted again, nor are its weights.
        weights: of parameters and buffers.
        cache: keys, values and states of all layers.
        activations: the most at once beside weights and cache while the part runs; None where it does not run, or is not known.

    Examples:
        >>> from mmblocks.pipelines import PartMemory
        >>> PartMemory(name="trunk", parameters=1000, weights=4000).cache
        0
    """

    name: str
    parameters: int
    weights: int
    cache: int = 0
    activations: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a model takes, in bytes, while it reads a prompt into its cache and chooses the next ids.

    Attributes:
        parts: by part.
        unknown: why activations are not known, where they are not; "" otherwise.
        devices: what each device is to hold, where sizes were given.
        beside: names of parts that are not the model's, such as an image tokenizer.

    Examples:
        >>> from mmblocks.pipelines import MemoryPlan, PartMemory
        >>> parts = [PartMemory(name=name, parameters=1000, weights=4000) for name in ("trunk", "outputs.text")]
        >>> MemoryPlan(parts=tuple(parts)).parameters
        2000
    """

    parts: tuple[PartMemory, ...]
    unknown: str = ""
    devices: tuple[DeviceLoad, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def device_map(self) -> dict[str, int]:
        """The model's modules and the numbers of their devices, in the form of ``from_pretrained(device_map=...)``."""
        found = {name: number for number, load in enumerate(self.devices) for name in load.pieces if name not in self.beside}
        return {"" if name == WHOLE else name: number for name, number in found.items()}

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(part.weights for part in self.parts)

    @property
    def cache(self) -> int:
        """Bytes of the cache."""
        return sum(part.cache for part in self.parts)

    @property
    def activations(self) -> int:
        """Bytes beside these: parts run one after the other, so that the largest counts."""
        return max((part.activations or 0 for part in self.parts), default=0)

    @property
    def total(self) -> int:
        """Bytes on one device."""
        return self.weights + self.cache + self.activations


def plan_memory(
    model: nn.Module,
    *,
    batch: int = 1,
    length: int = 2048,
    dtype: torch.dtype | None = None,
    devices: Sequence[int | str] = (),
    beside: Mapping[str, nn.Module] = NONE,
) -> MemoryPlan:
    """How much memory a model takes while it reads prompts at once and chooses the next ids, without gradients.

    Of a ``MultimodalModel`` the input "text", the trunk and the heads of ids run; other models, and embedders of images, have no
    activations here. Attention counts as fused kernels have it.

    Args:
        model: with or without values; it is left alone.
        batch: B.
        length: L, which is also the capacity of the cache.
        dtype: of the model's weights, where it is not theirs.
        devices: sizes in bytes, or such as "24GB": by which layers and parts are divided.
        beside: further parts by name, such as an image tokenizer, in their own dtypes.

    Raises:
        ValueError: no rows or tokens, a dtype that is not of floating point, devices that are too small together, or whose
            activations are not known.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding
        >>> from mmblocks.pipelines import plan_memory
        >>> with torch.device("meta"):
        ...     model = MultimodalModel(
        ...         inputs={"text": TextEmbedding(vocab_size=32000, dim=4096)},
        ...         trunk=Decoder(dim=4096, num_layers=32, num_heads=32, mlp_dim=11008),
        ...         outputs={"text": LMHead(dim=4096, vocab_size=32000)},
        ...     )
        >>> plan = plan_memory(model, dtype=torch.bfloat16, length=4096)
        >>> [round(size / 2**30, 1) for size in (plan.weights, plan.cache, plan.activations)]
        [12.6, 2.0, 0.4]
    """
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} is {value}; accepted: 1 or more")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; accepted: floating-point dtypes")
    if WHOLE in beside:
        raise ValueError(f"beside has a part called {WHOLE!r}; accepted: other names")
    copied = on_meta(model, dtype)
    whole = nn.ModuleDict({WHOLE: copied, **{name: on_meta(part, None) for name, part in beside.items()}})
    run, unknown = _Run(), ""
    if isinstance(copied, MultimodalModel) and isinstance(copied.trunk, nn.Module):
        try:
            run.read(copied, batch, length)
        except (RuntimeError, NotImplementedError) as error:  # torch's, for what depends on values
            unknown = f"{run.running} looks at values, of which there are none here ({str(error).splitlines()[0]})"
    parts = [_part(name, owned, run) for name, owned in owned_tensors(whole, part_names(copied, beside)).items()]
    placed: tuple[DeviceLoad, ...] = ()
    if devices:
        if unknown:
            raise ValueError(f"devices are given, but activations are not known, since {unknown}; accepted: no devices")
        placed = place(_pieces(whole, copied, run, [part.name for part in parts]), devices)
    return MemoryPlan(parts=tuple(parts), unknown=unknown, devices=placed, beside=tuple(beside))


class _Run:
    """What a model takes while it reads a prompt.

    Attributes:
        activations: by part.
        cache: bytes of the cache of each layer.
        running: the part that runs, or ran last.
    """

    def __init__(self) -> None:
        self.running = ""
        self.activations: dict[str, int] = {}
        self.cache: list[int] = []

    @torch.no_grad()
    def read(self, model: MultimodalModel, batch: int, length: int) -> None:
        """Reads a prompt of text into a cache, and asks each head for logits of the next ids."""
        if TEXT not in model.inputs:
            return
        ids = torch.zeros(batch * length, dtype=torch.int64, device="meta")
        table = TokenTable.text(batch, length, device=torch.device("meta"))
        with Allocations() as memory:
            self.running = "trunk"
            cache = model.trunk.new_cache(batch, length)
            self.cache = _by_layer(cache, memory)
            self.running = f"inputs.{TEXT}"
            embeds = vectors_of(model.inputs[TEXT](ids)).view(batch, length, -1)
            self.activations[self.running] = memory.peak - sum(self.cache)
            memory.restart()
            self.running = "trunk"
            hidden = model.trunk(embeds, table, cache, mask=Causal())[:, -1]
            self.cache = _by_layer(cache, memory) if isinstance(cache, KVCache) else self.cache
            self.activations[self.running] = memory.peak - sum(self.cache)
            for name, head in model.outputs.items():
                if isinstance(head, IdHead):
                    self.running = f"outputs.{name}"
                    memory.restart()
                    head.logits(hidden)
                    self.activations[self.running] = memory.peak - sum(self.cache)


def _by_layer(cache: object, memory: Allocations) -> list[int]:
    """Bytes that each layer remembers; of a cache of one's own, all that was made so far."""
    if not isinstance(cache, KVCache):
        return [memory.live]
    if not cache.keys:
        return [cache.num_bytes]
    return [
        keys.nbytes + values.nbytes + (0 if state is None else state.nbytes)
        for keys, values, state in zip(cache.keys, cache.values, cache.states, strict=True)
    ]


def _part(name: str, owned: Sequence[Tensor], run: _Run) -> PartMemory:
    short = short_name(name)
    return PartMemory(
        name=short,
        parameters=sum(tensor.numel() for tensor in owned if isinstance(tensor, nn.Parameter)),
        weights=sum(tensor.nbytes for tensor in owned),
        cache=sum(run.cache) if short == "trunk" else 0,
        activations=run.activations.get(short),
    )


def _pieces(whole: nn.Module, model: nn.Module, run: _Run, parts: Sequence[str]) -> list[Piece]:
    """Parts in order, the trunk layer by layer, and after its layers what else it has."""
    names: list[str] = []
    for part in parts:
        layers = layers_of(model.get_submodule(part), part) if part == "trunk" else []
        names += [*layers, part]
    full = {name: name if name in dict(whole.named_children()) else f"{WHOLE}.{name}" for name in names}
    owned = owned_tensors(whole, list(full.values()))
    layers = [name for name in names if name.startswith("trunk.")]
    shares = shares_of(run.cache, layers or ["trunk"])
    homes = {id(tensor): short_name(name) for name, held in owned.items() for tensor in held}
    pieces: list[Piece] = []
    for name in names:
        others = {homes[id(tensor)] for _, tensor in named_tensors(whole.get_submodule(full[name]))}
        lender = next((piece.name for piece in pieces if piece.name in others and not piece.name.startswith(f"{name}.")), None)
        held = sum(tensor.nbytes for tensor in owned.get(full[name], ())) + shares.get(name, 0)
        part = "trunk" if name in layers else name
        pieces.append(Piece(name=name, held=held, working=run.activations.get(part, 0), beside=lender))
    return pieces
