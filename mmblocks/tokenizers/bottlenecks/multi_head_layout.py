"""Arguments of vector-quantize-pytorch's ``VectorQuantize``, all of which ``MultiHeadVectorQuantizer`` hands on."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.tokenizers.bottlenecks.codebooks.options import given

OPTIONS = (
    "codebook_diversity_loss_weight",
    "codebook_diversity_temperature",
    "commitment_use_cross_entropy_loss",
    "decay",
    "directional_reparam",
    "directional_reparam_variance",
    "ema_update",
    "eps",
    "freeze_codebook",
    "kmeans_init",
    "kmeans_iters",
    "learnable_codebook",
    "manual_ema_update",
    "orthogonal_reg_active_codes_only",
    "orthogonal_reg_max_codes",
    "orthogonal_reg_weight",
    "rotation_trick",
    "route_gradients_to_input",
    "sample_codebook_temp",
    "stochastic_sample_codes",
    "straight_through",
    "sync_codebook",
    "sync_kmeans",
    "sync_update_v",
    "threshold_ema_dead_code",
)
"""Arguments of ``VectorQuantize`` that are handed on to it."""

HARMLESS = (
    "accept_image_fmap",
    "affine_param_batch_decay",
    "affine_param_codebook_decay",
    "commitment_weight",
    "manual_in_place_optimizer_update",
    "return_zeros_for_masked_padding",
    "sync_affine_param",
)
"""Where channels lie, weights of losses, and what counts with masks or an option that is not supported alone."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of ``VectorQuantize``."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    only(config, "affine_param", False)
    options = given(config, (*OPTIONS, "layernorm_after_project_in"))
    if options.get("learnable_codebook"):  # or the library refuses its own default
        options.setdefault("ema_update", False)
    return {
        "dim": config["dim"],
        "num_codes": config["codebook_size"],
        "code_dim": config.get("codebook_dim"),
        "num_heads": config.get("heads", 1),
        "separate_codebooks": config.get("separate_codebook_per_head", False),
        "metric": "cosine" if config.get("use_cosine_sim", False) else "l2",
        "options": options or None,
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dim": arguments["dim"],
        "codebook_size": arguments["num_codes"],
        "codebook_dim": arguments["code_dim"],
        "heads": arguments["num_heads"],
        "separate_codebook_per_head": arguments["separate_codebooks"],
        "use_cosine_sim": arguments["metric"] == "cosine",
        **(arguments["options"] or {}),
    }


MULTI_HEAD_LAYOUTS = (
    Layout(
        "vector_quantize_pytorch",
        (Rule("*", "quantizer.*"),),
        config=_config,
        published_config=_published_config,
        harmless=(*HARMLESS, "accept_3d_fmap", "channel_last"),
    ),
)
"""Of ``MultiHeadVectorQuantizer``."""
