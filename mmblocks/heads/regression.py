"""Regression of continuous embeddings: what a trunk predicts in place of codes.

Shapes: N rows, D width of the states, C width of the embeddings.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.harmless import LANGUAGE_MODEL
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_model, only, stated
from mmblocks.layers.losses.row_losses import check_rows, weighted
from mmblocks.support.checks import check_finite

_OF_EMU = ("embed_dim", "llama.*", "multimodal_cfg.*", "t5_config.*", "token_ids.*", "vision_cfg.*", "vladapter_cfg.*", "vocab")
"""Emu's other parts."""


def _emu(config: Mapping[str, Any]) -> dict[str, Any]:
    """Emu's files have no config beside them: what it does not say is as published."""
    dim = config.get("llama", {}).get("hidden_size", 5120)
    return {"dim": dim, "target_dim": dim}


def _published_emu(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _check_plain(arguments)
    only(arguments, "target_dim", arguments["dim"])
    return {"llama": {"hidden_size": arguments["dim"]}}


def _emu2(config: Mapping[str, Any]) -> dict[str, Any]:
    """As ``_emu``."""
    return {
        "dim": config.get("llama", {}).get("hidden_size", 6656),
        "target_dim": config.get("vision_cfg", {}).get("width", 1792),
    }


def _published_emu2(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _check_plain(arguments)
    return {"llama": {"hidden_size": arguments["dim"]}, "vision_cfg": {"width": arguments["target_dim"]}}


def _emu2_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config on the Hub is the language model's, with the vision tower's inside; it may name their common width too."""
    check_model(config, "emu2", "emu", "")
    if "llama" in config:
        return _emu2(config)
    width = config.get("vision_config", {}).get("width")
    return {"dim": config.get("hidden_size", 6656), "target_dim": stated(config, "d_model", width) or 1792}


def _published_emu2_hub(arguments: Mapping[str, Any]) -> dict[str, Any]:
    _check_plain(arguments)
    sizes = {"hidden_size": arguments["dim"], "d_model": arguments["target_dim"]}
    return {**sizes, "vision_config": {"width": arguments["target_dim"]}}


def _check_plain(arguments: Mapping[str, Any]) -> None:
    """What published files are learned with, and have no bias."""
    only(arguments, "distance", "squared")
    only(arguments, "bias", False)


class RegressionHead(Block):
    """A linear map from states to embeddings, learned by their distance.

    Two ways to use it, which differ in what the trunk reads at the places that are learned:

    - teacher-forced (Emu, Emu2): the true embeddings. State i predicts embedding i + 1, and generation feeds predictions back, one
      pass each.
    - placeholders (Nexus-Gen): learned vectors (``Placeholders``) in training and generation alike. All embeddings come from one
      pass, and no error adds up.

    Args:
        dim: D.
        target_dim: C.
        distance: "squared", the mean over the channels, or "cosine", one minus the similarity.
        bias: whether the map has one.

    Published: Emu ("emu": its embeddings are what the trunk reads next) and Emu2 ("emu2": they are the encoder's features, and what
    the trunk reads next is their projection). The files hold no loss: the squared distance is what the authors say they used.

    Source: Emu (arXiv 2307.05222), Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import RegressionHead
        >>> head = RegressionHead(dim=16, target_dim=4)
        >>> hidden, embeddings = torch.randn(3, 16), torch.randn(3, 4)
        >>> torch.allclose(head.loss(hidden, embeddings), (head.sample(hidden) - embeddings).square().mean(-1))
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "emu",
            (Rule("decoder.lm.stu_regress_head.weight", "projection.weight"),),
            ignored=("*",),
            config=_emu,
            published_config=_published_emu,
            harmless=_OF_EMU,
        ),
        Layout(
            "emu2",
            (Rule("project_down.weight", "projection.weight"),),
            ignored=("visual.*", "decoder.*", "project_up.weight"),
            config=_emu2,
            published_config=_published_emu2,
            harmless=(*_OF_EMU, "instruct"),
        ),
        Layout(
            "emu2-hub",
            (Rule("project_down.weight", "projection.weight"),),
            ignored=("model.*", "project_up.weight"),
            config=_emu2_hub,
            published_config=_published_emu2_hub,
            harmless=(*_OF_EMU, *LANGUAGE_MODEL, "instruct", "vision_config.*"),
        ),
    )

    def __init__(
        self, *, dim: int, target_dim: int, distance: Literal["squared", "cosine"] = "squared", bias: bool = False
    ) -> None:
        super().__init__()
        if distance not in ("squared", "cosine"):
            raise ValueError(f"distance is {distance!r}; accepted: 'squared', 'cosine'")
        self.target_dim, self.distance = target_dim, distance
        self.projection = nn.Linear(dim, target_dim, bias=bias)

    def loss(
        self, hidden: Float[Tensor, "N D"], target: Float[Tensor, "N C"], weight: Float[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """Distance of each row's prediction from its embedding, in float32.

        Raises:
            ValueError: shapes that do not fit, or embeddings that are not finite (checked on CPU).
        """
        check_rows(hidden, target, weight, self.target_dim)
        check_finite("target", target)
        predicted, target = self.projection(hidden).float(), target.float()
        if self.distance == "cosine":
            return weighted(1 - cosine_similarity(predicted, target, dim=-1), weight)
        return weighted((predicted - target).square().mean(dim=-1), weight)

    def sample(self, hidden: Float[Tensor, "*N D"], *, generator: Generator | None = None) -> Float[Tensor, "*N C"]:
        """The embeddings; nothing is random."""
        predicted: Tensor = self.projection(hidden)
        return predicted


class Placeholders(Block):
    """What a trunk reads where embeddings are to be regressed: learned vectors, the same for every image.

    As an input of a model it stands where the embeddings would be read, and looks at their number alone.

    Args:
        num_tokens: of an image.
        dim: width of the trunk.

    Source: the prefilled autoregression of Nexus-Gen (arXiv 2504.21356).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import Placeholders
        >>> embedder = Placeholders(num_tokens=3, dim=8)
        >>> read = embedder(torch.randn(6, 4))  # where the embeddings of two images would be read
        >>> torch.equal(read[:3], read[3:])
        True
    """

    def __init__(self, *, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(num_tokens, dim).normal_(std=0.02))

    def forward(self, embeddings: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        """As many vectors as embeddings, image after image.

        Raises:
            ValueError: rows that are no whole number of images.
        """
        count = len(self.vectors)
        if len(embeddings) % count:
            raise ValueError(f"embeddings has {len(embeddings)} rows; accepted: multiples of {count}, the tokens of an image")
        return self.vectors.repeat(len(embeddings) // count, 1)
