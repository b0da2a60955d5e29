"""ALIE, a little is enough: all attackers stay at the edge of the honest spread, on the same side in every coordinate.

    crafted_j = mean_j - z std_j,   z = "auto": Phi^-1((n - f - s) / (n - f)),   s = floor(n / 2 + 1) - f

mean, std: of the honest messages, coordinate by coordinate. n clients, f attackers; s honest ones lie beyond the
crafted row and support it. Phi: the standard normal distribution function. Baruch, Baruch, Goldberg, "A little is
enough: circumventing defenses for distributed learning" (NeurIPS 2019), where mean and std are estimated from the
attackers' own clients (``known="own"``).

Convention: minus, std with n - 1 (``ddof=1``). The code of Xu, Huang, Song, Lan, "Byzantine-robust federated learning
through collaborative malicious gradient filtering" (SignGuard, ICDCS 2022) takes both over the messages of all clients,
honest as the attackers' would be too (``known="clients"``), with z = 1. ByzFL adds (``sign=1``) with z = 1.5; others
divide by the number (``ddof=0``), or take Phi^-1((n - s) / n) (``share="clients"``). FLANDERS's baseline uses Phi
instead of its inverse and the root of std instead of std. The argument of Phi^-1 is kept 1 / (2 n - 2 f) away from 0
and 1. Where it is below one half, z is negative and the published formula moves to the other side. The std of a single
row is 0.

Knows: omniscient; with ``known`` own or partial.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, ClassVar

import torch

from flwr_robust.attacks.message.base import InformedAttack, MessageCase, View, message_attacks
from flwr_robust.attacks.message.line import Line, LineAttack, averaging
from flwr_robust.core.fields import Choice, Number
from flwr_robust.core.rule import State

__all__ = ["ALIE", "edge"]


def edge(n: int, f: int, share: str = "honest") -> float:
    """Return z for n clients of which f attack."""
    supporters = n // 2 + 1 - f
    honest = max(n - f, 1)
    inside = (n - f - supporters) / honest if share == "honest" else (n - supporters) / n
    margin = 1 / (2 * honest)
    return NormalDist().inv_cdf(min(max(inside, margin), 1 - margin))


@message_attacks.register("alie")
@dataclass(frozen=True)
class ALIE(InformedAttack, LineAttack):
    """Send the honest mean minus z standard deviations.

    Attributes
    ----------
    z : float or "auto"
        How many standard deviations.
    sign : int
        -1 or 1: the side.
    ddof : int
        0 or 1: the variance divides by the number of rows minus ddof.
    share : str
        For "auto": "honest" or "clients", the group of which the supporters are a share.
    known : "all", "clients", "own" or int
        As for `InformedAttack`.
    """

    z: Annotated[float | str, Number(words=("auto",))] = "auto"
    sign: Annotated[int, Choice((-1, 1))] = -1
    ddof: Annotated[int, Choice((0, 1))] = 1
    share: Annotated[str, Choice(("honest", "clients"))] = "honest"
    parameter: ClassVar[str] = "z"

    def line(self, view: View, state: State, rng: torch.Generator) -> Line:
        """Return the line from the mean, along the standard deviations."""
        seen = self.seen(view)
        base = seen.with_row(seen.spread(self.ddof))
        start = averaging(seen.n, base).repeat(len(view.attackers), 1)
        step = torch.zeros_like(start)
        step[:, -1] = self.sign
        return Line(base, start, step, seen.n)

    def strength(self, view: View, line: Line, rng: torch.Generator) -> float:
        """Return z."""
        return edge(view.n, len(view.attackers), self.share) if self.z == "auto" else float(self.z)


CASES = (
    MessageCase("alie(z=1.5)", [(3 - 1.5 * 2, 2 - 1.5 * 4)], source="the formula"),
    MessageCase("alie(z=1.5, sign=1)", [(3 + 1.5 * 2, 2 + 1.5 * 4)], source="the formula, as ByzFL has it"),
    MessageCase(
        "alie(z=1.5, ddof=0)",
        [(3 - 1.5 * (8 / 3) ** 0.5, 2 - 1.5 * (32 / 3) ** 0.5)],
        source="squares about the mean: 8 and 32",
    ),
    MessageCase("alie(z=1.0, known=1)", [(1, 2)], source="one row has no spread"),
    # Honest (1, 2), (3, -2), (5, 6) and own (1, 0), (0, 2): mean (2, 1.6), variances 4 and 35.2 / 4.
    MessageCase("alie(z=1.0, known='clients')", [(2 - 2, 1.6 - 8.8**0.5)], source="the formula over all five"),
    # An odd n: 5 clients, 2 attack, s = floor(5 / 2 + 1) - 2 = 1, not ceil; Phi^-1(2 / 3) from a table.
    MessageCase("alie()", [(3 - 0.4307272993 * 2, 2 - 0.4307272993 * 4)], source="the formula, a table of Phi"),
    # An even n: 6 clients, 2 attack, s = 4 - 2 = 2; Phi^-1(2 / 4) = 0.
    MessageCase("alie()", [(3.5, 3)], source="the formula", honest=((1, 2), (3, -2), (5, 6), (5, 6))),
)
