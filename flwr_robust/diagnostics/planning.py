"""How many clients to ask, and which f to declare, where some of all clients are compromised.

N clients there are, b of them compromised. A round asks m of them, drawn without replacement. So the number X of
compromised ones among those asked is hypergeometric:

    P(X = k) = C(b, k) C(N - b, m - k) / C(N, m)

A rule that declares f keeps its promise in rounds with X <= f. The draws of rounds are independent. In T rounds the
promise is broken at least once with probability

    1 - (1 - P(X > f))^T

All is computed in whole numbers, so the tails are exact to the last digit of the result. A compromised client may also
send a reply that is refused. This lowers the number of rows but not the declared f. So a rule has to fit m - f rows.

Beside it stand two results of others. Pillutla, Kakade, Harchaoui (RFA, IEEE TSP 70, 2022) bound the same event by
Hoeffding's inequality. With rho = b / N, a share of at most theta is compromised in all T rounds with probability 1 -
delta if

    m >= log(T / delta) / (2 (theta - rho)^2)

Chen, Zhang, Huang (arXiv 2510.04432) show what a large f costs. f' is the declared number, f the real one, out of n.
The squared error of the best rules is proportional to

    f' / (n - f - f')
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flwr_robust.core.pipeline import parse
from flwr_robust.core.rule import Rule
from flwr_robust.errors import ConfigurationError, check_integer, check_number

__all__ = ["Plan", "bounds_of_f", "chances", "hoeffding_sample", "in_some_round", "plan", "price"]

_LOGARITHMS = 1e-5  # far more than sums of logarithms of factorials are off, for any number of clients
_COARSE = 64  # how many f are tried one by one; then they grow by a share, and the first that fits is bisected


def chances(clients: int, compromised: int, sample: int) -> list[float]:
    """Return P(X > f) for f = 0, 1, ..., sample: the chance that more than f of those asked are compromised.

    Parameters
    ----------
    clients, compromised, sample : int
        N, b and m; 0 <= b <= N and 0 <= m <= N.

    Examples
    --------
    >>> chances(10, 2, 5)
    [0.7777777777777778, 0.2222222222222222, 0.0, 0.0, 0.0, 0.0]
    """
    fewest = max(0, sample - (clients - compromised))
    found, total = [1.0] * fewest + [0.0] * (sample + 1 - fewest), math.comb(clients, sample)
    for k, above in _sums(clients, compromised, sample, fewest):
        found[k] = above / total
    return found


def _tail(clients: int, compromised: int, sample: int, f: int) -> float:
    """Return P(X > f) for one f."""
    if f < sample - (clients - compromised):
        return 1.0
    above = next((above for k, above in _sums(clients, compromised, sample, f) if k == f), 0)
    return above / math.comb(clients, sample)


def _bracket(clients: int, compromised: int, sample: int, f: int) -> tuple[float, float]:
    """Return numbers below and above P(X > f), at little cost: its first term, and a geometric series from there."""
    k, honest = f + 1, clients - compromised
    if k > min(compromised, sample):
        return 0.0, 0.0
    if k < sample - honest:
        return 1.0, 1.0

    def choose(n: int, m: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)

    first = math.exp(choose(compromised, k) + choose(honest, sample - k) - choose(clients, sample))
    ratio = (compromised - k) * (sample - k) / ((k + 1) * (honest - sample + k + 1))  # of two terms, which falls with k
    high = first / (1 - ratio) if ratio < 1 else 1.0
    return first * (1 - _LOGARITHMS), min(high * (1 + _LOGARITHMS), 1.0)


def _sums(clients: int, compromised: int, sample: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield k, and in how many of the samples more than k are compromised, from the largest k down to the last."""
    k, honest = min(compromised, sample), clients - compromised
    term, above = math.comb(compromised, k) * math.comb(honest, sample - k), 0
    while k >= last:
        yield k, above
        above += term
        # From k to k - 1, without a remainder.
        term = term * (k * (honest - sample + k)) // ((compromised - k + 1) * (sample - k + 1))
        k -= 1


def in_some_round(chance: float, rounds: int) -> float:
    """Return the chance that something with this chance in each of some independent rounds happens at least once.

    Examples
    --------
    >>> in_some_round(0.5, 2)
    0.75
    """
    return 1.0 if chance >= 1 else -math.expm1(rounds * math.log1p(-chance))


def hoeffding_sample(share: float, theta: float, rounds: int, risk: float) -> int | None:
    """Return the least m of RFA: log(T / delta) / (2 (theta - rho)^2), rounded up; None if theta <= rho.

    Parameters
    ----------
    share : float
        rho, the compromised share of all clients.
    theta : float
        The share that the rule withstands.
    rounds, risk
        T and delta.

    Examples
    --------
    >>> hoeffding_sample(0.1, 0.3, rounds=100, risk=0.01)
    116
    """
    return None if theta <= share else math.ceil(math.log(rounds / risk) / (2 * (theta - share) ** 2))


def price(n: int, declared: float, real: float) -> float:
    """Return f' / (n - f - f'), to which the squared error is proportional; infinity where f' does not fit.

    Parameters
    ----------
    n : int
        Number of rows.
    declared, real : float
        f' and f, with f <= f'.

    Examples
    --------
    >>> price(10, 2, 2), price(10, 4, 2)
    (0.3333333333333333, 1.0)
    """
    return declared / (n - real - declared) if declared + real < n else math.inf


@dataclass(frozen=True)
class Plan:
    """How many clients to ask and which f to declare, and what may go wrong.

    Attributes
    ----------
    clients, compromised, rounds : int
        N, b and T.
    risk : float
        The largest chance that is accepted.
    rule : str or None
        The rule with its f, if one was given.
    asked_rule : Rule, str or None
        The rule as it was given.
    sample, f : int or None
        m and the declared f; None where no number of clients will do.
    per_round, over_rounds : float or None
        The chance that more than f of those asked are compromised in one round, and in some round.
    least_f : int or None
        For the sample: the smallest f within the risk.
    most_f : int or None
        For the sample: the largest f that fits the rule's condition, even if f replies are refused. Without a rule the
        condition is n >= 2f + 1.
    least_sample : int or None
        The smallest sample for which an f fits both the rule and the risk; None if there is none.
    hoeffding : int or None
        RFA's sample for theta = f / m; None where f / m is no more than the compromised share.
    price, least_price : float or None
        `price` of the declared f, and of the f that is expected in a round.
    changes : tuple of str
        Of an impossible plan: which number to change, and to what.
    problem : str
        Of an impossible plan: why it is; empty otherwise.
    """

    clients: int
    compromised: int
    rounds: int
    risk: float
    rule: str | None
    asked_rule: Rule | str | None
    sample: int | None
    f: int | None
    per_round: float | None
    over_rounds: float | None
    least_f: int | None
    most_f: int | None
    least_sample: int | None
    hoeffding: int | None
    price: float | None
    least_price: float | None
    changes: tuple[str, ...]
    problem: str

    @property
    def feasible(self) -> bool:
        """Whether the sample and f fit the rule, and keep the risk."""
        return not self.problem

    @property
    def expected(self) -> float | None:
        """How many of those asked are compromised on average."""
        return None if self.sample is None else self.sample * self.compromised / self.clients

    @property
    def chance(self) -> str:
        """What was computed, and how, in words for a record."""
        asked = f"{self.sample} of {self.clients} clients asked, {self.compromised} of them compromised, f = {self.f}"
        return f"hypergeometric, exact: {asked}, in some of {self.rounds} round{'s' if self.rounds > 1 else ''}"

    @property
    def sentence(self) -> str:
        """Return the plan in one line."""
        if self.sample is None or self.f is None or self.over_rounds is None:
            return f"impossible: {self.problem}; {' or '.join(self.changes)}"
        rounds = "in a round" if self.rounds == 1 else f"in some of {self.rounds} rounds"
        text = (
            f"{self.sample} of {self.clients} clients are asked, {self.compromised} of all are compromised: more than "
            f"f = {self.f} of those asked are so {rounds} with probability {_shown(self.over_rounds)}"
        )
        if self.feasible:
            return f"{text}, within the risk of {self.risk:g}"
        return f"{text}; {self.problem}: {' or '.join(self.changes)}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "asked_rule"},
            "changes": list(self.changes),
            "expected": self.expected,
            "feasible": self.feasible,
            "sentence": self.sentence,
        }


def _shown(chance: float) -> str:
    return "0" if chance == 0 else f"{chance:.2g}"


@dataclass(frozen=True)
class _Federation:
    """What stays fixed while samples and f are tried."""

    clients: int
    compromised: int
    rounds: int
    risk: float
    text: str | None
    given: Rule | None
    wanted: int | None

    def rule(self, f: int) -> Rule | None:
        """Return the rule with this f, where its text does not set one."""
        return self.given if self.text is None else parse(self.text, f=f)

    @cached_property
    def _whole(self) -> Rule | None:
        """The rule as it is, if it is complete without an f from outside."""
        if self.text is None:
            return self.given
        try:
            return parse(self.text)
        except ConfigurationError:  # it lacks its f, as the check at the beginning found no other fault
            return None

    def own_f(self, sample: int) -> int | None:
        """Return the f that the rule itself declares for a sample; None if it leaves it open."""
        return None if self._whole is None else self._whole.declared(sample)

    def fits(self, sample: int, f: int) -> bool:
        """Say whether the rule takes what is left when f of the replies are refused."""
        left, rule = sample - f, self.rule(f)
        if left < 1 or (rule is not None and rule.check(left, asked=sample) is not None):
            return False
        declares = rule is not None and rule.declared(sample) is not None
        return declares or left >= 2 * f + 1

    def risky(self, sample: int, f: int) -> bool:
        """Say whether more than f are compromised in some round with more than the accepted risk."""
        # A hypergeometric median is at least the mean rounded down.
        if self.risk < 0.5 and sample * self.compromised >= (f + 1) * self.clients:
            return True
        low, high = _bracket(self.clients, self.compromised, sample, f)
        if (known := in_some_round(low, self.rounds) > self.risk) == (in_some_round(high, self.rounds) > self.risk):
            return known
        return in_some_round(_tail(self.clients, self.compromised, sample, f), self.rounds) > self.risk

    def least_fitting(self, f: int) -> int | None:
        """Return the smallest sample that fits the rule with this f; None if all clients are too few."""
        if not self.fits(self.clients, f):
            return None
        return 1 + _last(0, self.clients, lambda sample: not self.fits(sample, f))

    def first(self) -> tuple[int, int] | None:
        """Return the smallest sample with an f that fits the rule and keeps the risk; None if there is none."""
        if self.wanted is not None:
            return self._first_of(self.wanted)
        if self.own_f(self.clients) is None:
            return self._first_free()
        if self.own_f(1) == self.own_f(self.clients):
            return self._first_of(self.own_f(1) or 0)
        for sample in range(1, self.clients + 1):  # a share of those asked
            f = self.own_f(sample) or 0
            if self.fits(sample, f) and not self.risky(sample, f):
                return sample, f
        return None

    def _first_of(self, f: int) -> tuple[int, int] | None:
        """Return the smallest sample for one f: as more are asked, the risk only grows."""
        sample = self.least_fitting(f)
        return None if sample is None or self.risky(sample, f) else (sample, f)

    def _first_free(self) -> tuple[int, int] | None:
        """Return the smallest sample where f may be chosen: each f has its own, and they grow with f."""
        f, before = 0, -1
        while f <= self.compromised:
            if self.least_fitting(f) is None:
                break
            if (found := self._first_of(f)) is not None:
                least = 1 + _last(before, f, lambda each: self._first_of(each) is None)
                return found if least == f else self._first_of(least)
            before, f = f, max(f + 1, min(f + f // _COARSE, self.compromised))
        # Of all clients together exactly b are compromised.
        everyone, b = self.clients, self.compromised
        return (everyone, b) if self.fits(everyone, b) else None

    def least_f(self, sample: int) -> int:
        """Return the smallest f of a sample that keeps the risk."""
        above = chances(self.clients, self.compromised, sample)
        return next(f for f in range(sample + 1) if in_some_round(above[f], self.rounds) <= self.risk)

    def most_f(self, sample: int) -> int | None:
        """Return the largest f that fits a sample; None if not even 0 does."""
        if (own := self.own_f(sample)) is not None:
            return own if self.fits(sample, own) else None
        return _last(0, sample, lambda f: self.fits(sample, f)) if self.fits(sample, 0) else None


def plan(
    clients: int,
    compromised: int,
    sample: int | None = None,
    f: int | None = None,
    rounds: int = 1,
    rule: Rule | str | None = None,
    risk: float = 0.01,
) -> Plan:
    """Say how many clients to ask, and which f to declare.

    Parameters
    ----------
    clients : int
        N, the number of all clients; >= 1.
    compromised : int
        b, how many of them lie; 0 <= b <= N.
    sample : int, optional
        m, how many are asked in a round. When not given, it is the smallest that fits the rule and the risk.
    f : int, optional
        The declared number of faulty clients. When not given, it is the rule's own, else the smallest within the risk.
    rounds : int
        T, the number of rounds; each draws anew.
    rule : Rule or str, optional
        The rule whose condition on n has to hold, even if f replies are refused. A text such as ``"krum"`` may leave f
        out. When not given, or for a rule that declares no f, the condition is n >= 2f + 1.
    risk : float
        The largest accepted chance that in some round more than f of those asked are compromised; in (0, 1).

    Returns
    -------
    Plan
        An impossible one says which number to change, and to what.

    Raises
    ------
    ConfigurationError
        If a number is outside its bounds, or f is given twice.

    Examples
    --------
    >>> found = plan(1000, 100, rounds=200, rule="trimmed_mean")
    >>> found.sample, found.f
    (34, 11)
    >>> print(found.sentence)
    34 of 1000 clients are asked, 100 of all are compromised: more than f = 11 of those asked are so in some of 200
    rounds with probability 0.0088, within the risk of 0.01
    """
    check_integer("plan", "clients", clients, 1)
    check_integer("plan", "compromised", compromised, 0)
    if compromised > clients:
        raise ConfigurationError(
            f"plan: compromised must be at most the clients={clients}; got compromised={compromised}: lower it"
        )
    check_integer("plan", "rounds", rounds, 1)
    check_number("plan", "risk", risk, above=0, below=1)
    if sample is not None:
        check_integer("plan", "sample", sample, 1)
        if sample > clients:
            raise ConfigurationError(
                f"plan: sample must be at most the clients={clients}; got sample={sample}: lower it"
            )
    if f is not None:
        check_integer("plan", "f", f, 0)
    federation = _Federation(clients, compromised, rounds, risk, *_read(rule), f)
    _check_f(federation, sample, f)
    found = federation.first()
    at, declared = sample, f
    if at is None:
        at, declared = found or (None, f)
    elif declared is None:
        declared = federation.own_f(at)
        declared = federation.least_f(at) if declared is None else declared
    return _described(federation, at, declared, None if found is None else found[0])


def _read(rule: Rule | str | None) -> tuple[str | None, Rule | None]:
    """Return a rule's text or object, checked."""
    if rule is None or isinstance(rule, Rule):
        return None, rule
    if not isinstance(rule, str):
        raise ConfigurationError(f"plan: rule must be a defence string or a Rule; got {type(rule).__name__}")
    parse(rule, f=0)
    return rule, None


def _check_f(federation: _Federation, sample: int | None, f: int | None) -> None:
    """Raise if f is given and the rule has another one, or if f is more than are asked."""
    own = federation.own_f(federation.clients if sample is None else sample)
    if f is not None and own is not None and own != f:
        raise ConfigurationError(
            f"plan: f must be given once; got f={f}, and the rule {federation.text or federation.given} declares "
            f"{own}: leave one of them out"
        )
    if f is not None and f > (federation.clients if sample is None else sample):
        raise ConfigurationError(
            f"plan: f must be at most the clients asked, {sample or federation.clients}; got f={f}: lower it"
        )


def _described(federation: _Federation, sample: int | None, f: int | None, least: int | None) -> Plan:
    """Return the plan for a sample and an f, with what to change where it is impossible."""
    known: dict[str, Any] = dict.fromkeys(
        ("per_round", "over_rounds", "least_f", "most_f", "hoeffding", "price", "least_price")
    )
    problem, changes = "", []
    share = federation.compromised / federation.clients
    rule = None if f is None else federation.rule(f)
    name = "n >= 2f + 1" if rule is None else str(rule)
    if sample is None or f is None:
        problem = f"no sample of {federation.clients} clients fits {name if f is not None else _named(federation)}"
        problem += f" with {federation.compromised} compromised, at a risk of {federation.risk:g}"
    else:
        above = chances(federation.clients, federation.compromised, sample)
        known["per_round"] = above[f]
        known["over_rounds"] = in_some_round(above[f], federation.rounds)
        known["least_f"], known["most_f"] = federation.least_f(sample), federation.most_f(sample)
        known["hoeffding"] = hoeffding_sample(share, f / sample, federation.rounds, federation.risk)
        known["price"] = price(sample, f, min(sample * share, f))
        known["least_price"] = price(sample, sample * share, sample * share)
        if known["over_rounds"] > federation.risk:
            problem = f"that is above the risk of {federation.risk:g}"
            if known["most_f"] is not None and known["most_f"] >= known["least_f"]:
                changes.append(f"declare f = {known['least_f']}")
        elif not federation.fits(sample, f):
            problem = f"{name} does not fit if f of the {sample} replies are refused, which leaves {sample - f}"
    if problem:
        if sample is not None and least is not None and least != sample:
            changes.append(f"ask {least} clients")
        changes += _other_numbers(federation, sample)
    return Plan(
        *(federation.clients, federation.compromised, federation.rounds, federation.risk),
        rule=None if federation.text is None and federation.given is None else str(rule or _named(federation)),
        asked_rule=federation.text or federation.given,
        sample=sample,
        f=f,
        least_sample=least,
        changes=tuple(changes),
        problem=problem,
        **known,
    )


def _named(federation: _Federation) -> str:
    return federation.text or (str(federation.given) if federation.given is not None else "n >= 2f + 1")


def _other_numbers(federation: _Federation, sample: int | None) -> list[str]:
    """Return how many clients may be compromised at most, or how many there must be at least."""

    def possible(other: _Federation) -> bool:
        if sample is None:
            return other.first() is not None
        f = other.wanted if other.wanted is not None else other.own_f(sample)
        f = other.least_f(sample) if f is None else f
        return f <= sample and other.fits(sample, f) and not other.risky(sample, f)

    def with_compromised(b: int) -> _Federation:
        return dataclasses.replace(federation, compromised=b)

    if possible(with_compromised(0)):
        b = _last(0, federation.compromised, lambda b: possible(with_compromised(b)))
        return [f"have at most {b} compromised clients"]
    needed = next(
        (n for n in range(federation.clients + 1, 10 * federation.clients + 100)
         if dataclasses.replace(federation, clients=n, compromised=0).first() is not None),
        None,
    )  # fmt: skip
    return [] if sample is not None or needed is None else [f"have at least {needed} clients"]


def _last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the last number from ``low`` on for which something holds, which ends before ``high``; by bisection."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def bounds_of_f(found: Plan, samples: Sequence[int]) -> list[tuple[int, int | None]]:
    """Return, for each of some samples, the smallest f within a plan's risk and the largest that fits its rule.

    Parameters
    ----------
    found : Plan
        The plan.
    samples : sequence of int
        Numbers of clients asked, each from 1 to N.
    """
    federation = _Federation(found.clients, found.compromised, found.rounds, found.risk, *_read(found.asked_rule), None)
    return [(federation.least_f(sample), federation.most_f(sample)) for sample in samples]
