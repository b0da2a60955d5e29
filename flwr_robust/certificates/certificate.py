"""Certify: the worst error of a rule that was found, what is proven, and what no rule can fall below.

The numbers are of one measure (`flwr_robust.core.guarantees`), for n rows of which f are faulty. ``found`` is shown by
rows, the witness; the true worst case is no smaller. ``proven`` is a theorem; the true worst case is no larger. Between
them lies a gap that nobody has closed. For `median`, `trimmed_mean`, `meamed` and `phocas` kappa is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flwr_robust.certificates.measures import best_bound, least
from flwr_robust.certificates.search import Problem, search
from flwr_robust.core.guarantees import MEASURES
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule
from flwr_robust.errors import ConfigurationError, check_choice, check_integer, check_number

__all__ = ["Certificate", "certify"]

_ROUNDING = 1e-6
_LAST_DRAWS = 200  # of a rule that draws, for the number that is stated
_FIRST_LAST = 1000  # their first seed, none that the search used


@dataclass(frozen=True)
class Certificate:
    """What a rule withstands.

    Attributes
    ----------
    rule : Rule
        The rule, with its declared f.
    n, f : int
        Number of rows, and of faulty ones among them.
    measure : str
        ``kappa``, ``rho`` or ``lambda``.
    found : float
        The largest value that was found, a lower bound of the worst case; infinity where a witness shows that there is
        no bound. For a rule that draws, the mean over draws.
    exact : float or None
        The worst case, where it is known exactly.
    proven : float or None
        The smallest upper bound that is proven; None where no theorem is known.
    source : str
        Where the proof of ``proven`` stands; empty without one.
    lower : float
        What no rule can fall below.
    witness : Tensor (n, k), float64
        Rows that show ``found``, the honest ones first.
    draws : int
        Over how many draws ``found`` is a mean; 1 for a rule that does not draw.
    error : float
        Its standard error.
    evaluations : int
        How many sets of rows were tried.
    """

    rule: Rule
    n: int
    f: int
    measure: str
    found: float
    exact: float | None
    proven: float | None
    source: str
    lower: float
    witness: Tensor
    draws: int = 1
    error: float = 0.0
    evaluations: int = 0

    def replay(self) -> float:
        """Aggregate the witness again, and return the measure; it is ``found`` up to rounding."""
        problem = Problem(self.rule, self.n, self.f, self.measure)
        return problem.ratios(self.witness.numpy(), _last_seeds(self.draws))[0]

    @property
    def bounded(self) -> bool | None:
        """Whether the error is bounded at all; None where nobody knows."""
        if math.isinf(self.found):
            return False
        return True if self.proven is not None and math.isfinite(self.proven) else None

    @property
    def contradicted(self) -> bool:
        """Whether a value was found above the proven bound, which is a fault of one of them."""
        slack = 1 + _ROUNDING + (0.0 if self.found <= 0 else 4 * self.error / self.found)
        return self.proven is not None and self.found > self.proven * slack

    @property
    def sentence(self) -> str:
        """Return the result in one sentence."""
        head = f"{self.rule}, n = {self.n}, f = {self.f}: {self.measure}"
        floor = f"no rule has less than {self.lower:.4g}"
        if self.contradicted:
            return (
                f"{head} {self.found:.4g} was found above the proven {self.proven:.4g} ({self.source}): one of them is "
                f"wrong; report it"
            )
        if math.isinf(self.found):
            return f"{head} is unbounded: the witness's honest rows agree, and the value is elsewhere"
        drawn = f" (+- {self.error:.2g}, mean of {self.draws} draws)" if self.error > 0 else ""
        if self.exact is not None:
            optimal = ", so this rule is optimal" if self.exact <= self.lower * (1 + _ROUNDING) else ""
            return f"{head} is exactly {self.exact:.4g} ({self.source}); {floor}{optimal}"
        if self.proven is None:
            return f"{head} is at least {self.found:.4g}{drawn}; no theorem is known; {floor}"
        return (
            f"{head} is at least {self.found:.4g}{drawn} and at most {self.proven:.4g} ({self.source}), a gap of a "
            f"factor {self.proven / self.found if self.found > 0 else math.inf:.3g}; {floor}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; infinity is the text ``unbounded``."""
        held = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        numbers = {key: "unbounded" if value == math.inf else value for key, value in held.items()
                   if key not in ("rule", "witness")}  # fmt: skip
        return {"rule": str(self.rule), **numbers, "sentence": self.sentence, "witness": self.witness.tolist()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Certificate:
        """Return the certificate that `to_dict` wrote."""
        held = {each.name: document[each.name] for each in dataclasses.fields(cls)}
        held = {key: math.inf if value == "unbounded" else value for key, value in held.items()}
        witness = torch.tensor(document["witness"], dtype=torch.float64)
        return cls(**{**held, "rule": parse(document["rule"]), "witness": witness})


def _last_seeds(draws: int) -> range:
    return range(1) if draws == 1 else range(_FIRST_LAST, _FIRST_LAST + draws)


def certify(
    rule: Rule | str,
    n: int,
    f: int | None = None,
    measure: str = "kappa",
    *,
    evaluations: int = 6000,
    seconds: float = 60.0,
    seed: int = 0,
    first: Sequence[Tensor] = (),
) -> Certificate:
    """Say what a rule withstands: the worst that was found, what is proven, and what no rule can fall below.

    Parameters
    ----------
    rule : Rule or str
        A rule, or a defence string; f completes a text that leaves it out.
    n : int
        Number of rows.
    f : int, optional
        How many of them are faulty, f < n / 2. When not given, it is the rule's declared f.
    measure : str
        ``kappa``, ``rho`` or ``lambda``: `flwr_robust.core.guarantees`.
    evaluations : int
        How many sets of rows the search tries at most.
    seconds : float
        After how many seconds the search stops with what it has.
    seed : int
        Of the search.
    first : sequence of Tensor (n, k)
        Rows from which the search begins, such as the witness of an earlier certificate.

    Returns
    -------
    Certificate
        Its `replay` computes ``found`` from the witness again.

    Raises
    ------
    ConfigurationError
        If a parameter is outside its bounds, n does not fit the rule, or the rule has no measure.

    Examples
    --------
    >>> found = certify("trimmed_mean", 20, 4, evaluations=500)
    >>> round(found.found, 6), round(found.exact, 6), round(found.lower, 6)
    (0.333333, 0.333333, 0.333333)
    >>> certify("mean", 20, 4).found
    inf
    """
    check_integer("certify", "n", n, 1)
    check_choice("certify", "measure", measure, MEASURES)
    check_integer("certify", "evaluations", evaluations, 100)
    check_integer("certify", "seed", seed, 0)
    check_number("certify", "seconds", seconds, above=0)
    if f is not None:
        check_integer("certify", "f", f, 0)
    chosen = _chosen(rule, f)
    if f is None:
        f = chosen.declared(n)
        if f is None:
            raise ConfigurationError(f"certify: f must be given, for {chosen} declares none; got f=None: pass f=1, say")
    if 2 * f >= n:
        raise ConfigurationError(
            f"certify: f must be below n / 2, or no rule withstands it; got n={n}, f={f}: lower f or raise n"
        )
    if sentence := chosen.check(n):
        raise ConfigurationError(f"certify: {sentence}")
    if chosen.check_layout(()):
        raise ConfigurationError(
            f"certify: {chosen} reads the layers of a model, so it has none of {', '.join(MEASURES)}, which are of "
            f"plain rows; got measure={measure!r}: certify another rule"
        )
    for rows in first:
        if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != n or not bool(torch.isfinite(rows).all()):
            got = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ConfigurationError(
                f"certify: first must hold finite tensors (n, k) with n={n}; got {got}: pass certificates' witnesses"
            )
    problem = Problem(chosen, n, f, measure)
    drawn = problem.draws()
    begun = [rows.double().numpy() for rows in first]
    result = search(problem, drawn=drawn, evaluations=evaluations, seconds=seconds, seed=seed, first=begun)
    draws = _LAST_DRAWS if drawn else 1
    found, error = problem.ratios(result.rows, _last_seeds(draws))
    bound = None if drawn else best_bound(chosen.bounds(n, f), measure, n, f)
    return Certificate(
        *(chosen, n, f, measure, found),
        exact=bound.value if bound is not None and bound.exact else None,
        proven=None if bound is None else bound.value,
        source="" if bound is None else bound.source,
        lower=least(measure, n, f),
        witness=torch.from_numpy(result.rows),
        draws=draws,
        error=error,
        evaluations=result.evaluations,
    )


def _chosen(rule: Rule | str, f: int | None) -> Rule:
    """Return the rule, a text completed by f."""
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise ConfigurationError(f"certify: rule must be a defence string or a Rule; got {type(rule).__name__}")
    return parse(rule, f=f)
