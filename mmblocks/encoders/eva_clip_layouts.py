"""How published EVA-CLIP files name their tensors, and what their configs mean.

A file of the authors' code holds ``visual.*``, the text tower and ``logit_scale``. The text tower's names begin with ``text.``, or
with nothing in older files ("-root"); all names begin with ``module.`` where training on several devices wrote them ("-ddp").
The dict of tensors is the file itself, or lies in it under "model", "module" or "state_dict".
The repositories BAAI/EVA-CLIP-8B, -8B-448 and -18B on the Hub have names of their own ("-hub").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmblocks.checkpoints.layouts import Layout, Rule, Split
from mmblocks.checkpoints.rules import Arguments, Side, Source
from mmblocks.layers.eva_layouts import BESIDE_VISUAL, ROPE_TABLES, WRAPPERS, eva_rules, eva_tower_arguments

Rules = tuple[Rule | Split, ...]

PRETRAINING = ("mask_token", "lm_head.*")
"""What towers that have only learned to fill in masked patches hold more; they lack the head."""


@dataclass(frozen=True)
class Join(Split):
    """Several published tensors, one below the other, are one of ours: a ``Split`` with its sides exchanged.

    ``theirs`` is the pattern of our name, ``ours`` are those of the published ones.
    """

    def names(self, side: Side) -> tuple[str, ...]:
        """The patterns of one side."""
        return super().names(_other(side))

    def source(self, keys: tuple[str, ...], to: Side, part: int, arguments: Arguments) -> Source:
        """Tensor number ``part`` on side ``to``, made of the tensors called ``keys`` on the other."""
        return super().source(keys, _other(to), part, arguments)


def _other(side: Side) -> Side:
    return "ours" if side == "theirs" else "theirs"


def vision_rules(theirs: str, ours: str, *, swiglu: bool) -> Rules:
    """The authors' names of an image tower with norm and head, and those of an ``EVACLIPVision`` at ``ours``."""
    return (
        *eva_rules(theirs, f"{ours}tower.", swiglu=swiglu),
        Rule(f"{theirs}norm.*", f"{ours}norm.*"),
        Rule(f"{theirs}fc_norm.*", f"{ours}pool_norm.*"),
        Rule(f"{theirs}head.*", f"{ours}head.*"),
    )


def text_rules(theirs: str, ours: str) -> Rules:
    """The authors' names of a text tower, and those of an ``EVACLIPText`` at ``ours``."""
    tensors = ("positional_embedding", "text_projection", "token_embedding.*", "transformer.*", "ln_final.*")
    return tuple(Rule(f"{theirs}{name}", f"{ours}model.{name}") for name in tensors)


def vision_hub_rules(ours: str) -> Rules:
    """The Hub's names of an image tower with norm and head."""
    theirs, tower = "vision_model.", f"{ours}tower.vit."
    layer, block = f"{theirs}encoder.layers.{{}}.", f"{tower}blocks.{{}}."
    attention = (("q_proj.*", "q_proj.*"), ("k_proj.*", "k_proj.*"), ("v_proj.*", "v_proj.*"), ("out_proj.*", "proj.*"))
    return (
        Rule(f"{theirs}embeddings.class_embedding", f"{tower}cls_token", "unsqueeze_first_two"),
        Rule(f"{theirs}embeddings.position_embedding.weight", f"{tower}pos_embed", "unsqueeze_first"),
        Rule(f"{theirs}embeddings.patch_embedding.*", f"{tower}patch_embed.proj.*"),
        *(Rule(f"{layer}self_attn.{key}", f"{block}attn.{name}") for key, name in attention),
        *(Rule(f"{layer}layer_norm{number}.*", f"{block}norm{number}.*") for number in (1, 2)),
        *(Rule(f"{layer}mlp.fc{number}.*", f"{block}mlp.fc{number}.*") for number in (1, 2)),
        Rule(f"{theirs}post_layernorm.*", f"{ours}norm.*"),
        Rule("visual_projection.*", f"{ours}head.*"),
    )


def text_hub_rules(ours: str) -> Rules:
    """The Hub's names of a text tower."""
    theirs, model = "text_model.", f"{ours}model."
    layer, block = f"{theirs}encoder.layers.{{}}.", f"{model}transformer.resblocks.{{}}."
    return (
        Rule(f"{theirs}embeddings.token_embedding.*", f"{model}token_embedding.*"),
        Rule(f"{theirs}embeddings.position_embedding.weight", f"{model}positional_embedding"),
        *(
            Join(f"{block}attn.in_proj_{kind}", tuple(f"{layer}self_attn.{name}_proj.{kind}" for name in "qkv"))
            for kind in ("weight", "bias")
        ),
        Rule(f"{layer}self_attn.out_proj.*", f"{block}attn.out_proj.*"),
        *(Rule(f"{layer}layer_norm{number}.*", f"{block}ln_{number}.*") for number in (1, 2)),
        Rule(f"{layer}mlp.fc1.*", f"{block}mlp.c_fc.*"),
        Rule(f"{layer}mlp.fc2.*", f"{block}mlp.c_proj.*"),
        Rule(f"{theirs}final_layer_norm.*", f"{model}ln_final.*"),
        Rule("text_projection.weight", f"{model}text_projection", "transpose"),
    )


def vision_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPVision`` from a model's config as the authors' code has it; none from an empty one."""
    if not published:
        return {}
    vision = published["vision_cfg"]
    return {
        "tower": eva_tower_arguments(vision),
        "embed_dim": published["embed_dim"],
        # The newer of the authors' two packages, that of the towers with RMS norms, ties one bias to the other.
        "head_bias": vision.get("qkv_bias", True) or "use_rms_norm" not in vision,
        "pooling": "mean" if vision.get("global_average_pool") else "class",
        "patch_dropout": vision.get("patch_dropout") or 0.0,
    }


def text_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPText`` likewise."""
    if not published:
        return {}
    text = published["text_cfg"]
    if published.get("quick_gelu"):
        raise ValueError("quick_gelu is true; accepted: false, as in all of EVA-CLIP: the exact GELU")
    if text.get("hf_model_name"):
        raise ValueError(f"hf_model_name is {text['hf_model_name']!r}; accepted: none, for the text tower of EVA-CLIP itself")
    return {
        "embed_dim": published["embed_dim"],
        "dim": text.get("width", 512),
        "num_layers": text.get("layers", 12),
        "num_heads": text.get("heads", 8),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "causal": text.get("attn_mask", True),
        "layer_scale": text.get("ls_init_value"),
    }


def arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIP`` likewise."""
    if not published:
        return {}
    return {"vision": vision_arguments(published), "text": text_arguments(published)}


def vision_hub_arguments(published: Mapping[str, Any], *, head_bias: bool = False) -> dict[str, Any]:
    """Arguments of an ``EVACLIPVision`` from the config of a repository on the Hub; it is silent about the head's bias."""
    vision = published["vision_config"]
    for name in ("use_rope", "use_swiglu_mlp", "use_sub_ln"):
        if vision.get(name):
            raise ValueError(f"{name} is true; accepted: false, as in EVA-CLIP-8B and 18B")
    qkv_bias = vision.get("q_bias", True)
    return {
        "tower": {
            "image_size": (vision["image_size"],) * 2,
            "patch_size": vision["patch_size"],
            "dim": vision["hidden_size"],
            "num_layers": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_dim": vision["intermediate_size"],
            # All published towers without a bias of queries have RMS norms.
            "norm": "rms" if vision.get("use_rms_norm", not qkv_bias) else "layer",
            "post_norm": bool(vision.get("post_layernorm")),
            "qkv_bias": qkv_bias,
        },
        "embed_dim": published["projection_dim"],
        "head_bias": head_bias,
    }


def text_hub_arguments(published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ``EVACLIPText`` likewise."""
    text = published["text_config"]
    if text.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act is {text['hidden_act']!r}; accepted: 'gelu'")
    return {
        "embed_dim": published["projection_dim"],
        "dim": text["hidden_size"],
        "num_layers": text["num_hidden_layers"],
        "num_heads": text["num_attention_heads"],
        "context_length": text.get("max_position_embeddings", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }


def hub_arguments(published: Mapping[str, Any], *, head_bias: bool = False) -> dict[str, Any]:
    """Arguments of an ``EVACLIP`` likewise."""
    return {"vision": vision_hub_arguments(published, head_bias=head_bias), "text": text_hub_arguments(published)}


_POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
_KINDS = (("eva", False), ("eva02", True))
"""Names of towers, and whether they are gated; both kinds name the tensors of a block differently."""


def _tables(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}visual.{name}" for name in ROPE_TABLES)


def clip_layouts() -> tuple[Layout, ...]:
    """Of both towers together."""
    return (
        *(
            Layout(
                f"{kind}-clip{root}{ddp}",
                (
                    *vision_rules(f"{prefix}visual.", "vision.", swiglu=swiglu),
                    *text_rules(f"{prefix}{text}", "text."),
                    Rule(f"{prefix}logit_scale", "logit_scale"),
                ),
                ignored=_tables(prefix),
                config=arguments,
                unwrap=WRAPPERS,
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for root, text in (("", "text."), ("-root", ""))
            for kind, swiglu in _KINDS
        ),
        *_hub_layouts(
            (*vision_hub_rules("vision."), *text_hub_rules("text."), Rule("logit_scale", "logit_scale")), (), hub_arguments
        ),
    )


def vision_layouts() -> tuple[Layout, ...]:
    """Of the image tower, alone or as a part of both."""
    return (
        *(
            Layout(kind, vision_rules("", "", swiglu=swiglu), (*ROPE_TABLES, *PRETRAINING), vision_arguments, unwrap=WRAPPERS)
            for kind, swiglu in _KINDS
        ),
        *(
            Layout(
                f"{kind}-clip{ddp}",
                vision_rules(f"{prefix}visual.", "", swiglu=swiglu),
                ignored=(*_tables(prefix), *(f"{prefix}{name}" for name in BESIDE_VISUAL)),
                config=vision_arguments,
                unwrap=WRAPPERS,
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for kind, swiglu in _KINDS
        ),
        *_hub_layouts(vision_hub_rules(""), ("text_model.*", "text_projection.*", "logit_scale"), vision_hub_arguments),
    )


def text_layouts() -> tuple[Layout, ...]:
    """Of the text tower, alone or as a part of both."""
    return (
        *(
            Layout(
                f"{name}{ddp}",
                text_rules(f"{prefix}{text}", ""),
                ignored=(f"{prefix}visual.*", f"{prefix}logit_scale"),
                config=text_arguments,
                unwrap=WRAPPERS,
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for name, text in (("text", ""), ("eva-clip", "text."))
        ),
        Layout(
            "eva-clip-hub",
            text_hub_rules(""),
            ignored=("vision_model.*", "visual_projection.*", "logit_scale", *_POSITION_IDS),
            config=text_hub_arguments,
        ),
    )


def _hub_layouts(rules: Rules, ignored: tuple[str, ...], config: Callable[..., dict[str, Any]]) -> tuple[Layout, ...]:
    def biased(published: Mapping[str, Any]) -> dict[str, Any]:
        return config(published, head_bias=True)

    return (
        Layout("eva-clip-hub", rules, (*ignored, *_POSITION_IDS), config),
        Layout("eva-clip-hub-bias", rules, (*ignored, *_POSITION_IDS), biased),
    )
