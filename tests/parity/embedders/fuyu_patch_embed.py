"""Fuyu's patch embedding, alone and in front of transformers' own language model."""

import warnings
from typing import Any

import torch
from torch import Tensor

from mmblocks.embedders.fuyu import FuyuPatchEmbedding
from tests.parity.cases import Case

MANIFESTS = {"fuyu_8b": [(FuyuPatchEmbedding, "fuyu")]}


def run(case: Case) -> None:
    stem = case.load(FuyuPatchEmbedding, layout="fuyu")
    images = list(case.io["in.image"])
    patches = stem.embed(images).embeds.unflatten(0, (len(images), -1))
    case.check("out.patch_embeddings", patches)

    model = language_model(case)
    embeds = model.get_input_embeddings()(case.io["in.input_ids"]).clone()
    spans, newline_id = image_spans(case, stem)
    newline = model.get_input_embeddings().weight[newline_id]
    tokens = stem.embed(images, newline)
    for number, span in enumerate(spans):
        embeds[number, span] = tokens.embeds[tokens.image == number]
    made = model(inputs_embeds=embeds, labels=case.io["in.labels"], attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long))
    case.check("out.logits", made.logits)
    case.check("out.loss", made.loss[None])
    if case.named("grad."):
        made.loss.backward()
        case.check_gradients(stem, "fuyu")


def image_spans(case: Case, stem: FuyuPatchEmbedding) -> tuple[list[slice], int]:
    """Where the image's tokens lie in each row, newlines included; and the id of the newline."""
    ids: Tensor = case.io["in.input_ids"]
    length = len(stem.layout(*case.io["in.image"].shape[2:], newline=True).kind)
    starts = (ids == case.config["image_token_id"]).long().argmax(dim=1).tolist()
    return [slice(start, start + length) for start in starts], int(ids[0, starts[0] + length - 1])


def language_model(case: Case) -> Any:
    """The official model. Only what lies after the embeddings is used."""
    from transformers import FuyuConfig, FuyuForCausalLM

    own = {"image_size", "patch_size", "num_channels", "image_token_id", "tie_word_embeddings"}
    text = {name: value for name, value in case.config.items() if name not in own}
    text["rope_parameters"] = {
        "rope_theta": text.pop("rope_theta"),
        "partial_rotary_factor": text.pop("partial_rotary_factor"),
        "rope_type": "default",
    }
    # Older releases read the width from the whole model's config, newer ones from that of its text.
    config = FuyuConfig(text_config=text, hidden_size=text["hidden_size"], **{name: case.config[name] for name in own})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FuyuForCausalLM(config).eval()
    model.load_state_dict(case.weights)
    return model
