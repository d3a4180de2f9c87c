"""EVA-CLIP's loss over several processes, each of which really runs."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from mmblocks.training.contrastive import clip_loss
from tests.parity.cases import Case


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
    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((image, text, log_scale, options), folder / "in.pt")
        multiprocessing.spawn(one_process, (len(image), folder), nprocs=len(image))
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(len(image))]
    return [
        {name: torch.stack([result[name] for result in results]) for name in results[0]} for results in zip(*ranks, strict=True)
    ]


def one_process(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    images, texts, log_scale, options = torch.load(folder / "in.pt")
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size)
    torch.save([loss_and_gradients(images[rank], texts[rank], log_scale, choice) for choice in options], folder / f"{rank}.pt")
    distributed.barrier()  # who leaves while the others still talk may be aborted
    distributed.destroy_process_group()


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
