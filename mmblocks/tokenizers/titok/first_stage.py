"""TiTok after the first stage of its training: it predicts the codes of another tokenizer, and has no decoder to pixels yet.

Shapes: B images, H and W pixels, K tokens, D width of a token, h and w codes of the other tokenizer, C how many there are of them.
"""

from functools import partial
from typing import ClassVar, Unpack

from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.ops.nearest_code import Metric
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.titok.layout import FIRST_STAGE_RULES, HARMLESS, first_stage_config, published_config
from mmblocks.tokenizers.titok.sizes import TiTokArguments, TiTokSizes
from mmblocks.tokenizers.titok.tokenizer import OneDimensionalTokenizer
from mmblocks.tokenizers.titok.vit import TiTokEncoder, TiTokLogitDecoder


class FirstStageTiTok(OneDimensionalTokenizer):
    """A ``TiTok`` without a VQGAN: ``decode`` gives logits of the VQGAN's codes, which it is trained to tell.

    A ``MaskGITVQGAN`` is the teacher, and paints what was told:

        losses = first.training_losses(first.encode(pixels), teacher.encode(pixels).ids)
        painted = teacher.decode(first.pixel_codes(first.encode(pixels)))

    The second stage goes on from ``TiTok``, whose tensors of the same names begin with these.

    Args:
        code_dim, num_codes, metric: see ``TiTok``.
        num_pixel_codes: C.
        sizes: the arguments of ``TiTokSizes``.

    Source: TiTok (arXiv 2406.07550; bytedance/1d-tokenizer).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import FirstStageTiTok
        >>> towers = {"encoder_size": (16, 1, 2), "decoder_size": (16, 1, 2)}
        >>> sizes = {"image_size": 16, "patch_size": 8, "decoder_patch_size": 4, **towers}
        >>> tokenizer = FirstStageTiTok(num_tokens=5, code_dim=6, num_codes=32, num_pixel_codes=9, **sizes).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 16, 16))
        >>> tuple(tokenizer.decode(latents).shape)  # a logit for each code of the teacher
        (1, 4, 4, 9)
        >>> torch.equal(tokenizer.pixel_codes(latents), tokenizer.decode(latents).argmax(dim=-1))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "titok",
            FIRST_STAGE_RULES,
            config=first_stage_config,
            published_config=partial(published_config, kind="FirstStageTiTok"),
            harmless=HARMLESS,
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.0, "commitment": 0.25, "pixel_codes": 1.0}

    shorthand = TiTokSizes

    def __init__(
        self,
        *,
        code_dim: int = 12,
        num_codes: int = 4096,
        metric: Metric = "cosine",
        num_pixel_codes: int = 1024,
        **sizes: Unpack[TiTokArguments],
    ) -> None:
        own = TiTokSizes(**sizes)
        super().__init__(
            image_size=own.image_size,
            patch_size=own.patch_size,
            encoder=TiTokEncoder(code_dim=code_dim, scrambled=True, **own.encoder()),
            bottleneck=VectorQuantizer(num_codes=num_codes, dim=code_dim, metric=metric),
            decoder=TiTokLogitDecoder(num_pixel_codes=num_pixel_codes, code_dim=code_dim, **own.decoder()),
        )

    def decode(self, latents: Latents | Integer[Tensor, "B K"]) -> Float[Tensor, "B h w C"]:
        """Latents, or ids alone, to a logit for each code of the other tokenizer, not to pixels.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist; ids or latents of another shape.
        """
        return self.decoder(self.decoder_input(latents))

    def pixel_codes(self, latents: Latents | Integer[Tensor, "B K"]) -> Int[Tensor, "B h w"]:
        """The likeliest code of the other tokenizer at each place, for its ``decode``; raises as ``decode``."""
        return self.decode(latents).argmax(dim=-1)

    def training_losses(self, latents: Latents, pixel_codes: Int[Tensor, "B h w"]) -> dict[str, Float[Tensor, ""]]:
        """All terms of the training, unweighted.

        Args:
            latents: of ``encode`` while training.
            pixel_codes: ids that the other tokenizer has for the same images.

        Returns:
            The bottleneck's terms, and "pixel_codes": the cross-entropy between what ``decode`` gives and these ids.

        Raises:
            ValueError: latents without losses, of evaluation mode; ids of another grid.
        """
        if latents.loss is None:
            raise ValueError("latents hold no losses; accepted: those of encode() in training mode")
        logits = self.decode(latents)
        if pixel_codes.shape != logits.shape[:3]:
            raise ValueError(f"pixel_codes have shape {tuple(pixel_codes.shape)}; accepted: {tuple(logits.shape[:3])}")
        return {**latents.loss, "pixel_codes": cross_entropy(logits.flatten(0, 2), pixel_codes.flatten())}
