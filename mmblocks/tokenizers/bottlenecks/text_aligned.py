"""A codebook that is a learned linear map of learned vectors, such as a language model's embeddings, and is searched by angle.

Shapes: B images, C features in, D width of a code, O features out, K codes; any leading axes where "*".
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn
from torch.nn.functional import embedding, normalize

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Derived, Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.ops.nearest_code import Metric, nearest_code
from mmblocks.sequence.tokens import Latents
from mmblocks.support.checks import as_int64, check_range
from mmblocks.tokenizers.bottlenecks.codebooks.any_dtype import mapped, product
from mmblocks.tokenizers.bottlenecks.codebooks.codebook import check_finite, wrong_width
from mmblocks.tokenizers.bottlenecks.codebooks.full_precision import without_autocast
from mmblocks.tokenizers.bottlenecks.codebooks.losses import squared_distance

TEXT_ALIGNED_RULES = (
    Rule("in_linear.*", "project_in.*"),
    Rule("regularizer.embedding.weight", "anchors"),
    Rule("regularizer.embedding_proj.*", "to_codes.*"),
    Rule("out_linear.*", "project_out.*"),
)


UNTRAINED = ("regularizer.stochastic_temperature_inv",)
"""An optional temperature to be learned. Draws pass it no gradient, so that it stays what it was at first."""

_HARMLESS = ("same_index_shape", "token_nums", *(f"regularizer.args.{name}" for name in ("dim", "same_index_shape", "token_nums")))
"""How many tokens there are, an argument that Tar's code never reads, and a width that it replaces."""


def temperature_difference(inverse: Tensor, arguments: Mapping[str, Any]) -> float:
    """Of the temperature in a published file (``UNTRAINED``) from what follows from the config: 0.1.

    Raises:
        ValueError: a quantiser that draws nothing.
    """
    temperature = arguments["temperature"]
    if temperature is None:
        raise ValueError("temperature is None; accepted with it: a quantiser that draws codes")
    return abs(float(inverse) * temperature - 1)


def text_aligned_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tar's options of the bottleneck and its quantiser, in one or, as it writes them, with the quantiser's inside."""
    if not config:  # the arguments are given to from_pretrained then
        return {}
    features, width = config["input_dim"], config["bottleneck_dim"]
    quantiser = config
    if "regularizer" in config:
        only(config["regularizer"], "name", "simvq")
        quantiser = config["regularizer"]["args"]
    temperature = quantiser.get("stochastic_temperature", 1.0)
    return {
        "num_codes": quantiser["codebook_size"],
        "code_dim": width if width > 0 else features,
        "in_dim": features,
        "out_dim": config["output_dim"],
        "metric": "cosine" if quantiser.get("l2_normalized") else "l2",
        "temperature": (temperature if temperature > 0 else 0.1) if quantiser.get("stochastic") else None,
    }


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    temperature = arguments["temperature"]
    return {
        "input_dim": arguments["in_dim"],
        "bottleneck_dim": arguments["code_dim"],
        "output_dim": arguments["out_dim"],
        "codebook_size": arguments["num_codes"],
        "l2_normalized": arguments["metric"] == "cosine",
        "stochastic": temperature is not None,
        **({} if temperature is None else {"stochastic_temperature": temperature}),
    }


class TextAlignedQuantizer(Block):
    """A linear map down, a look-up among ``to_codes(anchors)``, and a linear map up.

    Training with a ``temperature`` draws the codes from the softmax of the cosines; evaluation takes the nearest, unless it is
    handed a generator or draws. Losses while training, unweighted: ``codebook`` and ``commitment``, as in ``VectorQuantizer``
    (Tar's own training is not public).

    Args:
        num_codes: K.
        code_dim: D.
        in_dim, out_dim: widths of the features before and after.
        metric: "cosine" (codes of length one) or "l2".
        temperature: at which training draws codes; None where it takes the nearest.

    Raises:
        ValueError: a temperature that is not positive, or one for the metric "l2".

    Published: the bottleneck alone; Tar's files hold arguments beside a whole model's weights, a config.json those of this part.

    Source: Tar (arXiv 2506.18898; csuhan/Tar); learned maps of a codebook: SimVQ (arXiv 2411.02038).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import TextAlignedQuantizer
        >>> quantizer = TextAlignedQuantizer(num_codes=32, code_dim=4, in_dim=8, out_dim=6).eval()
        >>> latents = quantizer(torch.randn(1, 3, 3, 8))
        >>> tuple(latents.ids.shape), tuple(latents.z.shape)
        ((1, 3, 3), (1, 3, 3, 6))
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "tar",
            TEXT_ALIGNED_RULES,
            derived=tuple(Derived(name, temperature_difference) for name in UNTRAINED),
            config=text_aligned_arguments,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
    )

    def __init__(
        self,
        *,
        num_codes: int,
        code_dim: int,
        in_dim: int,
        out_dim: int,
        metric: Literal["cosine", "l2"] = "cosine",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if temperature is not None and (temperature <= 0 or metric != "cosine"):
            raise ValueError(f"temperature is {temperature}, metric {metric!r}; accepted: None, or above 0 with metric 'cosine'")
        self.metric: Literal["cosine", "l2"] = metric
        self.temperature = temperature
        self.project_in = nn.Linear(in_dim, code_dim)
        self.anchors = nn.Parameter(torch.empty(num_codes, code_dim).normal_())
        self.to_codes = nn.Linear(code_dim, code_dim)
        self.project_out = nn.Linear(code_dim, out_dim)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One number: K."""
        return (len(self.anchors),)

    @property
    def vectors(self) -> Float[Tensor, "K D"]:
        """The codes: of length one with metric "cosine"."""
        return self._scaled(self.to_codes(self.anchors))

    @without_autocast
    def forward(
        self,
        features: Float[Tensor, "B *grid C"],
        *,
        generator: Generator | None = None,
        gumbel: Float[Tensor, "B *grid K"] | None = None,
    ) -> Latents:
        """Quantises the last axis. ``features`` of what comes back are the narrow features before they were quantised.

        Args:
            features: what the encoder made.
            generator: source of randomness for drawn codes.
            gumbel: the draws themselves: standard Gumbel noise for every code.

        Raises:
            ValueError: another width than C, a value that is not finite, or draws without a ``temperature``.
        """
        narrow = self._narrowed(features)
        check_finite(narrow)
        given = generator is not None or gumbel is not None
        if given and self.temperature is None:
            raise ValueError("generator or gumbel was given, but temperature is None: this quantiser draws nothing")
        codes = self.vectors
        draws = self.temperature is not None and (self.training or given)
        ids = self._drawn(narrow, codes, generator, gumbel) if draws else self._nearest(narrow, codes)
        chosen = embedding(ids, codes)
        z = self.project_out(narrow + (chosen - narrow).detach()).to(features.dtype)
        return Latents(z=z, ids=ids, features=narrow, loss=self._losses(narrow, chosen) if self.training else None)

    @without_autocast
    def lookup(self, ids: Integer[Tensor, "*N"]) -> Float[Tensor, "*N O"]:
        """Codes by number, mapped to the width that comes out.

        Raises:
            TypeError: ids that are no integers.
            ValueError: a number outside [0, K) (checked on CPU).
        """
        ids = as_int64("ids", ids)
        check_range("ids", ids, len(self.anchors))
        return self.project_out(self._scaled(self.to_codes(embedding(ids, self.anchors))))

    @without_autocast
    def assign(self, features: Float[Tensor, "*N C"], temperature: float = 1.0) -> Float[Tensor, "*N K"]:
        """A soft choice of codes: the softmax of cosines, or of negative squared distances."""
        narrow, codes = self._narrowed(features), self.vectors
        products = narrow @ codes.T
        if self.metric == "l2":
            products = 2 * products - narrow.square().sum(-1, keepdim=True) - codes.square().sum(-1)
        return (products / temperature).softmax(dim=-1)

    @without_autocast
    def mix(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N O"]:
        """The mixture of codes with these weights, mapped to the width that comes out."""
        return mapped(self.project_out, product(weights, self.vectors))

    def _narrowed(self, features: Tensor) -> Tensor:
        """In the dtype of the weights."""
        refusal = wrong_width(features, self.project_in.in_features)
        if refusal is not None:
            raise ValueError(refusal)
        return self._scaled(mapped(self.project_in, features))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def _nearest(self, narrow: Tensor, codes: Tensor) -> Tensor:
        # Both have length one already where only angles count.
        metric: Metric = "dot" if self.metric == "cosine" else "l2"
        return nearest_code(narrow.flatten(0, -2), codes, metric).view(narrow.shape[:-1])

    @torch.no_grad()
    def _drawn(self, narrow: Tensor, codes: Tensor, generator: Generator | None, gumbel: Tensor | None) -> Tensor:
        logits = (narrow @ codes.T).float() / self.temperature  # type: ignore[operator]
        if gumbel is not None:
            return (logits + gumbel).argmax(dim=-1)
        weights = logits.softmax(dim=-1).flatten(0, -2)
        return weights.multinomial(1, generator=generator).view(narrow.shape[:-1])

    def _losses(self, narrow: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        return {
            "codebook": squared_distance(chosen, narrow.detach()),
            "commitment": squared_distance(narrow, chosen.detach()),
        }
