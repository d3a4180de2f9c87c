"""LaVIT's decoder: from codes back to the features of the image tower.

Shapes: B images, N patches, L codes of the longest row, d width of a code, D width of the features.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.attention.cross_attention import CrossAttentionLayer
from mmblocks.support.checks import check_shape
from mmblocks.tokenizers.lavit.layout import DECODER_RULES, LAYERS_HARMLESS, MLP_RATIO, check_layers

_UNSEEN = -1e4
"""Added to the scores of padding. Finite, so that an image without any code has an answer too."""


_SIZES = {
    "code_dim": ("in_chans", 32),
    "dim": ("embed_dim", 1408),
    "num_layers": ("depth", 12),
    "num_heads": ("num_heads", 16),
}
"""Arguments -> those of the published class, and their defaults."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class, which has no config file: without any, the defaults."""
    check_layers(config)
    arguments = {ours: config.get(theirs, default) for ours, (theirs, default) in _SIZES.items()}
    side = config.get("img_size", 224) // config.get("patch_size", 14)
    own = {"num_patches": side**2, "mlp_dim": int(arguments["dim"] * config.get("mlp_ratio", MLP_RATIO))}
    return {**arguments, **read_own(config, own)}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """Under the names of the published class, which has no config file."""
    own = {"num_patches": 256, "mlp_dim": int(arguments["dim"] * MLP_RATIO)}
    return {**{theirs: arguments[ours] for ours, (theirs, _) in _SIZES.items()}, **written_own(arguments, own)}


class LaVITDecoder(Block):
    """One query a patch reads the codes; the result is compared with the tower's features in training.

    Pixels come from a diffusion model that is conditioned on these features. The layers of the published files that fit them to
    that model (``unet_*``) belong to it and are left out.

    Args:
        code_dim, dim: d and D.
        num_patches: N.
        num_layers, num_heads, mlp_dim: sizes of the transformer.

    Source: LaVIT (arXiv 2309.04669; jy0205/LaVIT).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "lavit",
            DECODER_RULES,
            ignored=("unet_proj.*", "unet_proj_1.*", "unet_proj_2.*", "unet_attnpool.*"),
            config=_config,
            published_config=_published_config,
            harmless=LAYERS_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        code_dim: int = 32,
        dim: int = 1408,
        num_patches: int = 256,
        num_layers: int = 12,
        num_heads: int = 16,
        mlp_dim: int = 6144,
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(code_dim, dim)
        self.positions = nn.Parameter(torch.zeros(1, num_patches, dim))
        self.queries = nn.Parameter(torch.zeros(1, num_patches, dim))
        self.layers = nn.ModuleList(CrossAttentionLayer(dim, num_heads, mlp_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.project_out = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))

    def forward(self, z: Float[Tensor, "B L d"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B N D"]:
        """Features of all patches; codes are numbered in their order, and those from ``lengths`` on are not seen.

        Raises:
            ValueError: codes of another width, or more of them than patches.
        """
        check_shape("z", z, "B", "L", self.project_in.in_features)
        count, limit = z.shape[1], self.positions.shape[1]
        if count > limit:
            raise ValueError(f"z has {count} codes an image; accepted: at most {limit}")
        codes = self.project_in(z) + self.positions[:, :count]
        padding = torch.arange(count, device=z.device) >= lengths[:, None]
        attend_cross = partial(scaled_dot_product_attention, attn_mask=padding[:, None, None].to(codes.dtype) * _UNSEEN)
        x = self.queries.expand(len(z), -1, -1)
        for layer in self.layers:
            x = layer(x, codes, attend_cross=attend_cross)
        return self.project_out(self.norm(x))
