"""What a codebook needs while a tokenizer is trained: a start by k-means, reviving dead codes, a guard, a count.

Shapes: N features of width D, K codes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training.image_metrics import CodeUsage
from mmblocks.training.tokenizer_losses import check_finite
from mmblocks.training.tokenizer_recipe import CodebookSettings

FEATURES_PER_CODE = 8
"""How many features k-means waits for."""


@runtime_checkable
class _Fitted(Protocol):
    def fit(self, features: Tensor, *, generator: Generator | None = None) -> None: ...


@runtime_checkable
class _Revived(Protocol):
    def replace_unused(self, features: Tensor, used: Tensor, generator: Generator | None = None) -> int: ...


class CodebookCare:
    """Encodes with a tokenizer, and looks after its codebook from step to step.

    Args:
        tokenizer: whose bottleneck it is. K-means asks for its ``fit(features, generator=...)``, reviving for its
            ``replace_unused(features, used, generator)``, both of which a ``Codebook`` has.
        settings: when k-means and revival are due, and what ``encode`` is given.
        device: where the tokenizer is.
        generator: source of randomness for k-means and revival.

    Attributes:
        is_laid: whether the bottleneck is in use; until then the tokenizer is an autoencoder without one.
        waiting: features collected for k-means.
        usage: how often each code was chosen recently.

    Raises:
        TypeError: ``kmeans_at`` or ``revive_every`` for a bottleneck that cannot do it.
    """

    def __init__(self, tokenizer: VisualTokenizer, settings: CodebookSettings, device: torch.device, generator: Generator) -> None:
        self.tokenizer = tokenizer
        self.bottleneck = tokenizer.bottleneck
        self.settings = settings
        self.generator = generator
        self.is_laid = settings.kmeans_at is None
        self.waiting: list[Tensor] = []
        self.usage = CodeUsage(tokenizer.codebook_sizes, device, window=settings.revive_every or 100)
        for option, value, method, role in (
            ("kmeans_at", settings.kmeans_at, "fit", _Fitted),
            ("revive_every", settings.revive_every, "replace_unused", _Revived),
        ):
            able = isinstance(self.bottleneck, role) and len(tokenizer.codebook_sizes) == 1 and self.usage.counts
            if value is not None and not able:
                kind = type(self.bottleneck).__name__
                raise TypeError(f"{option} is set, but {kind} is no bottleneck with one codebook and {method}(...); accepted: None")

    def encode(self, pixels: Float[Tensor, "B 3 *size"]) -> tuple[Latents, Tensor]:
        """Latents with their losses, and the features (N, D) that became them.

        Raises:
            NotFiniteError: features with NaN or infinity; the bottleneck has not seen them.
        """
        if not self.is_laid:
            features = _full_precision(self.tokenizer.features(pixels))
            check_finite(features=features)
            # The decoder shall see what it will see later: codes of length one have features of length one. Not every bottleneck
            # has such a setting.
            unit = getattr(self.bottleneck, "metric", None) == "cosine" or getattr(self.bottleneck, "unit", False)
            z = normalize(features, dim=-1) if unit else features
            return Latents(z=z), features.detach().flatten(0, -2)
        with _guarded(self.bottleneck) as seen:
            latents = self.tokenizer.encode(pixels, **self.settings.encode_options or {})
        return latents, seen[-1].flatten(0, -2) if seen else pixels.new_zeros(0, 0)

    @torch.no_grad()
    def after_step(self, latents: Latents, features: Float[Tensor, "N D"], step: int) -> int:
        """Counts the codes of a batch; lays or revives codes where it is time. Returns how many were revived."""
        if not self.is_laid:
            self._collect(features, step)
            return 0
        if latents.ids is None:
            return 0
        self.usage.add(latents.ids, latents.lengths)
        if not self.usage.is_full:
            return 0
        until = self.settings.revive_until
        revives = self.settings.revive_every is not None and (until is None or step < until)
        revived = self._revived(features) if revives else 0
        self.usage.roll()
        return revived

    def _revived(self, features: Tensor) -> int:
        return cast("_Revived", self.bottleneck).replace_unused(features, self.usage.counts[0][0], self.generator)

    def _collect(self, features: Tensor, step: int) -> None:
        """Keeps the features of a few batches, where one holds too few, and lays the codebook."""
        if self.settings.kmeans_at is None or step < self.settings.kmeans_at:
            return
        self.waiting.append(features)
        if sum(map(len, self.waiting)) >= FEATURES_PER_CODE * self.tokenizer.codebook_sizes[0]:
            cast("_Fitted", self.bottleneck).fit(torch.cat(self.waiting), generator=self.generator)
            self.waiting, self.is_laid = [], True


@contextmanager
def _guarded(bottleneck: nn.Module) -> Iterator[list[Tensor]]:
    """Calls of the bottleneck get finite float32 features, and compute in float32 under autocast; gives what they got.

    A codebook of moving averages learns as soon as it is called, so that the check has to come before.
    """
    seen: list[Tensor] = []
    with ExitStack() as stack:

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features = _full_precision(inputs[0])
            check_finite(features=features)
            seen.append(features.detach())
            stack.enter_context(torch.autocast(features.device.type, enabled=False))
            return (features, *inputs[1:])

        def after(*_: object) -> None:
            stack.close()

        hooks = bottleneck.register_forward_pre_hook(before), bottleneck.register_forward_hook(after)
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def _full_precision(features: Tensor) -> Tensor:
    """What autocast left in bfloat16 as float32; float64 stays."""
    return features.float() if features.dtype == torch.bfloat16 else features
