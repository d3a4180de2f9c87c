"""Flamingo's gated cross-attention: a layer between a trunk's own ones, through which text tokens read images.

Shapes: B rows, L tokens of a row, M images of a row, Q tokens of an image, D and C the widths of text and images.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule, Split
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.support.checks import check_range


class ReadableImages(NamedTuple):
    """What a layer keeps of images, so that they are projected once however often they are read.

    Attributes:
        key, value: of all tokens of all images.
        num_images: M.
    """

    key: Float[Tensor, "B heads MQ d"]
    value: Float[Tensor, "B heads MQ d"]
    num_images: int

    def followed_by(self, more: "ReadableImages") -> "ReadableImages":
        """These images and then more, with as many tokens each.

        Raises:
            ValueError: images of another number of tokens.
        """
        per_image, others = (images.key.shape[2] // images.num_images for images in (self, more))
        if per_image != others:
            raise ValueError(f"images have {others} tokens each; accepted: {per_image}, as the row's images before")
        key, value = (torch.cat(pair, dim=2) for pair in ((self.key, more.key), (self.value, more.value)))
        return ReadableImages(key, value, self.num_images + more.num_images)

    def rows(self, index: Int[Tensor, " R"]) -> "ReadableImages":
        """Those of the chosen rows."""
        return self._replace(key=self.key[index], value=self.value[index])


_ARGUMENTS = {
    "dim": "dim",
    "dim_visual": "context_dim",
    "heads": "num_heads",
    "dim_head": "head_dim",
    "only_attend_immediate_media": "only_last",
}
"""Arguments of Flamingo's class -> ours."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the published class, which a file does not have beside it; what is not said is as in the class."""
    arguments = {ours: config[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in config}
    times = config.get("ff_mult", 4)
    return arguments | ({} if times == 4 else {"mlp_dim": int(config["dim"] * times)})


def _published_config(arguments: Arguments) -> dict[str, Any]:
    dim, mlp_dim = arguments["dim"], arguments["mlp_dim"]
    times = 4 if mlp_dim is None else mlp_dim / dim if mlp_dim % dim else mlp_dim // dim
    return {**{theirs: arguments[ours] for theirs, ours in _ARGUMENTS.items()}, "ff_mult": times}


class GatedCrossAttention(Block):
    """Cross-attention and a feed-forward part, each after a norm and added through tanh of a learned gate that begins at zero.

    A layer that was just made changes nothing, so that a pretrained trunk begins as it was.

    Args:
        dim: D.
        context_dim: C.
        num_heads, head_dim: of the attention; heads need not fill the width.
        mlp_dim: width of the feed-forward part; None for four times ``dim``.
        only_last: whether a token reads the last image before it alone, as published, or all before it.

    Source: Flamingo (arXiv 2204.14198), as in lucidrains/flamingo-pytorch and mlfoundations/open_flamingo.

    Examples:
        >>> import torch
        >>> from mmblocks.layers import GatedCrossAttention
        >>> layer = GatedCrossAttention(dim=16, context_dim=8, num_heads=2, head_dim=8)
        >>> x, images = torch.randn(1, 5, 16), torch.randn(1, 1, 3, 8)
        >>> torch.equal(layer(x, images), x)  # its gates are closed at first
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "flamingo",
            (
                Rule("attn.norm.*", "norm.*"),
                Rule("attn.to_q.weight", "query.weight"),
                Split("attn.to_kv.weight", ("key.weight", "value.weight")),
                Rule("attn.to_out.weight", "out.weight"),
                Rule("attn_gate", "attention_gate"),
                Rule("ff.0.*", "mlp_norm.*"),
                Rule("ff.1.weight", "up.weight"),
                Rule("ff.3.weight", "down.weight"),
                Rule("ff_gate", "mlp_gate"),
            ),
            config=_config,
            published_config=_published_config,
        ),
    )

    def __init__(
        self,
        *,
        dim: int,
        context_dim: int,
        num_heads: int = 8,
        head_dim: int = 64,
        mlp_dim: int | None = None,
        only_last: bool = True,
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.only_last = only_last
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(context_dim, inner, bias=False)
        self.value = nn.Linear(context_dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_dim or 4 * dim, bias=False)
        self.down = nn.Linear(mlp_dim or 4 * dim, dim, bias=False)
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        images: Float[Tensor, "B M Q C"],
        num_before: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The tokens, with what they read in the images added.

        Args:
            x: hidden states of the trunk.
            images: such as a ``PerceiverResampler`` makes of each.
            num_before: how many of its row's images lie before each token, an image's own token counted with its image; None
                lets every token read all images. A token with none before it reads nothing. (In the published code it reads
                all of them if ``only_last`` is off.)

        Raises:
            ValueError: axes that do not fit each other, or more images before a token than there are (checked on CPU).
        """
        if images.ndim != 4 or len(images) != len(x):
            raise ValueError(f"images have shape {tuple(images.shape)}; accepted: ({len(x)}, M, Q, C), with as many rows as x")
        return self.read(x, self.project(images), num_before)

    def project(self, images: Float[Tensor, "B M Q C"]) -> ReadableImages:
        """Images as ``read`` takes them."""
        key, value = (self._heads(project(images.flatten(1, 2))) for project in (self.key, self.value))
        return ReadableImages(key, value, images.shape[1])

    def read(
        self, x: Float[Tensor, "B L D"], images: ReadableImages, num_before: Int[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """As ``forward``, of images that were projected before."""
        query = self._heads(self.query(self.norm(x)))
        seen = None if num_before is None else self._seen(num_before, images)
        found = scaled_dot_product_attention(query, images.key, images.value, attn_mask=seen)
        found = rearrange(found, "b heads n d -> b n (heads d)")
        if num_before is not None:
            found = found * (num_before > 0)[..., None]
        x = x + self.out(found) * self.attention_gate.tanh()
        return x + self.down(gelu(self.up(self.mlp_norm(x)))) * self.mlp_gate.tanh()

    def _heads(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)

    def _seen(self, num_before: Tensor, images: ReadableImages) -> Tensor:
        """Which tokens of images each token reads, (B, 1, L, M * Q). One that reads nothing sees all, for softmax's sake."""
        num_images = images.num_images
        per_image = images.key.shape[2] // num_images
        check_range("num_before", num_before, num_images + 1, ", the images of a row")
        image = torch.arange(1, num_images + 1, device=num_before.device)
        before = num_before[..., None]
        seen = (before == image if self.only_last else before >= image) | (before == 0)
        return seen[:, None, :, :, None].expand(-1, -1, -1, -1, per_image).flatten(-2)
