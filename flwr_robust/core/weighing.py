"""How much each row counts: weights from numbers of examples, and what bounds them.

    b_i = min(c_i, clamp * median of c, U),   w_i = b_i / sum_j b_j

c_i is the number of examples that client i says it has. It is a claim: a client can name any number, and an honest one
may hold more than half of all samples. Two bounds limit what either can do. ``clamp`` compares a client with the median
client. ``most`` limits a share: U is the largest number at which the max(f, 1) heaviest rows together hold at most
``most`` of the weight. So no f clients hold more, whatever they claim.

U is the truncation of Portnoy, Tirosh, Hendler, "Towards federated learning with Byzantine-robust client weighting"
(Applied Sciences 12, 2022). f / n stands for their alpha, and ``most`` for their alpha*. They round U to an integer;
here it solves the equation, which is piecewise linear. Their weights, too, are truncated before a rule sees the rows.

Convention: the declared f counts clients. Where weights decide about a row's place, the f heaviest rows must weigh less
than half, else the rule does not fit. ``most`` is a share of all rows. A rule that leaves f of them out can raise the
share of f others to most / (1 - most).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.core.rows import Rows
from flwr_robust.errors import ConfigurationError

__all__ = ["Weighing", "check_most"]

_ROUNDING = 1e-12  # two shares this close are equal


def check_most(owner: str, weighted: bool, most: float | None) -> None:
    """Raise ConfigurationError if ``most`` is given to a component that weighs its rows equally."""
    if most is not None and not weighted:
        raise ConfigurationError(
            f"{owner}: most needs weighted=True, for equal weights need no bound; got most={most:g}, weighted=False: "
            f"add weighted=True, or leave most out"
        )


@dataclass(frozen=True)
class Weighing:
    """The weights of a component's rows.

    Attributes
    ----------
    owner : str
        The component; it opens the sentences.
    weighted : bool
        Whether rows count by their numbers of examples. If False, they count equally.
    clamp : float
        A number above this multiple of the median number is lowered to it; >= 1.
    most : float, optional
        The largest share of the max(f, 1) heaviest rows, in (0, 1).
    f : int, optional
        Declared number of faulty rows.
    halved : bool
        Whether the f heaviest rows must weigh less than half; False where weights decide about no row's place.

    Examples
    --------
    A client with half of all samples, and one that claims a million:

    >>> import torch
    >>> weighing = Weighing("mean", True, clamp=1000, most=0.3)
    >>> weighing.shares(torch.tensor([500.0, 200, 100, 100, 100]))
    tensor([0.3000, 0.2800, 0.1400, 0.1400, 0.1400])
    >>> weighing.shares(torch.tensor([500.0, 200, 100, 100, 1e6]))
    tensor([0.3000, 0.2000, 0.1000, 0.1000, 0.3000])
    """

    owner: str
    weighted: bool
    clamp: float = math.inf
    most: float | None = None
    f: int | None = None
    halved: bool = True

    @property
    def _few(self) -> int:
        """The number of rows whose share ``most`` bounds."""
        return max(self.f or 0, 1)

    def needs(self, smallest: int, condition: str) -> tuple[int, str]:
        """Return the smallest n and its condition in words, where equal weights need at least ``smallest`` rows.

        Honest rows of equal numbers are assumed: f rows that lie then weigh at most clamp times as much each.
        """
        bounds = [(smallest, condition)]
        if self.weighted and self.halved and self.f and (self.most is None or self.most >= 0.5):
            bounds.append((math.floor((1 + self.clamp) * self.f) + 1, f"n > (1 + clamp) f with clamp={self.clamp:g}"))
        if self.weighted and self.most is not None:
            held = "f" if self.f else "1"
            enough = math.ceil(self._few / self.most - 1e-9)
            bounds.append((enough, f"n >= {held} / most with most={self.most:g}"))
        return max(reversed(bounds), key=lambda bound: bound[0])

    def bounded(self, counts: Tensor) -> Tensor:
        """Return the numbers of examples (n,) after both bounds; ones if rows count equally.

        Raises
        ------
        ConfigurationError
            If a number is not finite, or not above 0.
        """
        if not self.weighted:
            return torch.ones(len(counts), dtype=torch.float64)
        if not bool((torch.isfinite(counts) & (counts > 0)).all()):
            raise ConfigurationError(
                f"counts must be finite and > 0; got {counts.tolist()}: leave out rows without examples"
            )
        found = counts.clamp(max=self.clamp * float(counts.quantile(0.5)))
        return found if self.most is None else found.clamp(max=_truncation(found, self._few, self.most))

    def shares(self, counts: Tensor) -> Tensor:
        """Return the weights (n,), which sum to one."""
        found = self.bounded(counts)
        return found / found.sum()

    def heaviest(self, counts: Tensor) -> float:
        """Return the share of the f heaviest rows; 0 where no f is declared."""
        return float(self.shares(counts).topk(min(self.f or 0, len(counts))).values.sum())

    def check(self, counts: Tensor) -> str | None:
        """Say why rows of these numbers of examples (n,) do not fit, or return None."""
        if not self.weighted or not self.halved or (held := self.heaviest(counts)) < 0.5:
            return None
        given = "" if self.most is None else f", most={self.most:g}"
        return (
            f"{self.owner} needs the f heaviest clients to hold less than half of the weight; got {held:.1%} for "
            f"f={self.f} of n={len(counts)} with clamp={self.clamp:g}{given}: give most, from f / n up to below 0.5, "
            f"or lower f or clamp"
        )

    def of(self, rows: Rows) -> Tensor:
        """Return the bounded numbers of examples (n,) of rows.

        Raises
        ------
        ConfigurationError
            If they are needed, and missing or not above 0.
        """
        if not self.weighted:
            return torch.ones(rows.n, dtype=torch.float64)
        if rows.counts is None:
            raise ConfigurationError(
                "weighted=True needs the number of examples of every row; pass counts=... with the rows"
            )
        return self.bounded(rows.counts)


def _truncation(counts: Tensor, few: int, most: float) -> float:
    """Return the largest number at which the few heaviest of truncated counts hold a share of at most ``most``."""
    ordered: Sequence[float] = counts.sort(descending=True).values.tolist()
    n, total = len(ordered), math.fsum(ordered)
    if math.fsum(ordered[:few]) <= most * total * (1 + _ROUNDING):
        return ordered[0]
    for cut in range(1, n):  # this many are truncated
        rest = math.fsum(ordered[cut:])
        if cut <= few:  # cut U + the others of the few = most (cut U + rest)
            bound = (most * rest - math.fsum(ordered[cut:few])) / (cut * (1 - most))
        elif few - most * cut <= _ROUNDING * few:  # they may weigh as much as they like
            return ordered[cut - 1]
        else:  # few U = most (cut U + rest)
            bound = most * rest / (few - most * cut)
        if bound >= ordered[cut]:
            return min(bound, ordered[cut - 1])
    return ordered[-1]
