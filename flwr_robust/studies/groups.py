"""Groups of repetitions of one cell (one run of a study); tables, plots and claims use them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_robust.errors import FlwrRobustError
from flwr_robust.studies.study import Study
from flwr_robust.tasks.metrics import metric_named

__all__ = ["Group", "Groups", "gather", "percent"]


@dataclass(frozen=True)
class Group:
    """Results that differ only by their seed.

    Attributes
    ----------
    values : tuple of float
        The study's value of each result: its metric at the end of the run, or the best one.
    curves : tuple of tuple of (round, value)
        The metric over the rounds, one curve per repetition.
    weights : tuple of float
        Mean weight that the rule gave to the attackers, per repetition.
    successes : tuple of float
        Final success rate of the attack, in [0, 1], per repetition; empty if the attack has none.
    """

    values: tuple[float, ...]
    curves: tuple[tuple[tuple[int, float], ...], ...]
    weights: tuple[float, ...]
    successes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean value over repetitions."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over repetitions; NaN for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def success(self) -> str:
        """The attack's success in percent."""
        return percent(self.successes)

    def __str__(self) -> str:
        """Return the value in percent."""
        return percent(self.values)


def percent(values: Sequence[float]) -> str:
    """Return a mean in percent with its spread, if any; a dash if there are no values."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}" if values else "-"


Groups = Mapping[tuple[str, ...], Group]
"""Groups by their labels, in the order of the study's `places`."""


def gather(study: Study, documents: Sequence[Mapping[str, Any]]) -> Groups:
    """Group the repetitions of each cell.

    Raises
    ------
    FlwrRobustError
        If a result lacks the study's metric.
    """
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for document in documents:
        place = tuple(document["labels"][axis] for axis in study.places)
        found.setdefault(place, []).append(document)
    return {place: _group(study, repetitions) for place, repetitions in found.items()}


def _group(study: Study, documents: Sequence[Mapping[str, Any]]) -> Group:
    metric = study.report.metric
    for document in documents:
        if metric not in document["final"]:
            raise FlwrRobustError(f"a result of study {study.name} has no {metric}; take another metric in [report]")
    curves = tuple(tuple((p["round"], p[metric]) for p in d["curve"] if metric in p) for d in documents)
    if study.report.take == "best":
        values = tuple(metric_named(metric).best(value for _, value in curve) for curve in curves)
    else:
        values = tuple(d["final"][metric] for d in documents)
    return Group(
        values,
        curves,
        tuple(d["attackers_weight"] for d in documents),
        tuple(d["final"]["attack_success"] for d in documents if "attack_success" in d["final"]),
    )
