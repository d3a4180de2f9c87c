"""SEED: an image as 32 codes in causal order, which decode to an embedding of the image.

Shapes: B images, H and W pixels, Q tokens, d width of a code, E width of an image embedding.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Unpack

from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only, read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.attention.query_transformer import QFormerArguments, qformer_rules
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.layers.towers.eva_layouts import eva_rules
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.towers.seed_parts import CAUSAL, ImageHead, SEEDBottleneck, SEEDDecoder
from mmblocks.tokenizers.towers.tower_tokenizer import TowerTokenizer

_RULES = (
    *eva_rules("visual_encoder.", "encoder."),
    Rule("ln_vision.*", "bottleneck.norm.*"),
    Rule("query_tokens", "bottleneck.qformer.queries"),
    *qformer_rules("Qformer", "bottleneck.qformer"),
    Rule("encode_task_layer.*", "bottleneck.project.*"),
    Rule("quantize.embedding.weight", "bottleneck.quantizer.codes"),
    Rule("decode_task_layer.*", "decoder.expand.*"),
    Rule("pos_embed_image", "decoder.to_image.positions"),
    Rule("blocks_image.*", "decoder.to_image.layers.*"),
    Rule("pos_embed", "decoder.to_features.positions"),
    Rule("blocks.*", "decoder.to_features.layers.*"),
    Rule("image_down.*", "decoder.head.narrow.*"),
    Rule("reverse_tokens", "decoder.head.qformer.queries"),
    *qformer_rules("Reverse_Qformer", "decoder.head.qformer"),
    Rule("distill_image_proj.*", "decoder.head.out.*"),
)


_SIZES = {
    "dim": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
    "encoder_dim": ("encoder_width", 1408),
    "cross_attention_every": ("cross_attention_freq", 2),
    "num_codes": ("n_embed", 8192),
    "code_dim": ("codebook_embed_dim", 32),
    "decoder_layers": ("decode_depth", 4),
    "embed_dim": ("image_features_dim", 1024),
    "num_queries": ("num_query_token", 32),
}
"""Arguments -> those of the published class, or of its BERT, and their defaults."""

_HARMLESS = (
    *("vit", "bert", "use_grad_checkpoint", "vit_precision", "freeze_vit", "embed_dim", "max_txt_len", "use_recon_s_for_image"),
    *("max_position_embeddings", "vocab_size", "type_vocab_size", "position_embedding_type", "query_length", "add_cross_attention"),
)
"""Of the published class: how it is trained, BLIP-2's contrastive head, and of its BERT what queries do not go through."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class, which has no config file, and of the BERT in it."""
    only(config, "vit_model", "eva_clip_g")
    only(config, "recon_s", True)
    only(config, "blocks_for_image", True)
    only(config, "layer_norm_eps", 1e-12)
    only(config, "hidden_act", "gelu")
    arguments = {ours: config.get(theirs, default) for ours, (theirs, default) in _SIZES.items()}
    own = {"causal": arguments["num_queries"] == 32, "decoder_heads": 12}  # the published code goes by the number
    return {
        **arguments,
        "image_size": _pair(config.get("img_size", 224)),
        "head": "qformer" if config.get("use_qformer_image") else "mlp",
        **read_own(config, own),
    }


def _pair(side: int | list[int]) -> tuple[int, ...]:
    return tuple(side) if isinstance(side, list) else (side, side)


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """Under the names of the published class, which has no config file; an image tower that is handed in is not told."""
    height, width = arguments["image_size"]
    own = {"causal": arguments["num_queries"] == 32, "decoder_heads": 12}
    return {
        **{theirs: arguments[ours] for ours, (theirs, _) in _SIZES.items()},
        "img_size": height if height == width else [height, width],
        "use_qformer_image": arguments["head"] == "qformer",
        **written_own(arguments, own),
    }


class SEEDTokenizer(TowerTokenizer):
    """EVA-g, a causal Q-Former, a codebook; then a small transformer to CLIP's image embedding, the condition of an unCLIP model.

    The published training froze tower and Q-Former: ``requires_grad_(False)`` on ``encoder``, ``bottleneck.norm`` and
    ``bottleneck.qformer``.

    Args:
        encoder: the image tower; None for EVA-g without its last block, as published.
        image_size: height and width that the tower takes.
        encoder_dim: width of the tower's features.
        num_codes, code_dim: size of the codebook.
        dim: width of the Q-Former.
        decoder_layers, decoder_heads: of the decoder's two transformers.
        embed_dim: width of an image embedding.
        head: how the decoder ends, see ``SEEDDecoder``. The class that reads the published file has "mlp", the training
            script "qformer".
        sizes: the arguments of ``QFormerSizes``, causal unless told otherwise; a query becomes a token.

    Source: SEED (arXiv 2307.08041 and 2310.01218; AILab-CVC/SEED).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import EvaTower
        >>> from mmblocks.tokenizers import SEEDTokenizer
        >>> tower = EvaTower(image_size=(28, 28), patch_size=14, dim=16, num_layers=1, num_heads=2, mlp_dim=16)
        >>> sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "decoder_layers": 1, "decoder_heads": 2}
        >>> seed = SEEDTokenizer(encoder=tower, encoder_dim=16, image_size=(28, 28), num_codes=32, num_queries=5, **sizes).eval()
        >>> latents = seed.encode(torch.rand(2, 3, 28, 28))
        >>> tuple(latents.ids.shape), tuple(seed.decode(latents.ids).shape)
        ((2, 5), (2, 1024))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "seed",
            _RULES,
            ignored=("Qformer.bert.embeddings.position_ids", "Reverse_Qformer.bert.embeddings.position_ids"),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )
    loss_weights: ClassVar[dict[str, float]] = {"codebook": 1.25, "commitment": 5.0, "image": 0.5, "features": 2.0}

    decoder: SEEDDecoder

    shorthand = staticmethod(CAUSAL)

    def __init__(
        self,
        *,
        encoder: Block | None = None,
        image_size: tuple[int, int] = (224, 224),
        encoder_dim: int = 1408,
        num_codes: int = 8192,
        code_dim: int = 32,
        dim: int = 768,
        decoder_layers: int = 4,
        decoder_heads: int = 12,
        embed_dim: int = 1024,
        head: ImageHead = "mlp",
        **sizes: Unpack[QFormerArguments],
    ) -> None:
        reader = CAUSAL(**sizes)
        super().__init__(
            encoder=EvaTower(image_size=image_size, dim=encoder_dim, num_layers=39) if encoder is None else encoder,
            image_size=image_size,
            bottleneck=SEEDBottleneck(num_codes=num_codes, code_dim=code_dim, encoder_dim=encoder_dim, dim=dim, **asdict(reader)),
            decoder=SEEDDecoder(
                code_dim=code_dim,
                num_queries=reader.num_queries,
                dim=dim,
                num_layers=decoder_layers,
                num_heads=decoder_heads,
                embed_dim=embed_dim,
                head=head,
                reader_layers=reader.num_layers,
                reader_heads=reader.num_heads,
                reader_mlp_dim=reader.mlp_dim,
                cross_attention_every=reader.cross_attention_every,
            ),
            downsampling=image_size,  # every token is of the whole image
        )
        self.grids = ("Q",)

    def decode(self, latents: Latents | Integer[Tensor, "B Q"]) -> Float[Tensor, "B E"]:
        """Latents, or ids alone, to CLIP image embeddings: pixels take a diffusion model that is conditioned on these.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist, or another number of tokens than Q.
        """
        return self.decoder(self.decoder_input(latents))

    def training_losses(self, latents: Latents, image_embeds: Float[Tensor, "B E"]) -> dict[str, Float[Tensor, ""]]:
        """All terms of the published training, unweighted: the bottleneck's, and two of what the codes still tell.

        Args:
            latents: of ``encode`` while training.
            image_embeds: of the same images, from the CLIP model whose space ``decode`` shall meet (ViT-H/14 as published).

        Returns:
            The bottleneck's terms; "image": mean square error of the embedding; "features": one minus the cosine to what the
            Q-Former read.

        Raises:
            ValueError: latents without losses, of evaluation mode.
        """
        if latents.loss is None or latents.features is None:
            raise ValueError("latents hold no losses; accepted: those of encode() in training mode")
        rebuilt = self.decoder.features(latents.z)
        return {
            **latents.loss,
            "image": mse_loss(self.decode(latents), image_embeds),
            "features": 1 - cosine_similarity(rebuilt, latents.features.detach(), dim=-1).mean(),
        }
