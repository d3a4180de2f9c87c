"""LaVIT's dynamic tokenizer: as many codes as an image needs.

Shapes: B images, M tokens of the tower, C their width, L kept patches of the image that keeps most, D width of the language model.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.sequence.tokens import PADDING, Latents
from mmblocks.tokenizers.lavit.bottleneck import LaVITBottleneck
from mmblocks.tokenizers.lavit.layout import LAYERS_HARMLESS, MLP_RATIO, TOKENIZER_RULES, check_layers
from mmblocks.tokenizers.towers.tower_tokenizer import NoDecoder, TowerTokenizer

IMAGE_START, IMAGE_END, FIRST_CODE = 32000, 32001, 32002
"""Ids in LaVIT's language model, after the 32,000 of Llama's text: around an image, and of code 0."""


_SIZES = {
    "dim": ("width", 1408),
    "num_layers": ("layers", 12),
    "num_heads": ("heads", 16),
    "num_codes": ("n_code", 16384),
    "code_dim": ("code_dim", 32),
    "llm_dim": ("llm_embed_dim", 4096),
    "patch_size": ("patch_size", 14),
}
"""Arguments -> those of the published class, or what stands in it, and their defaults."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class, which has no config file: without any, the defaults."""
    check_layers(config)
    arguments = {ours: config.get(theirs, default) for ours, (theirs, default) in _SIZES.items()}
    image_size = config.get("img_size", 224)
    return {
        **arguments,
        "image_size": tuple(image_size) if isinstance(image_size, list) else (image_size, image_size),
        **read_own(config, {"mlp_dim": int(arguments["dim"] * config.get("mlp_ratio", MLP_RATIO)), "keep_rate": 1 / 3}),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """Under the names of the published class, which has no config file; parts that are handed in are not told."""
    height, width = arguments["image_size"]
    return {
        **{theirs: arguments[ours] for ours, (theirs, _) in _SIZES.items()},
        "img_size": height if height == width else [height, width],
        **written_own(arguments, {"mlp_dim": int(arguments["dim"] * MLP_RATIO), "keep_rate": 1 / 3}),
    }


class LaVITTokenizer(TowerTokenizer):
    """EVA-CLIP-g, then a selector that drops patches, a merger that moves them into the others, and a codebook.

    How many tokens an image has, and which, is in ``lengths`` and ``positions`` of what ``encode`` returns; see
    ``LaVITBottleneck`` for the draws it takes and for padding. Published files hold the tower apart:

        tower = EvaTower.from_pretrained("visual_tokenizer/eva_vitg_psz14.bin")
        LaVITTokenizer.from_pretrained("visual_tokenizer/tokenizer_encoder.bin", encoder=tower)

    For understanding, LaVIT's language model reads ``llm_embeds`` rather than codes, from a merger with other weights.

    Args:
        encoder: the image tower; None for EVA-CLIP-g.
        decoder: codes to something; called with ``z`` and ``lengths``. See ``LaVITDecoder``, which has a file of its own. None:
            ``decode`` raises.
        image_size: height and width that the tower takes.
        patch_size: pixels a side of a patch.
        dim: width of the tower's features.
        num_codes, code_dim, num_layers, num_heads, mlp_dim, keep_rate: see ``LaVITBottleneck``.
        llm_dim: D.

    Source: LaVIT (arXiv 2309.04669; jy0205/LaVIT); Video-LaVIT (2402.03161) has the same.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import EvaTower
        >>> from mmblocks.tokenizers import LaVITTokenizer
        >>> sizes = {"image_size": (28, 28), "patch_size": 7, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> tokenizer = LaVITTokenizer(encoder=EvaTower(**sizes), num_codes=32, code_dim=4, llm_dim=8, **sizes).eval()
        >>> latents = tokenizer.encode(torch.rand(2, 3, 28, 28), generator=torch.Generator().manual_seed(0))
        >>> latents.ids.shape[1] == int(latents.lengths.max()) <= 16  # the selector chose among 16 patches
        True
        >>> tuple(tokenizer.llm_embeds(latents).shape) == (*latents.ids.shape, 8)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "lavit",
            TOKENIZER_RULES,
            ignored=("encoder.norm.*", "encoder.head.*"),
            config=_config,
            published_config=_published_config,
            harmless=("encoder", "model_path", "use_xformers", *LAYERS_HARMLESS),
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"rate": 2.0, "features": 1.0}

    def __init__(
        self,
        *,
        encoder: Block | None = None,
        decoder: Block | None = None,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 14,
        dim: int = 1408,
        num_codes: int = 16384,
        code_dim: int = 32,
        num_layers: int = 12,
        num_heads: int = 16,
        mlp_dim: int = 6144,
        keep_rate: float = 1 / 3,
        llm_dim: int = 4096,
    ) -> None:
        super().__init__(
            encoder=EvaTower(image_size=image_size, patch_size=patch_size, dim=dim) if encoder is None else encoder,
            image_size=image_size,
            bottleneck=LaVITBottleneck(
                num_codes=num_codes,
                code_dim=code_dim,
                dim=dim,
                num_layers=num_layers,
                num_heads=num_heads,
                mlp_dim=mlp_dim,
                keep_rate=keep_rate,
            ),
            decoder=NoDecoder("this LaVITTokenizer has no decoder; hand one in: LaVITTokenizer(decoder=LaVITDecoder(...))")
            if decoder is None
            else decoder,
            downsampling=(patch_size, patch_size),
        )
        self.grids = ("L",)
        self.llm_projection = nn.Linear(dim, llm_dim)

    def decode(self, latents: Latents | Int[Tensor, "B L"]) -> Tensor:
        """Latents, or padded ids alone, to what the decoder makes of them: with ``LaVITDecoder``, the tower's features again.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist; ids or latents of another shape; or there is no decoder.
        """
        z = self.decoder_input(latents)
        lengths = latents.lengths if isinstance(latents, Latents) else (latents != PADDING).sum(dim=1)
        return self.decoder(z, lengths)

    def training_losses(self, latents: Latents, features: Float[Tensor, "B M C"]) -> dict[str, Float[Tensor, ""]]:
        """All terms of the training, unweighted; the weights of the codebook's are not published.

        Args:
            latents: of ``bottleneck`` while training.
            features: what it was given, of ``features``.

        Returns:
            The bottleneck's terms, and "features": one minus the cosine of what ``decode`` rebuilds.

        Raises:
            ValueError: latents without losses, of evaluation mode; or there is no decoder.
        """
        if latents.loss is None:
            raise ValueError("latents hold no losses; accepted: those of training mode")
        similarity = cosine_similarity(self.decode(latents), features[:, 1:], dim=-1)
        return {**latents.loss, "features": 1 - similarity.mean()}

    def llm_embeds(self, latents: Latents) -> Float[Tensor, "B L D"]:
        """What the language model reads when it shall understand an image: kept patches before the codebook; zeros at padding."""
        if latents.features is None or latents.ids is None:
            raise ValueError("latents hold no features; accepted: those of encode()")
        return self.llm_projection(latents.features) * (latents.ids != PADDING)[..., None]


def language_ids(ids: Int[Tensor, "B L"], *, special: bool = True) -> list[Int[Tensor, " _"]]:
    """Padded codes as the ids of LaVIT's language model, a list an image.

    Args:
        ids: of ``LaVITTokenizer.encode``.
        special: put ``IMAGE_START`` before and ``IMAGE_END`` after.
    """
    rows = [row[row != PADDING] + FIRST_CODE for row in ids]
    if not special:
        return rows
    return [torch.cat([row.new_tensor([IMAGE_START]), row, row.new_tensor([IMAGE_END])]) for row in rows]
