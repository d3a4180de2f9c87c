"""Emu2: pooled features as tokens, regressed one after the other; both heads read the same states."""

from typing import cast

from mmblocks import LMHead
from mmblocks.heads import RegressionHead
from mmblocks.models import Emu2
from tests.parity.cases import Case
from tests.parity.heads.emu1_regression import finished, format_of, ids_of, published_config, samples_of

MANIFESTS = {
    **{name: [(RegressionHead, "emu2"), (Emu2, "emu2")] for name in ("emu2_native", "emu2_chat_native")},
    "emu2_visual_projections": [(RegressionHead, "emu2")],
    "emu2_hf": [(RegressionHead, "emu2-hub"), (Emu2, "emu2-hub")],
}


def run(case: Case) -> None:
    model, form = case.load(Emu2, published_config(case), layout="emu2"), format_of(case, Emu2.format)
    ids, real = case.io["in.prompt_input_ids"], case.io["in.prompt_attention_mask"] == 1
    features = None
    if "in.image" in case.io:
        tokens = model.latents.encoder(case.io["in.image"])  # after the tokenizer's own normalisation
        features = model.latents.pool(tokens).flatten(1, 2)
        case.check("out.prompt_image_embeds", model.inputs["embeddings"](features))
    prompts = samples_of(ids, real, form, features)
    batch = model.batch_builder()(prompts, padding="left")
    assert ids_of(batch, form).tolist() == ids.tolist()
    hidden = model(batch).hidden
    case.check("out.prompt_inputs_embeds", model.embed(batch), where=real)
    case.check("out.prompt_hidden", hidden * real[..., None])
    case.check("out.prompt_logits", cast(LMHead, model.outputs["text"]).logits(hidden) * real[..., None])

    made = model.embeddings(prompts, form)
    case.check("out.generated_embeds", made)
    last = finished(model, prompts, made, form, padding="left")
    case.check("out.gen_last_input_ids", ids_of(last, form))
    case.check("out.gen_last_attention_mask", ~last.table.is_padding)
    case.check("out.gen_last_hidden", model.hidden(last) * ~last.table.is_padding[..., None])
