"""How a study is shown: the tables [report], [[reported]] and [[claims]] of its file.

[report]
rows = "defence"                       # axes of the table; when left out the first and the last, seeds aside
                                       # (a study of one axis has one column: "all" of the axis "all runs")
columns = "setting"
baseline = "mean()"                    # the row the others are compared with
metric = "accuracy"                    # what is looked at: a number of the curve; see `METRICS`
tables = ["worst_class", "loss"]       # further metrics, a table each
better = "lower"                       # the better direction of metrics of your own; "higher" when left out
take = "final"                         # at the end of the run; "best": in the best round on validation samples;
                                       # "best_on_test": the best test value of the curve, as some papers report it
spread = "interval"                    # beside a mean: half of its 95 % t-interval, "deviation" or "points" (each seed)
against = "none"                       # a column; every other is also shown as its drop from that one
worst_over = "attack"                  # an axis: adds the worst case over it, seed by seed, but without `against`
plots = ["bars", "curves"]             # bars, curves, heatmap, winners (over the axis `contest`), metrics,
                                       # floors (the squared gradient, and theory's floors; needs `diagnose`)
contest = "defence"
metrics = ["xi", "A", "sigma2"]        # a figure for those of each unit
cohorts = 0.05                         # where a round asks a part of the clients: adds the least number to ask, such
                                       # that with this chance some round asks too many attackers; 0: none

[[reported]]                           # what the paper reports, in percent
source = "Table I"
where = { attack = "static flip" }     # labels on further axes, where there are any
values = { "mean()" = [91.0, nan] }    # by row, one per column; nan: nothing is reported
drops = false                          # true: they are drops from the column `against`, in points

[[claims]]                             # see flwr_robust/studies/claims.py
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from flwr_robust.errors import (
    ConfigurationError,
    UnknownNameError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
)
from flwr_robust.studies.take import TAKES
from flwr_robust.tasks.metrics import METRICS, VALIDATION, metric_named

__all__ = [
    "ALONE",
    "PLOTS",
    "REPETITION",
    "WORST",
    "Axes",
    "Claim",
    "Report",
    "Reported",
    "check_metrics",
    "read_claims",
    "read_report",
    "read_reported",
]

PLOTS = ("bars", "curves", "heatmap", "winners", "metrics", "floors")
"""The kinds of plots of a study."""

REPETITION = "seed"
"""The axis whose cells are repetitions of each other."""

ALONE = "all runs"
"""The axis of one label that stands for the columns of a study with one axis, seeds aside."""

Axes = Mapping[str, Sequence[str]]
"""The labels of each axis."""

WORST = "worst"
"""The label of the worst case on the axis `worst_over`."""

_LARGEST = 1e9  # among reported numbers
_SPREADS = ("interval", "deviation", "points")
_BETTER = ("higher", "lower")
_LISTS = ("plots", "metrics", "tables")


@dataclass(frozen=True)
class Report:
    """The content of a study's tables and plots; the fields are those of [report]."""

    rows: str
    columns: str
    baseline: str = ""
    metric: str = "accuracy"
    take: str = "final"
    against: str = ""
    plots: tuple[str, ...] = ("bars", "curves")
    contest: str = ""
    metrics: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    better: str = ""
    spread: str = "interval"
    worst_over: str = ""
    cohorts: float = 0.0

    def higher(self, metric: str) -> bool:
        """Say whether a higher value of a metric is better."""
        return metric_named(metric).higher if _known(metric) else self.better != "lower"


@dataclass(frozen=True)
class Reported:
    """Numbers reported by a paper.

    Attributes
    ----------
    source : str
        Their place in the paper.
    where : mapping of str to str
        Labels on the axes that are neither rows nor columns.
    values : mapping of (row, column) to float
        In percent, or points.
    drops : bool
        Whether the numbers are drops from the report's column ``against``.
    """

    source: str
    where: Mapping[str, str]
    values: Mapping[tuple[str, str], float]
    drops: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim that results confirm or refute; see `flwr_robust.studies.claims`.

    Attributes
    ----------
    text : str
        The sentence.
    kind : str
        ``order``, ``closeness``, ``contrasts`` or ``agreement``.
    where : mapping of str to str
        Labels that hold for the whole claim.
    higher, lower, rows : tuple of mapping of str to str
        Labels of the compared places.
    by, within, contrasts, agrees : float
        Points of percent.
    least : int
        How many places must agree; 0 for all.
    against : str
        A column.
    pairs : tuple of (row, row)
        Rows compared with each other.
    ours : bool
        Whether the claim is this project's, and not one that the paper states.
    """

    text: str
    kind: str
    where: Mapping[str, str]
    higher: tuple[Mapping[str, str], ...] = ()
    lower: tuple[Mapping[str, str], ...] = ()
    rows: tuple[Mapping[str, str], ...] = ()
    by: float = 0.0
    within: float = 0.0
    contrasts: float = 0.0
    agrees: float = 0.0
    least: int = 0
    against: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    ours: bool = False


_CLAIM_KEYS = {
    "order": {"higher", "lower", "by"},
    "closeness": {"rows", "within"},
    "contrasts": {"contrasts", "against", "pairs"},
    "agreement": {"agrees", "least"},
}


def read_report(study: str, table: Mapping[str, Any], axes: Axes) -> Report:
    """Read [report].

    Parameters
    ----------
    study : str
        The name of the study in error messages.
    table : mapping
        The table.
    axes : mapping of str to sequence of str
        The study's axes.

    Raises
    ------
    FlwrRobustError
        If a key, axis or label does not exist.
    """
    keys = [field.name for field in fields(Report)]
    if unknown := set(table) - set(keys):
        raise UnknownNameError(f"key of [report] in study {study}", min(unknown), keys)
    shown = [axis for axis in axes if axis != REPETITION]
    shown = shown if len(shown) > 1 else [*axes]
    values: dict[str, Any] = {"rows": shown[0], "columns": shown[-1]}
    for key, value in table.items():
        if key == "cohorts":
            check_number(f"study {study}", "cohorts of [report]", value, minimum=0, below=1)
            values[key] = float(value)
            continue
        several = key in _LISTS
        words = value if several and isinstance(value, list) else [value]
        if several != isinstance(value, list) or not all(isinstance(word, str) for word in words):
            kind = "a list of texts" if several else "a text"
            raise ConfigurationError(f"study {study}: {key} of [report] must be {kind}; got {value!r}")
        values[key] = tuple(words) if several else value
    for key in ("rows", "columns"):
        _axis(study, f"axis in {key} of [report]", values[key], axes)
    report = Report(**values)
    for axis in filter(None, (report.rows, report.columns, report.contest, report.worst_over)):
        _axis(study, "axis", axis, axes)
    if report.rows == report.columns and len(axes) > 1:
        raise ConfigurationError(f"study {study}: rows and columns must be two axes; got {report.rows} for both")
    if report.baseline:
        _label(f"baseline of study {study}", report.baseline, axes[report.rows])
    if report.against:
        _label(f"against of study {study}", report.against, axes[report.columns])
    check_choice(f"study {study}", "take", report.take, TAKES)
    check_choice(f"study {study}", "spread", report.spread, _SPREADS)
    if "better" in table:
        check_choice(f"study {study}", "better", report.better, _BETTER)
    if len({report.metric, *report.tables}) <= len(report.tables):
        raise ConfigurationError(
            f"study {study}: tables of [report] must name metrics once each, and not metric={report.metric}, which has "
            f"a table; got {', '.join(report.tables)}"
        )
    for plot in report.plots:
        check_choice(f"study {study}", "plots", plot, PLOTS)
    if report.worst_over in (REPETITION, report.contest) and report.worst_over:
        raise ConfigurationError(
            f"study {study}: worst_over must be an axis other than {REPETITION} and contest; got {report.worst_over}"
        )
    if WORST in axes.get(report.worst_over, ()):
        raise ConfigurationError(
            f"study {study}: axis {report.worst_over} of worst_over has a label '{WORST}', the name of the worst case: "
            f"rename the label"
        )
    if report.contest in (report.rows, report.columns):
        raise ConfigurationError(f"study {study}: contest must be a third axis; got {report.contest}, which is shown")
    if ("winners" in report.plots) != bool(report.contest):
        raise ConfigurationError(f"study {study}: the plot winners and the axis contest need each other; name both")
    if ("metrics" in report.plots) != bool(report.metrics):
        raise ConfigurationError(f"study {study}: the plot metrics and the list metrics need each other; name both")
    return report


def check_metrics(study: str, report: Report, own: Collection[str]) -> None:
    """Raise if [report] names a metric that no curve holds.

    Parameters
    ----------
    study : str
        The name of the study in error messages.
    report : Report
        What it shows.
    own : collection of str
        The users' metrics that every cell of the study records.

    Raises
    ------
    ConfigurationError
        If a metric is neither in `METRICS` nor among them.
    """
    for key, names in (("metric", [report.metric]), ("tables", report.tables), ("metrics", report.metrics)):
        for name in names:
            if name.removeprefix(VALIDATION) not in (*METRICS, *own):
                check_choice(f"study {study}", key, name, (*METRICS, *own))


def _known(metric: str) -> bool:
    return metric.removeprefix(VALIDATION) in METRICS


def read_reported(study: str, tables: Any, axes: Axes, report: Report) -> tuple[Reported, ...]:
    """Read [[reported]]; parameters and errors as for `read_report`."""
    further = [axis for axis in axes if axis not in (report.rows, report.columns, report.contest, REPETITION)]
    found = []
    for table in _tables(study, "reported", tables, {"source", "where", "values", "drops"}, {"source", "values"}):
        where = table.get("where", {})
        _labels(study, "reported", where, {axis: axes[axis] for axis in further})
        if missing := [axis for axis in further if axis not in where]:
            raise ConfigurationError(f"study {study}: where of [[reported]] must say the {missing[0]}; got {where}")
        values = {}
        if not isinstance(table["values"], dict):
            raise ConfigurationError(f"study {study}: values of [[reported]] must be a table; got {table['values']!r}")
        for row, numbers in table["values"].items():
            _label(f"row of [[reported]] in study {study}", row, axes[report.rows])
            sound = isinstance(numbers, list) and all(map(_is_reported, numbers))
            if not sound or len(numbers) != len(axes[report.columns]):
                raise ConfigurationError(
                    f"study {study}: values of [[reported]] must hold one finite number, or nan, per {report.columns}, "
                    f"{len(axes[report.columns])}; got {row} = {numbers}"
                )
            values.update({(row, column): float(x) for column, x in zip(axes[report.columns], numbers, strict=True)})
        drops = table.get("drops", False)
        check_flag(f"study {study}", "drops of [[reported]]", drops)
        if drops and not report.against:
            raise ConfigurationError(f"study {study}: drops are reported from a column; name it as against in [report]")
        known = {place: value for place, value in values.items() if not math.isnan(value)}
        found.append(Reported(str(table["source"]), where, known, drops))
    return tuple(found)


def read_claims(study: str, tables: Any, axes: Axes, report: Report) -> tuple[Claim, ...]:
    """Read [[claims]]; parameters and errors as for `read_report`."""
    every = {"text", "where", "ours", *(key for keys in _CLAIM_KEYS.values() for key in keys)}
    found = []
    for table in _tables(study, "claims", tables, every, {"text"}):
        _types(study, table)
        own = set(table) - {"text", "where", "ours"}
        kind = next((kind for kind, keys in _CLAIM_KEYS.items() if own and own <= keys), None)
        if kind is None or not _complete(kind, own):
            raise ConfigurationError(
                f"study {study}: a claim must hold higher and lower, or rows and within, or contrasts with against or "
                f"pairs, or agrees; got {', '.join(sorted(own)) or 'none'} in '{table['text']}'"
            )
        where = table.get("where", {})
        # Claims concern means over seeds, and may name the worst case.
        places = {
            axis: (*labels, WORST) if axis == report.worst_over else labels
            for axis, labels in axes.items()
            if axis != REPETITION
        }
        _labels(study, "claims", where, places)
        values = {key: table[key] for key in own | {"ours"} & set(table)}
        for key in own & {"higher", "lower", "rows"}:
            items = [item if isinstance(item, dict) else {report.rows: item} for item in table[key]]
            for item in items:
                _labels(study, "claims", item, places)
            values[key] = tuple(items)
        named = [set(item) for key in sorted(own & {"higher", "lower", "rows"}) for item in values[key]]
        if named and (not named[0] or any(each != named[0] for each in named) or named[0] & set(where)):
            raise ConfigurationError(
                f"study {study}: what a claim compares must be labels on the same axes, at least one, and none that "
                f"where fixes; got {', '.join(str(sorted(each)) for each in named)} and where = {where} in "
                f"'{table['text']}'"
            )
        if "pairs" in own:
            values["pairs"] = tuple(tuple(pair) for pair in table["pairs"])
            for row in (row for pair in values["pairs"] for row in pair):
                _label(f"row of [[claims]] in study {study}", row, axes[report.rows])
        if "against" in own:
            _label(f"against of [[claims]] in study {study}", table["against"], axes[report.columns])
        found.append(Claim(str(table["text"]), kind, where, **values))
    return tuple(found)


def _is_reported(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value != value or abs(value) <= _LARGEST


def _complete(kind: str, own: set[str]) -> bool:
    if kind == "contrasts":
        return "contrasts" in own and len(own) > 1
    if kind == "agreement":
        return "agrees" in own
    return own >= ({"higher", "lower"} if kind == "order" else {"rows", "within"})


def _tables(study: str, name: str, tables: Any, allowed: set[str], needed: set[str]) -> list[dict[str, Any]]:
    found = tables if isinstance(tables, list) else [tables]
    for table in found:
        if not isinstance(table, dict) or not needed <= set(table):
            raise ConfigurationError(
                f"study {study}: each of [[{name}]] must be a table with {', '.join(sorted(needed))}; got {table}"
            )
        if unknown := set(table) - allowed:
            raise UnknownNameError(f"key of [[{name}]] in study {study}", min(unknown), sorted(allowed))
        for key in sorted({"source", "text"} & set(table)):
            if not isinstance(table[key], str) or not table[key].strip():
                raise ConfigurationError(f"study {study}: {key} of [[{name}]] must be a text; got {table[key]!r}")
    return list(found)


def _types(study: str, table: Mapping[str, Any]) -> None:
    """Check the types of a claim's values."""
    for key in sorted({"higher", "lower", "rows", "pairs"} & set(table)):
        value = table[key]
        items = isinstance(value, list) and len(value) > 0
        if items and key == "pairs":
            items = all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        if not items:
            what = "a list of pairs of rows" if key == "pairs" else "a list of at least one row, or table of labels"
            raise ConfigurationError(f"study {study}: {key} of [[claims]] must be {what}; got {value!r}")
    for key in sorted({"by", "within", "contrasts", "agrees"} & set(table)):
        check_number(f"study {study}", f"{key} of [[claims]]", table[key], minimum=0)
    if "ours" in table:
        check_flag(f"study {study}", "ours of [[claims]]", table["ours"])
    if "least" in table:
        check_integer(f"study {study}", "least of [[claims]]", table["least"], 1)


def _labels(study: str, name: str, labels: Any, axes: Axes) -> None:
    if not isinstance(labels, dict):
        raise ConfigurationError(f"study {study}: labels in [[{name}]] must be a table; got {labels!r}")
    for axis, label in labels.items():
        _axis(study, f"axis of [[{name}]]", axis, axes)
        _label(f"label on axis {axis} in [[{name}]] of study {study}", label, axes[axis])


def _axis(study: str, what: str, axis: Any, axes: Axes) -> None:
    if not isinstance(axis, str) or axis not in axes:
        raise UnknownNameError(f"{what} of study {study}", str(axis), axes)


def _label(what: str, label: Any, labels: Sequence[str]) -> None:
    if not isinstance(label, str):
        raise ConfigurationError(f"{what}: labels are texts; got {label!r}: put it in quotes")
    if label not in labels:
        raise UnknownNameError(what, str(label), labels)
