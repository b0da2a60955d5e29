"""Claims: statements of a paper that results confirm or refute.

A study's `[[claims]]` are of four kinds:

text = "non-iid: the mean first"       # order: everything in `higher` exceeds everything in `lower`
where = { partition = "non-iid" }      # labels that hold for all; without it, at every combination of the other labels
higher = ["mean"]                      # labels of the study's rows, or tables of labels: { defence = "mean" }
lower = ["faba", "trimmed_mean"]
by = 2.0                               # points of percent, or the metric's own unit; 0 when left out

text = "iid: all alike"                # closeness: the largest and the smallest differ by at most so much
rows = ["faba", "trimmed_mean"]
within = 0.5

text = "what collapses in the paper collapses here"      # contrasts: wherever what is reported differs by more
contrasts = 10.0                                         # than so much, what is measured does, too
against = "none"                       # each row's other columns from this one, or
pairs = [["Krum+", "Krum"]]            # the first row from the second, column by column

text = "90 of 105 places agree"        # agreement: what is measured differs from what is reported by at most so much
agrees = 3.0
least = 90                             # at so many places; at all that are reported when left out

A claim with ``ours = true`` is this project's, and not one that the paper states. A verdict says where repetitions of
the runs that it reads are missing, and how often the runs were looked at if it takes their best values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr_robust.studies.groups import Group, Groups
from flwr_robust.studies.showing import REPETITION
from flwr_robust.studies.study import Claim, Study
from flwr_robust.studies.take import FINAL, looks, told
from flwr_robust.studies.words import factor, unit

__all__ = ["Verdict", "judge"]


_FARTHEST = 6  # how many of the places that disagree are named


@dataclass(frozen=True)
class Verdict:
    """The verdict of the results on a claim.

    Attributes
    ----------
    text : str
        The claim.
    holds : bool or None
        None if missing results could still refute the claim.
    detail : str
        The deciding figures.
    partial : bool
        Whether repetitions are missing among the runs that the verdict reads.
    ours : bool
        Whether the claim is this project's, and not one that the paper states.
    """

    text: str
    holds: bool | None
    detail: str
    partial: bool = False
    ours: bool = False

    @property
    def claim(self) -> str:
        """The claim, with a mark if it is this project's."""
        return f"{self.text} (ours)" if self.ours else self.text

    @property
    def word(self) -> str:
        """The verdict in one or a few words."""
        if self.holds is None:
            return "cannot be told yet"
        return f"{'holds' if self.holds else 'does not hold'}{', repetitions are missing' if self.partial else ''}"


@dataclass(frozen=True)
class _Results:
    """The results of a study, and the groups of them that have been read."""

    groups: Groups
    read: dict[tuple[str, ...], Group] = field(default_factory=dict)


def judge(study: Study, groups: Groups) -> list[Verdict]:
    """Return the verdict on each of a study's claims."""
    judges = {"order": _order, "closeness": _closeness, "contrasts": _contrasts, "agreement": _agreement}
    found = []
    for claim in study.claims:
        results = _Results(groups)
        verdict = judges[claim.kind](study, results, claim)
        found.append(_with_counts(study, results.read, replace(verdict, ours=claim.ours)))
    return found


def _with_counts(study: Study, read: Mapping[tuple[str, ...], Group], verdict: Verdict) -> Verdict:
    """Add to a verdict where repetitions are missing, and how often the runs were looked at."""
    detail, few = verdict.detail, []
    if read and study.report.take != FINAL:
        count = looks(len(curve) for group in read.values() for curve in group.curves)
        detail += f"; {told(study.report.take, 'each value', count)}"
    if REPETITION in study.axes and REPETITION not in study.places:
        most = len(study.axes[REPETITION])
        few = [len(group.values) for group in read.values() if len(group.values) < most]
        if few:
            counts = f"{min(few)}" if min(few) == max(few) else f"{min(few)} to {max(few)}"
            detail += f"; {len(few)} of the {len(read)} places read have {counts} of {most} {REPETITION}s"
    return replace(verdict, detail=detail, partial=bool(few))


def _shown(study: Study, results: _Results, labels: Mapping[str, str]) -> float | None:
    """Return the mean of a place in the unit in which it is shown: shares in percent."""
    place = tuple(labels[axis] for axis in study.places)
    group = results.groups.get(place)
    if group is None:
        return None
    results.read[place] = group
    return factor(group.metric) * group.mean


def _places(study: Study, fixed: Mapping[str, str], taken: set[str]) -> Iterator[dict[str, str]]:
    """Yield every combination of labels on the axes that a claim does not fix."""
    open_axes = [axis for axis in study.places if axis not in {*fixed, *taken}]
    for labels in itertools.product(*(study.axes[axis] for axis in open_axes)):
        yield {**fixed, **dict(zip(open_axes, labels, strict=True))}


def _name(study: Study, labels: Mapping[str, str]) -> str:
    return ", ".join(labels[axis] for axis in study.axes if axis in labels)


def _verdict(claim: Claim, holds: bool, detail: str, missing: str) -> Verdict:
    """Return the verdict of the existing figures; it is open if missing ones could still refute the claim."""
    if missing and holds:
        return Verdict(claim.text, None, f"{missing} is missing; so far {detail}")
    return Verdict(claim.text, holds, detail)


def _exactly(study: Study, value: float, bound: float, sign: str = "") -> str:
    """Return a number with enough digits to distinguish it from a bound; of points at most two decimals."""
    if not unit(study.report.metric):
        return f"{value:{sign}.4g}"
    return f"{value:{sign}.{1 if abs(value - bound) >= 0.05 else 2}f}"


def _plain(study: Study, value: float) -> str:
    return f"{value:.1f}" if unit(study.report.metric) else f"{value:.4g}"


def _order(study: Study, results: _Results, claim: Claim) -> Verdict:
    axes = {axis for item in (*claim.higher, *claim.lower) for axis in item}
    margins, missing = [], ""
    for place in _places(study, claim.where, axes):
        for high, low in itertools.product(claim.higher, claim.lower):
            places = {**place, **high}, {**place, **low}
            upper, under = (_shown(study, results, labels) for labels in places)
            if upper is None or under is None:
                missing = missing or _name(study, places[upper is not None])
                continue
            margins.append(
                (
                    upper - under,
                    f"{_plain(study, upper)} ({_name(study, places[0])}), "
                    f"{_plain(study, under)} ({_name(study, places[1])})",
                )
            )
    if not margins:
        return Verdict(claim.text, None, f"{missing} is missing")
    margin, words = min(margins)
    bound = f", asked for {_plain(study, claim.by)}" if claim.by else ""
    detail = f"smallest margin {_exactly(study, margin, claim.by, '+')}{bound}: {words}"
    return _verdict(claim, margin > claim.by, detail, missing)


def _closeness(study: Study, results: _Results, claim: Claim) -> Verdict:
    widest, words, missing = -math.inf, "", ""
    for place in _places(study, claim.where, {axis for item in claim.rows for axis in item}):
        values = []
        for item in claim.rows:
            value = _shown(study, results, {**place, **item})
            if value is None:
                missing = missing or _name(study, {**place, **item})
            else:
                values.append((value, _name(study, {**place, **item})))
        if not values:
            continue
        (low, lowest), (high, highest) = min(values), max(values)
        if high - low > widest:
            widest, words = high - low, f"{_plain(study, high)} ({highest}), {_plain(study, low)} ({lowest})"
    if not words:
        return Verdict(claim.text, None, f"{missing} is missing")
    detail = f"widest range {_exactly(study, widest, claim.within)}, asked for {_plain(study, claim.within)}: {words}"
    return _verdict(claim, widest <= claim.within, detail, missing)


def _contrasts(study: Study, results: _Results, claim: Claim) -> Verdict:
    shown, missed, missing = 0, [], ""
    for first, second in _contrasted(study, claim):
        ours = [_shown(study, results, labels) for labels in (first, second)]
        theirs = [study.reported_at(labels) for labels in (first, second)]
        if theirs[0] is None or theirs[1] is None or theirs[0] - theirs[1] <= claim.contrasts:
            continue
        if ours[0] is None or ours[1] is None:
            missing = missing or _name(study, first if ours[0] is None else second)
            continue
        shown += 1
        if ours[0] - ours[1] <= claim.contrasts:
            there, here = _plain(study, theirs[0] - theirs[1]), _plain(study, ours[0] - ours[1])
            missed.append(f"{_name(study, second)} ({there} there, {here} here)")
    if not shown and missing:
        return Verdict(claim.text, None, f"{missing} is missing")
    if not shown:
        return Verdict(
            claim.text, None, f"nothing that is reported differs by more than {_plain(study, claim.contrasts)}"
        )
    detail = f"{shown - len(missed)} of {shown}" + (f"; not {'; '.join(missed)}" if missed else "")
    return _verdict(claim, not missed, detail, missing)


def _agreement(study: Study, results: _Results, claim: Claim) -> Verdict:
    known, missing, apart = 0, 0, []
    for labels in _places(study, claim.where, set()):
        theirs, ours = study.reported_at(labels), _shown(study, results, labels)
        if theirs is None:
            continue
        known += 1
        if ours is None:
            missing += 1
        elif abs(ours - theirs) > claim.agrees:
            apart.append(
                (abs(ours - theirs), f"{_name(study, labels)} ({_plain(study, theirs)} there, {ours:.1f} here)")
            )
    if not known:
        return Verdict(claim.text, None, "nothing is reported")
    found, least = known - missing - len(apart), claim.least or known
    words = f"{found} of {known} agree within {_plain(study, claim.agrees)}, asked for {least}"
    if missing:
        words += f"; {missing} are missing"
    if apart:
        words += f"; farthest apart: {'; '.join(text for _, text in sorted(apart, reverse=True)[:_FARTHEST])}"
    holds = True if found >= least else False if found + missing < least else None
    return Verdict(claim.text, holds, words)


def _contrasted(study: Study, claim: Claim) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    rows, columns = (_allowed(study, claim, axis) for axis in (study.rows, study.columns))
    for place in _places(study, claim.where, {study.rows, study.columns}):
        if claim.against:
            for row, column in itertools.product(rows, columns):
                if column != claim.against:
                    at = {**place, study.rows: row}
                    yield {**at, study.columns: claim.against}, {**at, study.columns: column}
        for (first, second), column in itertools.product(claim.pairs, columns):
            at = {**place, study.columns: column}
            yield {**at, study.rows: first}, {**at, study.rows: second}


def _allowed(study: Study, claim: Claim, axis: str) -> Sequence[str]:
    """Return the labels on an axis that a claim allows."""
    return [claim.where[axis]] if axis in claim.where else study.axes[axis]
