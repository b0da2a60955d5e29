"""Plots of a study's results, at the width of a paper's column or page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from flwr_robust.errors import extra
from flwr_robust.studies.bands import band, named_lines
from flwr_robust.studies.canvas import (
    PAGE,
    SMALL,
    TALLEST,
    chunks,
    finish,
    fold,
    hatched,
    inches,
    ink,
    longest_part,
    make_panels,
    name_rows,
    room,
    styled,
    tall,
    wide,
)
from flwr_robust.studies.document_plots import floor_curves, metric_curves, of_one_unit, winners_heatmap
from flwr_robust.studies.groups import Group
from flwr_robust.studies.sheets import Section, spread_words
from flwr_robust.studies.showing import WORST
from flwr_robust.studies.study import Study
from flwr_robust.studies.take import looks, told
from flwr_robust.studies.words import called, factor, unit, written

with extra("studies"):
    import matplotlib
    from matplotlib import colormaps
    from matplotlib.artist import Artist
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

__all__ = ["as_file", "draw", "setting"]


def draw(
    study: Study, section: Section, documents: Sequence[Mapping[str, Any]], width: float = PAGE
) -> Iterator[tuple[str, Figure]]:
    """Yield the names and figures of a study's plots; each figure states the setting of its runs.

    Parameters
    ----------
    study : Study
        The study.
    section : Section
        One of its tables.
    documents : sequence of mapping
        The results in this table.
    width : float
        The width of the figures, in inches. A figure that would be higher than a page takes the width of a page.
    """
    said = setting(documents) if documents else ""
    with styled():
        for name, make in _makers(study, section, documents, said):
            figure = make(width)
            if width < PAGE and figure.get_size_inches()[1] > TALLEST:
                figure = make(PAGE)
            yield name, figure


def _makers(
    study: Study, section: Section, documents: Sequence[Mapping[str, Any]], said: str
) -> Iterator[tuple[str, Callable[[float], Figure]]]:
    """Yield the names of a study's plots, each with the function that makes it at a width."""
    kinds = {"bars": ("final", _bars), "curves": ("curves", _curves), "heatmap": ("heatmap", _heatmap)}
    for plot in study.report.plots:
        if plot in kinds:
            name, make = kinds[plot]
            yield name, partial(make, study, section, said)
        elif plot == "winners" and documents:
            yield "winners", partial(_winners, study, documents, said)
        elif plot == "metrics" and documents:
            for metrics in of_one_unit(study.report.metrics):
                yield "-".join(metrics), partial(_metrics, study, documents, metrics, said)
        elif plot == "floors" and documents:
            yield "floors", partial(_floors, study, documents, said)


def _winners(study: Study, documents: Sequence[Mapping[str, Any]], said: str, width: float) -> Figure:
    report = study.report
    return winners_heatmap(
        documents,
        *(study.rows, study.columns, report.contest),
        metric=report.metric,
        take=report.take,
        higher=report.higher(report.metric),
        width=width,
        said=said,
    )


def _metrics(
    study: Study, documents: Sequence[Mapping[str, Any]], metrics: Sequence[str], said: str, width: float
) -> Figure:
    return metric_curves(documents, study.columns, study.rows, metrics, width=width, said=said)


def _floors(study: Study, documents: Sequence[Mapping[str, Any]], said: str, width: float) -> Figure:
    return floor_curves(documents, study.columns, study.rows, width=width, said=said)


def as_file(figure: Figure, form: str = "png", dpi: int = 200) -> bytes:
    """Return a figure as a file of a format, such as ``png``, ``pdf`` or ``svg``."""
    buffer = io.BytesIO()
    # No dates and no random names in the file: the same results give the same file. Type 42: text stays text in a PDF.
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "flwr-robust", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=dpi, metadata=undated[form])
    return buffer.getvalue()


_SAID = ("task", "model", "partition", "message", "clients", "defence", "attack", "rounds")


def setting(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return what all runs of a figure share, in one line, so that the figure can stand alone.

    Examples
    --------
    >>> config = {"task": "digits", "clients": 10, "rounds": 100, "seed": 0}
    >>> runs = [{"config": {**config, "seed": seed}, "declared_f": 2, "real_f": 2} for seed in (0, 1)]
    >>> setting(runs)
    'task digits, clients 10, rounds 100, declared f 2, real f 2, 2 seeds'
    """
    said = []
    for key in _SAID:
        values = {document["config"].get(key) for document in documents}
        if len(values) == 1 and (value := values.pop()) is not None:
            said.append(f"{key} {value}")
    for key in ("declared_f", "real_f"):
        values = {document.get(key) for document in documents}
        if len(values) == 1 and (value := values.pop()) is not None:
            said.append(f"{key.replace('_', ' ')} {value}")
    seeds = len({document["config"].get("seed") for document in documents})
    said.append(f"{seeds} seed{'s' if seeds != 1 else ''}")
    return ", ".join(said)


def _what(study: Study, section: Section) -> str:
    """Return the text of the axis of values."""
    metric = study.report.metric
    better = "" if study.report.higher(metric) else ", lower is better"
    count = looks(len(curve) for group in section.groups.values() for curve in group.curves)
    return f"{told(study.report.take, called(metric) + (', %' if unit(metric) else ''), count)}{better}"


def _said(study: Study, section: Section, said: str) -> str:
    """Return the setting, with what stands beside the means."""
    counts = [group.estimate.n for group in section.groups.values()]
    if not counts:
        return said
    if max(counts) == 1:
        return f"{said}; no interval"
    if study.report.spread == "points":
        return f"{said}; bars are means, each point is one repetition"
    return f"{said}{spread_words(study, counts).partition(', n =')[0]}"


_FAILED = "failed"


# -- bars ------------------------------------------------------------------------------------------

_BAR = 0.075  # least width of a bar, in inches


def _bars(study: Study, section: Section, said: str, width: float) -> Figure:
    columns, rows, metric = study.shown(study.columns), study.shown(study.rows), study.report.metric
    word = inches(longest_part(columns)) + 0.08
    slot = max(0.4, _BAR * len(rows) + 0.12, min(word, 0.9))  # inches for one column
    parts = chunks(columns, int((width - 0.6) / slot))
    high = 1.6 if width == PAGE else 1.4
    most = max(map(len, parts))
    names = {column: fold(column, room((width - 0.6) / most - 0.08)) for column in columns}
    high += 0.11 * tall(names.values())
    figure, axes = make_panels(len(parts), 1, (width, len(parts) * (high + 0.25)), sharey=True)
    bar = 0.84 / len(rows)
    by = factor(metric)
    legend: dict[str, Artist] = {}
    for axis, part in zip(axes[:, 0], parts, strict=True):
        for index, row in enumerate(rows):
            at = [c + (index - (len(rows) - 1) / 2) * bar for c in range(len(part))]
            found = [section.groups.get((row, column)) for column in part]
            heights = [math.nan if group is None else by * group.mean for group in found]
            errors = [0.0 if group is None else _error(study, group.estimate) * by for group in found]
            style = {"color": _colour(index), "hatch": _hatch(index), "edgecolor": "white", "linewidth": 0.3}
            box = axis.bar(at, heights, bar * 0.94, yerr=errors, error_kw={"lw": 0.7, "ecolor": "0.45"}, **style)
            legend.setdefault(row, box)
            if study.report.spread == "points":
                for x, group in zip(at, found, strict=True):
                    values = [] if group is None else [by * value for value in group.values.values()]
                    axis.plot([x] * len(values), values, ls="", marker="o", ms=2.2, mfc="white", mec="0.2", mew=0.5)
            lost = [x for x, column in zip(at, part, strict=True) if _lost(section, row, column)]
            if lost:
                low = 3 if unit(metric) else 0
                legend[_FAILED] = axis.plot(lost, [low] * len(lost), ls="", marker="x", ms=4, color="0.3")[0]
        axis.set_xticks(range(len(part)), [names[column] for column in part])
        axis.set_xlim(-0.5, most - 0.5)
        if unit(metric):
            axis.set_ylim(0, 100)
        axis.grid(axis="y", alpha=0.3, lw=0.5)
        axis.set_axisbelow(True)
        axis.set_ylabel(fold(_what(study, section), room(1.4, 8)))
    axes[-1, 0].set_xlabel(study.columns)
    ordered = {label: legend[label] for label in (*rows, _FAILED) if label in legend}
    finish(figure, _said(study, section, said), ordered, study.rows)
    return figure


def _error(study: Study, found: Any) -> float:
    """Return the length of an error bar; 0 for none."""
    length = {"interval": found.half, "deviation": found.deviation, "points": 0.0}[study.report.spread]
    return 0.0 if math.isnan(length) else float(length)


def _lost(section: Section, row: str, column: str) -> bool:
    """Say whether a place has no result because its runs failed."""
    return (row, column) not in section.groups and (row, column) in section.failed


# -- curves ----------------------------------------------------------------------------------------

_PANEL = 1.65  # least width of a panel of curves, in inches


def _curves(study: Study, section: Section, said: str, width: float) -> Figure:
    columns, rows, metric = study.shown(study.columns), study.shown(study.rows), study.report.metric
    across = min(len(columns), int(width / _PANEL))
    down = math.ceil(len(columns) / across)
    titles = {column: fold(column, room((width - 0.5) / across, 8)) for column in columns}
    lines = max(title.count("\n") for title in titles.values())
    size = (width, 0.2 + (1.35 + 0.13 * lines) * down)
    figure, axes = make_panels(down, across, size, sharey=True)
    panels = list(axes.flat)
    for axis in panels[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(panels, columns, strict=False):
        for index, row in enumerate(rows):
            group = section.groups.get((row, column))
            if group is not None:
                band(axis, group.curves, factor(metric), color=_colour(index), ls=_line(index), label=row, lw=1.1)
        lost = [row for row in rows if _lost(section, row, column)]
        if lost:
            text = fold(f"{_FAILED}: {', '.join(lost)}", room((width - 0.9) / across))
            axis.text(0.97, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=SMALL, color="0.3")
        axis.set_title(titles[column])
        axis.grid(alpha=0.3, lw=0.5)
        axis.locator_params(axis="x", nbins=4)
    for place, axis in enumerate(panels[: len(columns)]):
        if place + across >= len(columns):
            axis.set_xlabel("round")
    metric_words = f"{called(metric)}{', %' if unit(metric) else ''}"
    for line in axes:
        line[0].set_ylabel(fold(metric_words, room(1.1, 8)))
    named = named_lines(panels)
    if any(group.estimate.n > 1 for group in section.groups.values()):
        said = f"{said}; lines are means, bands from the lowest to the highest"
    finish(figure, said, {row: named[row] for row in rows if row in named}, study.rows)
    return figure


# -- heatmaps --------------------------------------------------------------------------------------

_CELL = 0.37  # least width of a cell, in inches


def _heatmap(study: Study, section: Section, said: str, width: float) -> Figure:
    """Draw the measured values and, if a paper reports values, these beside them."""
    columns, rows, metric = study.shown(study.columns), study.shown(study.rows), study.report.metric
    by = factor(metric)

    def measured(row: str, column: str) -> float:
        group = section.groups.get((row, column))
        return math.nan if group is None else by * group.mean

    def reported(row: str, column: str) -> float:
        value = study.reported_at({**section.labels, study.rows: row, study.columns: column})
        return math.nan if value is None else value

    maps = {"measured": {(row, column): measured(row, column) for row in rows for column in columns}}
    theirs = {(row, column): reported(row, column) for row in rows for column in columns}
    if not all(map(math.isnan, theirs.values())):
        maps["reported"] = theirs
    names = name_rows(rows, width)
    last = {row: section.groups[row, WORST] for row in rows if (row, WORST) in section.groups}
    under = {row: fold(_under(group), room(0.22 * width)) for row, group in last.items()}
    free = width - 0.25 - wide(names.values())
    beside = 0.1 + wide(under.values()) if under else 0.0
    abreast = _CELL * len(columns) * len(maps) + beside <= free
    each = _each(len(columns), free, beside)
    parts = [columns[at : at + each] for at in range(0, len(columns), each)]
    panels = [(title, part) for title in maps for part in parts]
    side = len(panels) if abreast else 1
    down = math.ceil(len(panels) / side)
    tallest = tall([*names.values(), *under.values()])
    turned = inches(max(map(len, columns))) > (free - beside) / each / side
    ticks = min(1.0, 0.15 + 0.6 * wide(columns)) if turned else 0.2
    size = (width, down * (max(0.2, 0.125 * tallest + 0.02) * len(rows) + ticks + 0.2) + 0.45)
    figure, axes = make_panels(down, side, size)
    finite = [value for values in maps.values() for value in values.values() if not math.isnan(value)]
    bounds = (0.0, 100.0) if unit(metric) else (min(finite, default=0.0), max(finite, default=1.0))
    norm = Normalize(*bounds)
    colours = colormaps["viridis" if study.report.higher(metric) else "viridis_r"]
    legend: dict[str, Artist] = {}
    widest = max(map(len, parts))
    for axis, (title, part) in zip(axes.flat, panels, strict=True):
        values = maps[title]
        image = axis.imshow(
            [[values[row, column] for column in part] for row in rows], norm=norm, cmap=colours, aspect="auto"
        )
        for y, row in enumerate(rows):
            for x, column in enumerate(part):
                value = values[row, column]
                if not math.isnan(value):
                    colour = ink(colours(norm(value)))
                    axis.text(x, y, written(metric, value / by), ha="center", va="center", fontsize=SMALL, color=colour)
                elif title == "measured" and _lost(section, row, column):
                    legend[_FAILED] = hatched(axis, x, y)
                elif title == "measured":
                    axis.text(x, y, "-", ha="center", va="center", fontsize=SMALL, color="0.3")
                    legend["- not run"] = Patch(fc="none", ec="none")
        axis.set_xlim(-0.5, widest - 0.5)  # cells of a shorter part are as wide
        axis.spines[:].set_visible(False)
        angle: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axis.set_xticks(range(len(part)), part, **angle)
        axis.set_yticks(range(len(rows)), [names[row] for row in rows])
        axis.tick_params(length=0)
        if axis in axes[:, 1:]:
            axis.set_yticklabels([])
        if len(panels) > 1 and (side > 1 or part is parts[0]):
            axis.set_title(title if len(maps) > 1 else "")
        if title == "measured" and WORST in part and study.report.worst_over == study.columns:
            axis.axvline(part.index(WORST) - 0.5, color="white", lw=2.5)
            for y, row in enumerate(rows):
                axis.text(part.index(WORST) + 0.6, y, under.get(row, ""), ha="left", va="center", fontsize=SMALL)
        if WORST in rows and study.report.worst_over == study.rows:
            axis.axhline(rows.index(WORST) - 0.5, color="white", lw=2.5)
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, shrink=0.7, aspect=40, pad=0.02)
    bar.set_label(_what(study, section))
    note = f"; right of {WORST}: the {study.report.worst_over} under which it is, most often first" if under else ""
    finish(figure, f"{said}{note}", legend)
    return figure


def _each(columns: int, free: float, beside: float) -> int:
    """Return the number of columns of a panel, such that what stands beside the last column has its room."""
    for parts in range(1, columns):
        each = math.ceil(columns / parts)
        last = columns - (parts - 1) * each
        inside = (each - last) * free / each >= beside  # in the empty part of the last panel
        if (free if inside else free - beside) / each >= _CELL:
            return each
    return 1


def _under(group: Group) -> str:
    """Return the label under which a worst case mostly is, and how many others there are."""
    first, *others = group.ranked
    return f"{first} +{len(others)}" if others else first


# The first row, usually the baseline, is black; the others have a palette that is safe for colour blindness.
_PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")


def _colour(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def _line(index: int) -> str:
    return ("-", "--", ":")[index // len(_PALETTE) % 3]


def _hatch(index: int) -> str | None:
    return (None, "//////", "......")[index // len(_PALETTE) % 3]
