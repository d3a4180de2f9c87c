"""OmniGen's trunk, a Phi-3 decoder whose rotary frequencies are stretched, and its head for velocities.

Shapes: B rows, L new tokens, N tokens of images, D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.adaln import Modulation, TimeEmbedding, modulate
from mmblocks.masks import Mask, MaskRule
from mmblocks.positions import RotaryTable, rotary_table, sequential
from mmblocks.tokens import TokenTable
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.hooks import TrunkHooks
from mmblocks.trunks.kv_cache import KVCache


class Phi3Decoder(Decoder):
    """A ``Decoder`` whose rows may say how long they will become, which decides on the frequencies of "longrope" scaling.

    In a cache the keys of a prompt then have the angles that they have where prompt and image are read together. Rows of a batch
    are stretched alike, by the longest, padding included, as upstream does.

    Args: those of ``Decoder``.

    Source: Phi-3 (arXiv 2404.14219) in OmniGen (arXiv 2409.11340; VectorSpaceLab/OmniGen).
    """

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: KVCache | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        taps: dict[int, Tensor] | None = None,
        hooks: TrunkHooks | None = None,
        total_length: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Hidden states behind the final norm; see ``Decoder``.

        Args:
            embeds: the tokens.
            table: who they are.
            cache: what was read before.
            mask: see ``Decoder``, as the others.
            taps: states to record.
            hooks: functions that read or change what is on the way.
            total_length: tokens that rows will have in the end, padding included; those read so far if None.
        """
        return self._run(embeds, table, cache, mask, taps, hooks, total_length=total_length)

    def _rotary(self, keys: TokenTable, length: int, total_length: int | None = None, **angles: Any) -> RotaryTable:
        """Angles of the last ``length`` tokens, of rows that will have ``total_length`` in the end."""
        scaling = self.rope_scaling
        if scaling is None or scaling["type"] != "longrope":
            return super()._rotary(keys, length)
        positions = sequential(keys)[:, -length:]
        trained = scaling["max_position"]
        factors = scaling["long_factor" if (total_length or keys.shape[1]) > trained else "short_factor"]
        table = rotary_table(
            positions, self.head_dim, self.rope_theta, torch.tensor([factors] * len(positions), device=positions.device)
        )
        growth = math.sqrt(1 + math.log(scaling["factor"]) / math.log(trained))
        return RotaryTable(table.cos * growth, table.sin * growth)


def phi3_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A published config of Phi-3, or diffusers' of OmniGen, as ``Phi3Decoder`` arguments.

    Raises:
        ValueError: what ``Phi3Decoder`` does not do: other activations, partly rotated heads, other scalings.
    """
    for name, accepted in _PHI3_FIXED.items():
        if config.get(name, accepted) not in (accepted, None):
            raise ValueError(f"{name} is {config[name]!r}; accepted: {accepted!r}")
    num_heads = config.get("num_attention_heads", 32)
    return {
        "dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"] if "num_hidden_layers" in config else config["num_layers"],
        "num_heads": num_heads,
        "num_kv_heads": config.get("num_key_value_heads") or num_heads,
        "mlp_dim": config.get("intermediate_size", 8192),
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", config.get("rope_base", 10000.0)),
        "rope_scaling": _phi3_scaling(config, config["hidden_size"] // num_heads // 2),
    }


_PHI3_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "attention_bias": False,
    # of diffusers
    "time_step_dim": 256,
    "flip_sin_to_cos": True,
    "downscale_freq_shift": 0,
    "timestep_activation_fn": "silu",
}
"""Entries of a config that are followed with one value alone."""


def _phi3_scaling(config: Mapping[str, Any], num_pairs: int) -> dict[str, Any] | None:
    """The ``rope_scaling`` of ``Decoder``; transformers reads Phi-3's "su" and "yarn" as "longrope", its later name."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("su", "longrope", "yarn", None):  # diffusers' has no name
        raise ValueError(f"rope_scaling has type {kind!r}; accepted: 'longrope', or 'su' and 'yarn' as older files call it")
    factors = {name: tuple(scaling[name]) for name in ("short_factor", "long_factor")}
    if any(len(values) != num_pairs for values in factors.values()):
        found = ", ".join(f"{len(values)} numbers as {name}" for name, values in factors.items())
        raise ValueError(f"rope_scaling has {found}; accepted: {num_pairs}, one for each pair of a head's channels")
    trained = config.get("original_max_position_embeddings", 4096)
    longest = config.get("max_position_embeddings", 131072)
    return {"type": "longrope", "factor": max(longest / trained, 1.0), "max_position": trained, **factors}


class VelocityHead(Block):
    """Hidden states of an image's tokens to a velocity in each latent of their patches; the time shifts and scales them.

    Args:
        dim: D.
        patch_size: latents a side of a patch.
        channels: of a latent.

    Source: DiT (arXiv 2212.09748) as OmniGen has it.
    """

    def __init__(self, *, dim: int, patch_size: int = 2, channels: int = 4) -> None:
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.time = TimeEmbedding(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, dim, 2)
        self.output = nn.Linear(dim, patch_size * patch_size * channels)

    def forward(
        self, hidden: Float[Tensor, "N D"], t: Float[Tensor, ""], size: tuple[int, int]
    ) -> Float[Tensor, "channels height width"]:
        """The velocity of one image.

        Args:
            hidden: states of the image's tokens, row by row.
            t: its time.
            size: (height, width) in latents.
        """
        shift, scale = self.modulation(self.time(t)).chunk(2, dim=-1)
        patches = self.output(modulate(self.norm(hidden), shift, scale))
        sides = {"h": size[0] // self.patch_size, "p": self.patch_size, "q": self.patch_size}
        return rearrange(patches, "(h w) (p q c) -> c (h p) (w q)", **sides)
