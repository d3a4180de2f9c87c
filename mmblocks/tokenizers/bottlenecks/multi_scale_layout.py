"""How published files of VAR name the quantiser from coarse to fine, alone."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.checkpoints.layouts.published_config import stated
from mmblocks.tokenizers.var.layout import quantizer_arguments, quantizer_rules


def _config(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    arguments = {**quantizer_arguments(config, layout), "dim": config.get("Cvae", 32)}
    if layout == "var-all-blends":  # as many as scales, unless there were others at first
        arguments["num_blends"] = stated(config, "default_qresi_counts", 0)
    return arguments


def _published_config(arguments: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """For VAR's ``VectorQuantizer2``.

    Raises:
        ValueError: a number of smoothing convolutions that another layout has.
    """
    count = arguments["num_blends"]
    accepted = {"var-all-blends": True, "var-one-blend": count == 1, "var": count > 1}
    if not accepted[layout]:
        fitting = ", ".join(name for name, fits in accepted.items() if fits)
        raise ValueError(f"num_blends is {count}, which the layout {layout!r} cannot say; accepted: {fitting}")
    share = {"share_quant_resi": 0, "default_qresi_counts": count} if layout == "var-all-blends" else {"share_quant_resi": count}
    return {
        "vocab_size": arguments["num_codes"],
        "Cvae": arguments["dim"],
        "using_znorm": arguments["metric"] == "cosine",
        "v_patch_nums": arguments["scales"],
        "quant_resi": arguments["blend"],
        **share,
    }


MULTI_SCALE_LAYOUTS = tuple(
    Layout(
        name,
        rules,
        config=partial(_config, layout=name),
        published_config=partial(_published_config, layout=name),
        harmless=("beta", "default_qresi_counts"),
    )
    for name, rules in quantizer_rules("", "").items()
)
"""Of ``MultiScaleQuantizer``."""
