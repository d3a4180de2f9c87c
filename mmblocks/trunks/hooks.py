"""Reading and changing what happens inside a trunk, for one call: hidden states, attention weights, outputs of heads.

Inference-time methods rest on it: activation steering, head reweighting, attention maps, interventions.

Shapes: B batch, L new tokens, T all tokens a query may see, H query heads, D width, V width of a head's values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.layers.attention.attend import Hook, Observed, Prepared, changed
from mmblocks.roles import Cache, Trunk
from mmblocks.sequence.masks import Mask, MaskRule
from mmblocks.sequence.tokens import TokenTable


@dataclass(frozen=True)
class TrunkHooks:
    """Functions that a forward pass shows its inner values to, by the index of the layer.

        maps = []
        trunk(embeds, table, cache, hooks=TrunkHooks(attention={3: maps.append}, hidden={2: lambda x: x + direction}))

    A function that returns None has read the value; what it returns otherwise, of the same shape, takes the value's place.
    Hooks belong to the call, in prefill and in decoding alike, and a trunk keeps none: calls with and without them may
    run side by side. Layers of which the weights are asked for compute them in single steps, in float32; where any layer is asked
    for weights, all layers get the mask for every pair of tokens. That is slower, and the numbers are the same up to rounding.

    Args:
        hidden: (B, L, D), what layer n reads: 0 for the embeddings, the number of layers for what the final norm reads.
        attention: (B, H, L, T), float32, the weights of layer n after the softmax, before they meet the values.
        heads: (B, H, L, V), what each head of layer n found, before the output projection.
        routers: (B, L, E), float32, the probabilities that layer n's router gives its experts; shown when all layers have run. They
            cannot be changed.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import TrunkHooks
        >>> trunk, maps = Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48), []
        >>> hidden = trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5), hooks=TrunkHooks(attention={1: maps.append}))
        >>> tuple(maps[0].shape), torch.allclose(maps[0].sum(-1), torch.ones(1, 4, 5))
        ((1, 4, 5, 5), True)
    """

    hidden: Mapping[int, Hook] = field(default_factory=dict)
    attention: Mapping[int, Hook] = field(default_factory=dict)
    heads: Mapping[int, Hook] = field(default_factory=dict)
    routers: Mapping[int, Hook] = field(default_factory=dict)

    def check(self, num_layers: int) -> None:
        """Refuses layers that are not there.

        Raises:
            ValueError: with the layers that are accepted.
        """
        inside = {"attention": self.attention, "heads": self.heads, "routers": self.routers}
        for name, hooks in {"hidden": self.hidden, **inside}.items():
            last = num_layers - (name in inside)
            strange = [layer for layer in hooks if not 0 <= layer <= last]
            if strange:
                raise ValueError(f"hooks.{name} has {strange}; accepted: 0 to {last}, as the trunk has {num_layers} layers")

    def state(self, layer: int, x: Tensor) -> Tensor:
        """The state that layer ``layer`` reads, when its hook has seen it."""
        return changed(self.hidden.get(layer), x)

    def observed(self, layer: int, mask: Prepared) -> Prepared:
        """The mask that layer ``layer`` is given: it carries the hooks to where attention is computed."""
        weights, heads = self.attention.get(layer), self.heads.get(layer)
        return mask if weights is None and heads is None else Observed(mask, weights, heads)

    def observe(self, layer: int) -> bool:
        """Whether a function is called inside this layer."""
        return layer in self.attention or layer in self.heads


@runtime_checkable
class Observable(Protocol):
    """A trunk whose calls take ``hooks``: every ``Decoder``, and ``TransformersTrunk``."""

    @property
    def num_layers(self) -> int:
        """Layers."""
        ...

    def __call__(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        *,
        mask: Mask | MaskRule | None = None,
        hooks: TrunkHooks | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states."""
        ...


def hidden_states(
    trunk: Observable,
    embeds: Float[Tensor, "B L D"],
    table: TokenTable,
    layers: Sequence[int],
    *,
    mask: Mask | MaskRule | None = None,
) -> list[Float[Tensor, "B L D"]]:
    """The states after so many layers each: 0 for the embeddings, the number of layers for after the final norm.

    They are counted as transformers' ``output_hidden_states`` counts them.

    Args:
        trunk: a ``Decoder``, or another whose calls take ``hooks``.
        embeds: the tokens, and
        table: their metadata.
        layers: which states.
        mask: as for the trunk.

    Raises:
        ValueError: states that are not there.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import hidden_states
        >>> trunk = Decoder(dim=32, num_layers=2, num_heads=4, mlp_dim=48)
        >>> embeds, table = torch.randn(1, 5, 32), TokenTable.text(1, 5)
        >>> first, last = hidden_states(trunk, embeds, table, [0, 2])
        >>> torch.equal(first, embeds), torch.equal(last, trunk(embeds, table))
        (True, True)
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        return lambda x: found.update({layer: x})

    output = trunk(embeds, table, mask=mask, hooks=TrunkHooks(hidden={layer: keep(layer) for layer in layers}))
    return [output if layer == trunk.num_layers else found[layer] for layer in layers]


class HookedTrunk(nn.Module):
    """A trunk that is called with the same hooks every time: it takes the trunk's place in a model, for training or generation.

        steered = MultimodalModel(inputs=dict(model.inputs), trunk=HookedTrunk(model.trunk, hooks), outputs=dict(model.outputs))

    The weights are the trunk's own, shared.

    Args:
        trunk: a ``Decoder``, or another whose calls take ``hooks``.
        hooks: what each call is given.

    Raises:
        TypeError: a trunk that takes none, as ``MAR`` and ``VAR``.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import HookedTrunk, TrunkHooks
        >>> trunk = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> steered = HookedTrunk(trunk, TrunkHooks(hidden={0: lambda x: x + 1}))
        >>> embeds, table = torch.randn(1, 5, 32), TokenTable.text(1, 5)
        >>> torch.equal(steered(embeds, table), trunk(embeds + 1, table))
        True
    """

    def __init__(self, trunk: nn.Module, hooks: TrunkHooks) -> None:
        super().__init__()
        parameters = signature(trunk.forward).parameters
        if "hooks" not in parameters and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            raise TypeError(f"trunk is a {type(trunk).__name__}, which takes no hooks; accepted: a trunk whose forward has hooks=")
        self.trunk = trunk
        self.hooks = hooks

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: Cache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        **options: object,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states; see the trunk's own."""
        found: Tensor = self.trunk(embeds, table, cache, mask=mask, hooks=self.hooks, **options)
        return found

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """The trunk's."""
        return cast(Trunk, self.trunk).new_cache(batch, capacity)
