"""Whether a mixture of rules goes forward although an attack breaks some of its members.

MixTailor (Ramezani-Kebrya, Tabrizian, Faghri, Popovski, TMLR 2022) draws one of M rules in a round. An attack breaks q
of them. By its proposition 1 the mixture is resilient in expectation if

    M / q > 1 + lambda L / min beta

The same in shares: q / M < 1 / (1 + lambda L / min beta).

With g the mean of the honest messages and U_i the value of member i, our reading of the symbols in one round is

    broken     <U_i, g> <= 0: the member does not go forward; q counts these
    beta_i     <U_i, g> / ||g||^2 of a member that is not broken
    L          the largest ||U_i|| / ||g|| of a broken member
    lambda     the largest -cos(U_i, g) of a broken member

So lambda L bounds how far back a broken member goes, in units of ||g||^2. The condition then is sufficient for
<mean over i of U_i, g> > 0, which is measured, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_robust.errors import ConfigurationError

__all__ = ["Mixture", "mixture"]


@dataclass(frozen=True)
class Mixture:
    """What the members of a pool make of the messages of one round.

    Attributes
    ----------
    forward : tuple (M,) of float
        <U_i, g> / ||g||^2 of each member.
    lengths : tuple (M,) of float
        ||U_i|| / ||g|| of each member.
    """

    forward: tuple[float, ...]
    lengths: tuple[float, ...]

    @property
    def broken(self) -> tuple[int, ...]:
        """The members that do not go forward."""
        return tuple(i for i, product in enumerate(self.forward) if not product > 0)

    @property
    def broken_share(self) -> float:
        """The share of broken members, q / M."""
        return len(self.broken) / len(self.forward)

    @property
    def beta(self) -> float:
        """The smallest beta_i of a member that is not broken; 0 if all are."""
        return min((product for product in self.forward if product > 0), default=0.0)

    @property
    def length(self) -> float:
        """L, the length of the longest broken member in units of ||g||; 0 if none is broken."""
        return max((self.lengths[i] for i in self.broken), default=0.0)

    @property
    def backward(self) -> float:
        """Lambda: the largest -cos(U_i, g) of a broken member; 0 if none is broken."""
        return max((-self.forward[i] / self.lengths[i] for i in self.broken if self.lengths[i] > 0), default=0.0)

    @property
    def bearable_share(self) -> float:
        """1 / (1 + lambda L / min beta): the share of broken members below which the proposition holds."""
        if self.beta == 0:
            return 0.0
        return 1 / (1 + self.backward * self.length / self.beta)

    @property
    def expected(self) -> float:
        """<mean over i of U_i, g> / ||g||^2: how far the mixture goes forward on average."""
        return sum(self.forward) / len(self.forward)


def mixture(values: Sequence[Tensor], honest: Tensor) -> Mixture:
    """Measure the values of a pool's members against the honest mean.

    Parameters
    ----------
    values : sequence of Tensor (d,)
        The value of each member, members that are the same as often as they are listed; at least one.
    honest : Tensor (R, d)
        The honest messages; at least one.

    Raises
    ------
    ConfigurationError
        If there is no member or no honest message, or the honest mean is zero.

    Examples
    --------
    >>> honest = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> found = mixture([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([-0.2, 0.0])], honest)
    >>> found.broken, found.beta, round(found.backward * found.length, 6), round(found.bearable_share, 4)
    ((2,), 0.5, 0.1, 0.8333)
    """
    if not len(values) or honest.dim() != 2 or not len(honest):
        raise ConfigurationError(
            f"mixture: values and honest must hold at least one row each; got {len(values)} values and honest of shape "
            f"{tuple(honest.shape)}"
        )
    centre = honest.mean(0, dtype=torch.float64)
    unit = float(torch.linalg.vector_norm(centre))
    if not unit > 0:
        raise ConfigurationError("mixture: the honest mean must have a length; got 0: nothing goes forward")
    rows = [value.double() for value in values]
    return Mixture(
        tuple(float(row @ centre) / unit**2 for row in rows),
        tuple(float(torch.linalg.vector_norm(row)) / unit for row in rows),
    )
