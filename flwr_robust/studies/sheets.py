"""The tables of a study's results, as texts and numbers: what is measured, paired differences, what a paper reports.

Every caption says what its cells hold: the metric and its better direction, what stands beside a mean, and the number
of repetitions. A cell with fewer repetitions says so. "failed" is a cell whose run raised an error, "-" one that has
not been run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from flwr_robust.studies.cohorts import cohorts
from flwr_robust.studies.failures import Failures
from flwr_robust.studies.groups import Group, gather, with_worst
from flwr_robust.studies.intervals import Estimate, paired
from flwr_robust.studies.showing import REPETITION, WORST
from flwr_robust.studies.study import Study
from flwr_robust.studies.take import looks, told
from flwr_robust.studies.words import called, change, factor, points, unit, width, written

__all__ = ["Section", "Sheet", "conclude", "markdown", "sheets", "spread_words", "summarise", "tables"]

_WIDE = 5  # from this number of columns, the terminal shows only means
_TERMINAL = 100  # width in characters
_CAPTION = 72  # least width of a table with a longer caption
_SUCCESS = "attack_success"

Place = tuple[str, str]
"""The labels of a row and of a column."""


@dataclass(frozen=True)
class Section:
    """The table for one combination of labels on the axes that are neither rows nor columns.

    Attributes
    ----------
    labels : mapping of str to str
        The combination.
    groups : mapping of (row, column) to Group
        The groups in the table; with a contest, the group that won.
    winners : mapping of (row, column) to str
        With a contest: the labels that won.
    level : mapping of (row, column) to tuple of str
        With a contest over several seeds: the labels whose paired difference from the winner has an interval with 0.
    beside : mapping of str to mapping of (row, column) to Group
        The groups of further metrics by the metric's name.
    failed : mapping of (row, column) to int
        How many runs failed, where any did. Of a worst case: the failed runs of all its labels.
    """

    labels: Mapping[str, str]
    groups: Mapping[Place, Group]
    winners: Mapping[Place, str] = field(default_factory=dict)
    level: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[Place, Group]] = field(default_factory=dict)
    failed: Mapping[Place, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The combination in words; empty if there is only one."""
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class Sheet:
    """A table of texts, with the numbers that they show.

    Attributes
    ----------
    caption : str
        The content of the table.
    columns : tuple of str
        Headings, beginning with that of the rows' names.
    rows : tuple of tuple of str
        Cells, beginning with the name of the row.
    best : frozenset of (row, column)
        Positions of the best value of each column; columns are counted without the rows' names.
    kind : str
        ``measured``, ``difference``, ``reported``, ``measured minus reported``, ``drop`` or ``cohort``.
    metric, unit : str
        What the numbers are of, and their unit.
    numbers : mapping of (row, column) to Estimate
        The numbers of the cells, in that unit, by their positions.
    failed : mapping of (row, column) to int
        The numbers of failed runs by position.
    under : mapping of (row, column) to str
        Where the cell is a worst case: the labels under which it was the worst.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    kind: str = "measured"
    metric: str = ""
    unit: str = ""
    numbers: Mapping[tuple[int, int], Estimate] = field(default_factory=dict)
    failed: Mapping[tuple[int, int], int] = field(default_factory=dict)
    under: Mapping[tuple[int, int], str] = field(default_factory=dict)


def summarise(study: Study, documents: Sequence[Mapping[str, Any]], failures: Failures | None = None) -> list[Section]:
    """Put results into tables, with grouped repetitions.

    Parameters
    ----------
    study : Study
        The study.
    documents : sequence of mapping
        Results of its finished cells.
    failures : mapping of tuple of str to str, optional
        Why cells failed, by their labels in the order of the study's axes.
    """
    succeeds = study.report.metric != _SUCCESS and any(_SUCCESS in document["final"] for document in documents)
    further = [metric for metric in study.report.tables if metric != _SUCCESS] + [_SUCCESS] * succeeds
    by_metric = {metric: gather(study, with_worst(study, documents, metric), metric) for metric in further}
    main = gather(study, with_worst(study, documents))
    failed = _failed(study, failures or {})
    places = {*main, *failed}
    found = []
    for combination in itertools.product(*(study.shown(axis) for axis in study.further)):
        labels = dict(zip(study.further, combination, strict=True))
        own = [place for place in places if labels.items() <= dict(zip(study.places, place, strict=True)).items()]
        if not own:
            continue
        rivals: dict[Place, dict[str, tuple[str, ...]]] = {}
        for place in own:
            each = dict(zip(study.places, place, strict=True))
            rivals.setdefault((each[study.rows], each[study.columns]), {})[each.get(study.report.contest, "")] = place
        groups: dict[Place, Group] = {}
        winners: dict[Place, str] = {}
        level: dict[Place, tuple[str, ...]] = {}
        beside: dict[str, dict[Place, Group]] = {metric: {} for metric in further}
        for at, contest in rivals.items():
            order = [name for name in study.axes.get(study.report.contest, ("",)) if contest.get(name) in main]
            if not order:
                continue
            pick = max if study.report.higher(study.report.metric) else min
            winners[at] = pick(order, key=lambda name, contest=contest: main[contest[name]].mean)  # type: ignore[misc]
            groups[at] = main[contest[winners[at]]]
            level[at] = tuple(name for name in order if name != winners[at] and _level(groups[at], main[contest[name]]))
            for metric, known in by_metric.items():
                if contest[winners[at]] in known:
                    beside[metric][at] = known[contest[winners[at]]]
        counts = {at: sum(failed.get(place, 0) for place in contest.values()) for at, contest in rivals.items()}
        found.append(
            Section(
                labels,
                groups,
                winners if study.report.contest else {},
                level if study.report.contest else {},
                {metric: known for metric, known in beside.items() if known},
                {at: count for at, count in counts.items() if count},
            )
        )
    return found


def _level(group: Group, other: Group) -> bool:
    """Say whether the seeds leave open which of two groups is ahead."""
    found = paired(group.values, other.values)
    return found is not None and found.sign == 0


def _failed(study: Study, failures: Failures) -> dict[tuple[str, ...], int]:
    """Return the numbers of failed runs by place; one that failed may have been the worst."""
    found: dict[tuple[str, ...], int] = {}
    axis = study.report.worst_over
    for key in failures:
        labels = dict(zip(study.axes, key, strict=True))
        kinds = [labels]
        if axis and (axis != study.columns or labels[axis] != study.report.against):
            kinds.append({**labels, axis: WORST})
        for each in kinds:
            place = tuple(each[axis] for axis in study.places)
            found[place] = found.get(place, 0) + 1
    return found


# -- cells -----------------------------------------------------------------------------------------


def spread_words(study: Study, counts: Sequence[int], *, spreads: bool = True) -> str:
    """Return the words of a caption for what stands beside a mean, and the number of repetitions.

    Parameters
    ----------
    study : Study
        The study.
    counts : sequence of int
        The numbers of repetitions of all cells.
    spreads : bool
        Whether anything stands beside a mean.
    """
    if not counts:
        return ""
    what, most = _repetition(study), max(counts)
    if most == 1:
        return f"; n = 1 {what}, so no interval"
    beside = {
        "interval": "mean ± half of its 95 % t-interval",
        "deviation": "mean ± standard deviation",
        "points": f"mean, and in brackets each {what}",
    }[study.report.spread]
    return f"; {beside if spreads else 'mean'}, {_number(study, counts)}"


def _repetition(study: Study) -> str:
    return "seed" if REPETITION in study.axes else "run"


def _number(study: Study, counts: Sequence[int]) -> str:
    """Return the number of repetitions in words."""
    most = max(counts, default=0)
    other = " where a cell says no other n" if most > min(counts, default=0) else ""
    return f"n = {most} {_repetition(study)}{'s' if most != 1 else ''}{other}"


def _text(study: Study, group: Group, most: int, failed: int, *, spreads: bool) -> str:
    """Return a mean with what stands beside it, and what is missing."""
    found, metric = group.estimate, group.metric
    text = written(metric, found.mean)
    if spreads and found.n > 1:
        if study.report.spread == "points":
            text += f" ({', '.join(written(metric, value) for value in group.values.values())})"
        else:
            text += f" ± {width(metric, found.half if study.report.spread == 'interval' else found.deviation)}"
    notes = [f"n = {found.n}"] * (found.n < most) + [f"{failed} failed"] * bool(failed)
    return f"{text} ({', '.join(notes)})" if notes else text


def _scaled(found: Estimate, by: float) -> Estimate:
    return Estimate(by * found.mean, by * found.deviation, by * found.half, found.n)


def _best(study: Study, groups: Mapping[Place, Group], column: str) -> set[str]:
    """Return the rows with the best value as shown."""
    means = {row: groups[row, column] for row in study.axes[study.rows] if (row, column) in groups}
    known = {row: group for row, group in means.items() if group.mean == group.mean}  # a NaN is never the best
    if not known:
        return set()
    metric = next(iter(known.values())).metric
    pick = max if study.report.higher(metric) else min
    best = written(metric, pick(group.mean for group in known.values()))
    return {row for row, group in known.items() if written(metric, group.mean) == best}


def _titled(section: Section, caption: str) -> str:
    return f"{caption} ({section.title})" if section.title else caption


def _measured(study: Study, section: Section, groups: Mapping[Place, Group], metric: str, *, spreads: bool) -> Sheet:
    """Return the table of a metric."""
    rows, columns = study.shown(study.rows), study.shown(study.columns)
    counts = [group.estimate.n for group in groups.values()]
    main = groups is section.groups

    def cell(row: str, column: str) -> str:
        group, failed = groups.get((row, column)), section.failed.get((row, column), 0)
        if group is None:
            return "failed" if failed else "-"
        text = _text(study, group, max(counts), failed, spreads=spreads)
        named = ", ".join(group.ranked)
        if main and section.winners:
            named = section.winners[row, column]
            named += f" (level: {', '.join(known)})" if (known := section.level.get((row, column))) else ""
        return f"{text} {named}" if named else text

    of = f", {unit(metric)}" if unit(metric) else ""
    better = "higher" if study.report.higher(metric) else "lower"
    contest = f"; best {study.report.contest}" if main and section.winners else ""
    count = looks(len(curve) for group in groups.values() for curve in group.curves)
    caption = f"{told(study.report.take, f'{called(metric)}{of}', count)}, {better} is better{contest}"
    at = {(row, column): (r, c) for r, row in enumerate(rows) for c, column in enumerate(columns)}
    return Sheet(
        _titled(section, caption + spread_words(study, counts, spreads=spreads)),
        (study.rows, *columns),
        tuple((row, *(cell(row, column) for column in columns)) for row in rows),
        frozenset(at[row, column] for column in columns for row in _best(study, groups, column)),
        "measured",
        metric,
        unit(metric),
        {at[place]: _scaled(group.estimate, factor(metric)) for place, group in groups.items()},
        {at[place]: count for place, count in section.failed.items()},
        {at[place]: ", ".join(group.ranked) for place, group in groups.items() if group.under},
    )


def _compared(
    study: Study,
    section: Section,
    kind: str,
    caption: str,
    number: Callable[[str, str], Estimate | None],
    text: Callable[[float], str],
    rows: Sequence[str],
) -> Sheet:
    """Return a table of single numbers in their shown unit, such as those of a paper."""
    columns = study.shown(study.columns)
    found = {(r, c): number(row, column) for r, row in enumerate(rows) for c, column in enumerate(columns)}
    known = {at: each for at, each in found.items() if each is not None}
    metric = study.report.metric
    counts = [each.n for each in known.values() if each.n]
    return Sheet(
        _titled(section, f"{caption}; {_number(study, counts)}" if counts else caption),
        (study.rows, *columns),
        tuple(
            (row, *(text(known[r, c].mean) if (r, c) in known else "-" for c in range(len(columns))))
            for r, row in enumerate(rows)
        ),
        frozenset(),
        kind,
        metric,
        unit(metric) if kind == "reported" else points(metric),
        known,
    )


def sheets(study: Study, section: Section, *, spreads: bool = True) -> Iterator[Sheet]:
    """Yield a section's tables.

    These are: measured values; paired differences from the baseline; a paper's values and the differences from them;
    drops; a table for each further metric; and the numbers of clients that rounds ask.

    Parameters
    ----------
    study : Study
        The study.
    section : Section
        One of its sections.
    spreads : bool
        Whether intervals or deviations are shown.
    """
    metric = study.report.metric
    by, of, differ = factor(metric), unit(metric), points(metric)
    in_unit, in_points = (f", {word}" if word else "" for word in (of, differ))

    def value(row: str, column: str) -> Estimate | None:
        group = section.groups.get((row, column))
        return None if group is None else Estimate(by * group.mean, n=group.estimate.n)

    def plain(number: float) -> str:
        return written(metric, number / by)

    def signed(number: float) -> str:
        return change(metric, number / by)

    yield _measured(study, section, section.groups, metric, spreads=spreads)
    if study.baseline and len(study.axes[study.rows]) > 1 and section.groups:
        yield _differences(study, section, in_points, spreads=spreads)

    rows = study.shown(study.rows)

    def compared(ours: Callable[[str, str], Estimate | None], drops: bool) -> Iterator[Sheet]:
        """Yield a table of a paper's values, and one of the differences of the measured values from them."""

        def theirs(row: str, column: str) -> Estimate | None:
            found = study.reported_at({**section.labels, study.rows: row, study.columns: column}, drops)
            return None if found is None else Estimate(found)

        def difference(row: str, column: str) -> Estimate | None:
            own, reported = ours(row, column), theirs(row, column)
            return None if own is None or reported is None else Estimate(own.mean - reported.mean, n=own.n)

        found = [r for r in study.reported if r.drops == drops and r.where.items() <= section.labels.items()]
        if found:
            what = f"reported drop{in_points}" if drops else f"reported{in_unit}"
            yield _compared(study, section, "reported", f"{what}: {found[0].source}", theirs, plain, rows)
            what = "measured minus reported"
            yield _compared(study, section, what, f"{what}{in_points}", difference, signed, rows)

    against = study.report.against
    higher = study.report.higher(metric)

    def drop(row: str, column: str) -> Estimate | None:
        before, after = value(row, against), value(row, column)
        if before is None or after is None or column == against:
            return None
        return Estimate(before.mean - after.mean if higher else after.mean - before.mean, n=min(before.n, after.n))

    yield from compared(value, False)
    if against:
        what = "drop" if higher else "rise"
        yield _compared(study, section, "drop", f"{what} from {against}{in_points}, of the means", drop, plain, rows)
        yield from compared(drop, True)
    for name, groups in section.beside.items():
        yield _measured(study, section, groups, name, spreads=spreads)
    if study.report.cohorts and (asked := cohorts(study, section.labels)):
        yield Sheet(_titled(section, asked.caption), asked.columns, asked.rows, kind="cohort")


def _differences(study: Study, section: Section, in_points: str, *, spreads: bool) -> Sheet:
    """Return the table of the paired differences of all rows from the baseline."""
    metric, base = study.report.metric, study.baseline
    rows = [row for row in study.axes[study.rows] if row != base]
    columns = study.shown(study.columns)
    found = {
        (r, c): gap
        for r, row in enumerate(rows)
        for c, column in enumerate(columns)
        if (gap := _gap(section, row, base, column)) is not None
    }
    most = max((gap.n for gap in found.values()), default=0)

    def cell(r: int, c: int) -> str:
        if (r, c) not in found:
            return "failed" if section.failed.get((rows[r], columns[c])) else "-"
        gap = found[r, c]
        text = change(metric, gap.mean)
        if spreads and gap.n > 1:
            text += f" ± {width(metric, gap.half)}"
        if gap.sign:
            text += "*"
        return f"{text} (n = {gap.n})" if gap.n < most else text

    interval = "; n = 1, so no interval" if most == 1 else f" ± half of its 95 % t-interval, n = {most} pairs"
    if most > 1 and not spreads:
        interval = f", n = {most} pairs"
    star = "; *: the interval does not hold 0" if most > 1 else ""
    return Sheet(
        _titled(section, f"paired difference from {base}{in_points}: mean over common seeds{interval}{star}"),
        (study.rows, *columns),
        tuple((row, *(cell(r, c) for c in range(len(columns)))) for r, row in enumerate(rows)),
        frozenset(),
        "difference",
        metric,
        points(metric),
        {at: _scaled(gap, factor(metric)) for at, gap in found.items()},
        {
            (rows.index(row), columns.index(column)): count
            for (row, column), count in section.failed.items()
            if row in rows
        },
    )


def _gap(section: Section, row: str, base: str, column: str) -> Estimate | None:
    own, other = section.groups.get((row, column)), section.groups.get((base, column))
    return None if own is None or other is None else paired(own.values, other.values)


# -- the terminal, Markdown, and one sentence ------------------------------------------------------


def tables(study: Study, section: Section) -> Iterator[Table]:
    """Yield a section's tables for a terminal of a hundred columns.

    Parameters
    ----------
    study : Study
        The study.
    section : Section
        One of its sections.
    """
    spreads = len(study.shown(study.columns)) < _WIDE
    for sheet in sheets(study, section, spreads=spreads):
        for number, columns in enumerate(_abreast(sheet)):
            title = sheet.caption if number == 0 else f"{sheet.caption}, continued"
            wide = min(len(title), _CAPTION)
            table = Table(title=Text(title), title_justify="left", padding=(0, 1), min_width=wide)
            table.add_column(Text(sheet.columns[0]), no_wrap=True)
            for column in columns:
                table.add_column(Text(sheet.columns[column]), justify="right", no_wrap=True)
            for place, row in enumerate(sheet.rows):
                bold = [Text(row[at], "bold" if (place, at - 1) in sheet.best else "") for at in columns]
                table.add_row(Text(row[0]), *bold)
            yield table


def _abreast(sheet: Sheet) -> list[list[int]]:
    """Return the columns of each part of a sheet, such that every part fits a terminal."""
    widths = [max(map(len, column)) + 3 for column in zip(sheet.columns, *sheet.rows, strict=True)]
    parts: list[list[int]] = [[]]
    for column, wide in enumerate(widths[1:], 1):
        if parts[-1] and widths[0] + 1 + sum(widths[at] for at in parts[-1]) + wide > _TERMINAL:
            parts.append([])
        parts[-1].append(column)
    return parts


def markdown(sheet: Sheet) -> str:
    """Return a table with its caption; the best value of each column is bold."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def cell(text: str) -> str:
        return text.replace("|", r"\|").replace("*", r"\*")

    rows = [
        (
            cell(row[0]),
            *(f"**{cell(text)}**" if (at, column) in sheet.best else cell(text) for column, text in enumerate(row[1:])),
        )
        for at, row in enumerate(sheet.rows)
    ]
    rule = f"|---|{'---:|' * (len(sheet.columns) - 1)}"
    return "\n".join([cell(sheet.caption), "", line([*map(cell, sheet.columns)]), rule, *map(line, rows), ""])


def conclude(study: Study, section: Section) -> str:
    """Return one sentence that compares the baseline with the best other row in each column, seed by seed."""
    if not study.baseline:
        return ""
    metric = study.report.metric
    text = partial(_text, study, most=0, failed=0, spreads=True)
    pick = max if study.report.higher(metric) else min
    parts = []
    for column in study.shown(study.columns):
        base = section.groups.get((study.baseline, column))
        others = {
            row: section.groups[row, column]
            for row in study.axes[study.rows]
            if row != study.baseline and (row, column) in section.groups
        }
        if base is None or not others:
            continue
        name = pick(others, key=lambda row: others[row].mean)
        gap = paired(base.values, others[name].values)
        percent = f" {unit(metric)}" if unit(metric) else ""
        parts.append(
            f"with {column}, {study.baseline} ({text(base)}{percent}) {_verb(study, gap)} the best other rule, {name} "
            f"({text(others[name])}{percent}){_margin(study, gap)}"
        )
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "." if parts else ""


def _verb(study: Study, gap: Estimate | None) -> str:
    """Return what the interval of a difference says of two rows, or what one seed shows."""
    metric = study.report.metric
    if gap is None or gap.sign == 0:
        return "cannot be told from"
    if gap.sign is None:
        of = f" {points(metric)}" if points(metric) else ""
        return f"is {written(metric, abs(gap.mean))}{of} {'above' if gap.mean > 0 else 'below'}"
    return "beats" if (gap.sign > 0) == study.report.higher(metric) else "loses to"


def _margin(study: Study, gap: Estimate | None) -> str:
    """Return the paired difference in words."""
    metric = study.report.metric
    if gap is None:
        return f", as they have no {_repetition(study)} in common"
    if gap.n == 1:
        return f" in one {_repetition(study)}, which gives no interval"
    of = f" {points(metric)}" if points(metric) else ""
    low, high = (change(metric, end) for end in (gap.low, gap.high))
    return f": paired difference {change(metric, gap.mean)}{of}, from {low} to {high}"
