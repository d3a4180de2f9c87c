"""The language-modelling head: a distribution over a vocabulary of text and visual ids.

Shapes: N rows, D width, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.language_models import NO_HEAD, WRAPPER, head_config, language_model
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.layers.categorical import GREEDY, Sampling, sample_ids
from mmblocks.layers.losses.row_losses import check_rows
from mmblocks.layers.losses.vocabulary_losses import vocabulary_losses
from mmblocks.support.checks import check_range

_HEAD = "lm_head.weight"
_BIAS = Rule("lm_head.bias", "bias")
_EMBEDDING = "model.embed_tokens.weight"


def _layout(name: str, theirs: str, *, wrapper: str = "", within: str = "", tied: str | None = None) -> Layout:
    """A head in a whole language model.

    Args:
        name: the layout's.
        theirs: the tensor.
        wrapper: ``model_type`` of a larger model, whose ``llm_config`` describes the language model.
        within: what the language model's tensors are called before their own names; a larger model has others beside them.
        tied: the other name of a tensor that is the embedding's.
    """

    def config(published: Mapping[str, Any]) -> dict[str, Any]:
        only(published, "tie_word_embeddings", tied is not None)
        return head_config(language_model(published, wrapper) if wrapper else published, tied=tied is not None)

    return Layout(
        name,
        (Rule(f"{within}{theirs}", "weight"), *(() if within else (_BIAS,))),
        ignored=(f"{within}model.*", *(("vision_model.*", "mlp1.*") if within else ()), *((f"{within}{tied}",) if tied else ())),
        config=config,
        same=((f"{within}{theirs}", f"{within}{tied}"),) if tied else (),
        harmless=tuple(f"llm_config.{name}" for name in NO_HEAD) + WRAPPER if wrapper else NO_HEAD,
    )


class LMHead(Block):
    """One linear map to logits; cross entropy to learn, a categorical distribution to sample from.

    Args:
        dim: width of the hidden states.
        vocab_size: number of ids.
        init_std: standard deviation of the initial weights.
        scale: what the logits are multiplied by (Cohere, Granite, MiniCPM).
        softcap: c where c * tanh(logits / c) takes their place, after the scale (Gemma 2); None for none.
        bias: whether each id has an offset, which is added before both (Phi).

    Raises:
        ValueError: a scale or a cap that is not above 0.

    Examples:
        >>> import torch
        >>> from mmblocks import GREEDY, LMHead
        >>> head = LMHead(dim=8, vocab_size=100)
        >>> hidden = torch.randn(3, 8)
        >>> tuple(head.loss(hidden, torch.tensor([5, 17, 99])).shape)
        (3,)
        >>> bool((head.sample(hidden, sampling=GREEDY) == head.logits(hidden).argmax(-1)).all())
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        _layout("llama", _HEAD),
        _layout("llama-tied", _EMBEDDING, tied=_HEAD),
        _layout("neo", _HEAD, wrapper="neo_chat", within="language_model."),
        _layout("neo-tied", _EMBEDDING, wrapper="neo_chat", within="language_model.", tied=_HEAD),
        _layout("mono-internvl", "output.weight", wrapper="internvl_chat", within="language_model."),
    )

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int,
        init_std: float = 0.02,
        scale: float = 1.0,
        softcap: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("softcap", softcap)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; accepted: above 0, and finite")
        self.vocab_size, self.scale, self.softcap = vocab_size, scale, softcap
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None
        nn.init.normal_(self.weight, std=init_std)

    def logits(self, hidden: Float[Tensor, "*N D"], start: int = 0, stop: int | None = None) -> Float[Tensor, "*N V"]:
        """Logits in float32 of the ids ``start:stop``; all of them by default.

        Where only visual ids can come next, their rows of the weight alone are read.
        """
        logits = linear(hidden, self.rows[start:stop], None if self.bias is None else self.bias[start:stop]).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    @property
    def rows(self) -> Float[Tensor, "V D"]:
        """The weight: what each id's logit is the product with."""
        return self.weight

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Int[Tensor, " N"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """Cross entropy of each row, in float32; a few rows' logits are held at a time, never all.

        Args:
            hidden: states from which the next ids are predicted.
            target: the ids that came.
            weight: factor per row; 0 leaves a row out.

        Raises:
            ValueError: shapes that do not fit, or an id out of range (checked on CPU).
        """
        check_rows(hidden, target, weight)
        check_range("target", target, self.vocab_size)
        return vocabulary_losses(hidden, self.rows, target, self.bias, weight, scale=self.scale, softcap=self.softcap)

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
            hidden: states from which the next ids are predicted.
            sampling: temperature and truncation.
            allowed: False for ids that must not come.
            generator: source of randomness.
            gumbel: the noise itself, standard Gumbel, in place of a generator.
        """
        logits = self.logits(hidden)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        return sample_ids(logits, sampling, generator=generator, gumbel=gumbel)
