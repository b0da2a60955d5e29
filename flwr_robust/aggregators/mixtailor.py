"""MixTailor: every round another rule, drawn from a pool, so that no attack can be tailored to it.

    M     = the members of the pool that fit n and the model
    value = A({x_i}),   A drawn uniformly from M, anew in every round

Ramezani-Kebrya, Tabrizian, Faghri, Popovski, "MixTailor: mixed gradient aggregation for robust learning against
tailored attacks" (TMLR 2022). The attacker may know the pool and every message, but not the draw: only the stats of a
finished round name it. An attacker who knows the ``seed`` knows all draws. The expected value stays close to the honest
one if the attack breaks few of the members; the paper bounds their share.

The paper's pool holds 64 rules: four classes (coordinate median, generalised Krum, geometric median, Bulyan with Krum,
the mean, the geometric median or the coordinate median in its phases), 16 norms l_p each, p = 1, ..., 16. How a norm
enters each class, and which phases meet, is our reading:

    class               the member for p
    median              the same for every p: in one coordinate all norms are one
    geometric_median    the same for every p: Weiszfeld's iteration is that of l_2
    generalised_krum    generalised_krum(p=p)
    bulyan              of the phases generalised_krum(p=p), mean, geometric_median, median number (p - 1) div 4 for the
                        selection and (p - 1) mod 4 for the aggregation, so that every pair comes once; the mean as
                        aggregation is Bulyan's own, the one around the median

Members that are the same count as often as they are listed: where all fit, each class is drawn one time in four.

Convention: a member gets this rule's f, unless its text names one. Each row that is not finite lowers the f of them
all. A member's state stays unchanged until it is drawn again. A member that draws needs a seed of its own to repeat.
When clients' data differ, the paper resamples first: ``resampling(s=2) | mixtailor(f=2)``.

Condition: at least one member fits. Members that do not fit leave the pool. So Bulyan leaves if n < 4f + 3; the paper
asks for n > 4f + 3. `MixTailor.leaving` says which ones leave and why, and a strategy reports it before its first
round.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from flwr_robust.core.fields import Choice, Either, Integer, ListOf, Text
from flwr_robust.core.pipeline import parse
from flwr_robust.core.rows import Layer, Rows
from flwr_robust.core.rule import Aggregate, Case, Outcome, Rule, State, aggregators, joined, next_draw, part
from flwr_robust.errors import InfeasibleError

__all__ = ["MixTailor", "paper_pool"]


def paper_pool() -> tuple[str, ...]:
    """Return the paper's 64 rules as defence strings that leave f open, class by class."""
    norms = range(1, 17)
    krums = [f"generalised_krum(p={p})" for p in norms]
    bulyans = []
    for p, krum in zip(norms, krums, strict=True):
        phases = (krum, "mean", "geometric_median", "median")
        selection, aggregation = phases[(p - 1) // 4], phases[(p - 1) % 4]
        second = "" if aggregation == "mean" else f", aggregation={aggregation!r}"
        bulyans.append(f"bulyan(selection={selection!r}{second})")
    return ("median",) * 16 + tuple(krums) + ("geometric_median",) * 16 + tuple(bulyans)


@aggregators.register("mixtailor")
@dataclass(frozen=True)
class MixTailor(Rule):
    """A rule drawn from a pool, anew in every round.

    Attributes
    ----------
    f : int
        Declared number of faulty rows, also of every member whose text leaves it open.
    pool : "paper" or sequence of str
        The paper's pool, or the members' defence strings.
    seed : int, optional
        Seed of the draws. When not given, it is the seed of the round; without one the operating system's entropy.
    """

    f: Annotated[int, Integer(minimum=0)]
    pool: Annotated[
        str | Sequence[str], Either(Choice(("paper",)), ListOf(Text("a defence string", example="median()")))
    ] = "paper"
    seed: Annotated[int | None, Integer(minimum=0)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.members  # their texts are read now, not in the first round

    @cached_property
    def members(self) -> tuple[Rule, ...]:
        """Return the rules of the pool."""
        texts = paper_pool() if self.pool == "paper" else self.pool
        return tuple(parse(text, f=self.f, kind="mixtailor's pool") for text in texts)

    def _reasons(self, n: int, asked: int | None, layout: Sequence[Layer] | None) -> list[str | None]:
        """Return, for every member, why it does not fit; a layout that is None is not judged."""
        return [
            member.check(n, asked=asked) or (None if layout is None else member.check_layout(layout))
            for member in self.members
        ]

    def _if_none_fits(self, reasons: Sequence[str | None], asked: int) -> str | None:
        """Return the sentence that says that no member fits, or None if one does."""
        if None in reasons:
            return None
        modest = min(range(len(reasons)), key=lambda index: self.members[index].needs(asked)[0])
        return f"mixtailor: none of its {len(reasons)} members fits, not even the most modest: {reasons[modest]}"

    def leaving(self, n: int, *, asked: int | None = None, layout: Sequence[Layer] | None = None) -> dict[str, str]:
        """Say which members leave the pool, and why.

        Parameters
        ----------
        n : int
            Number of rows.
        asked : int, optional
            Number of clients that were asked; n when not given.
        layout : sequence of Layer, optional
            The arrays of the model; without it only n is judged.

        Returns
        -------
        dict of str to str
            The reason by the member's text.

        Examples
        --------
        >>> MixTailor(f=2, pool=["median", "krum"]).leaving(6)
        {'krum(f=2)': 'krum needs n >= 2f + 3; got n=6, f=2: ask at least 7 clients or lower f'}
        """
        reasons = self._reasons(n, asked, layout)
        return {str(member): reason for member, reason in zip(self.members, reasons, strict=True) if reason}

    def remark(self, n: int, *, asked: int | None = None, layout: Sequence[Layer] | None = None) -> str | None:
        """Say how many members leave the pool, and why."""
        reasons = self._reasons(n, asked, layout)
        gone = Counter(reason for reason in reasons if reason)
        if not gone:
            return None
        why = ", and ".join(f"{count} because {reason}" for reason, count in gone.items())
        return f"mixtailor: {gone.total()} of its {len(reasons)} members leave the pool, {why}"

    @property
    def needs_trust(self) -> bool:
        """Say whether a member compares with a row of the server's own."""
        return any(member.needs_trust for member in self.members)

    @property
    def isometric(self) -> bool:
        """Say whether all members are isometric."""
        return all(member.isometric for member in self.members)

    @property
    def remembered(self) -> tuple[str, ...]:
        """Return the number of draws, and those of the members, by their keys in the joined state."""
        own = (f"{index}.{key}" for index, member in enumerate(self.members) for key in member.remembered)
        return ("draws", *own)

    @property
    def located(self) -> tuple[str, ...]:
        """Return those of the members, by their keys in the joined state."""
        return tuple(f"{index}.{key}" for index, member in enumerate(self.members) for key in member.located)

    def check(self, n: int, *, asked: int | None = None) -> str | None:
        """Say why no member fits n rows."""
        return self._if_none_fits(self._reasons(n, asked, None), n if asked is None else asked)

    def check_layout(self, layout: Sequence[Layer]) -> str | None:
        """Say why no member fits a model of these arrays."""
        reasons = [member.check_layout(layout) for member in self.members]
        return self._if_none_fits(reasons, 1)

    def reduced(self, k: int, asked: int) -> MixTailor:
        """Reduce every member."""
        pool = tuple(str(member.reduced(k, asked)) for member in self.members)
        return dataclasses.replace(self, f=max(self.f - k, 0), pool=pool)

    def init(self) -> State:
        """Return the first states of all members."""
        return joined([member.init() for member in self.members])

    def values(self, rows: Rows) -> list[Tensor]:
        """Return what every member that fits makes of rows, each from its first state; for diagnoses.

        Parameters
        ----------
        rows : Rows
            All messages of a round. A member without a value, which keeps no row, is left out.
        """
        reasons = self._reasons(rows.n, rows.asked, rows.layout)
        known: dict[str, Tensor | None] = {}
        found = []
        for member, reason in zip(self.members, reasons, strict=True):
            if reason is not None:
                continue
            text = str(member)
            if text not in known:
                known[text] = _value(member, rows)
            value = known[text]
            if value is not None:
                found.append(value)
        return found

    def combine(self, rows: Rows, state: State) -> tuple[Aggregate, State]:
        """Draw a member and let it aggregate."""
        reasons = self._reasons(rows.n, rows.asked, rows.layout)
        if sentence := self._if_none_fits(reasons, rows.asked):
            raise InfeasibleError(sentence)
        fitting = [index for index, reason in enumerate(reasons) if reason is None]
        generator, state = next_draw(rows, state, self.seed, "mixtailor")
        drawn = fitting[int(torch.randint(len(fitting), (), generator=generator))]
        states = [part(state, index) for index in range(len(self.members))]
        aggregate, states[drawn] = self.members[drawn].combined(rows, states[drawn])
        stats = {"member": str(self.members[drawn]), "fitting": len(fitting), **aggregate.stats}
        return dataclasses.replace(aggregate, stats=stats), {**state, **joined(states)}


def _value(member: Rule, rows: Rows) -> Tensor | None:
    """Return what a member makes of rows from its first state; None if it keeps none of them."""
    try:
        aggregate, _ = member(rows, member.init())
    except InfeasibleError:
        return None
    return None if aggregate.outcome is Outcome.INFEASIBLE else aggregate.value


CASES = (
    Case("mixtailor(f=2, seed=0)", n=12),
    Case("mixtailor(f=2, pool=('krum', 'faba', 'clip(c=50.0) | multi_krum'), seed=0)", n=9),
    Case("mixtailor(f=3, pool=('krum',))", lacks={"state": "its only member is drawn every time"}),
)
