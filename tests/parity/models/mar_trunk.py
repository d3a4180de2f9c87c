"""MAR's encoder and decoder: states, and with a per-token head around them the loss and whole samples.

No component of its own: the adapter of ``mar_diffloss`` hands its cases with a trunk to ``run_trunk``.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor

from mmblocks.heads.mar import MARDiffusionHead
from mmblocks.layers.diffusion.random_orders import mask_counts
from mmblocks.layers.losses.row_losses import weighted_mean
from mmblocks.models.mar.model import MAR
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from tests.parity.cases import Case

MANIFESTS = {f"mar_{size}_full": [(MAR, "mar"), (MARDiffusionHead, "mar")] for size in ("base", "large", "huge")}

SAMPLING = ("cfg", "cfg_schedule", "temperature", "num_iter")
"""What a case's config has beside the model's own arguments."""


def run_trunk(case: Case, head: Any) -> None:
    """Args: the case, and the head read from it."""
    model = case.load(MAR, {name: value for name, value in case.config.items() if name not in SAMPLING})
    if "in.latents" in case.io:
        check_forward(case, model, head)
    else:
        check_sampling(case, model, head)


def check_forward(case: Case, model: MAR, head: Any) -> None:
    tokens = model.to_tokens(channels_last(case.io["in.latents"]))
    mask, labels = case.io["in.mask"].bool(), case.io["in.labels"]
    case.check("out.tokens", tokens)
    case.check("out.unpatchified", channels_first(model.to_latents(tokens)))
    encoded = model.encode(tokens, mask, labels)
    case.check("out.encoder_out", encoded)
    case.check("out.z", model.decode(encoded, mask))
    losses = model.loss(head, tokens, labels, mask=mask, t=case.io["in.t"], noise=case.io["in.noise"])
    case.check("loss.total", weighted_mean(losses.flatten(), mask.flatten().float()))


def check_sampling(case: Case, model: MAR, head: Any) -> None:
    labels, orders, config = case.io["in.labels"], case.io["in.orders"], case.config
    num_steps, guidance = config["num_iter"], config.get("cfg", 1.0)
    counts = [model.num_tokens, *mask_counts(model.num_tokens, num_steps)]
    asked = [len(labels) * (before - after) for before, after in pairwise(counts)]
    options = {
        "guidance": guidance,
        "schedule": config.get("cfg_schedule", "linear"),
        "temperature": config.get("temperature", 1.0),
    }
    draws = streams(case, asked, 1 if guidance == 1.0 else 2)
    tokens = model.sample(head, labels, num_steps=num_steps, orders=orders, step_options=draws, **options)
    case.check("out.latents", channels_first(model.to_latents(tokens)))


def streams(case: Case, asked: list[int], copies: int) -> list[dict[str, Tensor]]:
    """Each step's part of the stored draws; those of the unconditional rows, which nobody reads, are left out."""
    begin, steps = case.io["in.init_noise"], case.io["in.step_noise"]
    num_steps = len(steps) // (copies * sum(asked))
    taken = zip(begin.split(asked), steps.split([num_steps * copies * count for count in asked]), strict=True)
    return [{"noise": first, "step_noise": rest.view(num_steps, -1, rest.shape[-1])[:, : len(first)]} for first, rest in taken]
