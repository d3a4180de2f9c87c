"""Several codebooks, each for its own slice of the features: many combinations from few, short codes.

Shapes: Q codebooks of K codes of width D; any leading axes where "*".
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.ops.nearest_code import Metric
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.bottlenecks.codebooks.losses import entropies
from mmblocks.tokenizers.bottlenecks.unitok_options import UNITOK_OTHERS
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer

_EPSILON = 1e-7
"""Inside the logarithm of the average choice, as in UniTok."""


def unitok_codebooks(config: Mapping[str, Any]) -> dict[str, Any]:
    """UniTok's options, whose sizes are those of all codebooks together; what a file does not say is as published.

    Raises:
        ValueError: sizes that do not divide.
    """
    count = config.get("num_codebooks", 8)
    codes = config["vocab_size"] if "vocab_size" in config else config.get("vocab_size_total", 32768)
    width = config.get("vocab_width", 64)
    if codes % count or width % count:
        raise ValueError(f"vocab_size is {codes}, vocab_width {width}; accepted: multiples of num_codebooks, {count}")
    has_entropy = config["use_entropy_loss"] if "use_entropy_loss" in config else config.get("le", 0) > 0
    return {
        "num_codebooks": count,
        "num_codes": codes // count,
        "code_dim": width // count,
        "entropy_temperature": _temperature(config) if has_entropy else None,
    }


def _temperature(config: Mapping[str, Any]) -> float:
    """As the quantiser's own arguments call it, or the options of a whole model."""
    temperature: float = config["entropy_temp"] if "entropy_temp" in config else config.get("e_temp", 0.01)
    return temperature


def _published_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    only(arguments, "metric", "cosine")
    count, temperature = arguments["num_codebooks"], arguments["entropy_temperature"]
    entropy = {"use_entropy_loss": True, "entropy_temp": temperature}
    return {
        "num_codebooks": count,
        "vocab_size": count * arguments["num_codes"],
        "vocab_width": count * arguments["code_dim"],
        **({} if temperature is None else entropy),
    }


class MultiCodebook(Block):
    """Cuts each feature into Q slices and quantises each with a codebook of its own.

    Losses while training, unweighted, are the means over the codebooks: ``codebook``, ``commitment`` and, where asked for,
    ``sample_entropy`` and ``codebook_entropy``; see ``VectorQuantizer``.

    Args:
        num_codebooks: Q.
        num_codes: K, codes of each.
        code_dim: D, width of each; features are Q D wide.
        metric: "cosine" as in UniTok, where every slice of what comes out has length one; or "l2".
        entropy_temperature: also return entropies, at this temperature.

    Published: in a whole model's file, whose training options lie beside the weights; a config.json names them, or the arguments of
    the quantizer.

    Source: UniTok (arXiv 2502.20321; FoundationVision/UniTok).

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers.bottlenecks import MultiCodebook
        >>> quantizer = MultiCodebook(num_codebooks=2, num_codes=16, code_dim=3).eval()
        >>> latents = quantizer(torch.randn(1, 4, 4, 6))
        >>> tuple(latents.ids.shape), quantizer.codebook_sizes
        ((1, 4, 4, 2), (16, 16))
        >>> torch.allclose(quantizer.lookup(latents.ids), latents.z, atol=1e-6)
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "unitok",
            (Rule("quantizer.codebooks.{}.codebook.weight", "codebooks.{}.codes"),),
            ignored=("*",),
            config=unitok_codebooks,
            published_config=_published_config,
            harmless=UNITOK_OTHERS,
        ),
    )

    def __init__(
        self,
        *,
        num_codebooks: int,
        num_codes: int,
        code_dim: int,
        metric: Metric = "cosine",
        entropy_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.dim = num_codebooks * code_dim
        self.entropy_temperature = entropy_temperature
        self.codebooks = nn.ModuleList(
            VectorQuantizer(num_codes=num_codes, dim=code_dim, metric=metric) for _ in range(num_codebooks)
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K, Q times."""
        return tuple(size for codebook in self._books for size in codebook.codebook_sizes)

    def forward(self, features: Float[Tensor, "B *grid QD"]) -> Latents:
        """Quantises each slice of the last axis; ids are (B, *grid, Q).

        Raises:
            ValueError: features of another width than Q D, or a value that is not finite.
        """
        slices = self._slices(features)
        parts = [codebook(part) for codebook, part in zip(self._books, slices, strict=True)]
        return Latents(
            z=torch.cat([part.z for part in parts], dim=-1),
            ids=torch.stack([part.ids for part in parts], dim=-1),
            loss=self._losses(parts, slices) if self.training else None,
        )

    def lookup(self, ids: Integer[Tensor, "*N Q"]) -> Float[Tensor, "*N QD"]:
        """The codes of all codebooks, side by side.

        Raises:
            TypeError: ids that are no integers.
            ValueError: another number of codes than Q in the last axis, or one that does not exist (checked on CPU).
        """
        if ids.shape[-1] != len(self._books):
            raise ValueError(f"ids have {ids.shape[-1]} codes a token (last axis); accepted: {len(self._books)}")
        return torch.cat([codebook.lookup(ids[..., number]) for number, codebook in enumerate(self._books)], dim=-1)

    def assign(self, features: Float[Tensor, "*N QD"], temperature: float = 1.0) -> Float[Tensor, "*N Q K"]:
        """A soft choice of codes for each slice; see ``Codebook.assign``."""
        slices = zip(self._books, self._slices(features), strict=True)
        return torch.stack([codebook.assign(part, temperature) for codebook, part in slices], dim=-2)

    def mix(self, weights: Float[Tensor, "*N Q K"]) -> Float[Tensor, "*N QD"]:
        """The mixtures of codes with these weights, side by side."""
        return torch.cat([codebook.mix(weights[..., number, :]) for number, codebook in enumerate(self._books)], dim=-1)

    @property
    def _books(self) -> list[VectorQuantizer]:
        return list(self.codebooks)  # type: ignore[arg-type]

    def _slices(self, features: Tensor) -> tuple[Tensor, ...]:
        if features.shape[-1] != self.dim:
            raise ValueError(f"features are {features.shape[-1]} wide; accepted: {self.dim}")
        return tuple(rearrange(features, "... (q d) -> q ... d", q=len(self._books)))

    def _losses(self, parts: list[Latents], slices: tuple[Tensor, ...]) -> dict[str, Tensor]:
        terms = [dict(part.loss or {}) for part in parts]
        if self.entropy_temperature is not None:
            for codebook, part, term in zip(self._books, slices, terms, strict=True):
                logits = codebook.scores(part).flatten(0, -2) / self.entropy_temperature
                term["sample_entropy"], term["codebook_entropy"] = entropies(logits, _EPSILON)
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
