"""Emu2's image latents: the features of an image tower, averaged over squares of patches.

Shapes: B images, H and W pixels, h and w tokens, D width.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import check_model, only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.layers.towers.eva_layouts import eva_rules
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.towers.tower_tokenizer import NoDecoder, TowerTokenizer

_NOT_HERE = "Emu2Latents has no decoder; accepted: a diffusion model that is conditioned on the latents, such as Emu2-Gen's"


class AsTheyAre(Block):
    """A bottleneck that is none: features are the latents."""

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Latents:
        """Features as latents."""
        return Latents(z=features)

    def lookup(self, ids: Int[Tensor, "*N"]) -> Tensor:
        """Raises ``ValueError``: there are no codes."""
        raise ValueError("there are no codes to look up; accepted: Latents, which are continuous")


def square_side(rows: int, columns: int, num_tokens: int) -> int:
    """Patches a side of the squares of ``average_squares``, with the same errors."""
    most = min(rows, columns) ** 2
    if not 1 <= num_tokens <= most:
        raise ValueError(f"num_tokens is {num_tokens}; accepted: 1 to {most}")
    return int(min(rows, columns) // math.sqrt(num_tokens))


def average_squares(patches: Float[Tensor, "B rows columns D"], num_tokens: int) -> Float[Tensor, "B h w D"]:
    """Means over squares of patches, of the side that gives at least ``num_tokens`` of them on a square grid.

    Rows and columns that are left over are dropped, as published; with 32 x 32 patches, 64 and 256 tokens leave none.

    Raises:
        ValueError: fewer than one token, or more than patches.
    """
    rows, columns = patches.shape[1:3]
    side = square_side(rows, columns, num_tokens)
    whole = patches[:, : rows // side * side, : columns // side * side]
    return reduce(whole, "b (h p) (w q) d -> b h w d", "mean", p=side, q=side)


_HARMLESS = (
    *LANGUAGE_MODEL,
    *("llama.*", "llm_hidden", "vocab", "vocab_after_special_tokens", "token_ids.*", "texts", "instruct", "d_model"),
    *(
        f"{part}.{name}"
        for part in ("vision_cfg", "vision_config")
        for name in ("patch_dropout", "xattn", "pt_hw_seq_len", "intp_freq", "v_query")
    ),
)
"""The language model's; of the tower what counts in training, its kernels, rotations that it has not, and frames of a video."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Emu2's own config, or that of its Hub repository, with the defaults of Emu2's own class.

    Raises:
        ValueError: another tower than EVA02-CLIP-E's kind, with norms after attention and MLP.
    """
    check_model(config, "emu", "emu2", "llama", "EmuForCausalLM")
    vision = config["vision_cfg"] if "vision_cfg" in config else config["vision_config"]
    only(vision, "eva_model_name", "eva-clip-4b-14-x", "eva-clip-E-14-plus")  # one tower's two names
    only(vision, "postnorm", True)
    only(vision, "qkv_bias", True)
    for name in ("rope", "naiveswiglu", "subln", "global_average_pool"):
        only(vision, name, False)
    only(vision, "init_value", 0)  # of layer scale, which it has not
    only(vision, "layer_norm_eps", 1e-6)
    size, dim = vision.get("image_size", 448), vision.get("width", 1792)
    mlp_dim = int(dim * vision.get("mlp_ratio", 60 / 7))
    only(vision, "intermediate_size", mlp_dim)
    return {
        "image_size": tuple(size) if isinstance(size, list) else (size, size),
        "patch_size": vision.get("patch_size", 14),
        "dim": dim,
        "num_layers": vision.get("layers", 64),
        "num_heads": dim // vision.get("head_width", 112),
        "mlp_dim": mlp_dim,
        "num_tokens": vision.get("n_query", 64),
    }


def _published_config(arguments: Arguments, name: str) -> dict[str, Any]:
    """The tower's part of the config, under ``name``; a tower that was handed in is not told."""
    (height, width), dim, mlp_dim = arguments["image_size"], arguments["dim"], arguments["mlp_dim"]
    ratio = mlp_dim / dim
    vision = {
        "eva_model_name": "eva-clip-4b-14-x",
        "image_size": height if height == width else [height, width],
        "patch_size": arguments["patch_size"],
        "width": dim,
        "layers": arguments["num_layers"],
        "head_width": dim // arguments["num_heads"],
        "mlp_ratio": ratio if int(dim * ratio) == mlp_dim else (mlp_dim + 0.5) / dim,  # which is rounded down
        "qkv_bias": True,
        "postnorm": True,
        "rope": False,
        "naiveswiglu": False,
        "subln": False,
        "n_query": arguments["num_tokens"],
    }
    return {name: vision}


_OWN_FILES: dict[str, Any] = {
    "config": _config,
    "published_config": partial(_published_config, name="vision_cfg"),
    "harmless": _HARMLESS,
}
_HUB_FILES: dict[str, Any] = {**_OWN_FILES, "published_config": partial(_published_config, name="vision_config")}


class Emu2Latents(TowerTokenizer):
    """Continuous latents that a language model reads and predicts, and that a diffusion model decodes: EVA02-CLIP-E, pooled.

    ``z`` is (B, h, w, D): row by row they are the tokens. There is neither a final norm nor a bottleneck.

    Args:
        encoder: the image tower; None for EVA02-CLIP-E with the sizes below.
        num_tokens: how many, on a square grid: 64 in Emu2 and Emu2-Gen, 256 in Emu2-Chat.
        image_size, patch_size: of the tower's images, in pixels.
        dim, num_layers, num_heads, mlp_dim: sizes of the tower; see ``EvaTower``.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import Emu2Latents
        >>> sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> tokenizer = Emu2Latents(image_size=(28, 28), patch_size=7, num_tokens=4, **sizes).eval()
        >>> pixels = torch.rand(1, 3, 28, 28)
        >>> tuple(tokenizer.encode(pixels).z.shape), tuple(tokenizer.encode(pixels, num_tokens=16).z.shape)
        ((1, 2, 2, 16), (1, 4, 4, 16))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("emu2", eva_rules("visual.", "encoder."), ignored=("decoder.*", "project_up.*", "project_down.*"), **_OWN_FILES),
        Layout(
            "emu2-gen",
            eva_rules("multimodal_encoder.visual.", "encoder."),
            ignored=("multimodal_encoder.*", "unet.*", "vae.*", "safety_checker.*"),
            **_OWN_FILES,
        ),
        Layout(
            "emu2-hub",
            eva_rules("model.visual.", "encoder."),
            ignored=("model.decoder.*", "project_up.*", "project_down.*"),
            **_HUB_FILES,
        ),
    )

    def __init__(
        self,
        *,
        encoder: Block | None = None,
        num_tokens: int = 64,
        image_size: tuple[int, int] = (448, 448),
        patch_size: int = 14,
        dim: int = 1792,
        num_layers: int = 64,
        num_heads: int = 16,
        mlp_dim: int = 15360,
    ) -> None:
        tower = encoder
        if tower is None:
            sizes: dict[str, Any] = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "mlp_dim": mlp_dim}
            tower = EvaTower(image_size=image_size, patch_size=patch_size, post_norm=True, **sizes)
        rows, columns = (side // patch_size for side in image_size)
        side = square_side(rows, columns, num_tokens) * patch_size
        super().__init__(
            encoder=tower, image_size=image_size, bottleneck=AsTheyAre(), decoder=NoDecoder(_NOT_HERE), downsampling=(side, side)
        )
        self.grid = (rows, columns)
        self.num_tokens = num_tokens

    def features(self, pixels: Float[Tensor, "B 3 H W"], *, num_tokens: int | None = None) -> Float[Tensor, "B h w D"]:
        """Averages over squares of patches; the class token is left out.

        Args:
            pixels: in [0, 1], of ``image_size``.
            num_tokens: None for the tokenizer's own number; Emu2 takes 64 for each frame of a video, whatever an image has.

        Raises:
            TypeError, ValueError: as ``VisualTokenizer.features``; also fewer than one token, or more than patches; or a tower that
                gives another number of patches.
        """
        return self.pool(super().features(pixels), num_tokens=num_tokens)

    def encode(self, pixels: Float[Tensor, "B 3 H W"], *, num_tokens: int | None = None, **draws: object) -> Latents:
        """``features`` as latents, with the same arguments and errors. Without draws, since nothing is drawn."""
        return self.bottleneck(self.features(pixels, num_tokens=num_tokens), **draws)

    def pool(self, tokens: Float[Tensor, "B M D"], *, num_tokens: int | None = None) -> Float[Tensor, "B h w D"]:
        """What ``features`` makes of the tower's tokens: a class token, then the patches row by row."""
        rows, columns = self.grid
        if tokens.shape[1] != 1 + rows * columns:
            raise ValueError(f"there are {tokens.shape[1]} tokens; accepted: a class token and {rows}x{columns} patches")
        patches = tokens[:, 1:].unflatten(1, self.grid)
        return average_squares(patches, self.num_tokens if num_tokens is None else num_tokens)
