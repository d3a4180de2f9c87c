"""What a visual tokenizer is trained with, as plain numbers: they are saved beside the weights."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import Any, TypedDict, Unpack, get_args, get_origin


class _Settings:
    """A frozen dataclass of numbers, which are compared with its annotations and are 0 at least."""

    def __post_init__(self) -> None:
        _check(vars(self))


@dataclass(frozen=True, kw_only=True)
class LossSettings(_Settings):
    """Weights of the losses, but for the discriminator's.

    Attributes:
        l1, l2: weights of the mean absolute and squared errors of pixels, taken on [-1, 1] as published weights suppose.
        perceptual: weight of the perceptual loss, where there is one.
        loss_weights: weights of the bottleneck's own losses by name, over those of ``tokenizer.loss_weights``.
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 1.0
    loss_weights: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AdversarySettings(_Settings):
    """How a discriminator, where there is one, teaches the tokenizer.

    Attributes:
        gan_weight: weight of the adversarial loss, times the adaptive weight.
        gan_start: the step at which the discriminator joins.
        lecam: weight of LeCam regularisation; 0 for none. Open-MAGVIT2 takes 0.05.
        last_layer: name of the tokenizer's parameter at which the adaptive weight compares gradients; None for the decoder's
            last weight in the order of its parameters.
        discriminator_lr: its learning rate; None for the tokenizer's.
    """

    gan_weight: float = 0.8
    gan_start: int = 0
    lecam: float = 0.0
    last_layer: str | None = None
    discriminator_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(_Settings):
    """AdamW, and the schedule of its learning rates.

    Attributes:
        lr: learning rate.
        betas, weight_decay: of AdamW, for the discriminator too.
        warm_up: steps over which the rates rise from nothing.
        decay_steps: the step at which a cosine has brought the rates down to ``final_share``; None for constant rates.
        final_share: what is left of the rates then.
        max_grad_norm: gradients are shortened to this length; None for no limit.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    warm_up: int = 0
    decay_steps: int | None = None
    final_share: float = 0.01
    max_grad_norm: float | None = 1.0

    def rate(self, step: int) -> float:
        """The share of the learning rates that holds at a step."""
        share = min((step + 1) / self.warm_up, 1.0) if self.warm_up else 1.0
        if self.decay_steps is None:
            return share
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(step / self.decay_steps, 1.0))
        return share * (self.final_share + (1 - self.final_share) * cosine)


@dataclass(frozen=True, kw_only=True)
class CodebookSettings(_Settings):
    """How the codebook begins and is kept in use.

    Attributes:
        kmeans_at: the tokenizer is an autoencoder without a bottleneck up to here; then k-means lays the codes where the
            features are. None for a codebook that is used from the first step on.
        revive_every: steps after which codes that nothing chose meanwhile move to features of the batch; None for never.
        revive_until: the step after which none are moved any more; None for no end.
        encode_options: keywords of the tokenizer's ``encode``, such as ``{"sample": True}`` for one that gives means unless asked.
    """

    kmeans_at: int | None = None
    revive_every: int | None = None
    revive_until: int | None = None
    encode_options: dict[str, Any] | None = None


_GROUPS: dict[str, type[Any]] = {
    "losses": LossSettings,
    "adversary": AdversarySettings,
    "optimizer": OptimizerSettings,
    "codebook": CodebookSettings,
}
_GROUP_OF = {field.name: group for group, kind in _GROUPS.items() for field in fields(kind)}


class RecipeArguments(TypedDict, total=False):
    """The settings of all groups by their own names, for the signature of ``TokenizerRecipe``."""

    l1: float
    l2: float
    perceptual: float
    loss_weights: dict[str, float] | None
    gan_weight: float
    gan_start: int
    lecam: float
    last_layer: str | None
    discriminator_lr: float | None
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warm_up: int
    decay_steps: int | None
    final_share: float
    max_grad_norm: float | None
    kmeans_at: int | None
    revive_every: int | None
    revive_until: int | None
    encode_options: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, init=False)
class TokenizerRecipe:
    """Losses, their weights and schedules. Steps count from 0.

    A setting of a group may be given by its own name, in place of the group or over it.

    Attributes:
        losses, adversary, optimizer, codebook: groups of settings.
        autocast: encoder, decoder and discriminator compute in bfloat16; the bottleneck and the losses do not.
        seed: of the generator that k-means and revival draw from. Bottlenecks that draw do so from torch's global generator, whose
            state is saved too.

    Raises:
        TypeError: a setting that does not exist, or of another type.
        ValueError: a number out of its range.

    Examples:
        >>> from mmblocks.training import TokenizerRecipe
        >>> recipe = TokenizerRecipe(lr=1e-3, warm_up=4)
        >>> [recipe.rate(step) for step in (0, 1, 3, 100)]  # shares of the learning rate
        [0.25, 0.5, 1.0, 1.0]
        >>> recipe.optimizer.lr, recipe.losses.l1
        (0.001, 1.0)
    """

    losses: LossSettings
    adversary: AdversarySettings
    optimizer: OptimizerSettings
    codebook: CodebookSettings
    autocast: bool
    seed: int

    def __init__(
        self,
        *,
        losses: LossSettings | None = None,
        adversary: AdversarySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        codebook: CodebookSettings | None = None,
        autocast: bool = False,
        seed: int = 0,
        **settings: Unpack[RecipeArguments],
    ) -> None:
        _check({"autocast": autocast, "seed": seed})
        strange = sorted(settings.keys() - _GROUP_OF.keys())
        if strange:
            raise TypeError(f"TokenizerRecipe has no setting {strange[0]!r}; accepted: {', '.join(_all_kinds())}")
        given = {"losses": losses, "adversary": adversary, "optimizer": optimizer, "codebook": codebook}
        for group, kind in _GROUPS.items():
            own = {name: value for name, value in settings.items() if _GROUP_OF[name] == group}
            object.__setattr__(self, group, replace(given[group] or kind(), **own))
        object.__setattr__(self, "autocast", autocast)
        object.__setattr__(self, "seed", seed)

    def __getattr__(self, name: str) -> Any:
        """Settings of the groups by their own names, as they were read before version 0.2."""
        if name not in _GROUP_OF:
            raise AttributeError(f"TokenizerRecipe has no attribute {name!r}")
        group = _GROUP_OF[name]
        warnings.warn(
            f"recipe.{name} is now recipe.{group}.{name}; the former name goes with version 0.3", FutureWarning, stacklevel=2
        )
        return getattr(getattr(self, group), name)

    def rate(self, step: int) -> float:
        """The share of the learning rates that holds at a step."""
        return self.optimizer.rate(step)

    def settings(self) -> dict[str, Any]:
        """All settings by their own names: what a recipe is in a file, and what it is made of again."""
        grouped = {name: value for group in _GROUPS for name, value in asdict(getattr(self, group)).items()}
        return {**grouped, "autocast": self.autocast, "seed": self.seed}


def check_types(values: Mapping[str, Any]) -> None:
    """Refuses settings of a recipe, by their own names, that are of another type than its attributes.

    Raises:
        TypeError: one is; the message names it.
    """
    for name, kind in _all_kinds().items():
        if name in values and not _fits(values[name], kind):
            shown = kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else kind
            raise TypeError(f"{name} is {values[name]!r:.200}; accepted: {shown}")


def _all_kinds() -> dict[str, Any]:
    """What type each setting has, by its own name."""
    return {field.name: field.type for group in _GROUPS.values() for field in fields(group)} | {"autocast": bool, "seed": int}


def _check(values: Mapping[str, Any]) -> None:
    """Refuses settings of another type, and numbers out of their range."""
    check_types(values)
    for name, value in values.items():
        least = 1 if name in ("decay_steps", "revive_every") else 0
        if isinstance(value, int | float) and not (value >= least and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; accepted: at least {least}")
    if values.get("max_grad_norm") == 0:
        raise ValueError("max_grad_norm is 0; accepted: more than 0, or None for no limit")


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
