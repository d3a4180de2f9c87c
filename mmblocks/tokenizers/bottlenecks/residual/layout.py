"""Arguments of vector-quantize-pytorch's ``ResidualVQ`` and ``GroupedResidualVQ``, and how their files name the tensors."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.tokenizers.bottlenecks.codebooks.options import check_plain, given
from mmblocks.tokenizers.bottlenecks.multi_head_layout import HARMLESS, OPTIONS

_OPTIONS = (
    *OPTIONS,
    "beam_score_quantizer_weights",
    "beam_size",
    "eval_beam_size",
    "mlp_kwargs",
    "quant_grad_frac",
    "quantize_dropout",
    "quantize_dropout_cutoff_index",
    "quantize_dropout_multiple_of",
)
"""Arguments of ``ResidualVQ`` that are handed on to it."""

_HARMLESS = (
    *HARMLESS,
    "layernorm_after_project_in",  # of the quantizers inside, which project nothing and have one head
    "rand_quantize_dropout_fixed_seed",  # of a forward pass, as dropout_seed is
    "separate_codebook_per_head",
)

_PLAIN = {"accept_3d_fmap": False, "affine_param": False, "channel_last": True, "diveq": False, "heads": 1}
"""The quantizers inside would take channels for places; DiVeQ adds noise in evaluation too."""


def _grouped_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of ``GroupedResidualVQ``, or of ``ResidualVQ``."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    check_plain(config, _PLAIN)
    options, sizes = given(config, _OPTIONS), config["codebook_size"]
    if options.get("orthogonal_reg_weight") or options.get("codebook_diversity_loss_weight"):
        only(config, "commitment_weight", 1.0)  # the library adds all up
    each = sizes if isinstance(sizes, int) else tuple(sizes)
    count = config.get("num_quantizers")
    if count is None and isinstance(each, tuple):
        count = len(each)
    if count is None:
        raise KeyError("num_quantizers")
    return {
        "dim": config["dim"],
        "num_codes": each,
        "num_quantizers": count,
        "num_groups": config.get("groups", 1),
        "code_dim": config.get("codebook_dim"),
        "shared": config.get("shared_codebook", False),
        "implicit": config.get("implicit_neural_codebook", False),
        "metric": "cosine" if config.get("use_cosine_sim", False) else "l2",
        "options": options or None,
    }


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """From the arguments of ``ResidualVQ``."""
    only(config, "groups", 1)
    return _grouped_config(config)


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dim": arguments["dim"],
        "codebook_size": arguments["num_codes"],
        "num_quantizers": arguments["num_quantizers"],
        "codebook_dim": arguments["code_dim"],
        "shared_codebook": arguments["shared"],
        "implicit_neural_codebook": arguments["implicit"],
        "use_cosine_sim": arguments["metric"] == "cosine",
        **(arguments["options"] or {}),
    }


def _published_grouped_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {**_published_config(arguments), "groups": arguments["num_groups"]}


RESIDUAL_LAYOUTS = (
    Layout(
        "vector_quantize_pytorch",
        tuple(Rule(f"{name}.*", f"groups.0.{name}.*") for name in ("layers", "mlps", "project_in", "project_out")),
        config=_config,
        published_config=_published_config,
        harmless=_HARMLESS,
    ),
    Layout(
        "vector_quantize_pytorch_grouped",
        (Rule("rvqs.{}.*", "groups.{}.*"),),
        config=_grouped_config,
        published_config=_published_grouped_config,
        harmless=_HARMLESS,
    ),
)
"""Of ``ResidualQuantizer``."""
