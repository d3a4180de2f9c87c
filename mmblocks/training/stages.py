"""Stages of a training as data: what trains, at which rate, and how much each loss counts.

for stage in EVE2_STAGES:
    optimizer = torch.optim.AdamW(stage.prepare(model))
    ...
    loss = stage.loss(model(batch).losses)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.checkpoints.layouts import patterns
from mmblocks.checkpoints.surgery.freezing import freeze


@dataclass(frozen=True)
class TrainingStage:
    """One stage of a training. What no pattern of ``rates`` fits is frozen.

        for stage in EVE2_STAGES:
            optimizer = torch.optim.AdamW(stage.prepare(model))
            ...
            loss = stage.loss(model(batch).losses)

    Args:
        name: what it is called.
        rates: pattern of parameter names, as for ``freeze`` (``"trunk.layers.{}.mlp.*"``, ``"*"`` for all) -> learning rate. Where
            several fit, the first counts. A rate of 0 freezes.
        losses: weight of each loss, by name. Others do not count.
        weight_decay: of all groups.
        warmup: share of the steps in which the rates rise from 0; they fall by a cosine afterwards. For whoever makes the schedule.
        batch_size: samples of a step in all. For whoever lays out the data.

    Examples:
        >>> from torch import nn
        >>> from mmblocks.training import TrainingStage
        >>> model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
        >>> groups = TrainingStage("head first", {"head.*": 1e-3}, weight_decay=0.1).prepare(model)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('head.*', 0.001, 2)]
        >>> model["trunk"].weight.requires_grad
        False
    """

    name: str
    rates: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=lambda: {"text": 1.0})
    weight_decay: float = 0.0
    warmup: float = 0.0
    batch_size: int | None = None

    def prepare(self, model: nn.Module) -> list[dict[str, Any]]:
        """Sets which parameters of the model train, in place.

        Returns:
            The groups that an optimizer takes, one for each pattern with a rate: ``params``, ``lr``, ``weight_decay`` and ``name``.

        Raises:
            ValueError: a pattern that fits no parameter, or none that an earlier pattern has not taken.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        taken: dict[nn.Parameter, str] = {}  # by identity: one that has two names is one parameter
        for pattern in self.rates:
            new = [p for name, p in parameters.items() if p not in taken and patterns.match(pattern, name) is not None]
            if not new:
                raise ValueError(f"stage {self.name!r} has a rate for {pattern}; no parameter is left that is called so")
            taken.update(dict.fromkeys(new, pattern))
        freeze(model, train=lambda name: self.rates.get(taken.get(parameters[name], ""), 0) > 0)
        return [
            {"params": [p for p in taken if taken[p] == pattern], "lr": rate, "weight_decay": self.weight_decay, "name": pattern}
            for pattern, rate in self.rates.items()
            if rate
        ]

    def loss(self, losses: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The weighted sum.

        Raises:
            ValueError: a loss with a weight is not there.
        """
        missing = [name for name in self.losses if name not in losses]
        if missing:
            raise ValueError(f"stage {self.name!r} weighs {', '.join(missing)}; the losses are {', '.join(losses) or 'none'}")
        return torch.stack([weight * losses[name] for name, weight in self.losses.items()]).sum()


_ALIGNED = {"text": 1.0, "alignment": 1.0}

EVE1_STAGES = (
    TrainingStage(
        "1: LLM-guided pre-training",
        {"model.inputs.vision.*": 4e-4, "alignment.*": 4e-4},
        losses=_ALIGNED,
        warmup=0.03,
        batch_size=512,
    ),
    TrainingStage("2: generative pre-training", {"*": 4e-5}, losses=_ALIGNED, warmup=0.01, batch_size=512),
    TrainingStage("3: supervised fine-tuning", {"*": 2e-5}, losses=_ALIGNED, warmup=0.01, batch_size=128),
)
"""EVEv1's, for ``nn.ModuleDict({"model": EVE1(...), "alignment": EVE1PatchAlignment(...)})``.

The losses are those of ``EVE1.aligned``. Its teacher is no part of either, and never trains.

Source: arXiv 2406.11832; scripts of baaivision/EVE.
"""

_EVE2_VISION = (
    "inputs.vision.*",
    *(f"trunk.layers.{{}}.{norm}.vision.weight" for norm in ("attention_norm", "mlp_norm")),
    *(f"trunk.layers.{{}}.attention.{name}.vision.*" for name in ("query", "key", "value", "output")),
    *(f"trunk.layers.{{}}.mlp.{name}.vision.weight" for name in ("gate", "up", "down")),
)

EVE2_STAGES = (
    TrainingStage("0: patch embedding", {"inputs.vision.*": 2e-4}, warmup=0.03, batch_size=1024),
    TrainingStage("1.0: vision weights", dict.fromkeys(_EVE2_VISION, 1e-4), warmup=0.03, batch_size=1024),
    TrainingStage("1.1: vision weights, larger images", dict.fromkeys(_EVE2_VISION, 5e-5), warmup=0.03, batch_size=1024),
    TrainingStage("2: everything", {"*": 2e-5}, warmup=0.03, batch_size=512),
    TrainingStage("3: supervised fine-tuning", {"*": 1e-5}, warmup=0.03, batch_size=512),
)
"""EVEv2's, for ``EVE2``. Between 0 and 1.0 the vision weights become copies of the text weights (``RoutedDecoder.from_decoder``).

Source: arXiv 2502.06788; scripts of baaivision/EVE.
"""
