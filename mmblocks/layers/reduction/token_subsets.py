"""Random subsets of a row's tokens, of all its modalities: some are read, others are predicted.

Shapes: B rows, L tokens, M modalities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.support.checks import is_readable
from mmblocks.support.deprecation import former_method


class Subsets(NamedTuple):
    """Tokens of rows; none is in both.

    Attributes:
        read: True where a token is read.
        asked: True where a head predicts it.
    """

    read: Bool[Tensor, "B L"]
    asked: Bool[Tensor, "B L"]


class TokenSubsets(Block):
    """Budgets of tokens that are read and predicted, shared out among the modalities at random.

    A row's budgets are shared out by samples of two Dirichlet distributions: with small concentrations most tokens come from few
    modalities, with large ones from all alike. Inside a modality every token is as likely. What a modality has too few tokens
    for goes to the others. What is predicted is sampled first, so that every row has labels.

    Args:
        read: how many tokens of a row are read, or (least, most) of them.
        asked: how many are predicted, likewise; 1 or more.
        read_alphas: a concentration for each modality; 0 for one that is never read.
        asked_alphas: likewise; 0 for one that is never predicted.

    Raises:
        ValueError: budgets or concentrations out of range, or none above 0.

    Source: 4M (arXiv 2312.06647; apple/ml-4m), which samples what is read first.
    """

    def __init__(
        self,
        *,
        read: int | tuple[int, int],
        asked: int | tuple[int, int],
        read_alphas: Sequence[float],
        asked_alphas: Sequence[float],
    ) -> None:
        super().__init__()
        self.read, self.asked = _range("read", read, 0), _range("asked", asked, 1)
        if len(read_alphas) != len(asked_alphas):
            raise ValueError(f"read_alphas has {len(read_alphas)} modalities, asked_alphas {len(asked_alphas)}; accepted: as many")
        for name, alphas in (("read_alphas", read_alphas), ("asked_alphas", asked_alphas)):
            if not all(alpha >= 0 for alpha in alphas) or not any(alphas):
                raise ValueError(f"{name} is {tuple(alphas)}; accepted: 0 or more each, at least one above 0")
        self.read_alphas, self.asked_alphas = tuple(read_alphas), tuple(asked_alphas)

    def sample(
        self,
        modality: Int[Tensor, "B L"],
        *,
        read_shares: Float[Tensor, "B M"] | None = None,
        asked_shares: Float[Tensor, "B M"] | None = None,
        order: Float[Tensor, "B L"] | None = None,
        generator: Generator | None = None,
    ) -> Subsets:
        """Subsets of each row.

        Args:
            modality: which one a token belongs to, from 0 on, such as a table's ``modality`` or its ``span``; others than the M
                known ones are neither read nor predicted, padding for instance.
            read_shares: a sample of the first Dirichlet distribution, in place of a generator.
            asked_shares: likewise of the second.
            order: numbers in [0, 1], by which tokens of a modality are predicted, and then read.
            generator: source of randomness, where these are not handed in.

        Raises:
            ValueError: random values of another shape, or a row without a token that may be predicted (checked on CPU).
        """
        rows, device = len(modality), modality.device
        shares = []
        for name, given, alphas in (
            ("read_shares", read_shares, self.read_alphas),
            ("asked_shares", asked_shares, self.asked_alphas),
        ):
            share = _dirichlet(alphas, rows, device, generator) if given is None else given
            check_shape(name, share, (rows, len(alphas)))
            shares.append(share)
        if order is None:
            order = torch.rand(modality.shape, device=device, generator=generator)
        check_shape("order", order, tuple(modality.shape))
        asked = _take(modality, order, shares[1], _budget(self.asked, rows, device, generator))
        if is_readable(asked) and not bool(asked.any(dim=1).all()):
            raise ValueError("modality has a row of which nothing may be asked; accepted: one token or more of an asked modality")
        left = modality.masked_fill(asked, -1)
        return Subsets(_take(left, order, shares[0], _budget(self.read, rows, device, generator)), asked)

    draw = former_method("draw", "sample")


def _range(name: str, given: int | Sequence[int], least: int) -> tuple[int, int]:
    first, last = (given, given) if isinstance(given, int) else given
    if not least <= first <= last:
        raise ValueError(f"{name} is {given}; accepted: {least} or more, or (least, most)")
    return first, last


def _dirichlet(alphas: Sequence[float], rows: int, device: torch.device, generator: Generator | None) -> Float[Tensor, "B M"]:
    """Shares that sum to one. Small concentrations give numbers too small for any format; none becomes zero that is not."""
    alpha = torch.tensor(alphas, dtype=torch.float64, device=device).expand(rows, -1)
    gamma = torch._standard_gamma(alpha.clamp(min=1e-3), generator=generator).clamp(min=1e-30)
    gamma = torch.where(alpha > 0, gamma, 0.0)
    return gamma / gamma.sum(dim=1, keepdim=True)


def _budget(limits: tuple[int, int], rows: int, device: torch.device, generator: Generator | None) -> Int[Tensor, "B 1"]:
    return torch.randint(limits[0], limits[1] + 1, (rows, 1), device=device, generator=generator)


def _take(modality: Tensor, order: Tensor, shares: Tensor, budget: Tensor) -> Bool[Tensor, "B L"]:
    """``budget`` tokens of each row, as near to the shares as whole tokens allow, by Sainte-Lague's divisors.

    The n-th token of a modality stands at (n - 1/2) / share, and those that stand first are taken.
    """
    known = (modality >= 0) & (modality < shares.shape[1])
    index = torch.where(known, modality, 0)
    sequence = order.argsort(dim=1)
    ordered = torch.nn.functional.one_hot(index, shares.shape[1]).masked_fill(~known[..., None], 0)
    counted = ordered.gather(1, sequence[..., None].expand_as(ordered)).cumsum(dim=1)
    rank = counted.gather(2, index.gather(1, sequence)[..., None])[..., 0]
    place = (torch.zeros_like(rank).scatter(1, sequence, rank) - 0.5) / shares.double().gather(1, index)
    place = torch.where(known, place, torch.inf)
    first = place.argsort(dim=1, stable=True).argsort(dim=1) < budget
    return first & place.isfinite()
