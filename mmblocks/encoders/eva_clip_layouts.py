"""How published EVA-CLIP files name their tensors, and what their configs mean.

A file of the authors' code holds ``visual.*``, the text tower and ``logit_scale``. The text tower's names begin with ``text.``, or
with nothing in older files ("-root"); all names begin with ``module.`` where training on several devices wrote them ("-ddp").
The dict of tensors is the file itself, or lies in it under "model", "module" or "state_dict".
The repositories BAAI/EVA-CLIP-8B, -8B-448 and -18B on the Hub have names of their own ("-hub").
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule, Split
from mmblocks.checkpoints.layouts.rules import Arguments, Side, Source
from mmblocks.encoders.eva_clip_configs import AUTHORS, CONFIGS, HUB, HUB_CONFIGS, Part
from mmblocks.encoders.eva_clip_images import CLIP_IMAGES, VISION_IMAGES
from mmblocks.layers.towers.eva_layouts import BESIDE_VISUAL, WRAPPERS, eva_rules, rope_tables

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
        """Tensor ``part`` on side ``to``, made of the tensors called ``keys`` on the other."""
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
        *(Rule(f"{layer}layer_norm{index}.*", f"{block}norm{index}.*") for index in (1, 2)),
        *(Rule(f"{layer}mlp.fc{index}.*", f"{block}mlp.fc{index}.*") for index in (1, 2)),
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
        *(Rule(f"{layer}layer_norm{index}.*", f"{block}ln_{index}.*") for index in (1, 2)),
        Rule(f"{layer}mlp.fc1.*", f"{block}mlp.c_fc.*"),
        Rule(f"{layer}mlp.fc2.*", f"{block}mlp.c_proj.*"),
        Rule(f"{theirs}final_layer_norm.*", f"{model}ln_final.*"),
        Rule("text_projection.weight", f"{model}text_projection", "transpose"),
    )


def _count_difference(ids: Tensor, arguments: Arguments) -> float:
    """Of indices of places, which count from 0."""
    return float((ids.flatten() - torch.arange(ids.numel(), device=ids.device)).abs().max())


_POSITION_IDS = tuple(Derived(f"{part}_model.embeddings.position_ids", _count_difference) for part in ("vision", "text"))
_KINDS = (("eva", False), ("eva02", True))
"""Names of towers, and whether they are gated; both kinds name the tensors of a block differently."""


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
                derived=rope_tables(f"{prefix}visual.", "vision", "tower"),
                **_of_the_authors("clip"),
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for root, text in (("", "text."), ("-root", ""))
            for kind, swiglu in _KINDS
        ),
        *_hub_layouts("clip", (*vision_hub_rules("vision."), *text_hub_rules("text."), Rule("logit_scale", "logit_scale"))),
    )


def vision_layouts() -> tuple[Layout, ...]:
    """Of the image tower, alone or as a part of both."""
    return (
        *(
            Layout(
                kind,
                vision_rules("", "", swiglu=swiglu),
                ignored=PRETRAINING,
                derived=rope_tables("", "tower"),
                **_of_the_authors("vision"),
            )
            for kind, swiglu in _KINDS
        ),
        *(
            Layout(
                f"{kind}-clip{ddp}",
                vision_rules(f"{prefix}visual.", "", swiglu=swiglu),
                ignored=tuple(f"{prefix}{name}" for name in BESIDE_VISUAL),
                derived=rope_tables(f"{prefix}visual.", "tower"),
                **_of_the_authors("vision"),
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for kind, swiglu in _KINDS
        ),
        *_hub_layouts("vision", vision_hub_rules(""), "text_model.*", "text_projection.*", "logit_scale"),
    )


def text_layouts() -> tuple[Layout, ...]:
    """Of the text tower, alone or as a part of both."""
    return (
        *(
            Layout(
                f"{name}{ddp}",
                text_rules(f"{prefix}{text}", ""),
                ignored=(f"{prefix}visual.*", f"{prefix}logit_scale"),
                **_of_the_authors("text"),
            )
            for ddp, prefix in (("", ""), ("-ddp", "module."))
            for name, text in (("text", ""), ("eva-clip", "text."))
        ),
        _hub_layout("eva-clip-hub", "text", text_hub_rules(""), "vision_model.*", "visual_projection.*", "logit_scale"),
    )


def _of_the_authors(part: Part) -> dict[str, Any]:
    config, published_config = CONFIGS[part]
    return {"config": config, "published_config": published_config, "harmless": AUTHORS[part], "unwrap": WRAPPERS}


def _hub_layouts(part: Part, rules: Rules, *ignored: str) -> tuple[Layout, ...]:
    """Without and with a bias of the head, about which the config is silent."""
    names = (("eva-clip-hub", False), ("eva-clip-hub-bias", True))
    return tuple(_hub_layout(name, part, rules, *ignored, head_bias=head_bias) for name, head_bias in names)


def _hub_layout(name: str, part: Part, rules: Rules, *ignored: str, **options: bool) -> Layout:
    config, published_config = (partial(function, **options) for function in HUB_CONFIGS[part])
    images = {"clip": CLIP_IMAGES, "vision": VISION_IMAGES, "text": None}[part]
    return Layout(name, rules, ignored, config, published_config, derived=_POSITION_IDS, harmless=HUB[part], preprocessor=images)
