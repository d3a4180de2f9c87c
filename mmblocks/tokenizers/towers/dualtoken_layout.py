"""How DualToken names its tensors, and what its config says."""

from collections.abc import Mapping
from typing import Any

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only, read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.towers.siglip import siglip_rules, siglip_sizes
from mmblocks.tokenizers.bottlenecks.residual.rq import RQ_RULES
from mmblocks.tokenizers.conv.taming_layout import check_ddconfig, half_rules, levels_at, published_ddconfig
from mmblocks.tokenizers.towers.attention_projection import attention_projection_rules

_RULES = (
    *siglip_rules("siglip_model.vision_model.", "encoder.vision."),
    *attention_projection_rules("prequant_pix.", "encoder.to_pixel."),
    *attention_projection_rules("prequant_shortcut.", "encoder.to_shortcut."),
    *attention_projection_rules("prequant_sem.", "encoder.to_semantic."),
    *(Rule(f"quantizer_pix.{rule.theirs}", f"bottleneck.pixel.{rule.ours}") for rule in RQ_RULES),
    *(Rule(f"quantizer_sem.{rule.theirs}", f"bottleneck.semantic.{rule.ours}") for rule in RQ_RULES),
    *attention_projection_rules("postquant_sem.", "from_semantic."),
    *attention_projection_rules("postquant_pix.", "decoder.from_pixel."),
    *(Rule(f"post_quant_conv.{name}.*", f"decoder.widen.{name}.*") for name in ("norm1", "conv1", "norm2", "conv2")),
    Rule("post_quant_conv.nin_shortcut.*", "decoder.widen.shortcut.*"),
    *half_rules("decoder", "decoder.network", "up"),
)
_TEXT_SIDE = ("siglip_model.text_model.*", "siglip_model.logit_scale", "siglip_model.logit_bias")


_TEACHER = "google/siglip2-so400m-patch14-384"
_HARMLESS = ("checkpointing", "decay", "ignore_keys", "ddconfig.resolution", "vq_pix.ckpt_path", "vq_sem.ckpt_path")
"""How it is trained, and where from; the ``decay`` is that of each bottleneck, not the one above them."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """DualToken's config, which names the SigLIP 2 that it began with.

    Raises:
        ValueError: two bottlenecks of different sizes, codebooks that are not shared, or patches of another grid than codes.
    """
    outer, config = config, config.get("rqvaesiglip", config)
    check_model(outer, "rqvaesigliptransformer_model", "rqvaesiglip_model", "RQVAESIGLIPTransformer", "RQVAESiglip")
    check_model(config, "rqvaesiglip_model", "RQVAESiglip")
    pixel, semantic, network = config["vq_pix"], config["vq_sem"], config["ddconfig"]
    sizes = [_bottleneck_sizes(options) for options in (pixel, semantic)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"vq_pix has {sizes[0]}, vq_sem {sizes[1]}; accepted: equal sizes")
    check_ddconfig(network)
    multipliers = tuple(network["ch_mult"])
    vision = read_own(config, siglip_sizes(config["pretrained_model"]))
    only(outer, "hidden_size", vision["dim"])
    only(config, "hidden_size", vision["dim"])
    return {
        **vision,
        "pixel_layer": config["layer_recon"],
        "semantic_layer": config["layer_sem"],
        "shortcut_layer": config["layer_shortcut"],
        "shortcut_weight": config["weight_shortcut"],
        **sizes[0],
        "bottleneck_types": tuple(options["bottleneck_type"] for options in (pixel, semantic)),
        "decays": tuple(options.get("decay", 0.99) for options in (pixel, semantic)),
        "restart_unused": tuple(options.get("restart_unused_codes", True) for options in (pixel, semantic)),
        "channels": network["ch"],
        "multipliers": multipliers,
        "num_blocks": network["num_res_blocks"],
        "attention_levels": levels_at(network["attn_resolutions"], network["resolution"], len(multipliers)),
        "latent_channels": network["decoder_in_channels"],
        "latent_size": tuple(config["decoder_latent_shape"]),
    }


def _bottleneck_sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """Of one bottleneck; a code stands for one place."""
    if not options["shared_codebook"]:
        raise ValueError("shared_codebook is False; accepted: True")
    *grid, depth = options["code_shape"]
    only(options, "latent_shape", [*grid, options["embed_dim"]])
    return {"num_codes": options["n_embed"], "code_dim": options["embed_dim"], "depth": depth}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """The way back. Sizes of another tower than SigLIP 2's so400m are written as they are, and read here alone."""
    grid = [arguments["image_size"] // arguments["patch_size"]] * 2
    parts = zip(("vq_pix", "vq_sem"), arguments["bottleneck_types"], arguments["decays"], arguments["restart_unused"], strict=True)
    bottlenecks = {
        name: {
            "bottleneck_type": kind,
            "n_embed": arguments["num_codes"],
            "embed_dim": arguments["code_dim"],
            "code_shape": [*grid, arguments["depth"]],
            "latent_shape": [*grid, arguments["code_dim"]],
            "shared_codebook": True,
            "decay": decay,
            "restart_unused_codes": restarts,
        }
        for name, kind, decay, restarts in parts
    }
    network = published_ddconfig(arguments)
    network["decoder_in_channels"] = network.pop("z_channels")
    inner = {
        "model_type": "rqvaesiglip_model",
        "hidden_size": arguments["dim"],
        "pretrained_model": _TEACHER,
        "layer_recon": arguments["pixel_layer"],
        "layer_sem": arguments["semantic_layer"],
        "layer_shortcut": arguments["shortcut_layer"],
        "weight_shortcut": arguments["shortcut_weight"],
        **bottlenecks,
        "ddconfig": network,
        "decoder_latent_shape": list(arguments["latent_size"]),
        **written_own(arguments, siglip_sizes(_TEACHER)),
    }
    return {"model_type": "rqvaesigliptransformer_model", "hidden_size": arguments["dim"], "rqvaesiglip": inner}


DUALTOKEN_LAYOUTS = (
    Layout(
        "dualtoken",
        _RULES,
        ignored=_TEXT_SIDE,
        config=_config,
        published_config=_published_config,
        unwrap="state_dict",
        harmless=(*_HARMLESS, *(f"rqvaesiglip.{name}" for name in _HARMLESS)),
    ),
)
