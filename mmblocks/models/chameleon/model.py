"""Chameleon, Anole and Lumina-mGPT: text and image codes in one vocabulary, one trunk, one head."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Unpack

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import WithDefaults, check_arguments, only
from mmblocks.compose import MultimodalModel
from mmblocks.configurable import together
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.trunks.chameleon import (
    CHAMELEON_HARMLESS,
    CHAMELEON_RULES,
    CHAMELEON_SIZES,
    ChameleonTrunk,
    chameleon_config,
    published_chameleon,
)
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES
from mmblocks.trunks.llama import LlamaArguments, llama_layer


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    only(config, "tie_word_embeddings", False)
    sized = WithDefaults(config, CHAMELEON_SIZES)
    return {"vocab_size": sized["vocab_size"], **chameleon_config(sized)}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    check_arguments(arguments, qk_norm=False, qkv_bias=False, rope_sections=None, rope_dtype=None)
    return published_chameleon(arguments)


_RULES = (
    Rule("model.embed_tokens.weight", "inputs.text.weight"),
    *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in CHAMELEON_RULES),
    Rule("lm_head.weight", "outputs.text.weight"),
)

_LLAMA = together(partial(llama_layer, num_heads=32, mlp_dim=11008))


class Chameleon(MultimodalModel):
    """One vocabulary of text and image codes, read by an embedding, a ``ChameleonTrunk`` and a head; all named "text".

    The published folder holds the image tokenizer too: ``ChameleonVQ.from_pretrained(folder)`` loads it. In transformers' files it
    has no decoder; the authors' own ``vqgan.ckpt`` has. Which ids the codes have says ``chameleon_code_ids``; what prompts look
    like, ``chameleon.prompts``. transformers' class never writes codes; here that is left to the grammar.

    Args:
        vocab_size: text ids, structure and codes together.
        dim, num_layers, post_norm: of the ``ChameleonTrunk``.
        llama: the arguments of ``llama_layer``.

    The defaults are those of Chameleon-7B, which are also Anole-7B's and Lumina-mGPT-7B's.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon), Anole (arXiv 2407.06135; GAIR-NLP/anole), Lumina-mGPT (arXiv
    2408.02657; Alpha-VLLM/Lumina-mGPT).

    Examples:
        >>> import torch
        >>> from mmblocks import Generation, GridFormat, GridGrammar, codes, text
        >>> from mmblocks.models import Chameleon
        >>> from mmblocks.vocabulary import CodeIds
        >>> model = Chameleon(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16).eval()
        >>> form = GridFormat(begin=50, closing=(51,), codes=CodeIds(sizes=(16,), first=4), fixed_size=(2, 2))
        >>> sample = [text([1, 40]), codes(torch.zeros(2, 2, dtype=torch.long), form, target="text")]
        >>> tuple(model(model.batch_builder()([sample])).token_losses["text"].shape)  # four codes
        (4,)
        >>> grammar = GridGrammar(form, vocab_size=64)
        >>> ((row, image),) = model.generate([[text([1, 40, 50])]], grammar, Generation(generator=0))
        >>> tuple(image.grid.shape)
        (2, 2)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "chameleon",
            _RULES,
            ignored=("model.vqmodel.*",),
            config=_config,
            published_config=_published_config,
            derived=(INVERSE_FREQUENCIES,),
            harmless=(*CHAMELEON_HARMLESS, "mask_image_logits"),  # which ids may come is what grammars say
        ),
    )
    shorthand = staticmethod(_LLAMA)

    def __init__(
        self,
        *,
        vocab_size: int = 65536,
        dim: int = 4096,
        num_layers: int = 32,
        post_norm: bool = False,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        (layers,) = _LLAMA(**llama)
        super().__init__(
            inputs={"text": TextEmbedding(vocab_size=vocab_size, dim=dim)},
            trunk=ChameleonTrunk(dim=dim, num_layers=num_layers, post_norm=post_norm, **layers),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size)},
        )
