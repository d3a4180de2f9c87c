"""Emu2: averaged features of an EVA-CLIP, projected into a LLaMA that reads and regresses them.

Shapes: B images, H and W pixels, M embeddings of all images, C their width, D width of the trunk.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Unpack, cast

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.configurable import together
from mmblocks.connectors.emu2 import Emu2UpProjection
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.heads.regression import RegressionHead
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.models.emu.format import EmuFormat
from mmblocks.models.emu.regressing import RegressingModel
from mmblocks.models.emu2.format import EMU2
from mmblocks.models.emu2.layout import EMU2_LAYOUTS
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.emu2_latents import Emu2Latents, square_side
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.llama import LlamaArguments, llama_layer

_LLAMA = together(partial(llama_layer, num_heads=52, mlp_dim=17920, norm_eps=1e-6))


class PooledFeatures(Block):
    """A tokenizer of continuous latents as an encoder, with a number of tokens of its own.

    Args:
        latents: the tokenizer.
        num_tokens: how many; see ``Emu2Latents``.
    """

    def __init__(self, *, latents: Emu2Latents, num_tokens: int) -> None:
        super().__init__()
        self.latents, self.num_tokens = latents, num_tokens
        self.image_size = latents.image_size
        side = square_side(*latents.grid, num_tokens)
        self.grid = latents.grid[0] // side, latents.grid[1] // side

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w C"]:
        """Pixels in [0, 1] to averages over squares of patches."""
        return self.latents.features(pixels, num_tokens=self.num_tokens)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the tokenizer wants it."""
        return self.latents.preprocess(image)


class Emu2(RegressingModel):
    """Text ("text"), images ("vision") and frames of a video ("frame") to text and to embeddings of images ("embeddings").

    Embeddings are what the image tower gives, averaged: what the head regresses is projected as they are, and read next.

        model = Emu2.from_pretrained("BAAI/Emu2")
        model.embeddings([EMU2.write([pixels, "the same dog on a boat"])], tokenizer=tokenizer)    # (1, 64, 1792)
        chat = Emu2.from_pretrained("Emu2-Chat_pytorch_model.bf16.bin", vocab_size=32274, num_tokens=256)

    The authors' own files have no config, so that those of Emu2-Chat need its two numbers. What is learned is told by ``forward``:
    published are both losses for Emu2, that of text for Emu2-Chat, and that of images for Emu2-Gen, with the tower frozen. Frames
    are read and not learned.

    Args:
        vocab_size: text ids: 32272, or 32274 of Emu2-Chat.
        dim, num_layers: of the ``Decoder``.
        num_tokens: embeddings of an image, on a square grid.
        frame_tokens: of a frame.
        vision: arguments of the ``Emu2Latents`` beside.
        llama: the arguments of ``llama_layer``.

    The defaults are those of Emu2.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from dataclasses import replace
        >>> from mmblocks import text
        >>> from mmblocks.models import Emu2
        >>> from mmblocks.models.emu2.format import EMU2
        >>> vision = {"image_size": (28, 28), "patch_size": 7, "dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> sizes = {"vocab_size": 20, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> model = Emu2(**sizes, num_tokens=4, frame_tokens=1, vision=vision).eval()
        >>> form = replace(EMU2, ids={"<s>": 1, "</s>": 2, "[IMG]": 17, "[/IMG]": 18, "[VIDEO]": 19})
        >>> prompt = form.write([torch.rand(2, 3, 28, 28), torch.rand(3, 28, 28)])  # two frames, an image
        >>> tuple(model.embeddings([prompt], form).shape)
        (1, 4, 8)
        >>> losses = model(model.batch_builder()([[*prompt, text([5, 6], target="text")]])).token_losses
        >>> {name: tuple(values.shape) for name, values in losses.items()}
        {'text': (2,), 'embeddings': (4,)}
    """

    trunk: Decoder

    layouts: ClassVar[tuple[Layout, ...]] = EMU2_LAYOUTS
    shorthand = staticmethod(_LLAMA)
    format: ClassVar[EmuFormat] = EMU2

    def __init__(
        self,
        *,
        vocab_size: int = 32272,
        dim: int = 6656,
        num_layers: int = 60,
        num_tokens: int = 64,
        frame_tokens: int = 64,
        vision: dict[str, Any] | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        (layers,) = _LLAMA(**llama)
        latents = Emu2Latents(num_tokens=num_tokens, **(vision or {}))
        width = cast(EvaTower, latents.encoder).dim
        up = Emu2UpProjection(image_dim=width, dim=dim, num_tokens=None)  # one, wherever features are read
        image, frame = (PooledFeatures(latents=latents, num_tokens=count) for count in (num_tokens, frame_tokens))
        super().__init__(
            inputs={
                "text": TextEmbedding(vocab_size=vocab_size, dim=dim),
                "vision": EncoderEmbedder(encoder=image, connector=up),
                "frame": EncoderEmbedder(encoder=frame, connector=up),
                "embeddings": up,
            },
            trunk=Decoder(dim=dim, num_layers=num_layers, **layers),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size), "embeddings": RegressionHead(dim=dim, target_dim=width)},
        )

    @property
    def latents(self) -> Emu2Latents:
        """The image tower with its averages: pixels to embeddings."""
        return cast(PooledFeatures, cast(EncoderEmbedder, self.inputs["vision"]).encoder).latents

    @property
    def image_grid(self) -> tuple[int, ...]:
        """Rows and columns of an image's embeddings."""
        return cast(PooledFeatures, cast(EncoderEmbedder, self.inputs["vision"]).encoder).grid

    def features(self, images: Sequence[Float[Tensor, "3 H W"]]) -> Float[Tensor, "M C"]:
        """The averages over squares of the tower's patches, of images with pixels in [0, 1]."""
        return self.latents.features(torch.stack(list(images))).flatten(0, -2)
