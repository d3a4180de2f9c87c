"""LlamaGen: images as rows of codes, written by a Llama from a class or a caption."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.compose import MultimodalModel
from mmblocks.embedders.caption import CaptionEmbedding
from mmblocks.embedders.class_label import ClassLabelEmbedding
from mmblocks.embedders.text import TextEmbedding
from mmblocks.heads.language import LMHead
from mmblocks.sequence.pieces import Piece
from mmblocks.sequence.segments import Vectors
from mmblocks.sequence.tokens import ImageLayoutRule, Modality
from mmblocks.trunks.llamagen import LlamaGenTrunk
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

PUBLISHED_SIZES = {
    "GPT-B": (768, 12, 12),
    "GPT-L": (1024, 24, 16),
    "GPT-XL": (1280, 36, 20),
    "GPT-XXL": (1536, 48, 24),
    "GPT-XXXL": (2560, 48, 40),
    "GPT-1B": (2048, 22, 32),
    "GPT-3B": (3200, 24, 32),
    "GPT-7B": (4096, 32, 32),
}
"""Name -> dim, num_layers, num_heads."""


def _config(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """LlamaGen publishes no config files: the name of the size, or the arguments of its ``ModelArgs``."""
    found = config.get("model_type", "c2i")
    if found != kind:
        raise ValueError(f"model_type is {found!r}; accepted: {kind!r}")
    sizes = PUBLISHED_SIZES[config["model"]] if "model" in config else tuple(config[k] for k in ("dim", "n_layer", "n_head"))
    dim, num_layers, num_heads = sizes
    multiple, growth = config.get("multiple_of", 256), config.get("ffn_dim_multiplier")
    mlp_dim = int(8 * dim / 3) if growth is None else int(growth * int(8 * dim / 3))
    if config.get("class_dropout_prob", 0.1) <= 0:
        raise ValueError("class_dropout_prob is 0; accepted: more, since tables have a row for no class then")
    arguments = {
        "vocab_size": config.get("vocab_size", 16384),
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": config.get("n_kv_head"),
        "mlp_dim": -(-mlp_dim // multiple) * multiple,
        "norm_eps": config.get("norm_eps", 1e-5),
        "rope_theta": config.get("rope_base", 10000.0),
        "dropout": config.get("resid_dropout_p", 0.1),
    }
    if kind == "c2i":
        only(config, "cls_token_num", 1)
        return {**arguments, "num_classes": config.get("num_classes", 1000)}
    # A table of 120 rows, whatever ``cls_token_num`` says: that is how many features a caller hands in.
    return {**arguments, "caption_dim": config.get("caption_dim", 2048), "num_caption_tokens": config.get("token_num", 120)}


def _c2i_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return _config(config, "c2i")


def _t2i_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return _config(config, "t2i")


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``ModelArgs`` takes, and ``token_num``, which LlamaGen's ``CaptionEmbedder`` takes itself."""
    mlp_dim, usual = arguments["mlp_dim"], int(8 * arguments["dim"] / 3)
    kind = {"model_type": "c2i", "cls_token_num": 1, "num_classes": arguments.get("num_classes")}
    if "caption_dim" in arguments:
        tokens = arguments["num_caption_tokens"]
        kind = {"model_type": "t2i", "cls_token_num": tokens, "token_num": tokens, "caption_dim": arguments["caption_dim"]}
    return {
        **kind,
        "vocab_size": arguments["vocab_size"],
        "dim": arguments["dim"],
        "n_layer": arguments["num_layers"],
        "n_head": arguments["num_heads"],
        "n_kv_head": arguments["num_kv_heads"],
        # Rounding up to a multiple of the width itself gives the width.
        "multiple_of": mlp_dim,
        "ffn_dim_multiplier": None if usual <= mlp_dim else mlp_dim / usual,
        "rope_base": arguments["rope_theta"],
        "norm_eps": arguments["norm_eps"],
        **{f"{part}_dropout_p": arguments["dropout"] for part in ("token", "resid", "ffn")},
    }


_HARMLESS = ("token_dropout_p", "attn_dropout_p", "ffn_dropout_p", "block_size", "max_batch_size", "max_seq_len")
_C2I_HARMLESS = (*_HARMLESS, "caption_dim")
_T2I_HARMLESS = (*_HARMLESS, "num_classes", "cls_token_num")


def _projections(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows of query, key and value in the fused projection."""
    dim, num_heads = arguments["dim"], arguments["num_heads"]
    kv_dim = dim // num_heads * (arguments["num_kv_heads"] or num_heads)
    return dim, kv_dim, kv_dim


_ATTENTION = "trunk.layers.{}.attention"
_RULES = (
    Rule("tok_embeddings.weight", "inputs.code.weight"),
    Split("layers.{}.attention.wqkv.weight", tuple(f"{_ATTENTION}.{n}.weight" for n in ("query", "key", "value")), _projections),
    Rule("layers.{}.attention.wo.weight", f"{_ATTENTION}.output.weight"),
    Rule("layers.{}.attention_norm.weight", "trunk.layers.{}.attention_norm.weight"),
    Rule("layers.{}.feed_forward.w1.weight", "trunk.layers.{}.mlp.gate.weight"),
    Rule("layers.{}.feed_forward.w3.weight", "trunk.layers.{}.mlp.up.weight"),
    Rule("layers.{}.feed_forward.w2.weight", "trunk.layers.{}.mlp.down.weight"),
    Rule("layers.{}.ffn_norm.weight", "trunk.layers.{}.mlp_norm.weight"),
    Rule("norm.weight", "trunk.norm.weight"),
    Rule("output.weight", "outputs.code.weight"),
)
_CAPTION_RULES = (
    Rule("cls_embedding.cap_proj.fc1.weight", "inputs.caption.first.weight"),
    Rule("cls_embedding.cap_proj.fc2.weight", "inputs.caption.second.weight"),
    Rule("cls_embedding.uncond_embedding", "inputs.caption.unconditional"),
)


class LlamaGen(MultimodalModel):
    """A class, then an image's codes row by row, without any structure between them.

        model = LlamaGen(vocab_size=16384, num_classes=1000, dim=768, num_layers=12, num_heads=12, mlp_dim=2048)
        images = model.generate(
            [[label(3)]],
            GridGrammar(raster_format(16, 16, 16384)),
            Generation(guidance=ClassifierFree(scale=4.0), input="code"),
            unconditional=[[label(1000)]],
        )

    Inputs are ``label`` and ``code``; the head is ``code``. The published files hold their tensors under "model".

    Args:
        vocab_size: codes of the visual tokenizer.
        num_classes: labels; ``num_classes`` itself stands for none.
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, norm_eps, rope_theta, dropout: of the ``LlamaGenTrunk``.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen).

    Examples:
        >>> import torch
        >>> from mmblocks import codes
        >>> from mmblocks.models import LlamaGen
        >>> from mmblocks.models.llamagen import label
        >>> from mmblocks.vocabulary import raster_format
        >>> model = LlamaGen(vocab_size=16, num_classes=10, dim=16, num_layers=1, num_heads=2, mlp_dim=16).eval()
        >>> grid = codes(torch.randint(16, (2, 3)), raster_format(2, 3, 16), target="code", input="code")
        >>> tuple(model(model.batch_builder()([[label(3), grid]])).token_losses["code"].shape)
        (6,)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llamagen-c2i",
            (Rule("cls_embedding.embedding_table.weight", "inputs.label.weight"), *_RULES),
            config=_c2i_config,
            published_config=_published_config,
            harmless=_C2I_HARMLESS,
            unwrap="model|module|state_dict|",
        ),
    )

    def __init__(
        self,
        *,
        vocab_size: int,
        num_classes: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        dropout: float = 0.1,
    ) -> None:
        trunk = LlamaGenTrunk(
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            dropout=dropout,
        )
        label = ClassLabelEmbedding(num_classes=num_classes, dim=dim)
        super().__init__(
            inputs={"label": label, "code": TextEmbedding(vocab_size=vocab_size, dim=dim)},
            trunk=trunk,
            outputs={"code": LMHead(dim=dim, vocab_size=vocab_size)},
        )


class LlamaGenT2I(MultimodalModel):
    """A caption's features, then an image's codes row by row; see ``LlamaGen``.

    Inputs are ``caption`` and ``code``. A caption's features are given without padding, whatever its length: upstream masks what
    it pads with, and conditions have no positions. For the unconditional prompt, take as many rows of
    ``model.inputs.caption.unconditional``, those that stand where the caption's tokens would in a caption padded on the left.

    Args:
        vocab_size: codes of the visual tokenizer.
        caption_dim: width of the text encoder's features.
        num_caption_tokens: of the longest caption.
        dim, num_layers, num_heads, mlp_dim, num_kv_heads, norm_eps, rope_theta, dropout: of the ``LlamaGenTrunk``.

    Source: LlamaGen (arXiv 2406.06525; FoundationVision/LlamaGen).

    Examples:
        >>> import torch
        >>> from mmblocks import codes
        >>> from mmblocks.models import LlamaGenT2I
        >>> from mmblocks.models.llamagen import caption
        >>> from mmblocks.vocabulary import raster_format
        >>> model = LlamaGenT2I(vocab_size=16, caption_dim=12, dim=16, num_layers=1, num_heads=2, mlp_dim=16).eval()
        >>> grid = codes(torch.randint(16, (2, 3)), raster_format(2, 3, 16), target="code", input="code")
        >>> tuple(model(model.batch_builder()([[caption(torch.randn(4, 12)), grid]])).token_losses["code"].shape)
        (6,)
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "llamagen-t2i",
            (*_CAPTION_RULES, *_RULES),
            config=_t2i_config,
            published_config=_published_config,
            harmless=_T2I_HARMLESS,
            unwrap="model|module|state_dict|",
        ),
    )

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        caption_dim: int = 2048,
        num_caption_tokens: int = 120,
        num_kv_heads: int | None = None,
        norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        dropout: float = 0.1,
    ) -> None:
        trunk = LlamaGenTrunk(
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            num_kv_heads=num_kv_heads,
            norm_eps=norm_eps,
            rope_theta=rope_theta,
            dropout=dropout,
        )
        caption = CaptionEmbedding(caption_dim=caption_dim, dim=dim, num_tokens=num_caption_tokens)
        super().__init__(
            inputs={"caption": caption, "code": TextEmbedding(vocab_size=vocab_size, dim=dim)},
            trunk=trunk,
            outputs={"code": LMHead(dim=dim, vocab_size=vocab_size)},
        )


class Condition(Vectors):
    """Tokens that are read only and belong to no image: a class, or a caption's features."""

    def piece(self, tokenizer: TextTokenizer | None, layouts: dict[str, ImageLayoutRule]) -> Piece:
        """One token a value."""
        modality = torch.full((len(self.values),), int(Modality.TEXT))
        none = torch.zeros(len(self.values), dtype=torch.bool)
        return Piece(
            input=self.input,
            payload=self.values,
            modality=modality,
            grid=modality.new_zeros(len(self.values), 3),
            in_span=none,
            one_step=False,
            target=None,
            learned=none,
            values=None,
        )


def label(index: int | Sequence[int]) -> Condition:
    """A class as a segment, for the input ``label``."""
    return Condition(torch.as_tensor(index, dtype=torch.long).reshape(-1), "label", None, False)


def caption(features: Float[Tensor, "N C"]) -> Condition:
    """A caption's features as a segment, for the input ``caption``."""
    return Condition(features, "caption", None, False)
