"""TA-Tok, the text-aligned tokenizer of Tar: an image as codes that stand for what SigLIP 2 sees, at one of three lengths.

Shapes: B images, H and W pixels, h and w tokens, C width of the features, D width of a code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only, read_own, written_own
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.layers.images.pixels import check_pixels, normalised_for, pixels_of
from mmblocks.layers.towers.siglip import (
    SiglipArguments,
    SiglipLayer,
    SiglipPooling,
    SiglipSizes,
    SiglipVision,
    siglip_rules,
    siglip_sizes,
)
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import check_shape
from mmblocks.support.pickling import weightless
from mmblocks.tokenizers.bottlenecks.text_aligned import (
    TEXT_ALIGNED_RULES,
    UNTRAINED,
    TextAlignedQuantizer,
)
from mmblocks.tokenizers.conv.blocks import channels_first, channels_last
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer

_RULES = (
    *siglip_rules("encoder.", "encoder.vision."),
    Rule("encode_task_layer.0.*", "encoder.task.*"),
    *(Rule(f"bottleneck.{rule.theirs}", f"bottleneck.{rule.ours}") for rule in TEXT_ALIGNED_RULES),
    *siglip_rules("decoder.vision_model.", "decoder."),
    Rule("decode_task_layer.0.*", "decoder.task.0.*"),
    Rule("decode_task_layer.2.*", "decoder.task.2.*"),
)


_TEACHER = "google/siglip2-so400m-patch14-384"
_OWN = {"decoder_heads": 12, "decoder_mlp_dim": 3072, "decoder_positions": 16}
"""Arguments that stand in no config: Tar's decoder has SigLIP 2's own defaults."""

_REGULARIZER = (
    *("dim", "same_index_shape", "stochastic_temperature", "commitment_loss_weight", "codebook_loss_weight"),
    *("entropy_loss_weight", "entropy_loss_temperature"),
)
_HARMLESS = (
    *("name", "bottleneck_token_num", "input_type", "bottleneck.args.norm", "bottleneck.args.token_nums"),
    *(f"bottleneck.args.regularizer.args.{name}" for name in _REGULARIZER),
)
"""Numbers of tokens, which go by the image; what ``forward`` returns; training. The temperature counts with ``stochastic``."""


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in TA-Tok's file; without them the defaults are taken."""
    if not config:
        return {}
    vision = read_own(config, siglip_sizes(config.get("teacher", _TEACHER)))
    only(config["bottleneck"], "name", "bottleneck")
    bottleneck = config["bottleneck"]["args"]
    only(bottleneck["regularizer"], "name", "simvq")
    regularizer = bottleneck["regularizer"]["args"]
    temperature = regularizer.get("stochastic_temperature", 1.0)
    code_dim = bottleneck["bottleneck_dim"]
    return {
        **vision,
        "num_codes": regularizer["codebook_size"],
        "code_dim": code_dim if code_dim > 0 else vision["dim"],
        "metric": "cosine" if regularizer.get("l2_normalized") else "l2",
        "temperature": (temperature if temperature > 0 else 0.1) if regularizer.get("stochastic") else None,
        "image_size": config.get("input_size", vision["image_size"]),
        "state": config.get("select_layer_id", -2),
        "pool_scale": config.get("pool_scale", 1),
        "decoder_layers": config.get("decoder_depth", 3),
        **read_own(config, _OWN),
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    """The arguments that TA-Tok's file holds beside its weights."""
    temperature = arguments["temperature"]
    regularizer = {
        "codebook_size": arguments["num_codes"],
        "l2_normalized": arguments["metric"] == "cosine",
        "stochastic": temperature is not None,
        **({} if temperature is None else {"stochastic_temperature": temperature}),
    }
    bottleneck = {"bottleneck_dim": arguments["code_dim"], "regularizer": {"name": "simvq", "args": regularizer}}
    return {
        "teacher": _TEACHER,
        "input_size": arguments["image_size"],
        "select_layer_id": arguments["state"],
        "pool_scale": arguments["pool_scale"],
        "decoder_depth": arguments["decoder_layers"],
        "bottleneck": {"name": "bottleneck", "args": bottleneck},
        **written_own(arguments, {**siglip_sizes(_TEACHER), **_OWN, "image_size": arguments["image_size"]}),
    }


def _scale_difference(values: Tensor, arguments: Arguments) -> float:
    """Of the mean, or the deviation, in a file from that with which pixels are normalised."""
    return float((values.float() - 0.5).abs().max())


class TATokEncoder(Block):
    """A state of SigLIP 2, averaged over squares of patches where fewer tokens are wanted, and one layer with tanh.

    Args:
        state: which of the states, counted as in a list of the embedded patches and what each layer makes of them.
        pool_scale: patches a side that are averaged into a token, where ``forward`` is not told.
        tower: the arguments of ``SiglipSizes``.

    Layers after that state, the norm and the pooled vector are in the published file, but not used.
    """

    shorthand = SiglipSizes

    def __init__(self, *, state: int = -2, pool_scale: int = 1, **tower: Unpack[SiglipArguments]) -> None:
        super().__init__()
        dim = SiglipSizes(**tower).dim
        self.vision = SiglipVision(**tower)
        self.num_used = range(len(self.vision.layers) + 1)[state]
        self.pool_scale = pool_scale
        self.task = nn.Linear(dim, dim)
        for unused in (self.vision.layers[self.num_used :], self.vision.norm, self.vision.pool):
            unused.requires_grad_(False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"], pool_scale: int | None = None) -> Float[Tensor, "B h w C"]:
        """Pixels, normalised, to features in [-1, 1]. Patches at the right and below that fill no square are dropped."""
        x = self.vision.embed(pixels)
        for layer in list(self.vision.layers)[: self.num_used]:
            x = layer(x)
        rows = pixels.shape[2] // self.vision.patch.kernel_size[0]
        x = rearrange(x, "b (h w) c -> b h w c", h=rows)
        scale = self.pool_scale if pool_scale is None else pool_scale
        if scale != 1:
            x = channels_last(avg_pool2d(channels_first(x), scale))
        return self.task(x).tanh()


class TATokDecoder(Block):
    """Codes to what SigLIP 2 would have seen: a few layers, and two linear ones with tanh between.

    Args:
        code_dim: D.
        dim: C.
        num_layers, num_heads, mlp_dim: of the layers.
        num_positions: rows and columns of learned positions, which are stretched over any grid.

    A pooled vector is in the published file, but not used.
    """

    def __init__(
        self, *, code_dim: int, dim: int, num_layers: int = 3, num_heads: int = 12, mlp_dim: int = 3072, num_positions: int = 16
    ) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.patch = nn.Linear(code_dim, dim)
        self.positions = nn.Parameter(torch.empty(num_positions**2, dim).normal_(std=0.02))
        self.layers = nn.ModuleList(SiglipLayer(dim, num_heads=num_heads, mlp_dim=mlp_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pool = SiglipPooling(dim, num_heads=num_heads, mlp_dim=mlp_dim).requires_grad_(False)
        self.task = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))

    def forward(self, z: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w C"]:
        """Any grid.

        Raises:
            ValueError: codes of another shape.
        """
        check_shape("z", z, "B", "h", "w", self.patch.in_features)
        table = rearrange(self.positions, "(h w) c -> 1 c h w", h=self.num_positions)
        size = z.shape[1:3]
        # Half precision cannot be stretched on a CPU.
        stretched = interpolate(table.float(), size=size, mode="bilinear", antialias=True)
        x = (self.patch(z) + channels_last(stretched).to(z.dtype)).flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        return rearrange(self.task(self.norm(x)), "b (h w) c -> b h w c", h=size[0])


class TATok(VisualTokenizer):
    """SigLIP 2, a codebook that began as a language model's embeddings, and a small decoder back to SigLIP 2's features.

    There are no pixels after the decoder: Tar paints images with a generative model that reads its features or the codes.

    Args:
        num_codes: size of the codebook.
        code_dim: width of a code.
        state, pool_scale: see ``TATokEncoder``.
        decoder_layers, decoder_heads, decoder_mlp_dim, decoder_positions: see ``TATokDecoder``.
        metric, temperature: see ``TextAlignedQuantizer``.
        tower: the arguments of ``SiglipSizes``.

    Published: ``ta_tok.pth``, whose own arguments tell ``code_dim``, ``metric`` and ``temperature``.

    Source: Tar (arXiv 2506.18898; csuhan/Tar).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import TATok
        >>> sizes = {"image_size": 28, "patch_size": 7, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}
        >>> decoder = {"decoder_layers": 1, "decoder_heads": 2, "decoder_mlp_dim": 16, "decoder_positions": 4}
        >>> tokenizer = TATok(num_codes=32, code_dim=8, **sizes, **decoder).eval()
        >>> latents = tokenizer.encode(torch.rand(1, 3, 28, 28), pool_scale=2)
        >>> tuple(latents.ids.shape), tuple(tokenizer.decode(latents.ids).shape)
        ((1, 2, 2), (1, 2, 2, 16))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "tar",
            _RULES,
            ignored=("teacher.*", *(f"bottleneck.{name}" for name in UNTRAINED)),
            derived=(Derived("scale_layer.*", _scale_difference),),
            config=_config,
            published_config=_published_config,
            unwrap="model.sd",
            harmless=_HARMLESS,
        ),
    )

    shorthand = SiglipSizes

    def __init__(
        self,
        *,
        num_codes: int = 65536,
        code_dim: int = 1536,
        state: int = -2,
        pool_scale: int = 1,
        decoder_layers: int = 3,
        decoder_heads: int = 12,
        decoder_mlp_dim: int = 3072,
        decoder_positions: int = 16,
        metric: Literal["cosine", "l2"] = "cosine",
        temperature: float | None = None,
        **tower: Unpack[SiglipArguments],
    ) -> None:
        sizes = SiglipSizes(**tower)
        dim, step = sizes.dim, sizes.patch_size * pool_scale
        super().__init__(
            encoder=TATokEncoder(state=state, pool_scale=pool_scale, **tower),
            bottleneck=TextAlignedQuantizer(
                num_codes=num_codes, code_dim=code_dim, in_dim=dim, out_dim=code_dim, metric=metric, temperature=temperature
            ),
            decoder=TATokDecoder(
                code_dim=code_dim,
                dim=dim,
                num_layers=decoder_layers,
                num_heads=decoder_heads,
                mlp_dim=decoder_mlp_dim,
                num_positions=decoder_positions,
            ),
            downsampling=(step, step),
        )
        self.image_size = sizes.image_size
        self.only_size = (sizes.image_size, sizes.image_size)

    # Unlike its base, it can be asked for fewer tokens, and it comes out at features.

    def features(self, pixels: Float[Tensor, "B 3 H W"], pool_scale: int | None = None) -> Float[Tensor, "B h w C"]:
        """What the bottleneck is given; raises as ``encode``."""
        check_pixels(pixels, num_axes=4)
        self.check_size(*pixels.shape[2:])
        return self.encoder(normalised_for(self.encoder, pixels, self.mean, self.std), pool_scale)

    def encode(self, pixels: Float[Tensor, "B 3 H W"], *, pool_scale: int | None = None, **draws: object) -> Latents:
        """Pixels in [0, 1] to codes; ``features`` beside them are those before they were quantised.

        Args:
            pixels: square images of ``image_size``; see ``preprocess``.
            pool_scale: patches a side in a token: 1, 2 or 3 in Tar (27, 13 or 9 tokens a side at 384 pixels).
            draws: see ``TextAlignedQuantizer``.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: pixels of another size, or outside [0, 1].
        """
        return self.bottleneck(self.features(pixels, pool_scale), **draws)

    def decode(self, latents: Latents | Integer[Tensor, "B h w"]) -> Float[Tensor, "B h w C"]:
        """Latents, or ids alone, to SigLIP 2's features, not to pixels.

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids that do not exist; ids or latents of another shape.
        """
        return self.decoder(self.decoder_input(latents))

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image in RGB, stretched to ``image_size`` along both sides."""
        size = (self.image_size, self.image_size)
        return interpolate(pixels_of(image)[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
