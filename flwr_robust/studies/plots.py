"""Plots of a study's results."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr_robust.errors import extra
from flwr_robust.studies.bands import band, named_lines
from flwr_robust.studies.document_plots import metric_curves, of_one_unit, winners_heatmap
from flwr_robust.studies.groups import Group
from flwr_robust.studies.study import Study

with extra("studies"):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

__all__ = ["as_file", "draw", "setting"]

_Places = Mapping[tuple[str, str], Group]


def draw(study: Study, groups: _Places, documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Yield the names and figures of a study's plots; each figure states the setting of its runs.

    Parameters
    ----------
    study : Study
        The study.
    groups : mapping of (row, column) to Group
        One of its tables.
    documents : sequence of mapping
        The results in this table.
    """
    for kind, figure in _figures(study, groups, documents):
        figure.supxlabel(setting(documents), fontsize=6.5, color="0.35", wrap=True)
        yield kind, figure


def _figures(study: Study, groups: _Places, documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    for plot in study.report.plots:
        if plot == "bars":
            yield "final", _bars(study, groups)
        elif plot == "curves":
            yield "curves", _curves(study, groups)
        elif plot == "heatmap":
            yield "heatmap", _heatmap(study, groups, documents)
        elif plot == "winners":
            shown = (study.rows, study.columns, study.report.contest)
            yield "winners", winners_heatmap(documents, *shown, metric=study.report.metric, take=study.report.take)
        elif plot == "metrics":
            for metrics in of_one_unit(study.report.metrics):
                yield "-".join(metrics), metric_curves(documents, study.columns, study.rows, metrics)


def as_file(figure: Figure, form: str = "png", dpi: int = 140) -> bytes:
    """Return a figure as a file of a format, such as ``png``, ``pdf`` or ``svg``, and close it."""
    buffer = io.BytesIO()
    # No dates and no random names in the file: the same results give the same file.
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "flwr-robust"}):
        figure.savefig(buffer, format=form, dpi=dpi, metadata=undated[form])
    plt.close(figure)
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


_WIDEST = 10.0  # width of the bars, in inches


def _what(study: Study) -> str:
    return f"test {study.report.metric.replace('_', ' ')}, %"


def _bars(study: Study, groups: _Places) -> Figure:
    columns, rows = study.axes[study.columns], study.axes[study.rows]
    size = (1.8 + min(2.6 * len(columns), _WIDEST), 3.8)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        at = [c + (index - (len(rows) - 1) / 2) * width for c in range(len(columns))]
        found = [groups.get((row, column)) for column in columns]
        heights = [math.nan if g is None else 100 * g.mean for g in found]
        errors = [0.0 if g is None or math.isnan(g.spread) else 100 * g.spread for g in found]
        axis.bar(at, heights, width * 0.92, yerr=errors, label=row, color=_colour(index), error_kw={"lw": 1})
    axis.set_xticks(range(len(columns)), columns)
    if 2.6 * len(columns) > _WIDEST:
        plt.setp(axis.get_xticklabels(), rotation=20, ha="right")
    axis.set_xlabel(study.columns)
    axis.set_ylabel(f"{study.report.take} {_what(study)}")
    axis.set_ylim(0, 100)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right center", frameon=False, title=study.rows)
    return figure


_ABREAST = 4  # panels of curves in one row


def _curves(study: Study, groups: _Places) -> Figure:
    columns, rows = study.axes[study.columns], study.axes[study.rows]
    across = min(len(columns), _ABREAST)
    down = math.ceil(len(columns) / across)
    size = (1.8 + 3.0 * across, 0.6 + 2.8 * down)
    figure, axes = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False, layout="constrained")
    panels = list(axes.flat)
    for axis in panels[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(panels, columns, strict=False):
        for index, row in enumerate(rows):
            group = groups.get((row, column))
            if group is None:
                continue
            band(axis, group.curves, 100, color=_colour(index), ls=_line(index), label=row, lw=1.6)
        axis.set_title(column, fontsize=10)
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel(_what(study))
    named = named_lines(panels)
    order = [row for row in rows if row in named]
    figure.legend([named[row] for row in order], order, loc="outside right center", frameon=False, title=study.rows)
    return figure


def _heatmap(study: Study, groups: _Places, documents: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the measured values and, if a paper reports values, these beside them."""
    columns, rows = study.axes[study.columns], study.axes[study.rows]
    further = {axis: documents[0]["labels"][axis] for axis in study.further}

    def measured(row: str, column: str) -> float:
        group = groups.get((row, column))
        return math.nan if group is None else 100 * group.mean

    def reported(row: str, column: str) -> float:
        value = study.reported_at({**further, study.rows: row, study.columns: column})
        return math.nan if value is None else value

    maps = {"measured": [[measured(row, column) for column in columns] for row in rows]}
    theirs = [[reported(row, column) for column in columns] for row in rows]
    if any(not math.isnan(value) for line in theirs for value in line):
        maps["reported"] = theirs
    beside = max(1.6, 1 + 0.08 * max(map(len, rows)))  # inches for the names of the rows
    size = (beside + len(maps) * (0.3 + 0.68 * len(columns)), 1.4 + 0.33 * len(rows))
    figure, axes = plt.subplots(1, len(maps), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (title, values) in zip(axes[0], maps.items(), strict=True):
        image = axis.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    ink = "white" if value < 60 else "black"
                    axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes[0].tolist(), label=f"{study.report.take} {_what(study)}", pad=0.01)
    return figure


# The first row, usually the baseline, is black; the others have a palette that is safe for colour blindness.
_PALETTE = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")


def _colour(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def _line(index: int) -> str:
    return ("-", "--", ":")[index // len(_PALETTE) % 3]
