"""Emu2: pooled features as tokens, regressed one after the other; both heads read the same states."""

from mmblocks.connectors.emu2 import Emu2UpProjection
from mmblocks.heads import RegressionHead
from mmblocks.tokenizers.emu2_latents import Emu2Latents
from tests.parity.cases import Case
from tests.parity.heads.emu1_regression import language_parts, published_config, regress, table_of

MANIFESTS = {
    **{name: [(RegressionHead, "emu2")] for name in ("emu2_native", "emu2_chat_native", "emu2_visual_projections")},
    "emu2_hf": [(RegressionHead, "emu2-hub")],
}


def run(case: Case) -> None:
    parts = language_parts(case)
    config = published_config(case)
    head, up = case.load(RegressionHead, config, layout="emu2"), case.load(Emu2UpProjection, config, layout="emu2")
    ids, mask = case.io["in.prompt_input_ids"], case.io["in.prompt_attention_mask"]
    marks, real = case.config["token_ids"], case.io["in.prompt_attention_mask"] == 1
    embeds = parts["embed"](ids)
    if "in.image" in case.io:
        latents = case.load(Emu2Latents, config, layout="emu2")
        tokens = latents.encoder(case.io["in.image"])  # after the tokenizer's own normalisation
        of_images = up.projection(latents.pool(tokens).flatten(1, 2))
        case.check("out.prompt_image_embeds", of_images)
        embeds = embeds.masked_scatter((ids == marks["<image>"])[..., None], of_images)
    hidden = parts["trunk"](embeds, table_of(mask))
    case.check("out.prompt_inputs_embeds", embeds)
    case.check("out.prompt_hidden", hidden * real[..., None])
    case.check("out.prompt_logits", parts["lm"].logits(hidden) * real[..., None])

    count = case.config["vision_cfg"]["n_query"]
    found, last_ids, last_mask, states = regress(parts, head, embeds, ids, mask, count, marks, up.projection)
    case.check("out.generated_embeds", found)
    case.check("out.gen_last_input_ids", last_ids)
    case.check("out.gen_last_attention_mask", last_mask)
    case.check("out.gen_last_hidden", states)
