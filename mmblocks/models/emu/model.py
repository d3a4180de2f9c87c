"""Emu: EVA-CLIP and a Causal Former before a LLaMA that reads and regresses what they make of images.

Shapes: M embeddings of all images, D width of the trunk.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Unpack, cast

from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.configurable import together
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.embedders.text import TextEmbedding
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.heads.language import LMHead
from mmblocks.heads.regression import RegressionHead
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.models.emu.format import EMU, EmuFormat
from mmblocks.models.emu.layout import EMU_LAYOUTS
from mmblocks.models.emu.regressing import RegressingModel
from mmblocks.sequence.tokens import vectors_of
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.llama import LlamaArguments, llama_layer

_LLAMA = together(partial(llama_layer, num_heads=40, mlp_dim=13824, norm_eps=1e-6, rope_dtype="bfloat16"))


class Emu(RegressingModel):
    """Text ("text") and images ("vision") to text and to embeddings of images ("embeddings"), which are read as they are written.

        model = Emu.from_pretrained("pretrain/multimodal_encoder")           # the authors' pytorch_model.bin
        model.embeddings([EMU.write(["a dog with a hat"])], tokenizer=tokenizer)     # (1, 32, 5120), for ``EmuGen``'s decoder
        instructed = Emu.from_pretrained("Emu-instruct.pt")                  # its adapters are added to the weights

    Args:
        vocab_size: text ids: 32004, or 32006 of Emu-I.
        dim, num_layers: of the ``Decoder``.
        embed_dim: width of the tower's own head, which lies in the files and is used by nothing here.
        vision: arguments of the ``EvaTower``.
        former: arguments of the ``CausalFormer`` beside its widths.
        llama: the arguments of ``llama_layer``.

    The defaults are those of Emu. What is learned is told by ``forward``.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1).

    Examples:
        >>> import torch
        >>> from mmblocks import text
        >>> from mmblocks.models import Emu
        >>> from mmblocks.models.emu.format import EmuFormat
        >>> vision = {"image_size": (28, 28), "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> former = {"num_queries": 3, "hidden_dim": 8, "num_layers": 1, "num_heads": 2, "head_dim": 4, "mlp_dim": 8}
        >>> sizes = {"vocab_size": 20, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "embed_dim": 8}
        >>> model = Emu(**sizes, vision=vision, former=former).eval()
        >>> ids = {"<s>": 1, "</s>": 2, "[IMG]": 17, "[/IMG]": 18}
        >>> form = EmuFormat(ids=ids, image_tokens=3, frame_tokens=3, image_size=(28, 28), size=(64, 64), guidance=7.5)
        >>> prompt = form.write([torch.rand(3, 28, 28)])
        >>> tuple(model.embeddings([prompt], form).shape)
        (1, 3, 16)
        >>> losses = model(model.batch_builder()([[*prompt, text([5, 6], target="text")]])).token_losses
        >>> {name: tuple(values.shape) for name, values in losses.items()}
        {'text': (2,), 'embeddings': (3,)}
    """

    trunk: Decoder

    layouts: ClassVar[tuple[Layout, ...]] = EMU_LAYOUTS
    shorthand = staticmethod(_LLAMA)
    format: ClassVar[EmuFormat] = EMU

    def __init__(
        self,
        *,
        vocab_size: int = 32004,
        dim: int = 5120,
        num_layers: int = 40,
        embed_dim: int = 1024,
        vision: dict[str, Any] | None = None,
        former: dict[str, Any] | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        (layers,) = _LLAMA(**llama)
        encoder = EVACLIPVision(tower=EvaTower(**(vision or {})), embed_dim=embed_dim, squash=True)
        connector = CausalFormer(in_dim=encoder.dim, dim=dim, input_norm=True, **(former or {}))
        super().__init__(
            inputs={
                "text": TextEmbedding(vocab_size=vocab_size, dim=dim),
                "vision": EncoderEmbedder(encoder=encoder, connector=connector, class_token=True),
                "embeddings": nn.Identity(),
            },
            trunk=Decoder(dim=dim, num_layers=num_layers, **layers),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size), "embeddings": RegressionHead(dim=dim, target_dim=dim)},
        )

    @property
    def image_grid(self) -> tuple[int, ...]:
        """How many embeddings an image has, which have no places."""
        return (cast(CausalFormer, cast(EncoderEmbedder, self.inputs["vision"]).connector).num_queries,)

    def features(self, images: Sequence[Float[Tensor, "3 H W"]]) -> Float[Tensor, "M D"]:
        """What the Causal Former makes of images, with pixels in [0, 1]."""
        return vectors_of(self.inputs["vision"](images))
