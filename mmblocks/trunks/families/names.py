"""Names of tensors that many language models of transformers share -> ``Decoder``."""

from mmblocks.checkpoints.layouts.layout import Rule, Split

NOT_THE_TRUNK = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors of a language model that belong to other parts."""

_LAYER = "model.layers.{}."


def rules(**pairs: str) -> tuple[Rule, ...]:
    """One for each pair of a module's name in a layer of theirs, with ``__`` for a dot, and in a layer of ours."""
    return tuple(Rule(f"{_LAYER}{theirs.replace('__', '.')}.*", f"layers.{{}}.{ours}.*") for theirs, ours in pairs.items())


ATTENTION = rules(
    self_attn__q_proj="attention.query",
    self_attn__k_proj="attention.key",
    self_attn__v_proj="attention.value",
    self_attn__o_proj="attention.output",
)
HEAD_NORMS = rules(self_attn__q_norm="attention.query_norm", self_attn__k_norm="attention.key_norm")
GATED_MLP = rules(mlp__gate_proj="mlp.gate", mlp__up_proj="mlp.up", mlp__down_proj="mlp.down")
FUSED_MLP: tuple[Rule | Split, ...] = (
    Split(f"{_LAYER}mlp.gate_up_proj.weight", ("layers.{}.mlp.gate.weight", "layers.{}.mlp.up.weight")),
    *rules(mlp__down_proj="mlp.down"),
)
EXPERTS = (
    *rules(mlp__gate="mlp.router"),
    *(
        Rule(f"{_LAYER}mlp.experts.{{}}.{ours}_proj.weight", f"layers.{{}}.mlp.{ours}.{{}}.weight")
        for ours in ("gate", "up", "down")
    ),
)
"""Of Qwen's mixtures."""
SHARED_EXPERT = (
    *rules(mlp__shared_expert_gate="mlp.shared_gate"),
    *rules(**{f"mlp__shared_expert__{ours}_proj": f"mlp.shared.{ours}" for ours in ("gate", "up", "down")}),
)

BEFORE = rules(input_layernorm="attention_norm", post_attention_layernorm="mlp_norm")
"""Norms before attention and feed-forward part."""
AFTER = rules(post_attention_layernorm="attention_norm", post_feedforward_layernorm="mlp_norm")
BOTH = rules(
    input_layernorm="attention_norm",
    post_attention_layernorm="attention_post_norm",
    pre_feedforward_layernorm="mlp_norm",
    post_feedforward_layernorm="mlp_post_norm",
)
ONE = rules(input_layernorm="attention_norm")
"""One norm, for parallel parts."""

LAST = (Rule("model.norm.*", "norm.*"),)
"""The norm after the last layer."""
