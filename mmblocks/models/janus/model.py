"""Janus and Janus-Pro: a language model that reads images through SigLIP, and writes them as LlamaGen's codes."""

from functools import partial
from typing import Any, ClassVar, Unpack

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.configurable import together
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.embedders.projected import ProjectedEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.encoders.siglip import SigLIPVision
from mmblocks.heads.language import LMHead
from mmblocks.heads.vocabularies import ProjectedLMHead
from mmblocks.models.janus.config import VISION
from mmblocks.models.janus.layouts import JANUS_LAYOUTS
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.llama import LlamaArguments, llama_layer

_LLAMA = together(partial(llama_layer, norm_eps=1e-6))


class Janus(MultimodalModel):
    """Reads text ("text"), images ("vision") and codes ("codes"); writes text ("text") and codes ("codes").

    Images to be read and images to be written have nothing in common: pixels go through SigLIP and an aligner, codes have a table,
    an aligner and a head of their own, and are counted from 0::

        [text([*prompt, BEGIN]), image(pixels), text([END, *question]), text(answer, target="text")]
        [text([*prompt, BEGIN]), codes(grid, input="codes", target="codes")]

    Text is generated with ``Generation(head="text")``, an image with a ``GridGrammar`` of ``raster_format(24, 24, 16384)`` that has
    ``head="codes"`` and ``input="codes"``; what prompts look like says ``janus.prompts``. The published folder holds the image
    tokenizer too: ``LlamaGenVQ.from_pretrained(folder)`` loads it.

    Args:
        vocab_size: text ids.
        dim, num_layers: of the ``Decoder``.
        tie_embeddings: whether the head of text has the embedding's weight.
        vision: arguments of the ``SigLIPVision`` that are not those of SigLIP-L/16 for 384 pixels, which all published models have.
        aligner_layers, code_layers: linear layers of the two aligners.
        num_codes, code_dim: of the table of codes.
        head_dim_codes: width inside the head of codes; ``dim`` if None.
        llama: the arguments of ``llama_layer``.

    Source: Janus (arXiv 2410.13848), Janus-Pro (arXiv 2501.17811); deepseek-ai/Janus.

    Examples:
        >>> import torch
        >>> from mmblocks import Generation, GridGrammar, TextGrammar, image, text
        >>> from mmblocks.models import Janus
        >>> from mmblocks.vocabulary import raster_format
        >>> vision = {"image_size": 32, "patch_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
        >>> sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "num_codes": 16}
        >>> model = Janus(vocab_size=64, vision=vision, **sizes).eval()
        >>> question = [text([1, 60]), image(torch.rand(3, 32, 32)), text([61, 7])]
        >>> ((_, answer),) = model.generate([question], TextGrammar(64), Generation(max_tokens=3, head="text", generator=0))
        >>> grammar = GridGrammar(raster_format(2, 2, 16), head="codes", input="codes")
        >>> options = Generation(head="text", guidance=5.0, generator=0)
        >>> ((_, made),) = model.generate([[text([1, 7, 60])]], grammar, options, unconditional=[[text([1, 0, 60])]])
        >>> len(answer.content), tuple(made.grid.shape)
        (3, (2, 2))
    """

    layouts: ClassVar[tuple[Layout, ...]] = JANUS_LAYOUTS
    shorthand = staticmethod(_LLAMA)

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        tie_embeddings: bool = False,
        vision: dict[str, Any] | None = None,
        aligner_layers: int = 2,
        num_codes: int = 16384,
        code_dim: int = 8,
        code_layers: int = 2,
        head_dim_codes: int | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        (layers,) = _LLAMA(**llama)
        text, head = TextEmbedding(vocab_size=vocab_size, dim=dim), LMHead(dim=dim, vocab_size=vocab_size)
        encoder = SigLIPVision(**{**VISION, **(vision or {})})
        super().__init__(
            inputs={
                "text": text,
                "vision": EncoderEmbedder(
                    encoder=encoder, connector=MLPProjector(in_dim=encoder.dim, dim=dim, num_layers=aligner_layers)
                ),
                "codes": ProjectedEmbedding(
                    table=TextEmbedding(vocab_size=num_codes, dim=code_dim),
                    connector=MLPProjector(in_dim=code_dim, dim=dim, num_layers=code_layers),
                ),
            },
            trunk=Decoder(dim=dim, num_layers=num_layers, **layers),
            outputs={
                "text": head,
                "codes": ProjectedLMHead(dim=dim, vocab_size=num_codes, hidden_dim=head_dim_codes),
            },
        )
        if tie_embeddings:
            head.weight = text.weight
