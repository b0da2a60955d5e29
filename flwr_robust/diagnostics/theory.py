"""What theory says about label poisoning: the rho of aggregators, the floors of the learning error, and advice.

Peng, Li, Vlaski, Ling, JMLR 26 (2025). Notation: W workers, R of them regular; delta = (W - R) / W is the share of
poisoned ones; D is the number of parameters; xi and A as in `measures`. An aggregator is rho-robust if, for any
poisoned messages, its value stays close to the mean of the regular messages m_w. The distance is at most rho * max over
w of ||m_w - mean||. The floor is the learning error that remains as training goes on:

    rho-robust aggregator    O(rho^2 xi^2)      and    rho >= min{delta / (1 - 2 delta), 1}   for all of them
    mean                     O(delta^2 A^2)
    any aggregator           Omega(delta^2 min{A^2, xi^2})      that does not know who is who

The first two are upper bounds, the third holds for the worst data. All leave constants out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flwr_robust.errors import ConfigurationError, check_integer, check_number

__all__ = [
    "Advice",
    "advise",
    "centered_clipping_bound",
    "faba_bound",
    "floors",
    "known_bounds",
    "least_rho",
    "trimmed_mean_bound",
]


def _check_delta(owner: str, delta: float, below: float = 0.5) -> None:
    check_number(owner, "delta", delta, minimum=0, below=below)


def least_rho(delta: float) -> float:
    """Return min{delta / (1 - 2 delta), 1}: no aggregator is rho-robust with a smaller rho (Peng et al.).

    Parameters
    ----------
    delta : float
        Share of poisoned workers, in [0, 1/2).

    Raises
    ------
    ConfigurationError
        If delta is outside its bounds.

    Examples
    --------
    >>> least_rho(0.1), least_rho(0.4)
    (0.125, 1.0)
    """
    _check_delta("least_rho", delta)
    return min(delta / (1 - 2 * delta), 1.0)


def trimmed_mean_bound(delta: float, dimension: int, regular: int) -> float:
    """Return 3 delta / (1 - 2 delta) * min{sqrt(D), sqrt(R)}: the rho of the trimmed mean with f = W - R (Peng et al.).

    Parameters
    ----------
    delta : float
        Share of poisoned workers, in [0, 1/2).
    dimension : int
        D; at least 1.
    regular : int
        R; at least 1.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> round(trimmed_mean_bound(0.1, dimension=7850, regular=9), 3)
    1.125
    """
    _check_delta("trimmed_mean_bound", delta)
    check_integer("trimmed_mean_bound", "dimension", dimension, 1)
    check_integer("trimmed_mean_bound", "regular", regular, 1)
    return 3 * delta / (1 - 2 * delta) * math.sqrt(min(dimension, regular))


def faba_bound(delta: float) -> float:
    """Return 2 delta / (1 - 3 delta): the rho of FABA with f = W - R (Peng et al.).

    Parameters
    ----------
    delta : float
        Share of poisoned workers, in [0, 1/3).

    Raises
    ------
    ConfigurationError
        If delta is outside its bounds.

    Examples
    --------
    >>> faba_bound(0.25)
    2.0
    """
    _check_delta("faba_bound", delta, below=1 / 3)
    return 2 * delta / (1 - 3 * delta)


def centered_clipping_bound(delta: float) -> float:
    """Return sqrt(24 delta): the rho of centered clipping (Peng et al.).

    It holds for a clipping threshold that is chosen to fit the spread of the messages. It does not hold for a fixed
    tau, such as those of the paper's experiments.

    Parameters
    ----------
    delta : float
        Share of poisoned workers, in [0, 1/2).

    Raises
    ------
    ConfigurationError
        If delta is outside its bounds.

    Examples
    --------
    >>> round(centered_clipping_bound(1 / 24), 9)
    1.0
    """
    _check_delta("centered_clipping_bound", delta)
    return math.sqrt(24 * delta)


def known_bounds(delta: float, dimension: int, regular: int) -> dict[str, float]:
    """Return the proven rho of each rule for which Peng et al. prove one, by the rule's name.

    Parameters
    ----------
    delta : float
        Share of poisoned workers, in [0, 1/2).
    dimension, regular : int
        D and R; at least 1.

    Returns
    -------
    dict of str to float
        Without faba if delta >= 1/3, where no bound is proven.

    Examples
    --------
    >>> {rule: round(bound, 2) for rule, bound in known_bounds(0.1, dimension=7850, regular=9).items()}
    {'centered_clipping': 1.55, 'faba': 0.29, 'trimmed_mean': 1.13}
    """
    found = {
        "centered_clipping": centered_clipping_bound(delta),
        "trimmed_mean": trimmed_mean_bound(delta, dimension, regular),
    }
    if delta < 1 / 3:
        found["faba"] = faba_bound(delta)
    return dict(sorted(found.items()))


def floors(xi: float, disturbance: float, delta: float, *, dimension: int, regular: int) -> dict[str, float]:
    """Return the floors of ||grad f||^2 at xi and A, constants left out (Peng et al.).

    Parameters
    ----------
    xi, disturbance : float
        xi and A, >= 0.
    delta : float
        Share of poisoned workers, in [0, 1/2).
    dimension, regular : int
        D and R; at least 1.

    Returns
    -------
    dict of str to float
        ``any``: delta^2 min{A^2, xi^2}, the lower bound. ``mean``: delta^2 A^2. By the name of each rule with a proven
        rho: rho^2 xi^2.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> found = floors(1.0, 2.0, 0.1, dimension=7850, regular=9)
    >>> {name: round(floor, 3) for name, floor in found.items()}
    {'any': 0.01, 'mean': 0.04, 'centered_clipping': 2.4, 'faba': 0.082, 'trimmed_mean': 1.266}
    """
    check_number("floors", "xi", xi, minimum=0)
    check_number("floors", "disturbance", disturbance, minimum=0)
    proven = known_bounds(delta, dimension, regular)
    return {
        "any": (delta * min(disturbance, xi)) ** 2,
        "mean": (delta * disturbance) ** 2,
        **{rule: (bound * xi) ** 2 for rule, bound in proven.items()},
    }


@dataclass(frozen=True)
class Advice:
    """What the floors of the learning error say about a choice of rule.

    Attributes
    ----------
    expected : str
        ``mean``: the mean's floor is not above that of any rho-robust rule. ``robust``: a rule with a proven rho has a
        lower one. ``open``: neither; a rule with a rho near the least possible one would have a lower floor, but none
        is proven to have it.
    xi, disturbance, delta : float
        The arguments; the disturbance is A.
    least : float
        The smallest rho that any aggregator can have.
    rules : tuple of str
        Rules whose proven floor is below the mean's, the lowest first.
    bounds : mapping of str to float
        The proven rho of every rule considered.
    """

    expected: str
    xi: float
    disturbance: float
    delta: float
    least: float
    rules: tuple[str, ...]
    bounds: Mapping[str, float]

    @property
    def mean_floor(self) -> float:
        """(delta A)^2, the floor of the mean without its constant."""
        return (self.delta * self.disturbance) ** 2

    @property
    def robust_floor(self) -> float:
        """(rho xi)^2 with the least possible rho: no rho-robust rule's floor is lower, its constant left out."""
        return (self.least * self.xi) ** 2

    @property
    def sentence(self) -> str:
        """Return the advice, with its numbers and its limits."""
        measured = f"at xi = {self.xi:.3g}, A = {self.disturbance:.3g} and delta = {self.delta:.3g}"
        floor = f"(delta A)^2 = {self.mean_floor:.3g}"
        if self.expected == "mean":
            optimal = ""
            if 0 < self.disturbance <= self.xi and self.delta > 0:
                optimal = ", and as A <= xi no rule that does not know who is poisoned has a floor of lower order"
            text = (
                f"The plain mean is expected to be at least as good as a robust rule: {measured} its error floor is of "
                f"order {floor}, that of a rho-robust rule of order (rho xi)^2 >= {self.robust_floor:.3g}, as rho >= "
                f"{self.least:.3g}{optimal}"
            )
        elif self.expected == "robust":
            best = self.rules[0]
            text = (
                f"A robust rule is expected to be better than the plain mean: {measured} the mean's error floor is of "
                f"order {floor}, that of {best} of order (rho xi)^2 <= {(self.bounds[best] * self.xi) ** 2:.3g} with "
                f"its proven rho of {self.bounds[best]:.3g}"
            )
        else:
            needed = self.delta * self.disturbance / self.xi if self.xi > 0 else math.inf
            text = (
                f"The theory leaves it open whether a robust rule is better than the plain mean: {measured} the mean's "
                f"error floor is of order {floor}, which only a rule with rho < {needed:.3g} is below; no rule can "
                f"have rho < {self.least:.3g}, and {self._proven()}"
            )
        return f"{text} (bounds for label poisoning, constants left out; a run may turn out otherwise)."

    def _proven(self) -> str:
        if not self.bounds:
            return "of none is a rho given"
        best = min(self.bounds, key=lambda rule: self.bounds[rule])
        return f"the smallest that is proven is {self.bounds[best]:.3g}, of {best}"


def advise(
    xi: float,
    disturbance: float,
    delta: float,
    *,
    dimension: int,
    regular: int,
    bounds: Mapping[str, float] | None = None,
) -> Advice:
    """Say whether the plain mean or a robust rule is expected to leave the smaller error, by the floors alone.

    The mean is expected to be at least as good where delta A <= least_rho(delta) xi, a robust rule to be better where
    its proven rho is below delta A / xi.

    Parameters
    ----------
    xi, disturbance : float
        xi and A, >= 0: the largest values met in training, as the assumptions bound them over all models.
    delta : float
        Share of poisoned workers, in [0, 1/2).
    dimension, regular : int
        D and R; at least 1.
    bounds : mapping of str to float, optional
        A proven rho by the name of the rule; `known_bounds` when left out. None can be below `least_rho`.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds.

    Examples
    --------
    >>> advise(xi=2.0, disturbance=1.9, delta=0.1, dimension=7850, regular=9).expected
    'mean'
    >>> advise(xi=0.2, disturbance=1.9, delta=0.1, dimension=7850, regular=9).expected
    'robust'
    >>> print(advise(xi=1.0, disturbance=2.0, delta=0.1, dimension=7850, regular=9).sentence)
    The theory leaves it open whether a robust rule is better than the plain mean: at xi = 1, A = 2 and delta = 0.1
    the mean's error floor is of order (delta A)^2 = 0.04, which only a rule with rho < 0.2 is below; no rule can have
    rho < 0.125, and the smallest that is proven is 0.286, of faba (bounds for label poisoning, constants left out; a
    run may turn out otherwise).
    """
    check_number("advise", "xi", xi, minimum=0)
    check_number("advise", "disturbance", disturbance, minimum=0)
    least = least_rho(delta)
    proven = known_bounds(delta, dimension, regular) if bounds is None else dict(bounds)
    for rule, bound in proven.items():
        if math.isnan(bound) or bound < least:
            raise ConfigurationError(
                f"advise: bounds must be at least {least:.3g}, the least rho of any aggregator; got {rule}={bound!r}"
            )
    error = delta * disturbance
    rules = sorted((rule for rule, bound in proven.items() if bound * xi < error), key=lambda rule: proven[rule])
    expected = "mean" if error <= least * xi else "robust" if rules else "open"
    return Advice(expected, xi, disturbance, delta, least, tuple(rules) if expected == "robust" else (), proven)
