"""VQGAN, the image tokenizer of taming-transformers, and Chameleon's, which is one.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout
from mmblocks.layers.pixels import centre_square, on_white, pixels_of
from mmblocks.pickling import weightless
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv_autoencoder import ConvDecoder, ConvEncoder
from mmblocks.tokenizers.taming_layout import DIFFUSERS_RULES, TAMING_RULES, TRAINING_MODULES, at, levels_at, taming_network
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer


def _taming_config(config: Mapping[str, Any]) -> dict[str, Any]:
    network = taming_network(config["ddconfig"])
    return {**network, "num_codes": config["n_embed"], "code_dim": config["embed_dim"]}


def _transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' names. Its Chameleon has no decoder."""
    num_levels = len(config["channel_multiplier"])
    return {
        "num_codes": config["num_embeddings"],
        "code_dim": config["embed_dim"],
        "channels": config["base_channels"],
        "multipliers": tuple(config["channel_multiplier"]),
        "num_blocks": config["num_res_blocks"],
        "attention_levels": levels_at(config.get("attn_resolutions") or (), config["resolution"], num_levels),
        "latent_channels": config["latent_channels"],
        "image_size": config["resolution"],
        "has_decoder": False,
    }


def _transformers_whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a whole Chameleon."""
    return _transformers_config(config["vq_config"])


def _diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' VQModel.

    Raises:
        ValueError: another norm, another activation or no attention in the middle, which this class does not have.
    """
    fixed = {"norm_type": "group", "act_fn": "silu", "norm_num_groups": 32, "mid_block_add_attention": True}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} is {config[name]!r}; accepted: {value!r}")
    widths = config["block_out_channels"]
    return {
        "num_codes": config["num_vq_embeddings"],
        "code_dim": config["vq_embed_dim"] or config["latent_channels"],
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": config["layers_per_block"],
        "attention_levels": tuple(n for n, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn")),
        "latent_channels": config["latent_channels"],
        "deepest_first": True,
    }


class MissingDecoder(Block):
    """Stands where a checkpoint holds no decoder, and keeps the projection in front of it, which it does hold.

    Args:
        latent_channels, code_dim: as in ``ConvDecoder``.
    """

    def __init__(self, *, latent_channels: int, code_dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(code_dim, latent_channels, 1)

    def forward(self, features: Float[Tensor, "B h w D"]) -> Tensor:
        """Raises ``ValueError``."""
        raise ValueError("this checkpoint holds no decoder; load the official one, which does, to decode")


class VQGAN(VisualTokenizer):
    """Convolutions with a little attention, and a codebook searched by Euclidean distance.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        channels, multipliers, num_blocks, attention_levels, latent_channels: see ``ConvEncoder``.
        has_decoder: False where only images are to become codes.
        deepest_first: order of the decoder's levels in its files, see ``ConvDecoder``.

    The defaults are those of the ImageNet model of 16 x 16 pixels a token and 1,024 codes.

    Source: Esser et al., Taming Transformers (arXiv 2012.09841; CompVis/taming-transformers).

    Examples:
        >>> import torch
        >>> from mmblocks import VQGAN
        >>> sizes = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_levels": (), "latent_channels": 16}
        >>> tokenizer = VQGAN(num_codes=64, code_dim=16, **sizes).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("taming", TAMING_RULES, ignored=TRAINING_MODULES, config=_taming_config, unwrap="state_dict"),
        Layout("diffusers", DIFFUSERS_RULES, config=_diffusers_config),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 0.25, "commitment": 1.0}

    def __init__(
        self,
        *,
        num_codes: int = 1024,
        code_dim: int = 256,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (4,),
        latent_channels: int = 256,
        has_decoder: bool = True,
        deepest_first: bool = False,
    ) -> None:
        network: dict[str, Any] = {
            "channels": channels,
            "multipliers": multipliers,
            "num_blocks": num_blocks,
            "attention_levels": attention_levels,
            "latent_channels": latent_channels,
            "code_dim": code_dim,
        }
        step = 2 ** (len(multipliers) - 1)
        decoder = (
            ConvDecoder(**network, deepest_first=deepest_first)
            if has_decoder
            else MissingDecoder(latent_channels=latent_channels, code_dim=code_dim)
        )
        super().__init__(
            encoder=ConvEncoder(**network),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim),
            decoder=decoder,
            downsampling=(step, step),
        )


class ChameleonVQ(VQGAN):
    """Chameleon's and Anole's tokenizer: a VQGAN without attention but in the middle, 8,192 codes, 16 x 16 pixels a token.

    Args:
        image_size: shorter side, in pixels, to which ``preprocess`` brings an image before it cuts a square.
        has_decoder: transformers' checkpoints of Chameleon hold the encoder's half alone, and cannot decode.
        num_codes, code_dim, channels, multipliers, num_blocks, attention_levels, latent_channels: as in ``VQGAN``.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon), Anole (arXiv 2407.06135; GAIR-NLP/anole).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("chameleon", TAMING_RULES, ignored=TRAINING_MODULES, config=_taming_config, unwrap="state_dict"),
        Layout("chameleon-transformers", TAMING_RULES, config=_transformers_config),
        Layout("chameleon-transformers-whole", at("model.vqmodel.", TAMING_RULES), ignored=("*",), config=_transformers_whole),
    )

    def __init__(
        self,
        *,
        num_codes: int = 8192,
        code_dim: int = 256,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (),
        latent_channels: int = 256,
        image_size: int = 512,
        has_decoder: bool = True,
    ) -> None:
        super().__init__(
            num_codes=num_codes,
            code_dim=code_dim,
            channels=channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=attention_levels,
            latent_channels=latent_channels,
            has_decoder=has_decoder,
        )
        self.image_size = image_size

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """On white where it is transparent; shorter side to ``image_size`` (Lanczos), then the square in the middle."""
        return pixels_of(centre_square(on_white(image), self.image_size, PILImage.Resampling.LANCZOS))
