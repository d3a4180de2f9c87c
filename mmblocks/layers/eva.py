"""The image tower of the EVA family, built on timm's, and how published files name its tensors.

Shapes: B images, H and W pixels, M tokens, which are one more than patches, K patches that are kept, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule, Split

AnyBlock = TypeVar("AnyBlock", bound=Block)

_HEAD = ("norm.*", "fc_norm.*", "head.*", "lm_head.*", "mask_token")
"""What published files hold behind the last block, or for pretraining alone."""

ROPE_TABLES = ("rope.*", "blocks.{}.attn.rope.*")
"""Turning angles, which follow from the sizes; files hold them once for the tower and once more for each block."""

BESIDE_VISUAL = (
    *("text.*", "logit_scale"),
    *("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection"),
)
"""What an EVA-CLIP file holds beside ``visual.*``; older ones have no ``text.`` before the text tower's names."""

_HEAD_IN_VISUAL = ("visual.norm.*", "visual.fc_norm.*", "visual.head.*")

_TABLES_IN_VISUAL = tuple(f"visual.{name}" for name in ROPE_TABLES)


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
        Rule(f"{block}.gamma_1", f"{mine}.gamma_1"),
        Rule(f"{block}.gamma_2", f"{mine}.gamma_2"),
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


def eva_tower_arguments(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EvaTower`` from the ``vision_cfg`` of an EVA-CLIP model.

    Raises:
        KeyError: the config of another kind of tower.
        ValueError: a form of the tower that no published model has.
    """
    gated, normed = bool(vision.get("naiveswiglu")), bool(vision.get("subln"))
    if not vision.get("eva_model_name"):
        raise ValueError("the config is of a tower of another kind; accepted: an EVA tower, which has an eva_model_name")
    if gated != normed:
        raise ValueError(f"naiveswiglu is {gated} and subln {normed}; accepted: both or neither")
    height, width = _pair(vision["image_size"])
    grid = vision.get("pt_hw_seq_len", 16) if vision.get("rope") and vision.get("intp_freq") else None
    return {
        "image_size": (height, width),
        "patch_size": vision["patch_size"],
        "dim": vision["width"],
        "num_layers": vision["layers"],
        "num_heads": vision["width"] // vision["head_width"],
        "mlp_dim": int(vision["width"] * vision["mlp_ratio"]),
        "norm": "rms" if vision.get("use_rms_norm") else "layer",
        "post_norm": bool(vision.get("postnorm")),
        "qkv_bias": vision.get("qkv_bias", True),
        "swiglu": gated,
        "attention_norm": normed,
        "rope": bool(vision.get("rope")),
        "rope_grid": None if grid is None else (grid, grid),
        "layer_scale": vision.get("ls_init_value") or None,
        "drop_path": vision.get("drop_path_rate") or 0.0,
    }


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _tower_config(published: Mapping[str, Any]) -> dict[str, Any]:
    return eva_tower_arguments(published["vision_cfg"]) if published else {}


class EvaTower(Block):
    """A vision transformer with a class token and learned positions, up to its last block: no final norm, no head.

    Args:
        image_size: height and width of the images, in pixels; others are refused, but see ``resized``.
        patch_size: pixels a side of a patch.
        dim, num_layers, num_heads, mlp_dim: its sizes.
        norm: "layer", or "rms" as in EVA-CLIP-8B and 18B.
        post_norm: norms behind attention and feed-forward, inside the residual, as in EVA02-CLIP-E and EVA-CLIP-18B.
        qkv_bias: biases of query and value; there is none of key.
        swiglu: a gated feed-forward with a norm inside, as in EVA-02's base and large towers; else GELU.
        attention_norm: a norm before attention's output projection, as in EVA02-CLIP's base and large towers.
        rope: turn queries and keys by the place of their patch.
        rope_grid: rows and columns over which ``rope``'s places are spread; None for one each patch.
        layer_scale: where learned scales of what attention and feed-forward add begin; None for none.
        drop_path: how often, while training, the last block leaves out either for an image; less for those before.

    The defaults are those of EVA01-CLIP-g.

    Source: EVA (arXiv 2211.07636), EVA-02 (2303.11331), EVA-CLIP (2303.15389; baaivision/EVA); computed by timm's ``Eva``.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("eva", eva_rules("", ""), ignored=_HEAD),
        Layout("eva02", eva_rules("", "", swiglu=True), ignored=(*_HEAD, *ROPE_TABLES)),
        Layout("eva-clip", eva_rules("visual.", ""), ignored=(*BESIDE_VISUAL, *_HEAD_IN_VISUAL), config=_tower_config),
        Layout(
            "eva02-clip",
            eva_rules("visual.", "", swiglu=True),
            ignored=(*BESIDE_VISUAL, *_HEAD_IN_VISUAL, *_TABLES_IN_VISUAL),
            config=_tower_config,
        ),
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
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if any(side % patch_size or side <= 0 for side in image_size):
            raise ValueError(f"image_size is {image_size}; accepted: multiples of patch_size, {patch_size}")
        if dim % num_heads:
            raise ValueError(f"dim is {dim}, num_heads {num_heads}; accepted: heads that divide the width")
        if layer_scale is not None and post_norm:
            raise ValueError(f"layer_scale is {layer_scale} with post_norm; accepted: None")
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
            init_values=layer_scale,
            drop_path_rate=drop_path,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    def forward(self, pixels: Float[Tensor, "B 3 H W"], *, keep: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B M D"]:
        """Pixels, normalised, to what the last block gives: the class token, then the patches row by row.

        Args:
            pixels: of ``image_size``.
            keep: numbers of the patches that are looked at, row by row from 0, for each image; they come out in this order.
                None for all of them.

        Raises:
            ValueError: images of another size; patches that are not there.
        """
        return self.states(pixels, (-1,), keep=keep)[0]

    def states(
        self, pixels: Float[Tensor, "B 3 H W"], layers: Sequence[int], *, keep: Int[Tensor, "B K"] | None = None
    ) -> list[Float[Tensor, "B M D"]]:
        """What several blocks give, in the order asked for. Blocks behind the last of them are not computed.

        Args:
            pixels: as for ``forward``.
            keep: likewise.
            layers: numbers of blocks from 0, or from the end: -1 is the last one.

        Raises:
            ValueError: as ``forward``; no block, or one that is not there.
        """
        count = len(self.vit.blocks)
        if not layers or not all(-count <= layer < count for layer in layers):
            raise ValueError(f"layers are {list(layers)}; accepted: at least one, each from {-count} to {count - 1}")
        numbers = [layer % count for layer in layers]
        x, rope = self._embed(pixels, keep)
        states: dict[int, Tensor] = {}
        for number in range(max(numbers) + 1):
            block = self.vit.blocks[number]
            if self.vit.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope=rope, use_reentrant=False)
            else:
                x = block(x, rope=rope)
            if number in numbers:
                states[number] = x
        return [states[number] for number in numbers]

    def resized(self, image_size: tuple[int, int], *, patch_size: int | None = None) -> "EvaTower":
        """The tower for images of another size. Positions, and patches of another size, are interpolated; the rest is shared.

        Bicubic and without antialiasing, as in the official loader, which knows squares alone. ``rope`` spreads its places
        over ``rope_grid`` whatever the size.

        Raises:
            ValueError: sides that are no multiples of the patches'.
        """
        changes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size or self.patch_size}
        with torch.device("meta"):
            grid = type(self)(**{**self.config, **changes, "num_layers": 1}).grid
        tensors = self.state_dict(keep_vars=True)
        tensors["vit.pos_embed"] = _resized_positions(self.vit.pos_embed, self.grid, grid)
        if changes["patch_size"] != self.patch_size:
            kernel = tensors["vit.patch_embed.proj.weight"]
            tensors["vit.patch_embed.proj.weight"] = _interpolated(kernel, (changes["patch_size"],) * 2, like=kernel)
        return rebuilt(self, tensors, **changes)

    def reset_buffers(self, device: torch.device) -> None:
        """Rotary tables, which no checkpoint holds."""
        if self.vit.rope is not None:
            self.vit.rope.to_empty(device=device)
            self.vit.rope.init_non_persistent_buffers()

    def _embed(self, pixels: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens that the first block reads, and the sines and cosines of ``rope`` for their patches."""
        if tuple(pixels.shape[2:]) != tuple(self.image_size):
            accepted = f"{self.image_size[0]}x{self.image_size[1]}"
            raise ValueError(f"pixels are {pixels.shape[2]}x{pixels.shape[3]}; accepted: {accepted} (a tower for others: resized)")
        if keep is not None:
            self._check_kept(keep, len(pixels))
        x = self.vit.patch_embed(pixels)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + self.vit.pos_embed
        rope = None if self.vit.rope is None else self.vit.rope.get_embed()
        if keep is None:
            return x, rope
        patches = x[:, 1:].gather(1, keep[..., None].expand(-1, -1, self.dim))
        # The turns differ between images now, and are the same for all heads of one.
        return torch.cat([x[:, :1], patches], dim=1), None if rope is None else rope[keep][:, None]

    def _check_kept(self, keep: Tensor, batch: int) -> None:
        rows, columns = self.grid
        if keep.ndim != 2 or len(keep) != batch or keep.shape[1] == 0:
            raise ValueError(f"keep has shape {tuple(keep.shape)}; accepted: ({batch}, K) with at least one patch")
        checked = keep.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and not (keep.min() >= 0 and keep.max() < rows * columns):
            raise ValueError(f"keep lies in [{int(keep.min())}, {int(keep.max())}]; accepted: [0, {rows * columns - 1}]")


def rebuilt(block: AnyBlock, tensors: Mapping[str, Tensor], **changes: Any) -> AnyBlock:
    """A Block of the same class with some arguments changed, which takes these tensors for its own, not copies of them."""
    with torch.device("meta"):
        new = type(block)(**{**block.config, **changes})
    new.load_state_dict(tensors, assign=True)
    device = next(iter(tensors.values())).device
    for module in new.modules():
        reset = getattr(module, "reset_buffers", None)
        if reset is not None:
            reset(device)
    return new.train(block.training)


def _resized_positions(positions: nn.Parameter, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Positions (1, 1 + N, D) for another grid; that of the class token is kept."""
    if old == new:
        return positions
    rows, columns = old
    patches = rearrange(positions[:, 1:], "1 (rows columns) d -> 1 d rows columns", rows=rows, columns=columns)
    spread = rearrange(_interpolated(patches, new, like=positions), "1 d rows columns -> 1 (rows columns) d")
    return nn.Parameter(torch.cat([positions[:, :1], spread], dim=1).detach(), requires_grad=positions.requires_grad)


def _interpolated(maps: Tensor, size: tuple[int, int], *, like: Tensor) -> nn.Parameter:
    larger = interpolate(maps.detach().float(), size=size, mode="bicubic", align_corners=False)
    return nn.Parameter(larger.to(like.dtype), requires_grad=like.requires_grad)


def eva_norm(norm: Literal["layer", "rms"]) -> Callable[[int], nn.Module]:
    """Width -> a norm of the kind that a tower has throughout."""
    # here, since timm takes seconds to import
    from timm.layers.norm import LayerNorm, RmsNorm

    kind: Callable[..., nn.Module] = {"layer": LayerNorm, "rms": RmsNorm}[norm]
    return partial(kind, eps=1e-6)


def _timm_eva(*, norm: Literal["layer", "rms"], **sizes: Any) -> Any:
    from timm.models.eva import Eva

    return Eva(
        **sizes,
        norm_layer=eva_norm(norm),
        # Apart, query, key and value need no buffer of zeros for the key's bias, and are called the same in all towers.
        qkv_fused=False,
        num_classes=0,
        global_pool="",
        use_fc_norm=False,
        use_post_transformer_norm=False,
    )
