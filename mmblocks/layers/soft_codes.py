"""Continuous latents as a language model reads them: mixtures of the embeddings of codes, by how near each code is.

Shapes: K codes of width C, D width of the embeddings, V rows of a vocabulary's table; any leading axes where "*".
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, stated
from mmblocks.checkpoints.layouts.rules import Arguments

_TOKENS = 1024
"""How many latents are mixed at a time: their weights for all codes are the largest tensor here."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Orthus is a Chameleon, whose vocabulary has the image codes from 4 on."""
    check_model(config, "orthus", "chameleon", "chameleonxllmx")
    codebook = stated(config, "vq_config", {})
    ids = [config["vocabulary_map"][name] for name in stated(config, "vocabulary_map", {}) if name.startswith("IMGIMG")]
    if ids and min(ids) != _FIRST:
        raise ValueError(f"vocabulary_map has the first image code at {min(ids)}; accepted: {_FIRST}")
    return {"num_codes": codebook.get("num_embeddings", 8192), "code_dim": codebook.get("embed_dim", 256), "first": _FIRST}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, first=_FIRST)
    codebook = {"num_embeddings": arguments["num_codes"], "embed_dim": arguments["code_dim"]}
    return {"model_type": "chameleon", "vq_config": codebook}


_FIRST = 4

_HARMLESS = (
    *LANGUAGE_MODEL,
    *("swin_norm", "qk_layernorm", "model_parallel_size", "vq_config.*", "mask_image_logits", "z_loss_weight"),
    *("vocabulary_map.*", "image_token_id", "boi_token_id", "eoi_token_id"),
    *("diffloss_w", "diffloss_d", "num_res_blocks", "diffusion_batch_mul", "cfg_scale", "denoise_steps", "mlp_head.*"),
)
"""Of the trunk, the tokenizer and the head of latents."""


class SoftCodeEmbedding(Block):
    """Mixes the embeddings of all codes by the softmax of the negative squared distances between latent and codes.

    A latent that is a code gives nearly that code's embedding, so that a model of discrete codes can go on with continuous
    latents. The codes are learned with the model; they begin as those of the tokenizer.

    Args:
        num_codes: K.
        code_dim: C.
        dim: D, where the embeddings are the Block's own.
        table: where the embeddings are rows of a vocabulary's table: a Block whose ``weight`` is (V, D), such as the
            ``TextEmbedding`` that the model reads text with.
        first: row of the first code in that table.

    Raises:
        ValueError: both ``dim`` and ``table``, or neither; a table that ends before the last code.

    Published: Orthus's files, with the text embedding that was read from them: ``from_pretrained(folder, table=...)``.

    Source: Orthus (arXiv 2412.00127; zhijie-group/Orthus).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import SoftCodeEmbedding
        >>> embedding = SoftCodeEmbedding(num_codes=16, code_dim=4, dim=8)
        >>> latents = torch.randn(2, 3, 3, 4)
        >>> tuple(embedding(latents).shape)
        (2, 3, 3, 8)
        >>> torch.allclose(embedding.weights(latents) @ embedding.embeddings, embedding(latents), atol=1e-6)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "orthus",
            (Rule("model.codebook_in.weight", "codes"), Rule("model.embed_tokens.weight", "table.weight")),
            ignored=("*",),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self, *, num_codes: int, code_dim: int, dim: int | None = None, table: Block | None = None, first: int = 0
    ) -> None:
        super().__init__()
        if (dim is None) == (table is None):
            raise ValueError(f"dim is {dim}, table {type(table).__name__}; accepted: one of them, the other None")
        self.first = first
        self.codes = nn.Parameter(torch.empty(num_codes, code_dim).normal_())
        self.table = table
        self.own = None if dim is None else nn.Parameter(torch.empty(num_codes, dim).normal_(std=0.02))
        if table is not None and len(_weight(table)) < first + num_codes:
            raise ValueError(f"table has {len(_weight(table))} rows; accepted: at least {first + num_codes}")

    @property
    def embeddings(self) -> Float[Tensor, "K D"]:
        """The embedding of each code."""
        if self.own is not None:
            return self.own
        return _weight(cast("Block", self.table))[self.first : self.first + len(self.codes)]

    def forward(self, latents: Float[Tensor, "*N C"]) -> Float[Tensor, "*N D"]:
        """Latents to embeddings."""
        embeddings = self.embeddings
        pieces = latents.flatten(0, -2).split(_TOKENS)
        mixed = torch.cat([self.weights(piece).to(embeddings.dtype) @ embeddings for piece in pieces])
        return mixed.view(*latents.shape[:-1], embeddings.shape[-1])

    def weights(self, latents: Float[Tensor, "*N C"]) -> Float[Tensor, "*N K"]:
        """How much each code counts, in float32; they sum to one."""
        latents, codes = latents.float(), self.codes.float()
        # |latent|^2 is the same for all codes and would drop out of the softmax. Added as the published code adds it, since for
        # long latents its rounding moves the weights by more than the rest of the arithmetic does.
        distances = latents.square().sum(dim=-1, keepdim=True) + codes.square().sum(dim=-1) - 2 * (latents @ codes.T)
        return (-distances).softmax(dim=-1)


def _weight(table: Block) -> Tensor:
    """(V, D)."""
    return cast("Tensor", table.weight)
