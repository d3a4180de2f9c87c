"""BAGEL: a mixture of transformers that reads text and images, and turns noise into an image's latents."""

from functools import partial
from typing import Any, ClassVar, Unpack

from jaxtyping import Int
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.compose import MultimodalModel
from mmblocks.configurable import together
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.embedders.fixed_places import FixedPlaces
from mmblocks.embedders.framed_images import FramedImages
from mmblocks.embedders.text import TextEmbedding
from mmblocks.encoders.siglip_any_size import SigLIPAnySize
from mmblocks.heads.framed_spans import FramedDenoisingHead
from mmblocks.heads.language import LMHead
from mmblocks.layers.diffusion.straight_flow import StraightFlow
from mmblocks.layers.images.sincos_table import SinCosTable
from mmblocks.layers.markers import Markers
from mmblocks.models.bagel.layout import BAGEL_LAYOUTS, EXPERTS, VISION
from mmblocks.sequence.positions import by_order
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.llama import LlamaArguments, llama_layer
from mmblocks.trunks.routed.routed_decoder import LAST_NORM, PARTS, RoutedDecoder

LATENTS = 16
"""The modality of latents, noised or clean. Images that the vision encoder reads are ``Modality.VISION``."""

_QWEN2 = together(partial(llama_layer, norm_eps=1e-6, rope_theta=1e6, qk_norm=True, qkv_bias=True))


def by_latents(table: TokenTable) -> Int[Tensor, "B L"]:
    """Latents go to the weights that generate; text, the markers around latents, and images as they are read to the others."""
    return (table.modality == LATENTS).long()


class Bagel(MultimodalModel):
    """Reads text ("text") and images ("vision"); writes text ("text") and images' latents ("image"), which it reads as "latents".

    The trunk has two sets of weights under one attention, norms and the last norm included. Text is causal; an image sees all of
    itself, its markers too, and is one position. Latents are noised, with the time and the place added to each token, or clean, at
    time 0. An image that is edited is read twice, as clean latents and through SigLIP::

        [vectors(latents, input="latents", target="image", modality=LATENTS), image(pixels, bidirectional=True), text(ids)]

    In a prompt latents are read clean; where they are learned, what follows attends to a clean copy. Latents are those of FLUX's
    autoencoder, channels last, with sides that are multiples of ``latent_patch``; ``FluxAutoencoder.from_pretrained(folder)`` loads
    it from the same folder. How prompts look says ``bagel.prompt``.

    Args:
        vocab_size: text ids.
        dim, num_layers: of the ``RoutedDecoder``.
        vision: arguments of the ``SigLIPAnySize`` that are not those of SigLIP-so400m/14 up to 980 pixels, without its last layer.
        markers: ids of what opens and closes an image; Qwen2.5's by default.
        latent_channels, latent_patch: channels of a latent, and latents a side of a token.
        latent_side: tokens a side of the largest image that is written.
        shift: of the times in training; see ``StraightFlow``.
        llama: the arguments of ``llama_layer``.

    Raises:
        ValueError: markers that are no two ids of the vocabulary.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> import torch
        >>> from mmblocks import Generation, TextGrammar, image, text
        >>> from mmblocks.generation import NestedGuidance, VectorBlock, VectorGrammar
        >>> from mmblocks.layers import StraightFlow
        >>> from mmblocks.models import Bagel
        >>> vision = {"image_size": 56, "patch_size": 14, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
        >>> sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "latent_channels": 4, "latent_side": 8}
        >>> model = Bagel(vocab_size=64, markers=(60, 61), vision=vision, **sizes).eval()
        >>> question = [image(torch.rand(3, 28, 42), bidirectional=True), text([1, 7, 2, 1])]
        >>> ((_, answer),) = model.generate([question], TextGrammar(64), Generation(max_tokens=3, generator=0))
        >>> block = VectorBlock(begin=None, end=None, size=(4, 6), head="image", input="latents", whole=True, modality=16)
        >>> writing = {"image": {"sampler": StraightFlow.sampler(num_steps=2)}}
        >>> options = Generation(guidance=NestedGuidance(scale=4.0), writing=writing, generator=0)
        >>> grammar = VectorGrammar(block, vocab_size=64)
        >>> ((_, made),) = model.generate([[text([1, 7, 2])]], grammar, options, unconditional=[[]])
        >>> len(answer.content), tuple(made.values.shape)
        (3, (4, 6, 4))
    """

    layouts: ClassVar[tuple[Layout, ...]] = BAGEL_LAYOUTS
    shorthand = staticmethod(_QWEN2)

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        vision: dict[str, Any] | None = None,
        markers: tuple[int, int] = (151652, 151653),
        latent_channels: int = 16,
        latent_patch: int = 2,
        latent_side: int = 64,
        shift: float = 1.0,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        if len(markers) != 2 or not all(0 <= one < vocab_size for one in markers):
            raise ValueError(f"markers is {tuple(markers)}; accepted: two ids of the vocabulary, 0 to {vocab_size - 1}")
        (layers,) = _QWEN2(**llama)
        text = TextEmbedding(vocab_size=vocab_size, dim=dim)
        around = Markers(table=text, ids=markers)
        encoder = SigLIPAnySize(**{**VISION, **(vision or {})})
        connector = MLPProjector(in_dim=encoder.dim, dim=dim, activation="gelu_tanh")
        super().__init__(
            inputs={
                "text": text,
                "vision": FramedImages(
                    embedder=EncoderEmbedder(encoder=encoder, connector=connector),
                    markers=around,
                    places=SinCosTable(dim=dim, side=encoder.side),
                ),
                "latents": FixedPlaces(
                    embedder=nn.Linear(latent_patch**2 * latent_channels, dim), places=SinCosTable(dim=dim, side=latent_side)
                ),
            },
            trunk=RoutedDecoder(
                dim=dim,
                num_layers=num_layers,
                experts=EXPERTS,
                routed=(*PARTS, LAST_NORM),
                route=by_latents,
                positions=by_order,
                **layers,
            ),
            outputs={
                "text": LMHead(dim=dim, vocab_size=vocab_size),
                "image": FramedDenoisingHead(
                    dim=dim,
                    channels=latent_channels,
                    patch=latent_patch,
                    path=StraightFlow(shift=shift),
                    sampler=StraightFlow.sampler(),
                    markers=around,
                ),
            },
        )
