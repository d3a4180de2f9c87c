"""EVA-CLIP's image tower with its norm and head.

Shapes: B images, H and W pixels, h and w patches, M tokens, which are one more than patches, K patches that are kept, D width,
E width of the embedding that images and texts share.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.encoders.eva_clip_layouts import vision_layouts
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, check_pixels, normalised_for, pixels_of, rgb_of, torchvision_square
from mmblocks.layers.towers.eva import EvaTower, rebuilt
from mmblocks.support.deprecation import former_method
from mmblocks.support.pickling import weightless


class EVACLIPVision(Block):
    """Images to features on a grid, to tokens, or to one embedding each.

        name = "EVA02_CLIP_L_psz14_s4B"
        vision = EVACLIPVision.from_pretrained(f"{name}.pt", **eva_clip_arguments(name)["vision"])
        features = vision(pixels)                            # (B, 16, 16, 1024): what a connector takes
        tokens = vision.tokens(pixels, layer=-2)             # (B, 257, 1024): with the class token, of any layer
        embeddings = vision.embed(pixels)                    # (B, 768): what is compared with texts

    Args:
        tower: the transformer, or its arguments; see ``EvaTower``.
        embed_dim: E; None for a tower without a head, which gives no embeddings.
        head_bias: of the head; EVA-CLIP-8B and 18B have none.
        pooling: the embedding is made of the class token, or of the mean of all tokens, the class token among them.
        patch_dropout: share of the patches that ``embed`` leaves out while training.
        feature_layer: the block whose states are the features, from 0, or from the end.
        feature_norm: whether the features go through the final norm. The official "all features" do not, nor do Emu's.
        mean, std: what pixels are normalised with.
        squash: whether ``preprocess`` squashes images whatever their aspect, as Emu does, and does not take their middle.

    Raises:
        ValueError: a share of patches outside [0, 1).

    Source: EVA-CLIP (arXiv 2303.15389), EVA-CLIP-18B (arXiv 2402.04252); baaivision/EVA.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIPVision
        >>> tower = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32, "image_size": (28, 28), "patch_size": 14}
        >>> vision = EVACLIPVision(tower=tower, embed_dim=8).eval()
        >>> pixels = torch.rand(3, 3, 28, 28)
        >>> [tuple(found.shape) for found in (vision(pixels), vision.tokens(pixels), vision.embed(pixels))]
        [(3, 2, 2, 16), (3, 5, 16), (3, 8)]
    """

    layouts: ClassVar[tuple[Layout, ...]] = vision_layouts()

    def __init__(
        self,
        *,
        tower: EvaTower | dict[str, Any],
        embed_dim: int | None = None,
        head_bias: bool = True,
        pooling: Literal["class", "mean"] = "class",
        patch_dropout: float = 0.0,
        feature_layer: int = -1,
        feature_norm: bool = False,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
        squash: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= patch_dropout < 1:
            raise ValueError(f"patch_dropout is {patch_dropout}; accepted: from 0 to below 1")
        self.tower = tower if isinstance(tower, EvaTower) else EvaTower(**tower)
        self.dim = self.tower.dim
        self.embed_dim = embed_dim
        self.pooling = pooling
        self.patch_dropout = patch_dropout
        self.feature_layer = feature_layer
        self.feature_norm = feature_norm
        self.mean = mean
        self.std = std
        self.squash = squash
        norm = self.tower.layer.norm_of
        self.norm = norm(self.dim) if pooling == "class" else nn.Identity()
        self.pool_norm = norm(self.dim) if pooling == "mean" else nn.Identity()
        self.head = None if embed_dim is None else _small_linear(self.dim, embed_dim, head_bias)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, in pixels, of the images; None for a tower that takes any whole patches (``any_size``)."""
        return None if self.tower.any_size else self.tower.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of the tower's own size."""
        return self.tower.grid

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the features of an image.

        Raises:
            ValueError: a size that the tower does not take.
        """
        return self.tower.grid_of(height, width)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Features of all patches, of the layer and after the norm or not as the constructor was told.

        Args:
            pixels: in [0, 1], of a size that the tower takes.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels that are no RGB in [0, 1], or of another size.
        """
        tokens = self.tokens(pixels, layer=self.feature_layer, normed=self.feature_norm)
        return tokens[:, 1:].unflatten(1, self.grid_of(pixels.shape[2], pixels.shape[3]))

    def tokens(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        *,
        layer: int = -1,
        normed: bool = False,
        keep: Int[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B M D"]:
        """The class token and the patches row by row, or those of them that are kept.

        Args:
            pixels: in [0, 1], of a size that the tower takes.
            layer: the block that they come from; see ``EvaTower.states``.
            normed: let them through the final norm, whichever block they come from.
            keep: as for ``EvaTower``.

        Raises:
            TypeError, ValueError: as ``forward``; also a block or patches that are not there.
        """
        tokens = self.tower.states(self._normalised(pixels), (layer,), keep=keep)[0]
        return self.norm(tokens) if normed else tokens

    def embed(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        *,
        keep: Int[Tensor, "B K"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B E"]:
        """One embedding for each image, of any length: the official ``visual(x)``.

        Args:
            pixels: in [0, 1], of a size that the tower takes.
            keep: as for ``EvaTower``; while training, None leaves some out by chance where ``patch_dropout`` is not 0.
            generator: source of randomness for the patches that are kept.

        Raises:
            TypeError, ValueError: as ``forward``; also a tower without a head.
        """
        values = self._normalised(pixels)
        if keep is None and self.training and self.patch_dropout > 0:
            grid = self.grid_of(values.shape[2], values.shape[3])
            keep = self.sample_patches(len(values), grid=grid, device=values.device, generator=generator)
        return self.pool(self.tower(values, keep=keep))

    def pool(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B E"]:
        """What ``embed`` makes of the last block's states.

        Raises:
            ValueError: a tower without a head.
        """
        if self.head is None:
            raise ValueError("embed_dim is None: the tower has no head; accepted: its features and tokens")
        pooled = self.norm(tokens[:, 0]) if self.pooling == "class" else self.pool_norm(tokens.mean(dim=1))
        return self.head(pooled)

    def sample_patches(
        self,
        batch: int,
        *,
        grid: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        generator: Generator | None = None,
    ) -> Int[Tensor, "B K"]:
        """Indices of the patches that ``patch_dropout`` leaves, by chance and in no order: at least one for each image.

        ``grid`` has the rows and columns of the patches; None is that of the tower's own size.
        """
        rows, columns = grid or self.grid
        order = torch.randn(batch, rows * columns, device=device, generator=generator)
        return order.topk(max(1, int(rows * columns * (1 - self.patch_dropout)))).indices

    draw_patches = former_method("draw_patches", "sample_patches")

    def resized(self, image_size: tuple[int, int], *, patch_size: int | None = None) -> "EVACLIPVision":
        """The same for images of another size; see ``EvaTower.resized``."""
        tower = self.tower.resized(image_size, patch_size=patch_size)
        tensors = self.state_dict(keep_vars=True)
        tensors.update({f"tower.{name}": tensor for name, tensor in tower.state_dict(keep_vars=True).items()})
        return rebuilt(self, tensors, tower=tower.config)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the official evaluation has it: resized (bicubic) to the shorter side, and the middle of it.

        A tower for images that are no squares, or with ``squash``, takes the whole image, squashed.

        Source: baaivision/EVA, ``eva_clip/transform.py``.
        """
        height, width = self.tower.image_size
        image = rgb_of(image)
        if height == width and not self.squash:
            return pixels_of(torchvision_square(image, height, PILImage.Resampling.BICUBIC))
        return pixels_of(image.resize((width, height), PILImage.Resampling.BICUBIC))

    def _normalised(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, num_axes=4)
        return normalised_for(self.tower, pixels, self.mean, self.std)


def _small_linear(dim: int, embed_dim: int, bias: bool) -> nn.Linear:
    """Begins a thousand times smaller than usual, as published."""
    head = nn.Linear(dim, embed_dim, bias=bias)
    nn.init.trunc_normal_(head.weight, std=2e-5)
    if bias:
        nn.init.zeros_(head.bias)
    return head
