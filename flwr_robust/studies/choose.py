"""The choice of hyper-parameters in a study with [select]; see `flwr_robust.studies.select`.

A candidate has one value at every combination of labels across which it is judged: the metric on validation samples,
as the mean over seeds. It is judged by the worst or the mean of these values. The best candidate is chosen; of equal
ones it is the first in the file. Values on test samples are not read. A value that is missing or not finite, as that of
a model that diverged, is the worst that there is.

A candidate is not judged as long as one of its cells has no result, because that cell could be its worst.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.select import Select, shown_axes
from flwr_robust.studies.study import Cell, Study
from flwr_robust.studies.take import BEST, comparable, looks
from flwr_robust.tasks.metrics import metric_named

__all__ = ["Candidate", "Choice", "Chosen", "choose"]

Documents = Sequence[Mapping[str, Any]]
Failures = Mapping[tuple[str, ...], str]


@dataclass(frozen=True)
class Candidate:
    """A candidate, and what is known of it.

    Attributes
    ----------
    labels : mapping of str to str
        Its labels on the axes of candidates.
    value : float
        What it is judged by; NaN if cells are without a result, infinite if a value is missing or not finite.
    at : str
        The labels across which it is worst; empty for a mean.
    cells, missing, failed : int
        How many runs it has, and how many of them have not been run, or have failed.
    """

    labels: Mapping[str, str]
    value: float
    at: str
    cells: int
    missing: int = 0
    failed: int = 0

    @property
    def judged(self) -> bool:
        """Whether all its cells have results."""
        return not self.missing and not self.failed

    def __str__(self) -> str:
        """Return its labels in words."""
        return ", ".join(self.labels.values())

    @property
    def lacking(self) -> str:
        """Which results it lacks, in words; empty if none."""
        parts = [f"{count} {word}" for count, word in ((self.missing, "missing"), (self.failed, "failed")) if count]
        return f"{self} ({' and '.join(parts)} of {self.cells})" if parts else ""


@dataclass(frozen=True)
class Choice:
    """The choice among the candidates at one place.

    Attributes
    ----------
    place : mapping of str to str
        The labels on the axes for which there is a choice each.
    ranking : tuple of Candidate
        The candidates that were judged, the best first.
    others : tuple of Candidate
        Those that lack results.
    """

    place: Mapping[str, str]
    ranking: tuple[Candidate, ...]
    others: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that is shown; None if none could be judged."""
        return self.ranking[0] if self.ranking else None

    @property
    def runner_up(self) -> Candidate | None:
        """The second best; None if there is none."""
        return self.ranking[1] if len(self.ranking) > 1 else None

    @property
    def title(self) -> str:
        """The labels in words."""
        return ", ".join(self.place.values()) or "all"


@dataclass(frozen=True)
class Chosen:
    """What a report shows after the choice.

    Attributes
    ----------
    study : Study
        The study without the axes of candidates, with the cells of the chosen ones.
    documents : sequence of mapping
        Their results, with these labels.
    choices : tuple of Choice
        All choices, in the order of the axes; empty without [select].
    failures : mapping of tuple of str to str
        Why shown cells failed, by their labels; without [select] all failures.
    whole : Study
        The study as its file says it, with all candidates.
    finished : int
        How many of all its cells have results.
    """

    study: Study
    documents: Documents
    choices: tuple[Choice, ...]
    failures: Failures
    whole: Study
    finished: int

    @property
    def sentence(self) -> str:
        """How the choice was made, in one or two sentences; empty without [select]."""
        select = self.study.select
        if select is None or not self.choices:
            return ""
        name, report = select.metric.replace("_", " "), self.study.report
        across = f" over {_joined(select.across)}" if select.across else ""
        value = f"{select.by}{across} of the {name}" if across else name
        better = "highest" if self.study.report.higher(select.metric) else "lowest"
        judged = sum(len(choice.ranking) for choice in self.choices)
        each = f"For each {_joined(select.separately)} the" if select.separately else "The"
        best = ""
        if report.take == BEST:
            count = looks(sum(select.metric in point for point in each["curve"]) for each in self.documents)
            best = f", of each run in the best of its {count} rounds"
        return (
            f"{each} candidate is shown whose {value} is {better} (means over seeds{best}). "
            f"{judged} candidates were looked at on validation samples; no test value was read."
        )

    @property
    def rows(self) -> list[dict[str, str]]:
        """The choices as the lines of a table, from headings to texts; empty without [select]."""
        if self.study.select is None:
            return []
        metric, by = self.study.select.metric, self.study.select.by
        lacking = any(choice.others for choice in self.choices)
        what = f"{metric.replace('_', ' ')}{', %' if metric_named(metric).share else ''}"
        return [
            {
                " and ".join(self.study.select.separately) or "for": choice.title,
                "chosen": str(choice.chosen) if choice.chosen else "none",
                what if by == "mean" else f"{what}, worst": _value(metric, choice.chosen),
                **({} if by == "mean" else {"under": choice.chosen.at if choice.chosen else "-"}),
                "candidates": str(len(choice.ranking) + len(choice.others)),
                "runner-up": str(choice.runner_up) if choice.runner_up else "-",
                "its value": _value(metric, choice.runner_up),
                **({"not judged": ", ".join(other.lacking for other in choice.others) or "-"} if lacking else {}),
            }
            for choice in self.choices
        ]


def choose(study: Study, documents: Documents, failures: Failures | None = None) -> Chosen:
    """Choose the candidates that a report shows.

    Parameters
    ----------
    study : Study
        The study. Without [select] it and its results are returned as they are.
    documents : sequence of mapping
        Results of its finished cells.
    failures : mapping of tuple of str to str, optional
        Why cells failed, by their labels in the order of the study's axes.

    Raises
    ------
    ConfigurationError
        If no candidate at all can be judged, or no result holds the metric.
    """
    select = study.select
    if select is None:
        return Chosen(study, documents, (), failures or {}, study, len(documents))
    if documents and not any(select.metric in point for document in documents for point in document["curve"]):
        raise ConfigurationError(f"study {study.name}: no result has {select.metric}; take another metric in [select]")
    found = {frozenset(document["labels"].items()): document for document in documents}
    choices, shown, kept = [], [], []
    for place, candidates in _grouped(study.cells, select).items():
        judged = [_judged(study, select, labels, cells, found, failures or {}) for labels, cells in candidates.items()]
        sign = -1 if study.report.higher(select.metric) else 1
        ranking = sorted((each for each in judged if each.judged), key=lambda each: sign * each.value)
        choice = Choice(dict(place), tuple(ranking), tuple(each for each in judged if not each.judged))
        choices.append(choice)
        if choice.chosen is None:
            continue
        for cell in candidates[tuple(choice.chosen.labels.items())]:
            labels = {axis: label for axis, label in cell.labels.items() if axis not in select.over}
            shown.append(replace(cell, labels=labels))
            kept.append({**found[frozenset(cell.labels.items())], "labels": labels})
    if not kept:
        lacking = "; ".join(f"{c.title}: {', '.join(o.lacking for o in c.others)}" for c in choices[:1])
        raise ConfigurationError(
            f"study {study.name}: no candidate has all its results yet, so nothing can be chosen ({lacking}): run the "
            f"study"
        )
    reduced = replace(study, axes=shown_axes(study.axes, select), cells=tuple(shown))
    return Chosen(reduced, kept, tuple(choices), {}, study, len(documents))


def _value(metric: str, candidate: Candidate | None) -> str:
    """Return what a candidate is judged by, as a text."""
    if candidate is None:
        return "-"
    if not math.isfinite(candidate.value):
        return "not finite"
    return f"{100 * candidate.value:.1f}" if metric_named(metric).share else f"{candidate.value:.4g}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(words)


_Labels = tuple[tuple[str, str], ...]


def _grouped(cells: Iterable[Cell], select: Select) -> dict[_Labels, dict[_Labels, list[Cell]]]:
    """Return the cells by the place of a choice and by candidate, in the order of the study."""
    found: dict[_Labels, dict[_Labels, list[Cell]]] = {}
    for cell in cells:
        place, candidate = (
            tuple((axis, cell.labels[axis]) for axis in axes) for axes in (select.separately, select.over)
        )
        found.setdefault(place, {}).setdefault(candidate, []).append(cell)
    return found


def _judged(
    study: Study,
    select: Select,
    labels: _Labels,
    cells: Sequence[Cell],
    found: Mapping[frozenset[tuple[str, str]], Mapping[str, Any]],
    failures: Failures,
) -> Candidate:
    """Return a candidate with its value."""
    lacking = [cell for cell in cells if frozenset(cell.labels.items()) not in found]
    failed = sum(tuple(cell.labels.values()) in failures for cell in lacking)
    if lacking:
        return Candidate(dict(labels), math.nan, "", len(cells), len(lacking) - failed, failed)
    higher, pick = (True, max) if study.report.higher(select.metric) else (False, min)
    runs: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        curve = found[frozenset(cell.labels.items())]["curve"]
        values = [comparable(point.get(select.metric), higher) for point in curve]
        value = pick(values) if study.report.take == BEST else values[-1]
        runs.setdefault(tuple(cell.labels[axis] for axis in select.across), []).append(value)
    means = {", ".join(at): statistics.fmean(values) for at, values in runs.items()}
    if select.by == "mean":
        return Candidate(dict(labels), statistics.fmean(means.values()), "", len(cells))
    at = (min if higher else max)(means, key=lambda name: means[name])
    return Candidate(dict(labels), means[at], at if select.across else "", len(cells))
