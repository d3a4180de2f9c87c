"""IBQ, the image tokenizer of SEED-Voken and of Emu3.5.

Shapes: B images, H and W pixels, h and w tokens, D width of a code.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Unpack

from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import check_model, only, read_own, stated, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import pixels_of, rgb_of
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.conv.conv_autoencoder import ConvArguments, ConvDecoder, ConvEncoder, ConvSizes
from mmblocks.tokenizers.conv.taming_layout import (
    TAMING_RULES,
    TRAINING_ENTRIES,
    TRAINING_MODULES,
    averaged,
    published_ddconfig,
    taming_network,
)
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_OWN = {"image_area": 1024 * 1024}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested as in SEED-Voken's and Emu3.5's yaml, or flat as in the config.json beside Emu3.5's safetensors."""
    check_model(config, "Emu3p5VisionVQ", "IBQ")
    only(config, "cosine_similarity", False)  # no published IBQ scales its codes
    only(config, "out_channels", 3)
    entropy = config.get("entropy_temperature", 0.01) if config.get("use_entropy_loss") else None
    return {
        **taming_network(stated(config, "ddconfig", config)),
        "num_codes": config["n_embed"] if "n_embed" in config else config["codebook_size"],
        "code_dim": config["embed_dim"],
        "entropy_temperature": entropy,
        **read_own(config, _OWN),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """As SEED-Voken's yaml has it under ``params``."""
    temperature = arguments["entropy_temperature"]
    return {
        "ddconfig": published_ddconfig(arguments),
        "n_embed": arguments["num_codes"],
        "embed_dim": arguments["code_dim"],
        "use_entropy_loss": temperature is not None,
        **({} if temperature is None else {"entropy_temperature": temperature}),
        **written_own(arguments, _OWN),
    }


_HARMLESS = (*TRAINING_ENTRIES, "entropy_temperature", "diffusion_decoder_kwargs.*")
"""The temperature counts with ``use_entropy_loss``; Emu3.5's diffusion decoder is not released."""


_SIZES = partial(ConvSizes, channels=256, num_blocks=4, attention_levels=(4,))


class IBQ(VisualTokenizer):
    """A VQGAN whose codes are searched by dot product and all learn at every step, so that codebooks can be very large.

    Args:
        num_codes: size of the codebook: 1,024 to 262,144 in SEED-Voken, 131,072 in Emu3.5.
        code_dim: width of a code.
        entropy_temperature: also return entropies while training, see ``IndexBackpropagation``.
        image_area: pixels in all to which ``preprocess`` brings an image.
        network: the arguments of ``ConvSizes``.

    The defaults are Emu3.5's. Half precision of the weights changes ids; keep float32 for encoding. SEED-Voken's checkpoints
    hold running averages of the weights too, which are the ones loaded, as upstream evaluates them.

    Source: IBQ (arXiv 2412.02692; TencentARC/SEED-Voken), Emu3.5 (arXiv 2510.26583; baaivision/Emu3.5).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import IBQ
        >>> sizes = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_levels": (), "latent_channels": 16}
        >>> tokenizer = IBQ(num_codes=256, code_dim=16, **sizes).eval()
        >>> ids = tokenizer.encode(torch.rand(1, 3, 8, 12)).ids
        >>> tuple(ids.shape), tuple(tokenizer.decode(ids).shape)
        ((1, 4, 6), (1, 3, 8, 12))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "ibq",
            TAMING_RULES,
            ignored=TRAINING_MODULES,
            config=_config,
            published_config=_published_config,
            unwrap="state_dict",
            harmless=_HARMLESS,
        ),
        Layout(
            "ibq-averaged",
            averaged(TAMING_RULES),
            ignored=(
                *TRAINING_MODULES,
                *("encoder.*", "decoder.*", "quant_conv.*", "post_quant_conv.*", "quantize.*"),
                *("model_ema.decay", "model_ema.num_updates"),
            ),
            config=_config,
            published_config=_published_config,
            unwrap="state_dict",
            harmless=_HARMLESS,
        ),
    )
    shorthand = staticmethod(_SIZES)
    loss_weights: ClassVar[dict[str, float]] = {
        "index": 1.0,
        "commitment": 1.0,
        "codebook": 0.25,
        "sample_entropy": 0.05,
        "codebook_entropy": -0.05,
    }

    def __init__(
        self,
        *,
        num_codes: int = 131072,
        code_dim: int = 256,
        entropy_temperature: float | None = None,
        image_area: int = 1024 * 1024,
        **network: Unpack[ConvArguments],
    ) -> None:
        sizes = asdict(_SIZES(**network))
        step = 2 ** (len(sizes["multipliers"]) - 1)
        super().__init__(
            encoder=ConvEncoder(code_dim=code_dim, **sizes),
            bottleneck=IndexBackpropagation(num_codes=num_codes, dim=code_dim, entropy_temperature=entropy_temperature),
            decoder=ConvDecoder(code_dim=code_dim, **sizes),
            downsampling=(step, step),
        )
        self.image_area = image_area

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """Resizes (bicubic) to about ``image_area`` with the same aspect, each side to the nearest multiple of a token's.

        Source: baaivision/Emu3.5.
        """
        aspect = image.width / image.height
        height = int(math.sqrt(self.image_area / aspect))
        sides = (int(height * aspect), height)
        width, height = (max((side + step // 2) // step, 1) * step for side, step in zip(sides, self.downsampling, strict=True))
        return pixels_of(rgb_of(image).resize((width, height), PILImage.Resampling.BICUBIC))
