"""A NEO trunk out of a plain Qwen3: layers put before it, and projections for rows and columns that say nothing at first."""

import torch
from einops import rearrange
from torch import Tensor, nn

from mmblocks.checkpoints.surgery.graft import Report, graft
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.neo.trunk import NEOTrunk

INIT_STD = 0.02
"""Standard deviation of the random weights of the layers put before."""


def neo_from_qwen3(
    qwen3: Decoder, *, num_prebuffer_layers: int, rope_theta_place: float = 10000.0, generator: torch.Generator | None = None
) -> tuple[NEOTrunk, Report]:
    """The trunk that NEO's pretraining starts from.

    Queries for places start as a part of the queries for steps, keys for places as zero: until they have learned, the layers
    of the Qwen3 compute what they did.

    Args:
        qwen3: the language model; with norms on queries and keys, and without biases.
        num_prebuffer_layers: random layers before it (2B: 12, 9B: 6).
        rope_theta_place: base of the rotary frequencies of row and column.
        generator: of the random weights.

    Raises:
        ValueError: another kind of decoder.

    Source: NEO (arXiv 2510.14979; EvolvingLMMs-Lab/NEO).
    """
    config = qwen3.config
    if not config["qk_norm"] or config["qkv_bias"] or config["rope_scaling"] is not None:
        raise ValueError("qwen3 is no Qwen3; accepted: a Decoder with qk_norm, without qkv_bias and rope_scaling")
    kept = ("dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "norm_eps", "rope_theta")
    trunk = NEOTrunk(
        **{name: config[name] for name in kept},
        num_layers=config["num_layers"] + num_prebuffer_layers,
        num_prebuffer_layers=num_prebuffer_layers,
        rope_theta_place=rope_theta_place,
    ).to(qwen3.like)
    for layer in trunk.layers[:num_prebuffer_layers]:
        for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=INIT_STD, generator=generator)

    def origin(name: str) -> str | None:
        if not name.startswith("layers."):
            return name
        _, number, rest = name.split(".", 2)
        if int(number) < num_prebuffer_layers or ".place." in rest or "row_norm" in rest or "column_norm" in rest:
            return None
        rest = rest.replace(".step.", ".").replace(".query.step_norm.", ".query_norm.").replace(".key.step_norm.", ".key_norm.")
        return f"layers.{int(number) - num_prebuffer_layers}.{rest}"

    report = graft(trunk, qwen3, origin)
    for layer in trunk.layers[num_prebuffer_layers:]:
        _silence_places(layer.get_submodule("attention"), trunk.head_dim)
    return trunk, report


@torch.no_grad()
def _silence_places(attention: nn.Module, head_dim: int) -> None:
    """Queries for places out of those for steps, and keys that are zero."""
    query, key = attention.get_parameter("query.place.weight"), attention.get_parameter("key.place.weight")
    query.copy_(place_rows(attention.get_parameter("query.step.weight"), head_dim))
    key.zero_()


def place_rows(step: Tensor, head_dim: int) -> Tensor:
    """Rows for row and column from those for the step: of each head the first and the third quarter, twice.

    Rotary embedding pairs channels of the first half with those of the second, and the frequencies fall along each: the two
    quarters are the fast half of the pairs.
    """
    quarters = rearrange(step, "(h q r) d -> h q r d", q=4, r=head_dim // 4)
    return rearrange(quarters[:, [0, 2, 0, 2]], "h q r d -> (h q r) d")
