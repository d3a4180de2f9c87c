"""Chameleon's trunk: a Llama whose queries and keys go through a layer norm, with a scale and a shift for every head."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Unpack

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES, LLAMA_RULES
from mmblocks.trunks.families.names import NOT_THE_TRUNK
from mmblocks.trunks.llama import LlamaArguments, check_plain, llama_layer, with_attention
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama
from mmblocks.trunks.parts.norms import Norm

HEAD_NORM_EPS = 1e-5

CHAMELEON_SIZES = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
}
"""Of a Chameleon's config that does not name them: those of 7B."""


def chameleon_config(config: Mapping[str, Any], *, models: tuple[str, ...] = ("chameleon", "chameleon_xllmx")) -> dict[str, Any]:
    """Chameleon's transformers config as ``ChameleonTrunk`` arguments, or that of a model of another name that was built on it."""
    arguments = llama_config(config, models=models)
    only(config, "qk_layernorm", True)
    del arguments["qk_norm"]
    return {**arguments, "post_norm": config.get("swin_norm", False)}


def published_chameleon(arguments: Mapping[str, Any], *, architecture: str = "ChameleonForConditionalGeneration") -> dict[str, Any]:
    """The way back; of a whole model too."""
    config = published_llama(arguments, model_type="chameleon", architecture=architecture)
    return {**config, "swin_norm": arguments["post_norm"]}


CHAMELEON_HARMLESS = (
    *LLAMA_HARMLESS,
    # the tokenizer of images and its ids; how files were cut in training, which their norms of heads tell; of training
    *("vq_config.*", "vocabulary_map.*", "image_token_id", "boi_token_id", "eoi_token_id"),
    *("model_parallel_size", "z_loss_weight"),
)
"""Entries of Chameleon's config that say nothing about its trunk."""

CHAMELEON_RULES = (
    *(rule for rule in LLAMA_RULES if "q_norm" not in rule.theirs and "k_norm" not in rule.theirs),
    Rule("model.layers.{}.self_attn.q_norm.*", "layers.{}.attention.query_norm.*"),
    Rule("model.layers.{}.self_attn.k_norm.*", "layers.{}.attention.key_norm.*"),
)
"""Keys of Chameleon -> ``ChameleonTrunk``."""


class ChameleonTrunk(Decoder):
    """The trunk of Chameleon, and of what was built on it: Anole, Lumina-mGPT, Orthus.

    Args:
        dim, num_layers, dropout, positions: as for ``Decoder``.
        post_norm: whether the norms of a layer stand after attention and feed-forward (34B) and not before (7B).
        llama: the arguments of ``llama_layer``.

    Source: Chameleon (arXiv 2405.09818; facebookresearch/chameleon).

    Examples:
        >>> import torch
        >>> from mmblocks import TokenTable
        >>> from mmblocks.trunks import ChameleonTrunk
        >>> trunk = ChameleonTrunk(dim=32, num_layers=1, num_heads=4, mlp_dim=48)
        >>> tuple(trunk.layers[0].attention.query_norm.weight.shape)  # a scale for every channel of every head
        (4, 8)
        >>> tuple(trunk(torch.randn(1, 5, 32), TokenTable.text(1, 5)).shape)
        (1, 5, 32)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "chameleon",
            CHAMELEON_RULES,
            ignored=(*NOT_THE_TRUNK, "model.vqmodel.*"),
            config=chameleon_config,
            published_config=published_chameleon,
            derived=(INVERSE_FREQUENCIES,),
            harmless=(*CHAMELEON_HARMLESS, "mask_image_logits"),
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        post_norm: bool = False,
        dropout: float = 0.0,
        positions: PositionScheme | None = None,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        check_plain("ChameleonTrunk", llama, "qk_norm")  # it has norms of heads of its own
        qk_norm = Norm(kind="layer", eps=HEAD_NORM_EPS, bias=True)
        layer = with_attention(llama_layer(**llama), qk_norm=qk_norm, qk_norm_over="each_head")
        layer = replace(layer, norm_place="after" if post_norm else "before")
        super().__init__(dim=dim, num_layers=num_layers, layers=layer, dropout=dropout, positions=positions)
