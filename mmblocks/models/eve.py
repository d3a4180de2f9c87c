"""EVEv1 and EVEv2: language models that read pixels without an encoder, as they were published."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Unpack, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, only
from mmblocks.checkpoints.layouts.rules import Split
from mmblocks.compose import ModelOutput, MultimodalModel
from mmblocks.configurable import together
from mmblocks.embedders.eve1 import EVE1ImageArguments, EVE1Images, EVE1PatchEmbedding
from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment
from mmblocks.embedders.eve2 import EVE2ImageArguments, EVE2Images, EVE2PatchEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.roles import Embedder, Head
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.tokens import VisionTokens
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES, LLAMA_RULES
from mmblocks.trunks.hooks import hidden_states
from mmblocks.trunks.llama import LlamaArguments, llama_layer
from mmblocks.trunks.llama_config import llama_config
from mmblocks.trunks.llama_published import published_llama
from mmblocks.trunks.routed.eve2_layout import EVE2_RULES, EVE_HARMLESS, eve2_config, published_eve2
from mmblocks.trunks.routed.routed_decoder import PARTS, RoutedDecoder
from mmblocks.trunks.routing import RouteRule


def _rules(vision: Iterable[Rule | Split], trunk: Iterable[Rule]) -> tuple[Rule, ...]:
    """Those of a whole model, from its parts' own."""
    return (
        Rule("model.embed_tokens.weight", "inputs.text.weight"),
        *(Rule(rule.theirs, f"inputs.vision.{rule.ours}") for rule in vision if isinstance(rule, Rule)),
        *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in trunk),
        Rule("lm_head.weight", "outputs.text.weight"),
    )


def _eve1_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return _arguments(config, llama_config(config, models=("eve", "eve_llama")), EVE1PatchEmbedding)


def _eve2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return _arguments(config, eve2_config(config), EVE2PatchEmbedding)


def _arguments(config: Mapping[str, Any], trunk: dict[str, Any], embedding: type[Block]) -> dict[str, Any]:
    """Those of a whole model: the trunk's without what every EVE has, and the embedding's, its width named after it."""
    only(config, "tie_word_embeddings", False)
    read = embedding.layouts[0].config
    vision = {} if read is None else dict(read(config))
    common = {name: value for name, value in trunk.items() if name not in ("qk_norm", "qkv_bias")}
    width = vision.pop("hidden_dim")
    return {**vision, **common, "vocab_size": config["vocab_size"], "vision_dim": width}


def _published_vision(arguments: Mapping[str, Any], embedding: type[Block]) -> dict[str, Any]:
    """The embedding's entries of a whole model's config."""
    written = embedding.layouts[0].published_config
    renamed = {"hidden_dim": arguments["vision_dim"], "num_heads": arguments.get("vision_heads")}
    return {} if written is None else written({**arguments, **renamed})


_PLAIN: dict[str, Any] = {"qk_norm": False, "rope_sections": None, "rope_dtype": None}
"""What every published EVE has."""


def _published_eve1(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check_arguments(arguments, vision_heads=8, qkv_bias=False, **_PLAIN)
    trunk = published_llama(arguments, model_type="eve", architecture="EVELlamaForCausalLM")
    return {**_published_vision(arguments, EVE1PatchEmbedding), **trunk, "requires_cliploss": False}


def _published_eve2(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check_arguments(arguments, qkv_bias=True, **_PLAIN)
    return {**_published_vision(arguments, EVE2PatchEmbedding), **published_eve2(arguments)}


class EVE1Arguments(LlamaArguments, EVE1ImageArguments, total=False):
    """Those of the layers and of how images are read."""


class EVE2Arguments(LlamaArguments, EVE2ImageArguments, total=False):
    """Likewise."""


_EVE1 = together(llama_layer, EVE1Images)
_EVE2 = together(partial(llama_layer, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True), EVE2Images)


class EVE1(MultimodalModel):
    """A Llama that reads images through EVEv1's patch embedding layer.

    Embedder and head of ids are named "text", that of images "vision".

    Args:
        vocab_size: number of ids.
        dim, num_layers: of the ``Decoder``.
        vision_dim, vision_heads: ``hidden_dim`` and ``num_heads`` of the ``EVE1PatchEmbedding``.
        arguments: those of ``llama_layer``, and of ``EVE1Images``. The sizes in pixels of a published folder come from the names of
            its towers in config.json.

    Source: EVEv1 (arXiv 2406.11832; baaivision/EVE).

    Examples:
        >>> import torch
        >>> from mmblocks import image, text
        >>> from mmblocks.models import EVE1
        >>> model = EVE1(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16, vision_dim=16).eval()
        >>> sample = [image(torch.rand(3, 56, 84)), text([1, 2]), text([3, 4], target="text")]
        >>> made = model(model.batch_builder()([sample]))
        >>> tuple(made.hidden.shape), tuple(made.token_losses["text"].shape)
        ((1, 13, 16), (2,))
    """

    trunk: Decoder

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "eve1",
            _rules(
                EVE1PatchEmbedding.layouts[0].rules,
                (rule for rule in LLAMA_RULES if "q_norm" not in rule.theirs and "k_norm" not in rule.theirs),
            ),
            # What training alone needs: the patch aligning layer and its teacher, see ``aligned``.
            ignored=("model.vision_clip.*", "model.vision_tower_compressor.*"),
            derived=(INVERSE_FREQUENCIES,),
            config=_eve1_config,
            published_config=_published_eve1,
            preprocessor=EVE1PatchEmbedding.layouts[0].preprocessor,
            harmless=(*EVE1PatchEmbedding.layouts[0].harmless, *EVE_HARMLESS),
        ),
    )
    shorthand = staticmethod(_EVE1)

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        vision_dim: int = 1024,
        vision_heads: int = 8,
        **arguments: Unpack[EVE1Arguments],
    ) -> None:
        llama, images = _EVE1(**arguments)
        vision = EVE1PatchEmbedding(dim=dim, hidden_dim=vision_dim, num_heads=vision_heads, **images)
        trunk = Decoder(dim=dim, num_layers=num_layers, **llama)
        super().__init__(
            inputs={"text": TextEmbedding(vocab_size=vocab_size, dim=dim), "vision": vision},
            trunk=trunk,
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size)},
        )

    def aligned(self, batch: Batch, alignment: EVE1PatchAlignment, teacher: Sequence[Float[Tensor, "_ _ C"]]) -> ModelOutput:
        """As ``forward``, with the loss of the patch aligning layer as "alignment". Published training adds both with weight 1.

        Args:
            batch: with target "text".
            alignment: the layer, a part of its own.
            teacher: an encoder's features of each image; see ``EVE1PatchAlignment``.

        Raises:
            ValueError: another number of images, or grids that do not fit together.
        """
        layers = (*alignment.layers, self.trunk.num_layers)
        *read, hidden = hidden_states(self.trunk, self.embed(batch), batch.table, layers, mask=batch.mask)
        placed, losses = batch.targets["text"], {}
        losses["text"] = cast(Head, self.outputs["text"]).loss(hidden.flatten(0, 1)[placed.places], cast(Tensor, placed.values))

        images = batch.inputs.get("vision")
        places = images.places if images else placed.places[:0]
        states = torch.stack([state.flatten(0, 1)[places] for state in read], dim=1)
        aligned = alignment(states, self._tokens_of(list(images.values) if images else [], states), teacher)
        return ModelOutput({"text": losses["text"].mean(), "alignment": aligned}, losses, hidden)

    def _tokens_of(self, images: Sequence[Tensor], states: Tensor) -> VisionTokens:
        """What the tokens of these images are; their vectors are left empty."""
        stem = cast(Embedder, self.inputs["vision"])
        layouts = [stem.layout(*image.shape[-2:]) for image in images]
        counts = torch.tensor([len(layout.kind) for layout in layouts], dtype=torch.long)
        none = torch.zeros(0, dtype=torch.long)
        tokens = VisionTokens(
            embeds=states.new_zeros(len(states), 0),
            image=torch.arange(len(layouts)).repeat_interleave(counts),
            grid=torch.cat([none.view(0, 3), *(layout.grid for layout in layouts)]),
            kind=torch.cat([none, *(layout.kind for layout in layouts)]),
        )
        return VisionTokens(*(column.to(states.device) for column in tokens))


class EVE2(MultimodalModel):
    """A Qwen2 with weights of its own for image tokens, which are two convolutions of pixels.

    Embedder and head of ids are named "text", that of images "vision".

    Args:
        vocab_size: number of ids.
        dim, num_layers, routed, route: of the ``RoutedDecoder``. ``route=text_when_alone`` is what the published code does while
            decoding.
        vision_dim: ``hidden_dim`` of the ``EVE2PatchEmbedding``.
        arguments: those of ``llama_layer``, with Qwen2's defaults, and of ``EVE2Images``. Published files do not tell the merge
            stride: EVE-7B-HD-v2.0 has the default.

    Source: EVEv2 (arXiv 2502.06788; baaivision/EVE).

    Examples:
        >>> import torch
        >>> from mmblocks import image, text
        >>> from mmblocks.models import EVE2
        >>> model = EVE2(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16, vision_dim=16).eval()
        >>> sample = [image(torch.rand(3, 64, 96)), text([1, 2]), text([3, 4], target="text")]
        >>> made = model(model.batch_builder()([sample]))
        >>> tuple(made.hidden.shape), tuple(made.token_losses["text"].shape)
        ((1, 13, 16), (2,))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "eve2",
            _rules(EVE2PatchEmbedding.layouts[0].rules, EVE2_RULES),
            derived=(INVERSE_FREQUENCIES,),
            config=_eve2_config,
            published_config=_published_eve2,
            preprocessor=EVE2PatchEmbedding.layouts[0].preprocessor,
            harmless=(*EVE2PatchEmbedding.layouts[0].harmless, *EVE_HARMLESS),
        ),
    )
    shorthand = staticmethod(_EVE2)

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        routed: Sequence[str] = PARTS,
        route: RouteRule | None = None,
        vision_dim: int = 1024,
        **arguments: Unpack[EVE2Arguments],
    ) -> None:
        llama, images = _EVE2(**arguments)
        vision = EVE2PatchEmbedding(dim=dim, hidden_dim=vision_dim, **images)
        trunk = RoutedDecoder(dim=dim, num_layers=num_layers, routed=routed, route=route, **llama)
        super().__init__(
            inputs={"text": TextEmbedding(vocab_size=vocab_size, dim=dim), "vision": vision},
            trunk=trunk,
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size)},
        )
