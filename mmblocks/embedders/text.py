"""A learned vector per token id."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.language_models import NO_EMBEDDING, WRAPPER, embedding_config, language_model
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.support.checks import check_range


def _inner_config(config: Mapping[str, Any], wrapper: str) -> dict[str, Any]:
    return embedding_config(language_model(config, wrapper))


_INNER = (*(f"llm_config.{name}" for name in NO_EMBEDDING), *WRAPPER)


class TextEmbedding(Block):
    """Looks ids up in a table of vectors; of visual codes too, where a vocabulary holds them.

    Args:
        vocab_size: number of ids.
        dim: width.
        init_std: standard deviation of the initial vectors.
        scale: what the vectors are multiplied by, rounded to their dtype first (Gemma, MiniCPM). Another part's vectors, such as
            those of an image, are not multiplied; where they are too, that is the ``embed_scale`` of ``Decoder``.

    Raises:
        ValueError: a scale that is not above 0, or not finite.

    Examples:
        >>> import torch
        >>> from mmblocks import TextEmbedding
        >>> embedding = TextEmbedding(vocab_size=100, dim=8)
        >>> tuple(embedding(torch.tensor([5, 17, 99])).shape)
        (3, 8)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llama",
            (Rule("model.embed_tokens.weight", "weight"),),
            ignored=(
                "model.layers.*",
                *("model.norm.*", "model.final_layernorm.*"),  # the second is Phi's
                *("lm_head.weight", "lm_head.bias"),
                *(f"model.{part}.*" for part in ("vision_tower", "mm_projector", "vision_clip", "vision_tower_compressor")),  # EVE
            ),
            config=embedding_config,
            harmless=NO_EMBEDDING,
        ),
        Layout(
            "neo",
            (Rule("language_model.model.embed_tokens.weight", "weight"),),
            ignored=("language_model.model.*", "language_model.lm_head.weight", "vision_model.*"),
            config=partial(_inner_config, wrapper="neo_chat"),
            harmless=_INNER,
        ),
        Layout(
            "mono-internvl",
            (Rule("language_model.model.tok_embeddings.weight", "weight"),),
            ignored=("language_model.model.*", "language_model.output.weight", "vision_model.*", "mlp1.*"),
            config=partial(_inner_config, wrapper="internvl_chat"),
            harmless=_INNER,
        ),
    )

    def __init__(self, *, vocab_size: int, dim: int, init_std: float = 0.02, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; accepted: above 0, and finite")
        self.vocab_size, self.scale = vocab_size, scale
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Ids in [0, vocab_size) to vectors.

        Raises:
            ValueError: if an id is out of range. Checked on CPU; on a GPU the look-up itself stops the program.
        """
        check_range("ids", ids, self.vocab_size)
        vectors = embedding(ids, self.weight)
        if self.scale == 1:
            return vectors
        return vectors * torch.full((), self.scale, dtype=vectors.dtype, device=vectors.device)
