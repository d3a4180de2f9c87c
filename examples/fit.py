"""The training loop of the examples: AdamW, warm-up and cosine decay, clipped gradients, a progress bar."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    model: nn.Module, next_loss: Callable[[int], Tensor], num_steps: int, *, lr: float, what: str, weight_decay: float = 0.05
) -> list[float]:
    """Trains ``model`` on what ``next_loss(step)`` returns; gives the losses back and leaves the model in eval mode."""
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    warm_up = max(num_steps // 20, 1)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / num_steps)))
    losses: list[float] = []
    model.train()
    bar = tqdm(range(num_steps), desc=what, disable=None)  # no bar where there is no terminal
    for step in bar:
        loss = next_loss(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses
