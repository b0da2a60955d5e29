"""Groups of repetitions of one cell (one run of a study), and the worst case over an axis.

The worst case is taken per repetition: for every seed it is the run with the worst value among the labels of the axis
`worst_over`. The mean over seeds of these minima is at most the minimum of the means: the attacker may choose anew for
every seed. A seed counts only where every label has a result, as a missing run could be the worst.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr_robust.errors import FlwrRobustError
from flwr_robust.studies.intervals import Estimate, estimate
from flwr_robust.studies.showing import WORST
from flwr_robust.studies.study import REPETITION, Study
from flwr_robust.studies.take import taken

__all__ = ["Group", "Groups", "gather", "with_worst"]

_UNDER = "worst_under"  # in the copy of a document that stands for the worst case: its label on that axis


@dataclass(frozen=True)
class Group:
    """Results that differ only by their seed.

    Attributes
    ----------
    metric : str
        The metric of the values.
    values : mapping of str to float
        The value of each result by its seed: the metric at the end of the run, or the best one.
    curves : tuple of tuple of (round, value)
        The metric over the rounds, one curve per repetition.
    weights : tuple of float
        Mean weight that the rule gave to the attackers, per repetition.
    under : tuple of str
        Of a worst case: the labels under which it was the worst, one per repetition; otherwise empty.
    """

    metric: str
    values: Mapping[str, float]
    curves: tuple[tuple[tuple[int, float], ...], ...]
    weights: tuple[float, ...]
    under: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate:
        """The mean over repetitions, with its interval."""
        return estimate([*self.values.values()])

    @property
    def mean(self) -> float:
        """The mean over repetitions."""
        return self.estimate.mean

    @property
    def ranked(self) -> list[str]:
        """The labels under which a worst case was the worst, the most frequent first; empty for any other."""
        return [label for label, _ in Counter(self.under).most_common()]


Groups = Mapping[tuple[str, ...], Group]
"""Groups by their labels, in the order of the study's `places`."""


def gather(study: Study, documents: Sequence[Mapping[str, Any]], metric: str = "") -> Groups:
    """Group the repetitions of each cell.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its cells; see `with_worst`.
    metric : str
        The metric of the groups. When not given, the study's own. Results that lack any other metric are left out.

    Raises
    ------
    FlwrRobustError
        If a result lacks the study's metric.
    """
    name = metric or study.report.metric
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for document in documents:
        if name not in document["final"]:
            if not metric:
                raise FlwrRobustError(f"a result of study {study.name} has no {name}; take another metric in [report]")
            continue
        place = tuple(document["labels"][axis] for axis in study.places)
        found.setdefault(place, []).append(document)
    return {place: _group(study, repetitions, name) for place, repetitions in found.items()}


def _group(study: Study, documents: Sequence[Mapping[str, Any]], metric: str) -> Group:
    return Group(
        metric,
        {document["labels"].get(REPETITION, ""): _value(study, document, metric) for document in documents},
        tuple(_curve(document, metric) for document in documents),
        tuple(document["attackers_weight"] for document in documents),
        tuple(document[_UNDER] for document in documents if _UNDER in document),
    )


def _curve(document: Mapping[str, Any], metric: str) -> tuple[tuple[int, float], ...]:
    return tuple((point["round"], point[metric]) for point in document["curve"] if metric in point)


def _value(study: Study, document: Mapping[str, Any], metric: str) -> float:
    """Return the value of a run: at its end, or the best of its curve."""
    report = study.report
    return taken(document, metric, report.take, report.higher, report.metric)


def with_worst(study: Study, documents: Sequence[Mapping[str, Any]], metric: str = "") -> Sequence[Mapping[str, Any]]:
    """Add the worst runs over the axis `worst_over` as results with the label "worst" on that axis.

    Parameters
    ----------
    study : Study
        The study; without `worst_over` in [report] nothing is added.
    documents : sequence of mapping
        Results of its finished cells.
    metric : str
        The metric that decides; the study's own when not given.
    """
    axis, metric = study.report.worst_over, metric or study.report.metric
    if not axis:
        return documents
    rivals = [label for label in study.axes[axis] if axis != study.columns or label != study.report.against]
    found: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for document in documents:
        if document["labels"][axis] in rivals and metric in document["final"]:
            place = tuple(label for key, label in document["labels"].items() if key != axis)
            found.setdefault(place, {})[document["labels"][axis]] = document

    def badness(label: str, runs: Mapping[str, Mapping[str, Any]]) -> tuple[bool, float]:
        value = _value(study, runs[label], metric)
        return math.isnan(value), -value if study.report.higher(metric) else value

    added = []
    for runs in found.values():
        if len(runs) == len(rivals):
            under = max(rivals, key=lambda label: badness(label, runs))  # of equal ones the first
            labels = {**runs[under]["labels"], axis: WORST}
            added.append({**runs[under], "labels": labels, _UNDER: under})
    return [*documents, *added]
