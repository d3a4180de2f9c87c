"""Emu3's and Emu3.5's language model: text and visual codes in one vocabulary, one decoder, one head."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.compose import MultimodalModel
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.trunks.decoder import Decoder
from mmblocks.trunks.decoder_layouts import INVERSE_FREQUENCIES, LLAMA_RULES
from mmblocks.trunks.llama_config import LLAMA_HARMLESS, llama_config
from mmblocks.trunks.llama_published import published_llama


def _emu3_config(config: Mapping[str, Any], *, qk_norm: bool) -> dict[str, Any]:
    only(config, "tie_word_embeddings", False)
    arguments = llama_config(config, models=("emu3", "emu3_text_model"), qk_norm=qk_norm)
    if qk_norm and config.get("head_dim") is None:
        arguments["head_dim"] = 128  # whatever the width: what Emu3.5's class of configs says
    return {"vocab_size": config["vocab_size"], **arguments, "dropout": config.get("attention_dropout", 0.1)}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    config = published_llama(arguments, model_type="Emu3", architecture="Emu3ForCausalLM")
    return {**config, "attention_dropout": arguments["dropout"]}


_HARMLESS = (
    *LLAMA_HARMLESS,
    *("img_token_id", "boi_token_id", "eoi_token_id", "eol_token_id", "eof_token_id", "image_area"),  # callers say them
)


def _layout(name: str, rules: tuple[Rule, ...], *, qk_norm: bool) -> Layout:
    return Layout(
        name,
        rules,
        config=partial(_emu3_config, qk_norm=qk_norm),
        published_config=_published_config,
        derived=(INVERSE_FREQUENCIES,),
        harmless=_HARMLESS,
    )


_RULES = (
    Rule("model.embed_tokens.weight", "inputs.text.weight"),
    *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in LLAMA_RULES),
    Rule("lm_head.weight", "outputs.text.weight"),
)
_PLAIN_RULES = tuple(rule for rule in _RULES if "self_attn.q_norm" not in rule.theirs and "self_attn.k_norm" not in rule.theirs)


class Emu3(MultimodalModel):
    """One vocabulary of text and visual ids, read by an embedding, a decoder and a head; all named "text".

    Args:
        vocab_size: text ids, structure and visual codes together (Emu3 184622, Emu3.5 282926).
        dim, num_layers, num_heads, num_kv_heads, head_dim, mlp_dim, norm_eps, rope_theta, rope_scaling, qk_norm,
            dropout: of the ``Decoder``.

    Source: Emu3 (arXiv 2409.18869; baaivision/Emu3), Emu3.5 (arXiv 2510.26583; baaivision/Emu3.5).

    Examples:
        >>> import torch
        >>> from mmblocks import text
        >>> from mmblocks.models import Emu3
        >>> model = Emu3(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16).eval()
        >>> batch = model.batch_builder()([[text([1, 2, 3]), text([4, 5], target="text")]])
        >>> tuple(model(batch).token_losses["text"].shape)
        (2,)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        _layout("emu3", _PLAIN_RULES, qk_norm=False),
        _layout("emu3.5", _RULES, qk_norm=True),
    )

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 1e6,
        rope_scaling: dict[str, Any] | None = None,
        qk_norm: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            inputs={"text": TextEmbedding(vocab_size=vocab_size, dim=dim)},
            trunk=Decoder(
                dim=dim,
                num_layers=num_layers,
                num_heads=num_heads,
                mlp_dim=mlp_dim,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                norm_eps=norm_eps,
                rope_theta=rope_theta,
                rope_scaling=rope_scaling,
                qk_norm=qk_norm,
                dropout=dropout,
            ),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size)},
        )
