"""EVEv2 as a whole: embedded tokens, logits, loss, gradients, and a step after the cache."""

import torch
from torch import Tensor

from mmblocks import LMHead, TokenTable, image, text
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, denormalise
from mmblocks.models import EVE2
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.tokens import Modality
from mmblocks.trunks import RoutedDecoder
from tests.parity.cases import Case

MANIFESTS = {"eve_7b_hd_v2": [(EVE2, "eve2"), (RoutedDecoder, "eve2"), (EVE2PatchEmbedding, "eve2"), (LMHead, "llama")]}

DECODED_ID = 5
"""The text token of the step after the cache, as the case notes say."""


def run(case: Case) -> None:
    model = load(case)
    batch = batch_of(case, model)
    real = ~batch.table.is_padding
    case.check("out.attention_mask_expanded", real)
    case.check("out.visual_token_mask", (batch.table.modality == Modality.VISION)[..., None].float())
    check_labels(case, batch)

    case.check("out.inputs_embeds", model.embed(batch))
    output = model(batch)
    case.check("out.logits", model.outputs["text"].logits(output.hidden), where=real)
    case.check("out.loss", output.losses["text"][None])
    output.losses["text"].backward()
    case.check_gradients(model, "eve2")
    if "out.decode_logits" in case.io:
        case.check("out.decode_logits", decoded(model, batch))


def load(case: Case) -> EVE2:
    return case.load(EVE2, {name: value for name, value in case.config.items() if name != "IMAGE_TOKEN_INDEX"})


def batch_of(case: Case, model: EVE2) -> Batch:
    images = [case.io[f"in.pixel_values_{number}"] for number in range(len(case.named("in.pixel_values_")))]
    pixels = [denormalise(one, CLIP_MEAN, CLIP_STD).clamp(0, 1) for one in images]
    return model.batch_builder()(samples_of(case, pixels))


def samples_of(case: Case, images: list[Tensor]) -> list[list[Segment]]:
    """Each row's text, in runs of learned and unlearned ids, and its images where the placeholders stand.

    A row without an image uses up one all the same, as upstream.
    """
    given, samples = iter(images), []
    placeholder = case.config.get("IMAGE_TOKEN_INDEX", -200)
    for ids, real, labels in zip(case.io["in.input_ids"], case.io["in.attention_mask"], case.io["in.labels"], strict=True):
        sample: list[Segment] = []
        for token, label in zip(ids[real].tolist(), labels[real].tolist(), strict=True):
            assert label in (token, -100)
            if token == placeholder:
                sample.append(image(next(given)))
            else:
                sample.append(text([token], target=None if label == -100 else "text"))
        if placeholder not in ids[real].tolist():
            next(given, None)
        samples.append(sample)
    return samples


def check_labels(case: Case, batch: Batch) -> None:
    """What is learned, one place later than where it is asked."""
    labels = torch.full(batch.ids.shape, -100)
    placed = batch.targets["text"]
    labels.view(-1)[placed.places + 1] = placed.values
    case.check("out.labels_expanded", labels)


@torch.no_grad()
def decoded(model: EVE2, batch: Batch) -> Tensor:
    rows, length = batch.ids.shape
    cache = model.trunk.new_cache(rows, length + 1)
    model.trunk(model.embed(batch), batch.table, cache)
    table = TokenTable.text(rows, length + 1).slice(length, length + 1)
    hidden = model.trunk(model.inputs["text"](torch.full((rows, 1), DECODED_ID)), table, cache)
    return model.outputs["text"].logits(hidden)
