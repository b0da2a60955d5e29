"""[select] of a study: hyper-parameters are candidates, and validation samples decide which of them a report shows.

[config]
validation = 0.1                       # what the choice is made on: held out by the honest clients, never trained on

[select]
over = "candidate"                     # the axes whose labels are candidates; "candidate" when left out
for = "defence"                        # chosen for each label of these axes; the rows of the report when left out
across = "attack"                      # the axes over which a candidate is judged; all others when left out
by = "worst case"                      # its worst value over them, or the "mean"; each is a mean over seeds
metric = "validation_accuracy"         # what is compared; "validation_accuracy" when left out

Candidates that all rows share, such as learning rates, are an axis of their own: over = "rate". Candidates of one rule
are points of one label, told apart by the key candidate:

[axes]
defence = [
  { label = "clipping", candidate = "tau = 0.1", defence = "centered_clipping(tau=0.1)" },
  { label = "clipping", candidate = "tau = 1", defence = "centered_clipping(tau=1.0)" },
  { label = "krum", defence = "krum(f=2)" },       # without a candidate: the only one
]

All cells run. The report then holds the chosen candidates alone; see `flwr_robust.studies.choose`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice
from flwr_robust.studies.showing import REPETITION, Axes, Report
from flwr_robust.tasks.metrics import METRICS, VALIDATION

__all__ = [
    "BY",
    "CANDIDATE",
    "Labelled",
    "Labels",
    "Select",
    "all_labels",
    "check_validation",
    "read_select",
    "shown_axes",
]

CANDIDATE = "candidate"
"""The key that tells points of one label apart, and the axis of its values."""

ONLY = "-"
"""The candidate of a point without one, where other points of the axis have some."""

BY = ("mean", "worst case")
"""The rules of choice."""

Labels = Mapping[str, tuple[str, ...]]
"""The labels of each axis."""

Labelled = tuple[dict[str, str], dict[str, object]]
"""A point of an axis: its labels by axis, and the keys of the run config that it sets."""


@dataclass(frozen=True)
class Select:
    """How candidates are chosen.

    Attributes
    ----------
    over : tuple of str
        The axes whose labels are candidates.
    separately : tuple of str
        The axes for each label of which there is a choice: ``for``.
    across : tuple of str
        The axes over which a candidate is judged.
    by : str
        ``mean`` or ``worst case``.
    metric : str
        The metric on the validation samples.
    """

    over: tuple[str, ...] = field(default=(CANDIDATE,), metadata={"key": "over"})
    separately: tuple[str, ...] = field(default=(), metadata={"key": "for"})
    across: tuple[str, ...] = field(default=(), metadata={"key": "across"})
    by: str = field(default="worst case", metadata={"key": "by"})
    metric: str = field(default=f"{VALIDATION}accuracy", metadata={"key": "metric"})


_KEYS = {each.metadata["key"]: each.name for each in fields(Select)}


def all_labels(
    study: str, points: Mapping[str, Sequence[Labelled]]
) -> tuple[dict[str, list[Labelled]], dict[str, tuple[str, ...]]]:
    """Move candidates to an axis of their own.

    Parameters
    ----------
    study : str
        The name of the study in error messages.
    points : mapping of str to sequence of Labelled
        The points of each axis; the key ``candidate`` is among those that they set.

    Returns
    -------
    points : mapping of str to list of Labelled
        The same points. Those of the axis with candidates have a label on the axis ``candidate``, too.
    axes : mapping of str to tuple of str
        The labels of each axis, in the order of the points.

    Raises
    ------
    ConfigurationError
        If a candidate is no text, or more than one axis has some.
    """
    owners = [axis for axis, found in points.items() if any(CANDIDATE in keys for _, keys in found)]
    if len(owners) > 1 or (owners and CANDIDATE in points):
        named = ", ".join(owners + [CANDIDATE] * (CANDIDATE in points))
        raise ConfigurationError(
            f"study {study}: candidates must be points of one axis; got some on {named}: name them on one axis alone"
        )
    moved: dict[str, list[Labelled]] = {axis: [*found] for axis, found in points.items()}
    axes: dict[str, tuple[str, ...]] = {}
    for axis, found in moved.items():
        if axis in owners:
            for place, (labels, keys) in enumerate(found):
                candidate = keys.get(CANDIDATE, ONLY)
                if not isinstance(candidate, str):
                    raise ConfigurationError(
                        f"study {study}: candidate of a point of axis {axis} must be a text; got {candidate!r}: put it "
                        f"in quotes"
                    )
                rest = {key: value for key, value in keys.items() if key != CANDIDATE}
                found[place] = {**labels, CANDIDATE: candidate}, rest
        for key in found[0][0]:
            axes[key] = tuple(dict.fromkeys(labels[key] for labels, _ in found))
    return moved, axes


def read_select(study: str, document: Mapping[str, Any], axes: Axes) -> Select | None:
    """Read [select].

    Parameters
    ----------
    study : str
        The name of the study in error messages.
    document : mapping
        The study's file; its [report] names the rows.
    axes : mapping of str to sequence of str
        All axes with their labels.

    Returns
    -------
    Select or None
        None without [select].

    Raises
    ------
    FlwrRobustError
        If a key or axis does not exist, an axis has no or two parts in the choice, or candidates lack [select].
    """
    table = document.get("select")
    if table is None:
        if CANDIDATE in axes and CANDIDATE not in document.get("axes", {}):
            raise ConfigurationError(
                f"study {study}: points with a candidate need the table [select], which says how to choose; add it, or "
                f"give the points labels of their own"
            )
        return None
    if not isinstance(table, dict):
        raise ConfigurationError(f"study {study}: [select] must be a table; got {table!r}")
    if unknown := set(table) - set(_KEYS):
        raise UnknownNameError(f"key of [select] in study {study}", min(unknown), _KEYS)
    over = _axes(study, axes, "over", table.get("over", CANDIDATE))
    rest = [axis for axis in axes if axis not in (*over, REPETITION)]
    rows = document.get("report", {}).get("rows")
    separately = _axes(study, axes, "for", table.get("for", [rows] if rows in rest else rest[:1]))
    left = [axis for axis in rest if axis not in separately]
    across = _axes(study, axes, "across", table.get("across", left))
    parts = [*over, *separately, *across]
    if twice := next((axis for axis in parts if parts.count(axis) > 1), None):
        raise ConfigurationError(f"study {study}: over, for and across of [select] must share no axis; got {twice}")
    if lost := next((axis for axis in rest if axis not in parts), None):
        raise ConfigurationError(
            f"study {study}: [select] must say what axis {lost} is: name it in for, if each of its labels has a "
            f"choice, or in across"
        )
    owner = next((axis for axis, labels in _owners(document).items() if labels), None)
    if owner is not None and CANDIDATE not in over:
        raise ConfigurationError(
            f"study {study}: points of axis {owner} have candidates, so over of [select] must name {CANDIDATE!r}; got "
            f"over = {list(over)}"
        )
    if owner not in (None, *separately):
        raise ConfigurationError(
            f"study {study}: the candidates of axis {owner} belong to its labels, so for of [select] must name it; got "
            f"for = {list(separately)}"
        )
    by, metric = table.get("by", Select.by), table.get("metric", Select.metric)
    check_choice(f"study {study}", "by of [select]", by, BY)
    if not isinstance(metric, str) or not metric.startswith(VALIDATION):
        raise ConfigurationError(
            f"study {study}: metric of [select] must be measured on validation samples, so that test values do not "
            f"enter the choice; got {metric!r}: take {Select.metric}"
        )
    return Select(over, separately, across, by, metric)


def _owners(document: Mapping[str, Any]) -> dict[str, bool]:
    """Say of each axis in the file whether its points have candidates."""
    axes = document.get("axes", {})
    return {axis: any(isinstance(p, dict) and CANDIDATE in p for p in found) for axis, found in axes.items()}


def _axes(study: str, axes: Axes, key: str, value: object) -> tuple[str, ...]:
    """Return the axes that a key of [select] names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"study {study}: {key} of [select] must be an axis or a list of axes; got {value!r}")
    for name in names:
        if name == REPETITION:
            raise ConfigurationError(
                f"study {study}: {key} of [select] cannot name {REPETITION}: every value is a mean over seeds"
            )
        if name not in axes:
            raise UnknownNameError(f"axis in {key} of [select] in study {study}", name, axes)
    if key == "over" and not names:
        raise ConfigurationError(f"study {study}: over of [select] must name at least one axis; got none")
    return tuple(names)


def shown_axes(axes: Labels, select: Select | None) -> Labels:
    """Return the axes of the report: all but those of the candidates."""
    return {axis: labels for axis, labels in axes.items() if select is None or axis not in select.over}


def check_validation(
    study: str, report: Report, select: Select | None, shares: Sequence[float], own: Collection[str] = ()
) -> None:
    """Check that validation samples, and the metric on them, exist wherever they decide what is shown.

    Parameters
    ----------
    study : str
        The name of the study in error messages.
    report : Report
        Its report.
    select : Select, optional
        Its choice.
    shares : sequence of float
        The key ``validation`` of each cell.
    own : collection of str
        The users' metrics that every cell records.

    Raises
    ------
    ConfigurationError
        If a cell has no validation samples, no curve holds the metric, or the report looks for its values on the test
        set.
    """
    if report.take == "best" and not all(shares):
        raise ConfigurationError(
            f"study {study}: take = 'best' of [report] finds the best round on validation samples, and there are none: "
            f"set validation in [config], for example to 0.1; take = 'best_on_test' looks at the test set, as some "
            f"papers do"
        )
    if select is None:
        return
    if select.metric.removeprefix(VALIDATION) not in (*METRICS, *own):
        known = [f"{VALIDATION}{name}" for name in (*METRICS, *own)]
        raise UnknownNameError(f"metric of [select] in study {study}", select.metric, known)
    if not all(shares):
        raise ConfigurationError(
            f"study {study}: [select] chooses by {select.metric}, and there are no validation samples: set validation "
            f"in [config], for example to 0.1"
        )
    if report.take == "best_on_test":
        raise ConfigurationError(
            f"study {study}: take = 'best_on_test' of [report] looks at the test set, which [select] must not: set "
            f"take to 'final' or 'best'"
        )
