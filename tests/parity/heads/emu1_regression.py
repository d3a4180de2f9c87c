"""Emu: images as embeddings that a language model reads and regresses, one after the other."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from mmblocks import LMHead, text, vectors
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.embedders import EncoderEmbedder
from mmblocks.encoders import EVACLIPVision
from mmblocks.heads import RegressionHead
from mmblocks.models import Emu
from mmblocks.models.emu.format import EmuFormat
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.segments import NO_ID, Segment
from tests.parity.cases import Case

MANIFESTS = {
    "emu1_pretrain_multimodal_encoder": [(RegressionHead, "emu"), (Emu, "emu")],
    "emu1_instruct_lora": [(Emu, "emu-instruct")],
}


def run(case: Case) -> None:
    embed_dim, count = case.weights["visual.head.weight"].shape[0], case.config["n_causal"]
    config = {**published_config(case), "vladapter_cfg": {"n_causal": count}, "embed_dim": embed_dim}
    model, form = case.load(Emu, config, layout="emu"), format_of(case, Emu.format)
    vision = cast(EncoderEmbedder, model.inputs["vision"])
    tower, former = cast(EVACLIPVision, vision.encoder).tower, cast(CausalFormer, vision.connector)
    head, words = cast(RegressionHead, model.outputs["embeddings"]), cast(LMHead, model.outputs["text"])

    tokens = tower(case.io["in.image"])  # after the embedder's own normalisation
    images = former(tokens)
    case.check("out.visual_tokens", tokens)
    case.check("out.image_embeds", images)

    ids, real = case.io["in.input_ids"], case.io["in.attention_mask"] == 1
    batch = model.batch_builder()(samples_of(ids, real, form, images))
    assert torch.equal(ids_of(batch, form), ids)
    embeds, output = model.embed(batch), model(batch)
    hidden = output.hidden
    case.check("out.inputs_embeds", embeds, where=real)
    case.check("out.hidden", hidden, where=real)
    case.check("out.logits", words.logits(hidden), where=real)

    learned = batch.targets["text"]
    labels = torch.full_like(ids, -100)
    labels[:, 0] = ids[:, 0]  # which nothing predicts
    labels.flatten()[learned.places + 1] = cast(Tensor, learned.values)
    case.check("out.labels", labels)
    case.check("loss.llm", output.losses["text"])

    # Upstream prepares one prediction more for each image than is learned here: that of the id that closes it, by its vector.
    is_image, marks = ids == form.ids["<image>"], form.ids
    predicting = is_image | (ids == marks["[IMG]"])
    case.check("out.regress_mask", predicting)
    wanted = embeds[is_image | (ids == marks["[/IMG]"])].detach()
    case.check("out.regress_labels", wanted)
    predicted = head.sample(hidden[predicting])
    case.check("out.regress_pred", predicted)
    ours = (predicted - wanted).square().mean(-1).unflatten(0, (-1, count + 1))[:, :-1].flatten()
    torch.testing.assert_close(output.token_losses["embeddings"], ours)

    made = model.embeddings(samples_of(ids, real, form, images), form)
    case.check("out.generated_embeds", made)
    # The ids upstream feeds in its last step: after the text, before the padding of shorter rows.
    last = finished(model, samples_of(ids, real, form, images), made, form, padding="right")
    case.check("out.gen_last_input_ids", ids_of(last, form))
    case.check("out.gen_last_attention_mask", ~last.table.is_padding)


def published_config(case: Case) -> dict[str, Any]:
    """Without notes on how the case was made, and with the vocabulary that its weights have."""
    notes = ("n_causal", "texts", "vocab_after_special_tokens")
    config = {name: value for name, value in case.config.items() if name not in notes}
    return {**config, "vocab": case.config["vocab_after_special_tokens"]}


def format_of(case: Case, form: EmuFormat) -> EmuFormat:
    """The format with the ids of the case."""
    return replace(form, ids={"<s>": 1, "</s>": 2, **case.config["token_ids"]})


def samples_of(ids: Tensor, real: Tensor, form: EmuFormat, images: Tensor | None) -> list[list[Segment]]:
    """Each row of ids as segments, with images in reading order over all rows; text is learned, and what lies around images not."""
    left = iter(() if images is None else images)
    return [list(_segments(row[keep].tolist(), form, left)) for row, keep in zip(ids, real, strict=True)]


def _segments(ids: list[int], form: EmuFormat, images: Iterator[Tensor]) -> Iterator[Segment]:
    around = (form.begin, form.end)
    for kind, run in groupby(ids, lambda one: "image" if one == form.ids["<image>"] else "around" if one in around else "text"):
        if kind == "image":
            yield vectors(next(images).detach(), input="embeddings", target="embeddings")
        else:
            yield text(list(run), target="text" if kind == "text" else None)


def ids_of(batch: Batch, form: EmuFormat) -> Tensor:
    """A batch as upstream has it: an id for embeddings, and one for padding."""
    ids = torch.where(batch.ids == NO_ID, form.ids["<image>"], batch.ids)
    return torch.where(batch.table.is_padding, form.ids["[PAD]"], ids)


def finished(
    model: Any, prompts: list[list[Segment]], made: Tensor, form: EmuFormat, *, padding: Any
) -> Batch:  # of the models that generate so
    """The prompts, and all embeddings that were made but the last, as one batch."""
    rows = [[*prompt, text([form.begin]), vectors(one[:-1], input="embeddings")] for prompt, one in zip(prompts, made, strict=True)]
    batch: Batch = model.batch_builder()(rows, padding=padding, learn=False)
    return batch
