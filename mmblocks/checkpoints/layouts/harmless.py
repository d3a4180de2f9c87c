"""Entries of published configs that change no numbers of any part, in whatever config they stand."""

from collections.abc import Collection

from mmblocks.checkpoints.layouts.patterns import match
from mmblocks.checkpoints.layouts.published_config import PublishedConfig, shown

TEXT = ("note", "notes", "comment", "description", "source", "source_of_config", "_commit_hash")
"""Notes for people."""

LIBRARY = (
    "_name_or_path",
    "name_or_path",
    "_diffusers_version",
    "transformers_version",
    "auto_map.*",
    "tokenizer_class",
    "processor_class",
    "torch_dtype",
    "dtype",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "_experts_implementation",
    "experts_implementation",
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "return_dict_in_generate",
    "chunk_size_feed_forward",
    "pretraining_tp",
    "ignore_keys_at_rope_validation",
)
"""What transformers and diffusers write for themselves: where a file came from, how it is run, what is returned beside the output.

Pieces of a feed-forward layer, and of a projection over several devices, are added up in another order; that is all.
"""

TRAINING = (
    "attention_dropout",
    "attention_dropout_prob",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "attn_pdrop",
    "drop_path_rate",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "classifier_dropout",
    "classifier_dropout_prob",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
    "residual_dropout",
    "initializer_factor",
    "initializer_range",
    "gradient_checkpointing",
    "use_gradient_checkpointing",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
)
"""What counts while a model is trained: dropout, initial weights, memory, losses beside the head's. Parts here are built anew with
arguments of their own for it."""

GENERATION = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "begin_suppress_tokens",
    "suppress_tokens",
    "prefix",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "max_length",
    "min_length",
    "num_return_sequences",
    "remove_invalid_values",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
"""How transformers draws ids, and which ids are special: those who call a part say both themselves."""

LABELS = ("id2label.*", "label2id.*", "num_labels", "problem_type", "finetuning_task", "task_specific_params.*")
"""Names of classes, which a classifier alone has."""

_ANYWHERE = (*TEXT, *LIBRARY, *TRAINING, *GENERATION, *LABELS)

_AS_USUAL = {"add_cross_attention": False, "is_decoder": False, "is_encoder_decoder": False, "tie_encoder_decoder": False}
"""What every config of transformers used to say, and what says nothing as long as it says this."""


def is_harmless(key: str, value: object, patterns: Collection[str]) -> bool:
    """Whether an entry changes no numbers.

    Args:
        key: the name, with dots where it stands inside others.
        value: what it says.
        patterns: names and patterns that a layout has beside those of this module, from the top of the config.
    """
    if any(match(pattern, key) is not None for pattern in patterns):
        return True
    name = key.rpartition(".")[2]
    if name in _ANYWHERE or (name in _AS_USUAL and value is _AS_USUAL[name]):
        return True
    parts = key.split(".")
    tails = (".".join(parts[start:]) for start in range(len(parts)))
    return any(match(pattern, tail) is not None for tail in tails for pattern in _PATTERNS)


def check_read(config: PublishedConfig, harmless: Collection[str], whose: str, prefix: str = "") -> None:
    """Refuses a config with entries that nobody has read, and that are not known to change no numbers.

    Args:
        config: the config, once it has been read.
        harmless: see ``is_harmless``.
        whose: what does not know them, or where they stand.
        prefix: of the entries' names for ``ignored_entries``.

    Raises:
        ValueError: names such entries.
    """
    unread = {key: value for key, value in config.unread().items() if not is_harmless(key, value, harmless)}
    if unread:
        first = ", ".join(f"{prefix}{key} = {shown(value)}" for key, value in list(unread.items())[:5])
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        raise ValueError(
            f"the config has entries that {whose} does not know: {first}{more}; accepted: a config without them. If they change no"
            " numbers, name them in from_pretrained(..., ignored_entries=...)"
        )


_PATTERNS = tuple(pattern for pattern in _ANYWHERE if pattern.endswith("*"))

LANGUAGE_MODEL = (
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters.*",
    "rope_scaling.*",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
"""Of a language model of the Llama family, for layouts of the other parts that lie in its file."""
