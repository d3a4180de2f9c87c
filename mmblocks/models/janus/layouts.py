"""The names of tensors in the published files of Janus: the authors' own, and transformers'."""

from collections.abc import Iterable

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.layers.towers.siglip import siglip_rules, siglip_timm_rules
from mmblocks.models.janus.config import (
    JANUS_IMAGES,
    TRANSFORMERS_IMAGES,
    janus_config,
    published_janus,
    published_transformers,
    transformers_config,
)
from mmblocks.trunks.decoder_layouts import LLAMA_RULES
from mmblocks.trunks.derived_tables import inverse_frequencies
from mmblocks.trunks.llama_config import LLAMA_HARMLESS

_MOST_LAYERS = 4
"""As many linear layers as aligners are read with at most."""

_TOWER, _ALIGNER, _CODE_ALIGNER = "inputs.vision.encoder.tower.", "inputs.vision.connector.", "inputs.codes.connector."
_ANGLES = "layers.{}.self_attn.rotary_emb.inv_freq"


def _language(prefix: str) -> tuple[Rule, ...]:
    """The rules of the language model, whose tensors begin with ``prefix`` in the file."""
    rules = (rule for rule in LLAMA_RULES if "q_norm" not in rule.theirs and "k_norm" not in rule.theirs)
    return (
        Rule(f"{prefix}embed_tokens.weight", "inputs.text.weight"),
        *(Rule(prefix + rule.theirs.removeprefix("model."), f"trunk.{rule.ours}") for rule in rules),
    )


def _aligner(names: Iterable[str], ours: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{name}.*", f"{ours}layers.{index}.*") for index, name in enumerate(names))


def _every_second(theirs: str) -> list[str]:
    """The names of linear layers between which activations are counted too."""
    return [f"{theirs}layers.{2 * index}" for index in range(_MOST_LAYERS)]


def _first_and_hidden(theirs: str) -> list[str]:
    return [f"{theirs}fc1", *(f"{theirs}hidden_layers.{index}" for index in range(_MOST_LAYERS - 1))]


_RULES: tuple[Rule | Split, ...] = (
    *siglip_timm_rules("vision_model.vision_tower.", _TOWER),
    *_aligner(_every_second("aligner."), _ALIGNER),
    *_aligner(_every_second("gen_aligner."), _CODE_ALIGNER),
    Rule("gen_embed.weight", "inputs.codes.table.weight"),
    Rule("gen_head.output_mlp_projector.*", "outputs.codes.project.*"),
    Rule("gen_head.vision_head.*", "outputs.codes.*"),
    *_language("language_model.model."),
    Rule("language_model.lm_head.weight", "outputs.text.weight"),
)

_TRANSFORMERS_RULES = (
    # transformers calls one layer of the tower otherwise than SigLIP's own
    Rule("model.vision_model.encoder.layers.{}.self_attn.projection_layer.*", f"{_TOWER}layers.{{}}.attention.out.*"),
    *(
        rule
        for rule in siglip_rules("model.vision_model.", _TOWER)
        if "out_proj" not in rule.theirs and not rule.theirs.startswith("model.vision_model.head.")
    ),
    *_aligner(_first_and_hidden("model.aligner."), _ALIGNER),
    *_aligner(_first_and_hidden("model.generation_aligner."), _CODE_ALIGNER),
    Rule("model.generation_embeddings.weight", "inputs.codes.table.weight"),
    Rule("model.generation_head.proj_out.*", "outputs.codes.project.*"),
    Rule("model.generation_head.vision_head.*", "outputs.codes.*"),
    *_language("model.language_model."),
    Rule("lm_head.weight", "outputs.text.weight"),
)

_VISION_TRAINING = ("initializer_range", "projection_dropout", "hidden_dropout_rate")
_VQ = (
    *("double_latent", "latent_channels", "in_channels", "out_channels", "base_channels", "channel_multiplier"),
    *("num_res_blocks", "num_patches", "depth"),
)
"""Of the image tokenizer, which is a part of its own; ``depth`` is read by nobody."""

JANUS_LAYOUTS = (
    Layout(
        "janus",
        _RULES,
        # The image tokenizer, and a pooling of SigLIP's that the authors' code holds and does not use.
        ignored=("gen_vision_model.*", "vision_model.vision_tower.attn_pool.*"),
        config=janus_config,
        published_config=published_janus,
        derived=(inverse_frequencies(f"language_model.model.{_ANGLES}"),),
        harmless=(
            *(f"language_config.{name}" for name in LLAMA_HARMLESS),
            *("vision_config.params.select_feature", "vision_config.params.ckpt_path"),  # the first is for towers of other kinds
            "tie_word_embeddings",
        ),
        preprocessor=JANUS_IMAGES,
    ),
    Layout(
        "janus-transformers",
        _TRANSFORMERS_RULES,
        ignored=("model.vqmodel.*",),
        config=transformers_config,
        published_config=published_transformers,
        derived=(inverse_frequencies(f"model.language_model.{_ANGLES}"),),
        harmless=(
            *(f"text_config.{name}" for name in LLAMA_HARMLESS),
            *(f"vision_config.{name}" for name in _VISION_TRAINING),
            *(f"vq_config.{name}" for name in (*_VQ, "initializer_range")),
            "image_token_id",
        ),
        preprocessor=TRANSFORMERS_IMAGES,
    ),
)
