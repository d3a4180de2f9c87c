"""Orthus: a Chameleon that reads and writes images as continuous latents."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Unpack

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import WithDefaults, check_arguments, only, stated
from mmblocks.compose import MultimodalModel
from mmblocks.configurable import together
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.heads.mar import adaln_mlp_rules
from mmblocks.heads.orthus import OrthusDiffusionHead
from mmblocks.layers.soft_codes import SoftCodeEmbedding
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
    """A Chameleon's config; the head's entries, which upstream's class takes beside it, are Orthus-7B's where it has none."""
    only(config, "tie_word_embeddings", False)
    codebook, head = stated(config, "vq_config", {}), stated(config, "mlp_head", {})
    arguments = chameleon_config(WithDefaults(config, CHAMELEON_SIZES), models=("chameleon", "orthus"))
    only(head, "z_channels", arguments["dim"])
    latent_dim = stated(codebook, "embed_dim", head.get("in_channels", 256))
    for name in ("in_channels", "out_channels"):
        only(head, name, latent_dim)
    return {
        **arguments,
        "vocab_size": stated(config, "vocab_size", CHAMELEON_SIZES["vocab_size"]),
        "num_codes": codebook.get("num_embeddings", 8192),
        "latent_dim": latent_dim,
        "head_width": stated(config, "diffloss_w", head.get("model_channels", 1536)),
        "num_head_blocks": stated(config, "num_res_blocks", head.get("num_res_blocks", 3)),
        "repeats": config.get("diffusion_batch_mul", 8),
        "num_steps": config.get("denoise_steps", 100),
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A Chameleon's config, with the entries that upstream's class takes as arguments beside it."""
    check_arguments(arguments, qk_norm=False, qkv_bias=False, rope_sections=None, rope_dtype=None)
    if arguments["first_code"] != 4:
        raise ValueError(f"first_code is {arguments['first_code']}; accepted in the layout 'orthus': 4, as its code has")
    return {
        **published_chameleon(arguments, architecture="OrthusForConditionalGeneration"),
        "vq_config": {"num_embeddings": arguments["num_codes"], "embed_dim": arguments["latent_dim"]},
        "diffloss_w": arguments["head_width"],
        "num_res_blocks": arguments["num_head_blocks"],
        "diffusion_batch_mul": arguments["repeats"],
        "denoise_steps": arguments["num_steps"],
    }


_RULES = (
    Rule("model.embed_tokens.weight", "inputs.text.weight"),
    Rule("model.codebook_in.weight", "inputs.latents.codes"),
    *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in CHAMELEON_RULES),
    Rule("lm_head.weight", "outputs.text.weight"),
    *adaln_mlp_rules("mlp_head.", "outputs.latents.net."),
)


_LLAMA = together(partial(llama_layer, num_heads=32, mlp_dim=11008))


class Orthus(MultimodalModel):
    """Text by ids, images by latents: what a VQ encoder gives before it takes codes (``ChameleonVQ``, its ``features``).

    Inputs and outputs are named "text" and "latents". The state before a latent predicts it: that of ``<boi>`` the first.

    Args:
        vocab_size: text ids and codes together.
        dim, num_layers, post_norm: of the ``ChameleonTrunk``.
        num_codes, latent_dim, first_code: of the ``SoftCodeEmbedding``.
        head_width, num_head_blocks, repeats, num_steps: of the ``OrthusDiffusionHead``.
        llama: the arguments of ``llama_layer``.

    The defaults are those of Orthus-7B.

    Source: Orthus (arXiv 2412.00127; zhijie-group/Orthus).

    Examples:
        >>> import torch
        >>> from mmblocks import text, vectors
        >>> from mmblocks.models import Orthus
        >>> sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "num_codes": 16, "latent_dim": 4}
        >>> model = Orthus(vocab_size=64, head_width=16, num_head_blocks=1, **sizes).eval()
        >>> sample = [text([40, 41], target="text"), vectors(torch.randn(2, 3, 4), input="latents", target="latents")]
        >>> losses = model(model.batch_builder()([sample])).token_losses
        >>> {name: tuple(values.shape) for name, values in losses.items()}
        {'text': (1,), 'latents': (6,)}
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "orthus",
            _RULES,
            ignored=("model.vqmodel.*",),
            config=_config,
            published_config=_published_config,
            derived=(INVERSE_FREQUENCIES,),
            # diffloss_d is an argument of upstream's class that it does not read; "chameleon" is a config in words.
            harmless=(*CHAMELEON_HARMLESS, "diffloss_d", "chameleon"),
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
        num_codes: int = 8192,
        latent_dim: int = 256,
        first_code: int = 4,
        head_width: int = 1536,
        num_head_blocks: int = 3,
        repeats: int = 8,
        num_steps: int = 100,
        **llama: Unpack[LlamaArguments],
    ) -> None:
        (layers,) = _LLAMA(**llama)
        text = TextEmbedding(vocab_size=vocab_size, dim=dim)
        head = OrthusDiffusionHead(
            dim=dim, token_dim=latent_dim, width=head_width, num_blocks=num_head_blocks, repeats=repeats, num_steps=num_steps
        )
        super().__init__(
            inputs={
                "text": text,
                "latents": SoftCodeEmbedding(num_codes=num_codes, code_dim=latent_dim, table=text, first=first_code),
            },
            trunk=ChameleonTrunk(dim=dim, num_layers=num_layers, post_norm=post_norm, **layers),
            outputs={"text": LMHead(dim=dim, vocab_size=vocab_size), "latents": head},
        )
