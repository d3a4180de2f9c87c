"""The language-modelling head: a distribution over a vocabulary of text and visual ids.

Shapes: N rows, D width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts import Layout, Rule
from mmblocks.checks import check_range
from mmblocks.layers.categorical import GREEDY, Sampling, draw
from mmblocks.layers.row_losses import check_rows
from mmblocks.layers.vocabulary_losses import vocabulary_losses


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"vocab_size": config["vocab_size"], "dim": config["hidden_size"]}


def _inner_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return _config(config["llm_config"])


class LMHead(Block):
    """One linear map to logits; cross entropy to learn, a categorical draw to sample.

    Args:
        dim: width of the hidden states.
        vocab_size: number of ids.
        init_std: standard deviation of the initial weights.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llama",
            (Rule("lm_head.weight", "weight"),),
            ignored=("model.*",),
            config=_config,
        ),
        Layout(
            "neo",
            (Rule("language_model.lm_head.weight", "weight"),),
            ignored=("language_model.model.*", "vision_model.*"),
            config=_inner_config,
        ),
        Layout(
            "mono-internvl",
            (Rule("language_model.output.weight", "weight"),),
            ignored=("language_model.model.*", "vision_model.*", "mlp1.*"),
            config=_inner_config,
        ),
    )

    def __init__(self, *, dim: int, vocab_size: int, init_std: float = 0.02) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.normal_(self.weight, std=init_std)

    def logits(self, hidden: Float[Tensor, "*N D"], start: int = 0, stop: int | None = None) -> Float[Tensor, "*N V"]:
        """Logits in float32 of the ids ``start:stop``; all of them by default.

        Where only visual ids can come next, their rows of the weight alone are read.
        """
        return linear(hidden, self.rows[start:stop]).float()

    @property
    def rows(self) -> Float[Tensor, "V D"]:
        """The weight: what each id's logit is the product with."""
        return self.weight

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, " N"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """Cross entropy of each row, in float32; a few rows' logits are held at a time, never all.

        Args:
            hidden: states that are asked what comes next.
            target: the ids that came.
            weight: factor per row; 0 leaves a row out.

        Raises:
            ValueError: shapes that do not fit, or an id out of range (checked on CPU).
        """
        check_rows(hidden, target, weight)
        check_range("target", target, self.vocab_size)
        return vocabulary_losses(hidden, self.rows, target, weight=weight)

    def sample(
        self,
        hidden: Float[Tensor, "N D"],
        *,
        sampling: Sampling = GREEDY,
        allowed: Bool[Tensor, "N V"] | None = None,
        generator: Generator | None = None,
        gumbel: Float[Tensor, "N V"] | None = None,
    ) -> Int[Tensor, " N"]:
        """One id per row.

        Args:
            hidden: states that are asked what comes next.
            sampling: temperature and truncation.
            allowed: False for ids that must not come.
            generator: source of randomness.
            gumbel: the random draws themselves, standard Gumbel noise, in place of a generator.
        """
        logits = self.logits(hidden)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        return draw(logits, sampling, generator=generator, gumbel=gumbel)
