"""EVA-CLIP's loss over several processes, each of which really runs."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmblocks.training.contrastive import clip_loss
from tests.parity.cases import Case
from tests.training.processes import results_of_processes


def run(case: Case) -> None:
    options = {
        "local": case.config["local_loss"],
        "gather_gradients": case.config["gather_with_grad"],
        "label_smoothing": case.config.get("smoothing", 0.0),
    }
    inputs = (case.io[f"in.{name}"] for name in ("image_features", "text_features", "log_logit_scale"))
    (results,) = in_processes(*inputs, [options])
    for name in case.io:
        if name.startswith(("out.", "loss.", "grad.")):
            case.check(name, results[name])


def in_processes(image: Tensor, text: Tensor, log_scale: Tensor, options: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Loss, accuracies and gradients of every process, for each choice of options.

    The first dimension of the embeddings, and of the results, says whose they are.
    """
    ranks = results_of_processes(partial(of_one_process, image, text, log_scale, options), num_processes=len(image))
    return [
        {name: torch.stack([result[name] for result in results]) for name in results[0]} for results in zip(*ranks, strict=True)
    ]


def of_one_process(
    images: Tensor, texts: Tensor, log_scale: Tensor, options: list[dict[str, Any]], rank: int
) -> list[dict[str, Tensor]]:
    return [loss_and_gradients(images[rank], texts[rank], log_scale, choice) for choice in options]


def loss_and_gradients(image: Tensor, text: Tensor, log_scale: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    image, text, log_scale = (value.clone().requires_grad_() for value in (image, text, log_scale))
    loss, image_to_text, text_to_image = clip_loss(image, text, log_scale.exp(), **options)
    loss.backward()
    return {
        "loss.per_rank": loss.detach(),
        "out.acc_i2t": image_to_text,
        "out.acc_t2i": text_to_image,
        "grad.@image_features": image.grad,
        "grad.@text_features": text.grad,
        "grad.@logit_scale": log_scale.grad,
    }
