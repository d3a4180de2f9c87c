"""Orthus: a Chameleon that reads and writes images as continuous latents."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.compose import MultimodalModel
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.heads.mar import adaln_mlp_rules
from mmblocks.heads.orthus import OrthusDiffusionHead
from mmblocks.layers.soft_codes import SoftCodeEmbedding
from mmblocks.trunks.chameleon import CHAMELEON_RULES, ChameleonTrunk


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Orthus-7B's sizes, unless the config, a Chameleon's, has others."""
    codebook = config.get("vq_config", {})
    found = {
        "vocab_size": config.get("vocab_size"),
        "dim": config.get("hidden_size"),
        "num_layers": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "num_kv_heads": config.get("num_key_value_heads"),
        "mlp_dim": config.get("intermediate_size"),
        "norm_eps": config.get("rms_norm_eps"),
        "rope_theta": config.get("rope_theta"),
        "num_codes": codebook.get("num_embeddings"),
        "latent_dim": codebook.get("embed_dim"),
        "head_width": config.get("diffloss_w"),
        "num_head_blocks": config.get("num_res_blocks"),
        "repeats": config.get("diffusion_batch_mul"),
        "num_steps": config.get("denoise_steps"),
    }
    return {name: value for name, value in found.items() if value is not None}


_RULES = (
    Rule("model.embed_tokens.weight", "inputs.text.weight"),
    Rule("model.codebook_in.weight", "inputs.latents.codes"),
    *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in CHAMELEON_RULES),
    Rule("lm_head.weight", "outputs.text.weight"),
    *adaln_mlp_rules("mlp_head.", "outputs.latents.net."),
)


class Orthus(MultimodalModel):
    """Text by ids, images by latents: what a VQ encoder gives before it takes codes (``ChameleonVQ``, its ``features``).

    Inputs and outputs are named "text" and "latents". The state before a latent predicts it: that of ``<boi>`` the first.

    Args:
        vocab_size: text ids and codes together.
        dim, num_layers, num_heads, num_kv_heads, mlp_dim, norm_eps, rope_theta: of the ``ChameleonTrunk``.
        num_codes, latent_dim, first_code: of the ``SoftCodeEmbedding``.
        head_width, num_head_blocks, repeats, num_steps: of the ``OrthusDiffusionHead``.

    The defaults are those of Orthus-7B.

    Source: Orthus (arXiv 2412.00127; zhijie-group/Orthus).
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("orthus", _RULES, ignored=("model.vqmodel.*",), config=_config),)

    def __init__(
        self,
        *,
        vocab_size: int = 65536,
        dim: int = 4096,
        num_layers: int = 32,
        num_heads: int = 32,
        num_kv_heads: int | None = None,
        mlp_dim: int = 11008,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        num_codes: int = 8192,
        latent_dim: int = 256,
        first_code: int = 4,
        head_width: int = 1536,
        num_head_blocks: int = 3,
        repeats: int = 8,
        num_steps: int = 100,
    ) -> None:
        text = TextEmbedding(vocab_size=vocab_size, dim=dim)
        head = OrthusDiffusionHead(
            dim=dim, token_dim=latent_dim, width=head_width, num_blocks=num_head_blocks, repeats=repeats, num_steps=num_steps
        )
        super().__init__(
            inputs={
                "text": text,
                "latents": SoftCodeEmbedding(num_codes=num_codes, code_dim=latent_dim, table=text, first=first_code),
            },
            trunk=ChameleonTrunk(
                dim=dim,
                num_layers=num_layers,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                mlp_dim=mlp_dim,
                norm_eps=norm_eps,
                rope_theta=rope_theta,
            ),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size), "latents": head},
        )
