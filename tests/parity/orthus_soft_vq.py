"""Orthus: what its language model reads in place of image tokens. Trunk and head are not here yet."""

import pytest

from mmblocks import TextEmbedding
from mmblocks.layers.soft_codes import SoftCodeEmbedding
from tests.parity.cases import Case


def run(case: Case) -> None:
    if "out.soft_weights" not in case.io:
        pytest.skip("Orthus's trunk and diffusion head, not its soft codes")
    chameleon, constants = case.config["chameleon"], case.config["constants"]
    text = TextEmbedding(vocab_size=chameleon["vocab_size"], dim=chameleon["hidden_size"])
    text.load_state_dict({"weight": case.weights["model.embed_tokens.weight"]})
    soft = case.load(SoftCodeEmbedding, chameleon, table=text, first=constants["image_code_slice"][0])

    latents = case.io["in.image_latents"]
    case.check("out.soft_weights", soft.weights(latents).flatten(0, -2))
    embeds = text(case.io["in.input_ids"])
    is_image = case.io["in.input_ids"] == constants["image_token_id"]
    case.check("out.inputs_embeds", embeds.masked_scatter(is_image[..., None], soft(latents)))
    # These pass through the trunk: the gradients are those of a loss on its output.
    case.leave_out("out.last_hidden", "out.logits", *(f"grad.{name}" for name in case.named("grad.")))
