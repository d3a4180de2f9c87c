"""A decoder whose feed-forward layers are mixtures of experts: Mixtral and others.

Shapes: B batch, L new tokens, D width, E experts, K experts of a token.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self, Unpack

import torch

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.families.names import NOT_THE_TRUNK
from mmblocks.trunks.llama import LlamaArguments, llama_layer
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.parts.mixture_of_experts import MixtureOfExperts
from mmblocks.trunks.routed.unfilled import unfilled


def _mixtral_config(config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = llama_config(config, models=("mixtral",))
    only(config, "norm_topk_prob", True)
    return {**arguments, "num_experts": config["num_local_experts"], "experts_per_token": config["num_experts_per_tok"]}


MIXTRAL_LAYOUT = Layout(
    "mixtral",
    (
        *(rule for rule in LLAMA_RULES if not any(name in rule.theirs for name in (".mlp.", ".q_norm.", ".k_norm."))),
        Rule("model.layers.{}.block_sparse_moe.gate.weight", "layers.{}.mlp.router.weight"),
        Rule("model.layers.{}.block_sparse_moe.experts.{}.w1.weight", "layers.{}.mlp.gate.{}.weight"),
        Rule("model.layers.{}.block_sparse_moe.experts.{}.w3.weight", "layers.{}.mlp.up.{}.weight"),
        Rule("model.layers.{}.block_sparse_moe.experts.{}.w2.weight", "layers.{}.mlp.down.{}.weight"),
    ),
    ignored=NOT_THE_TRUNK,
    config=_mixtral_config,
    harmless=LLAMA_HARMLESS,
    otherwise="TransformersTrunk loads most other decoders of transformers",
)


class MoEDecoder(Decoder):
    """A decoder whose feed-forward layers are mixtures of experts: ``MixtureOfExperts`` in every layer.

    Args:
        dim, num_layers, dropout, positions: as for ``Decoder``.
        num_experts: E.
        experts_per_token: K.
        llama: the arguments of ``llama_layer``; ``mlp_dim`` is that of each expert.

    Raises:
        ValueError: for sizes that do not go together.

    Source: Mixtral (arXiv 2401.04088); as in Uni-MoE (arXiv 2405.11273), whose experts begin as copies of a dense model's layers.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.trunks import MoEDecoder
        >>> dense = Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64)
        >>> trunk = MoEDecoder.from_decoder(dense, num_experts=4, experts_per_token=2)  # each expert a copy of the dense layer
        >>> table, embeds = TokenTable.text(1, 5), torch.randn(1, 5, 32)
        >>> torch.allclose(trunk(embeds, table), dense(embeds, table), atol=1e-5)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (MIXTRAL_LAYOUT,)

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_experts: int,
        experts_per_token: int = 2,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        mixture = MixtureOfExperts(hidden_dim=llama["mlp_dim"], num_experts=num_experts, experts_per_token=experts_per_token)
        layer = replace(llama_layer(**llama), feed_forward=mixture)
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout, positions=positions)

    @classmethod
    def from_decoder(cls, decoder: Decoder, *, num_experts: int, experts_per_token: int = 2) -> Self:
        """A trunk that computes what ``decoder`` does, up to rounding: each expert begins as a copy of its feed-forward layer.

        Raises:
            TypeError: another class of trunk, whose layers may compute something else.
            ValueError: a decoder with ``layers`` of its own.
        """
        trunk = unfilled(cls, decoder, num_experts=num_experts, experts_per_token=experts_per_token)
        weights, like = decoder.state_dict(), decoder.like
        copied = {}
        for name, tensor in trunk.state_dict().items():
            if name.endswith("router.weight"):
                copied[name] = torch.empty(tensor.shape, dtype=like.dtype, device=like.device).normal_(std=0.02)
            else:
                copied[name] = weights[_without_number(name)].clone()
        trunk.load_state_dict(copied, assign=True)
        return trunk.train(decoder.training)


def _without_number(name: str) -> str:
    """What a plain decoder calls a weight: ``mlp.up.3.weight`` is its ``mlp.up.weight``."""
    *path, last, tensor = name.split(".")
    return ".".join([*path, tensor]) if last.isdigit() else name
