"""NEO: a patch stem, Qwen3 with rows and columns in its attention, and a head; no vision encoder."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.compose import MultimodalModel
from mmblocks.embedders.neo import NEOPatchEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.sequence.positions import PositionScheme
from mmblocks.trunks.neo.layout import NEO_HARMLESS, NEO_RULES, neo_config, published_neo
from mmblocks.trunks.neo.trunk import NEOTrunk

Reduction = Literal["token", "sample", "square"]


(_STEM,) = (layout for layout in NEOPatchEmbedding.layouts if layout.name == "neo")


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = {} if _STEM.config is None else dict(_STEM.config(config))
    llm = config["llm_config"]
    if vision.pop("dim") != llm["hidden_size"]:
        raise ValueError("llm_hidden_size of the vision_config is not hidden_size of the llm_config")
    tied = llm.get("tie_word_embeddings", False)
    only(config, "tie_word_embeddings", tied)
    return {"vocab_size": llm["vocab_size"], **neo_config(config), "tie_embeddings": tied, "vision": vision}


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    with torch.device("meta"):
        stem = NEOPatchEmbedding(dim=arguments["dim"], **(arguments["vision"] or {})).config
    vision = {} if _STEM.published_config is None else _STEM.published_config(stem)
    return {**vision, **published_neo(arguments), "tie_word_embeddings": arguments["tie_embeddings"]}


_RULES = (
    Rule("language_model.model.embed_tokens.weight", "inputs.text.weight"),
    Rule("vision_model.embeddings.patch_embedding.*", "inputs.vision.patch.*"),
    Rule("vision_model.embeddings.dense_embedding.*", "inputs.vision.merge.*"),
    *(Rule(rule.theirs, f"trunk.{rule.ours}") for rule in NEO_RULES),
    Rule("language_model.lm_head.weight", "outputs.text.weight"),
)


class NEOTrunkArguments(TypedDict, total=False):
    """The arguments of ``NEOTrunk`` beside ``dim``, for the signature of ``NEO``."""

    num_layers: int
    num_heads: int
    mlp_dim: int
    num_kv_heads: int | None
    head_dim: int | None
    norm_eps: float
    rope_theta: float
    rope_theta_place: float
    bias: bool
    num_prebuffer_layers: int
    positions: PositionScheme | None


class NEO(MultimodalModel):
    """Reads text ("text") and images ("vision"), writes text ("text").

    An image stands between the ids of ``<img>`` and ``</img>``, and its tokens see each other::

        [text([*prompt, BEGIN]), image(pixels, bidirectional=True), text([END]), text(answer, target="text")]

    Args:
        vocab_size: text ids.
        dim: width of the tokens.
        tie_embeddings: whether the head's weight is the embedding's (2B).
        vision: further arguments of the ``NEOPatchEmbedding``.
        trunk: those of the ``NEOTrunk``.

    Source: NEO (arXiv 2510.14979; EvolvingLMMs-Lab/NEO).

    Examples:
        >>> import torch
        >>> from mmblocks import image, text
        >>> from mmblocks.models import NEO
        >>> vision = {"hidden_dim": 16, "patch_size": 4, "merge_size": 2}
        >>> model = NEO(vocab_size=64, dim=16, num_layers=1, num_heads=2, mlp_dim=16, vision=vision).eval()
        >>> sample = [text([1]), image(torch.rand(3, 16, 24), bidirectional=True), text([2]), text([3, 4], target="text")]
        >>> made = model(model.batch_builder()([sample]))
        >>> tuple(made.hidden.shape), tuple(made.token_losses["text"].shape)
        ((1, 10, 16), (2,))
    """

    trunk: NEOTrunk

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "neo",
            _RULES,
            config=_config,
            published_config=_published_config,
            harmless=(*(name for name in _STEM.harmless if name != "llm_config.*"), *NEO_HARMLESS),
        ),
    )
    shorthand = NEOTrunk

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        tie_embeddings: bool = False,
        vision: dict[str, Any] | None = None,
        **trunk: Unpack[NEOTrunkArguments],
    ) -> None:
        text, stem = TextEmbedding(vocab_size=vocab_size, dim=dim), NEOPatchEmbedding(dim=dim, **(vision or {}))
        head = LMHead(dim=dim, vocab_size=vocab_size)
        super().__init__(inputs={"text": text, "vision": stem}, trunk=NEOTrunk(dim=dim, **trunk), outputs={"text": head})
        if tie_embeddings:
            head.weight = text.weight

    def pretraining_parameters(self, *, as_released: bool = False) -> list[str]:
        """Names of what the first stage trains, for ``freeze``: the stem, the pre-buffer, and all that reads places.

        Args:
            as_released: what the released training code trains in fact. Its test of names misses the pre-buffer's other weights,
                which stay at their random start, and takes in the head.
        """
        chosen = []
        for name, _ in self.named_parameters():
            prebuffer = name.startswith("trunk.layers.") and int(name.split(".")[2]) < self.trunk.num_prebuffer_layers
            places = ".place." in name or ".row_norm." in name or ".column_norm." in name
            others = name.startswith("outputs.") if as_released else prebuffer
            if name.startswith("inputs.vision.") or places or others:
                chosen.append(name)
        return chosen


def loss_weights(document: Int[Tensor, " N"], reduction: Reduction = "square") -> Float[Tensor, " N"]:
    """How much each learned token counts; the loss is the weighted mean of the tokens' losses.

    Args:
        document: which document each learned token belongs to, unlike in different rows.
        reduction: ``"token"``: all tokens alike; ``"sample"``: all documents alike; ``"square"``: halfway, by the square root
            of a document's tokens (published).

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("token", "sample", "square"):
        raise ValueError(f"reduction is {reduction!r}; accepted: 'token', 'sample', 'square'")
    _, index, counts = document.unique(return_inverse=True, return_counts=True)
    power = {"token": 0.0, "sample": 1.0, "square": 0.5}[reduction]
    return counts[index].to(torch.float32) ** -power
