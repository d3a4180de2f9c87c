"""What a visual tokenizer is trained with, as plain numbers: they are saved beside the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args, get_origin


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Losses, their weights and schedules. Steps count from 0.

    Attributes:
        l1, l2: weights of the mean absolute and squared errors of pixels, taken on [-1, 1] as published weights suppose.
        perceptual: weight of the perceptual loss, where there is one.
        loss_weights: weights of the bottleneck's own losses by name, over those of ``tokenizer.loss_weights``.
        gan_weight: weight of the adversarial loss, times the adaptive weight.
        gan_start: the step at which the discriminator joins.
        lecam: weight of LeCam regularisation; 0 for none. Open-MAGVIT2 takes 0.05.
        last_layer: name of the tokenizer's parameter at which the adaptive weight compares gradients; None for the decoder's
            last weight in the order of its parameters.
        lr, discriminator_lr: learning rates; None: the discriminator has the tokenizer's.
        betas, weight_decay: of AdamW, for both.
        warm_up: steps over which the rates rise from nothing.
        decay_steps: the step at which a cosine has brought the rates down to ``final_share``; None for constant rates.
        final_share: what is left of the rates then.
        max_grad_norm: gradients are shortened to this length; None for no limit.
        kmeans_at: the tokenizer is an autoencoder without a bottleneck up to here; then k-means lays the codes where the
            features are. None for a codebook that is used from the first step on.
        revive_every: steps after which codes that nothing chose meanwhile move to features of the batch; None for never.
        revive_until: the step after which none are moved any more; None for no end.
        encode_options: keywords of the tokenizer's ``encode``, such as ``{"sample": True}`` for one that gives means unless asked.
        autocast: encoder, decoder and discriminator compute in bfloat16; the bottleneck and the losses do not.
        seed: of the generator that k-means and revival draw from. Bottlenecks that draw do so from torch's global generator, whose
            state is saved too.

    Examples:
        >>> from mmblocks.training import TokenizerRecipe
        >>> recipe = TokenizerRecipe(lr=1e-3, warm_up=4)
        >>> [recipe.rate(step) for step in (0, 1, 3, 100)]  # shares of the learning rate
        [0.25, 0.5, 1.0, 1.0]
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 1.0
    loss_weights: dict[str, float] | None = None
    gan_weight: float = 0.8
    gan_start: int = 0
    lecam: float = 0.0
    last_layer: str | None = None
    lr: float = 1e-4
    discriminator_lr: float | None = None
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    warm_up: int = 0
    decay_steps: int | None = None
    final_share: float = 0.01
    max_grad_norm: float | None = 1.0
    kmeans_at: int | None = None
    revive_every: int | None = None
    revive_until: int | None = None
    encode_options: dict[str, Any] | None = None
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(vars(self))
        for field in fields(self):
            value = vars(self)[field.name]
            least = 1 if field.name in ("decay_steps", "revive_every") else 0
            if isinstance(value, int | float) and not (value >= least and math.isfinite(value)):
                raise ValueError(f"{field.name} is {value}; accepted: at least {least}")
        if self.max_grad_norm == 0:
            raise ValueError("max_grad_norm is 0; accepted: more than 0, or None for no limit")

    def rate(self, step: int) -> float:
        """The share of the learning rates that holds at a step."""
        share = min((step + 1) / self.warm_up, 1.0) if self.warm_up else 1.0
        if self.decay_steps is None:
            return share
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(step / self.decay_steps, 1.0))
        return share * (self.final_share + (1 - self.final_share) * cosine)


def check_types(values: Mapping[str, Any]) -> None:
    """Refuses settings of a recipe that are of another type than its attributes.

    Raises:
        TypeError: one is; the message names it.
    """
    for field in fields(TokenizerRecipe):
        if field.name in values and not _fits(values[field.name], field.type):
            kind = field.type.__name__ if isinstance(field.type, type) and get_origin(field.type) is None else field.type
            raise TypeError(f"{field.name} is {values[field.name]!r:.200}; accepted: {kind}")


def _fits(value: object, kind: object) -> bool:
    """Whether a value is of the type of a field; a number without a fraction is an integer, a bool is no number."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is Any:
        return True
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, str) and _fits(v, get_args(kind)[1]) for k, v in value.items())
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind is float or not isinstance(value, float) or not value % 1)
    return isinstance(kind, type) and isinstance(value, kind)
