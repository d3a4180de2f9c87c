"""EVA-CLIP's text tower: open_clip's transformer and tokenizer.

Shapes: B texts, L places of a text, W width, E width of the embedding that images and texts share.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.encoders.eva_clip_layouts import text_layouts
from mmblocks.layers.activations import ActivationLayer
from mmblocks.support.checks import check_range
from mmblocks.support.pickling import weightless


class EVACLIPText(Block):
    """Texts to one embedding each: that of the place where the text ends.

    Args:
        embed_dim: E.
        dim, num_layers, num_heads: sizes of the transformer.
        context_length: L; shorter texts are padded.
        vocab_size: of the tokenizer; CLIP's has 49408 tokens.
        causal: let a place see only those before it.
        layer_scale: where learned scales of what attention and feed-forward add begin; None for none.
        mlp_dim: width of the feed-forward layers; None for four times ``dim``.
        activation: of the feed-forward layers; see ``ACTIVATIONS``. CLIP's own has "quick_gelu".
        norm_eps: of all norms.

    Source: EVA-CLIP (arXiv 2303.15389; baaivision/EVA); computed by open_clip's ``TextTransformer``, as for CLIP but with the exact
    GELU.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIPText
        >>> encoder = EVACLIPText(embed_dim=8, dim=16, num_layers=1, num_heads=2).eval()
        >>> ids = encoder.tokenize(["a cat", "two cats on a sofa"])
        >>> tuple(ids.shape), tuple(encoder(ids).shape)
        ((2, 77), (2, 8))
    """

    layouts: ClassVar[tuple[Layout, ...]] = text_layouts()

    def __init__(
        self,
        *,
        embed_dim: int,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        context_length: int = 77,
        vocab_size: int = 49408,
        causal: bool = True,
        layer_scale: float | None = None,
        mlp_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim is {dim}, num_heads {num_heads}; accepted: heads that divide the width")
        self.embed_dim = embed_dim
        self.dim = dim
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.model = _open_clip_text(
            output_dim=embed_dim,
            width=dim,
            layers=num_layers,
            heads=num_heads,
            context_length=context_length,
            vocab_size=vocab_size,
            no_causal_mask=not causal,
            ls_init_value=layer_scale,
            # open_clip rounds dim times this ratio down
            mlp_ratio=4.0 if mlp_dim is None else (mlp_dim + 0.5) / dim,
            activation=activation,
            norm_eps=norm_eps,
        )

    def forward(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """One embedding for each text, of any length: the official ``text(ids)``.

        Args:
            ids: as from ``tokenize``: the largest number of a row is where the text ends.

        Raises:
            ValueError: ids outside the vocabulary (checked on CPU), or another number of places.
        """
        return self.model(self._checked(ids))[0]

    def tokens(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
        """The states of all places after the final norm, not projected. Errors as for ``forward``."""
        return self.model(self._checked(ids))[1]

    @weightless
    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Int[Tensor, "B L"]:
        """Texts to ids: a token that begins, the text in lower case, a token that ends, zeros.

        Args:
            texts: one or several.
            truncate: cut what is too long, rather than refuse it.

        Raises:
            ValueError: no text, an empty one, one that is too long, or a tower with a vocabulary of its own.
        """
        if self.vocab_size != _tokenizer().vocab_size:
            raise ValueError(f"vocab_size is {self.vocab_size}, so the tower has a tokenizer of its own; accepted: ids from it")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"texts are {texts!r}; accepted: at least one, and none that is empty")
        for text in () if truncate else texts:
            length = len(_tokenizer().encode(text)) + 2
            if length > self.context_length:
                shown = text if len(text) <= 40 else f"{text[:40]}..."
                raise ValueError(
                    f"{shown!r} has {length} tokens, its begin and end among them; accepted: up to {self.context_length},"
                    " or truncate=True, which drops the rest"
                )
        return _tokenizer()(texts, context_length=self.context_length).to(self.model.positional_embedding.device)

    def reset_buffers(self, device: torch.device) -> None:
        """The causal mask, which no checkpoint holds."""
        if self.model.attn_mask is not None:
            with torch.device(device):
                self.model.attn_mask = self.model.build_causal_mask()

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != self.context_length:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; accepted: (B, {self.context_length}), as from tokenize")
        check_range("ids", ids, self.vocab_size)
        return ids


def _open_clip_text(*, activation: str, norm_eps: float, **sizes: float | None) -> Any:
    from open_clip.transformer import LayerNorm, TextTransformer  # type: ignore[import-untyped]

    kinds = {"act_layer": partial(ActivationLayer, activation), "norm_layer": partial(LayerNorm, eps=norm_eps)}
    return TextTransformer(**sizes, **kinds, output_tokens=True)


@cache
def _tokenizer() -> Any:
    """One for all towers, which no tower carries to other processes."""
    # here, since open_clip takes seconds to import
    from open_clip.tokenizer import SimpleTokenizer  # type: ignore[import-untyped]

    return SimpleTokenizer()
