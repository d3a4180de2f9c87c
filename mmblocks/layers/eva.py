"""The image tower of the EVA family, built on timm's, and how published files name its tensors.

Shapes: B images, H and W pixels, M tokens, which are one more than patches, D width.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule, Split

_HEAD = ("norm.*", "fc_norm.*", "head.*")
"""What published files hold behind the last block."""


def eva_rules(theirs: str, ours: str, *, swiglu: bool = False) -> tuple[Rule | Split, ...]:
    """The rules of a tower whose published names begin with ``theirs``, and which a Block keeps under ``ours``.

    Both prefixes end with a dot or are empty. ``swiglu`` is for EVA-02's base and large towers, whose files hold query, key and
    value apart; all others hold them as one tensor.
    """
    block, mine = f"{theirs}blocks.{{}}", f"{ours}vit.blocks.{{}}"
    projections = tuple(f"{mine}.attn.{name}_proj.weight" for name in "qkv")
    apart = tuple(Rule(f"{block}.attn.{name}_proj.weight", f"{mine}.attn.{name}_proj.weight") for name in "qkv")
    attention: tuple[Rule | Split, ...] = (
        *(apart if swiglu else (Split(f"{block}.attn.qkv.weight", projections),)),
        Rule(f"{block}.attn.q_bias", f"{mine}.attn.q_proj.bias"),
        Rule(f"{block}.attn.v_bias", f"{mine}.attn.v_proj.bias"),
        Rule(f"{block}.attn.inner_attn_ln.*", f"{mine}.attn.norm.*"),
    )
    gated = (("w1", "fc1_g"), ("w2", "fc1_x"), ("ffn_ln", "norm"), ("w3", "fc2"))
    feed_forward = gated if swiglu else (("fc1", "fc1"), ("fc2", "fc2"))
    return (
        *attention,
        *(Rule(f"{block}.mlp.{key}.*", f"{mine}.mlp.{name}.*") for key, name in feed_forward),
        *(Rule(f"{block}.{name}.*", f"{mine}.{name}.*") for name in ("attn.proj", "norm1", "norm2")),
        *(Rule(f"{theirs}{name}", f"{ours}vit.{name}") for name in ("cls_token", "pos_embed")),
        Rule(f"{theirs}patch_embed.proj.*", f"{ours}vit.patch_embed.proj.*"),
    )


class EvaTower(Block):
    """A vision transformer with a class token and learned positions, up to its last block: no final norm, no head.

    Args:
        image_size: height and width of the images, in pixels; others are refused.
        patch_size: pixels a side of a patch.
        dim, num_layers, num_heads, mlp_dim: its sizes.
        norm: "layer", or "rms" as in EVA-CLIP-8B and 18B.
        post_norm: norms behind attention and feed-forward, inside the residual, as in EVA02-CLIP-E and EVA-CLIP-18B.
        qkv_bias: biases of query and value; there is none of key.
        swiglu: a gated feed-forward with a norm inside, as in EVA-02's base and large towers; else GELU.
        attention_norm: a norm before attention's output projection, as in EVA02-CLIP's base and large towers.
        rope: turn queries and keys by the place of their patch.
        rope_grid: rows and columns over which ``rope``'s places are spread; None for one each patch.

    The defaults are those of EVA01-CLIP-g.

    Source: EVA (arXiv 2211.07636), EVA-02 (2303.11331), EVA-CLIP (2303.15389; baaivision/EVA); computed by timm's ``Eva``.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("eva", eva_rules("", ""), ignored=_HEAD),
        Layout("eva02", eva_rules("", "", swiglu=True), ignored=(*_HEAD, "rope.*", "blocks.{}.attn.rope.*")),
    )

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 14,
        dim: int = 1408,
        num_layers: int = 40,
        num_heads: int = 16,
        mlp_dim: int = 6144,
        norm: Literal["layer", "rms"] = "layer",
        post_norm: bool = False,
        qkv_bias: bool = True,
        swiglu: bool = False,
        attention_norm: bool = False,
        rope: bool = False,
        rope_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if any(side % patch_size or side <= 0 for side in image_size):
            raise ValueError(f"image_size is {image_size}; accepted: multiples of patch_size, {patch_size}")
        self.image_size = image_size
        self.patch_size = patch_size
        self.dim = dim
        self.vit = _timm_eva(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=num_layers,
            num_heads=num_heads,
            # timm rounds dim times this ratio down
            mlp_ratio=(mlp_dim + 0.5) / dim,
            norm=norm,
            use_post_norm=post_norm,
            qkv_bias=qkv_bias,
            swiglu_mlp=swiglu,
            scale_mlp=swiglu,
            scale_attn_inner=attention_norm,
            use_rot_pos_emb=rope,
            ref_feat_shape=rope_grid,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """Pixels, normalised, to what the last block gives: the class token, then the patches row by row.

        Raises:
            ValueError: images of another size.
        """
        if tuple(pixels.shape[2:]) != tuple(self.image_size):
            raise ValueError(f"pixels are {pixels.shape[2]}x{pixels.shape[3]}; accepted: {self.image_size[0]}x{self.image_size[1]}")
        return self.vit.forward_features(pixels)

    def reset_buffers(self, device: torch.device) -> None:
        """Rotary tables, which no checkpoint holds."""
        if self.vit.rope is not None:
            self.vit.rope.to_empty(device=device)
            self.vit.rope.init_non_persistent_buffers()


def _timm_eva(*, norm: str, **sizes: Any) -> Any:
    # here, since timm takes seconds to import
    from timm.layers.norm import LayerNorm, RmsNorm
    from timm.models.eva import Eva

    norm_layer: type[nn.Module] = {"layer": LayerNorm, "rms": RmsNorm}[norm]
    return Eva(
        **sizes,
        norm_layer=partial(norm_layer, eps=1e-6),
        # Apart, query, key and value need no buffer of zeros for the key's bias, and are called the same in all towers.
        qkv_fused=False,
        num_classes=0,
        global_pool="",
        use_fc_norm=False,
        use_post_transformer_norm=False,
    )
