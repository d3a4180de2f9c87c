"""The image tower of the EVA family, built on timm's.

Shapes: B images, H and W pixels, M tokens, which are one more than patches, K patches that are kept, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, Unpack

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.activations import ActivationLayer
from mmblocks.layers.images.pixels import check_some
from mmblocks.layers.towers.eva_layer import EvaLayer, EvaLayerArguments
from mmblocks.layers.towers.eva_layouts import tower_layouts
from mmblocks.support.buffers import ResetsBuffers
from mmblocks.support.checks import check_range

AnyBlock = TypeVar("AnyBlock", bound=Block)


class EvaTower(Block):
    """A vision transformer with a class token and learned positions, up to its last block: no final norm, no head.

    Args:
        image_size: height and width of the images, in pixels; others are refused, but see ``resized``.
        patch_size: pixels a side of a patch.
        dim, num_layers, num_heads, mlp_dim: its sizes.
        rope: turn queries and keys by the place of their patch.
        rope_grid: rows and columns over which ``rope``'s places are spread; None for one each patch.
        any_size: take images of any whole patches, with positions interpolated (bicubic, as in ``resized``, but in every forward
            pass) from those of ``image_size``.
        layer: the arguments of ``EvaLayer``.

    The defaults are those of EVA01-CLIP-g.

    Source: EVA (arXiv 2211.07636), EVA-02 (2303.11331), EVA-CLIP (2303.15389; baaivision/EVA); computed by timm's ``Eva``.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import EvaTower
        >>> tower = EvaTower(image_size=(28, 42), patch_size=14, dim=16, num_layers=2, num_heads=2, mlp_dim=16).eval()
        >>> pixels = torch.randn(1, 3, 28, 42)
        >>> tuple(tower(pixels).shape), tower.grid  # a class token and 2 x 3 patches
        ((1, 7, 16), (2, 3))
        >>> torch.equal(tower.states(pixels, [-1])[0], tower(pixels))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = tower_layouts()
    shorthand = EvaLayer

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 14,
        dim: int = 1408,
        num_layers: int = 40,
        num_heads: int = 16,
        mlp_dim: int = 6144,
        rope: bool = False,
        rope_grid: tuple[int, int] | None = None,
        any_size: bool = False,
        **layer: Unpack[EvaLayerArguments],
    ) -> None:
        super().__init__()
        if any(side % patch_size or side <= 0 for side in image_size):
            raise ValueError(f"image_size is {image_size}; accepted: multiples of patch_size, {patch_size}")
        if dim % num_heads:
            raise ValueError(f"dim is {dim}, num_heads {num_heads}; accepted: heads that divide the width")
        self.layer = EvaLayer(**layer)
        self.image_size = image_size
        self.patch_size = patch_size
        self.any_size = any_size
        self.dim = dim
        self.vit = self.layer.tower(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=num_layers,
            num_heads=num_heads,
            # timm rounds dim times this ratio down
            mlp_ratio=(mlp_dim + 0.5) / dim,
            use_rot_pos_emb=rope,
            ref_feat_shape=rope_grid,
            dynamic_img_size=any_size,
        )
        if self.layer.activation != "gelu":
            for block in self.vit.blocks:
                block.mlp.act = ActivationLayer(self.layer.activation)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``image_size``."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ValueError: a size that the tower does not take.
        """
        size, patch = f"pixels are {height}x{width}", self.patch_size
        if not self.any_size and (height, width) != tuple(self.image_size):
            accepted = f"{self.image_size[0]}x{self.image_size[1]}"
            raise ValueError(f"{size}; accepted: {accepted} (see preprocess; a tower for others: resized, or any_size)")
        if height % patch or width % patch or min(height, width) < patch:
            near = "x".join(str(max(round(side / patch), 1) * patch) for side in (height, width))
            raise ValueError(f"{size}; accepted: multiples of {patch}, such as {near}")
        return height // patch, width // patch

    def forward(self, pixels: Float[Tensor, "B 3 H W"], *, keep: Int[Tensor, "B K"] | None = None) -> Float[Tensor, "B M D"]:
        """Pixels, normalised, to what the last block gives: the class token, then the patches row by row.

        Args:
            pixels: of ``image_size``, or of any whole patches if ``any_size``.
            keep: indices of the patches that are read, row by row from 0, for each image; they come out in this order.
                None for all of them.

        Raises:
            ValueError: images of another size; patches that are not there.
        """
        return self.states(pixels, (-1,), keep=keep)[0]

    def states(
        self, pixels: Float[Tensor, "B 3 H W"], layers: Sequence[int], *, keep: Int[Tensor, "B K"] | None = None
    ) -> list[Float[Tensor, "B M D"]]:
        """What several blocks give, in the order asked for. Blocks after the last of them are not computed.

        Args:
            pixels: as for ``forward``.
            keep: likewise.
            layers: indices of blocks from 0, or from the end: -1 is the last one.

        Raises:
            ValueError: as ``forward``; no block, or one that is not there.
        """
        count = len(self.vit.blocks)
        if not layers or not all(-count <= layer < count for layer in layers):
            raise ValueError(f"layers are {list(layers)}; accepted: at least one, each from {-count} to {count - 1}")
        check_some(pixels)
        indices = [layer % count for layer in layers]
        x, rope = self._embed(pixels, keep)
        states: dict[int, Tensor] = {}
        for index in range(max(indices) + 1):
            block = self.vit.blocks[index]
            if self.vit.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope=rope, use_reentrant=False)
            else:
                x = block(x, rope=rope)
            if index in indices:
                states[index] = x
        return [states[index] for index in indices]

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
            resized = _interpolated(kernel.detach(), (changes["patch_size"],) * 2)
            tensors["vit.patch_embed.proj.weight"] = nn.Parameter(resized, requires_grad=kernel.requires_grad)
        return rebuilt(self, tensors, **changes)

    def reset_buffers(self, device: torch.device) -> None:
        """Rotary tables, which no checkpoint holds."""
        if self.vit.rope is not None:
            self.vit.rope.to_empty(device=device)
            self.vit.rope.init_non_persistent_buffers()

    def _embed(self, pixels: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens that the first block reads, and the sines and cosines of ``rope`` for their patches."""
        grid = self.grid_of(pixels.shape[2], pixels.shape[3])
        if keep is not None:
            self._check_kept(keep, len(pixels), grid)
        x = self.vit.patch_embed(pixels)
        positions = self.vit.pos_embed
        if self.any_size:  # timm's patches keep their rows and columns then, and its rotary tables are made for each grid
            x = x.flatten(1, 2)
            positions = positions if grid == self.grid else _spread(positions, self.grid, grid)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
        rope = None if self.vit.rope is None else self.vit.rope.get_embed(grid)
        if keep is None:
            return x, rope
        patches = x[:, 1:].gather(1, keep[..., None].expand(-1, -1, self.dim))
        # The turns differ between images now, and are the same for all heads of one.
        return torch.cat([x[:, :1], patches], dim=1), None if rope is None else rope[keep][:, None]

    def _check_kept(self, keep: Tensor, batch: int, grid: tuple[int, int]) -> None:
        rows, columns = grid
        if keep.ndim != 2 or len(keep) != batch or keep.shape[1] == 0:
            raise ValueError(f"keep has shape {tuple(keep.shape)}; accepted: ({batch}, K) with at least one patch")
        check_range("keep", keep, rows * columns)


def rebuilt(block: AnyBlock, tensors: Mapping[str, Tensor], **changes: object) -> AnyBlock:
    """A Block of the same class with some arguments changed, which takes these tensors for its own, not copies of them."""
    with torch.device("meta"):
        new = type(block)(**{**block.config, **changes})
    new.load_state_dict(tensors, assign=True)
    device = next(iter(tensors.values())).device
    for module in new.modules():
        if isinstance(module, ResetsBuffers):
            module.reset_buffers(device)
    return new.train(block.training)


def _resized_positions(positions: nn.Parameter, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Positions for another grid, as a parameter of their own."""
    if old == new:
        return positions
    return nn.Parameter(_spread(positions, old, new).detach(), requires_grad=positions.requires_grad)


def _spread(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + N, D) for another grid; that of the class token is kept."""
    rows, columns = old
    patches = rearrange(positions[:, 1:], "1 (rows columns) d -> 1 d rows columns", rows=rows, columns=columns)
    spread = rearrange(_interpolated(patches, new), "1 d rows columns -> 1 (rows columns) d")
    return torch.cat([positions[:, :1], spread], dim=1)


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(maps.float(), size=size, mode="bicubic", align_corners=False).to(maps.dtype)
