"""Plots over the cells of a study: the winner at each place, and measured quantities during training.

All are pure functions of result documents, as written by `flwr_robust.studies.runner`. They read the ``labels`` (the
position on every axis) and the ``curve`` of each document. Documents that differ only by seed are repetitions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice, extra
from flwr_robust.studies.bands import band, named_lines
from flwr_robust.studies.showing import REPETITION
from flwr_robust.tasks.metrics import metric_named

with extra("studies"):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["metric_curves", "of_one_unit", "winners_heatmap"]

Document = Mapping[str, Any]

# The text of an axis for each metric of a curve.
_TITLES = {
    "accuracy": "test accuracy, %",
    "accuracy_unweighted": "test accuracy of a client, %",
    "attack_success": "success of the attack, %",
    "loss": "test loss, nats",
    "xi": r"$\xi$: honest client farthest from the mean",
    "A": r"$A$: poisoned client farthest from it",
    "sigma2": r"$\sigma^2$: variance of a batch's gradient",
}
_GRADIENTS = {"xi": "distance of gradients", "A": "distance of gradients", "sigma2": "squared distance of gradients"}
# Distinguishable with any colour vision, and in print by their dashes.
_LINES = [
    ("#0072b2", "-"),
    ("#d55e00", "--"),
    ("#009e73", "-."),
    ("#cc79a7", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
]


def winners_heatmap(
    documents: Sequence[Document],
    rows: str = "beta",
    columns: str = "p",
    contest: str = "defence",
    *,
    metric: str = "accuracy",
    take: str = "best",
    baseline: str = "mean",
) -> Figure:
    """Draw the best label of the contest at every place of two axes.

    The colour and the first line of a cell show the value of the best label, as the mean over seeds. The second line is
    that label. The third is the lead (+) or the deficit of the baseline against the best other label. Cells that the
    baseline wins have a frame. If some labels have no result yet, the cell shows how many have one.

    Parameters
    ----------
    documents : sequence of mapping
        Results; unfinished cells may be missing.
    rows, columns : str
        The axes of the picture. Labels appear in the order of the documents, numbers in ascending order.
    contest : str
        The axis whose labels compete.
    metric : str
        A key of the curves' points; larger values are better.
    take : str
        Whether a run's value is the ``best`` or the ``final`` value of its curve.
    baseline : str
        The label whose lead is shown; cells without this label show no lead.

    Raises
    ------
    ConfigurationError
        If there is no document, an axis does not exist, or there is another axis except ``seed``.
    """
    check_choice("plot", "take", take, ("best", "final"))
    _check_axes(documents, rows, columns, contest)
    factor = _factor(metric)
    down, across, names = (_labels(documents, axis) for axis in (rows, columns, contest))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for document in documents:
        labels = document["labels"]
        values = [value for _, value in _curve(document, metric)]
        if values:
            place = found.setdefault((labels[rows], labels[columns]), {})
            value = metric_named(metric).best(values) if take == "best" else values[-1]
            place.setdefault(labels[contest], []).append(factor * value)
    best = np.full((len(down), len(across)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    framed = []
    for i, row in enumerate(down):
        for j, column in enumerate(across):
            scores = {name: statistics.fmean(values) for name, values in found.get((row, column), {}).items()}
            if not scores:
                continue
            top = metric_named(metric).best(scores.values())
            winner = next(name for name in scores if scores[name] == top)  # a tie goes to the first label
            best[i, j] = scores[winner]
            lines = [f"{scores[winner]:.1f}", winner.replace("_", " ")]
            others = [score for name, score in scores.items() if name != baseline]
            if baseline in scores and others:
                lead = scores[baseline] - metric_named(metric).best(others)
                lines.append(f"{baseline} {lead:+.{2 if metric_named(metric).share else 4}f}")
                if scores[baseline] == top:
                    framed.append((i, j))
            if len(scores) < len(names):
                lines.append(f"{len(scores)} of {len(names)} done")
            texts[i, j] = "\n".join(lines)
    if not texts:
        raise UnknownNameError("metric of the curves", metric, _known(documents))
    figure, axis = plt.subplots(figsize=(2.2 + 1.45 * len(across), 1.5 + 0.85 * len(down)), layout="constrained")
    image = axis.imshow(np.ma.masked_invalid(best), cmap="cividis", aspect="auto")
    axis.set_facecolor("#e0e0e0")
    lowest, highest = np.nanmin(best), np.nanmax(best)
    for (i, j), text in texts.items():
        dark = best[i, j] - lowest < 0.55 * (highest - lowest)
        axis.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    for i, j in framed:
        axis.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, lw=2.2, ec="#d55e00"))
    axis.set_xticks(range(len(across)), across)
    axis.set_yticks(range(len(down)), down)
    axis.set_xlabel(columns)
    axis.set_ylabel(rows)
    figure.colorbar(image, ax=axis, label=f"{take} {_title(metric)}")
    seeds = _labels(documents, REPETITION) if REPETITION in documents[0]["labels"] else []
    note = f"best {contest} by its {'maximum over training' if take == 'best' else 'end'}" + (
        f", mean over {len(seeds)} seeds" if len(seeds) > 1 else ""
    )
    if any(baseline in scores for scores in found.values()):
        note += f"; third line: points by which {baseline} leads\nthe best other; framed where it is not behind"
    axis.set_title(note, fontsize=9, loc="left")
    return figure


def metric_curves(
    documents: Sequence[Document],
    columns: str = "partition",
    rows: str | None = None,
    metrics: Sequence[str] = ("xi", "A"),
) -> Figure:
    """Draw measured quantities over the rounds, one panel per place.

    Lines are means over seeds; bands reach from the smallest to the largest value. Distances and variances of gradients
    have a logarithmic axis, because their ratios matter. Other quantities have an axis from 0.

    Parameters
    ----------
    documents : sequence of mapping
        Results.
    columns : str
        The axis for panels side by side.
    rows : str, optional
        The axis for panels below each other.
    metrics : sequence of str
        Keys of the curves' points, one line each; they share the panels' vertical axis. Points without a key are
        skipped.

    Raises
    ------
    ConfigurationError
        If there is no document or metric, an axis does not exist, or no curve has one of the metrics. Also if there is
        another axis except ``seed``.
    """
    if not metrics:
        raise ConfigurationError("plot: metrics must name at least one key of the curves; got none")
    _check_axes(documents, columns, *([] if rows is None else [rows]))
    for metric in metrics:
        if not any(_curve(document, metric) for document in documents):
            raise UnknownNameError("metric of the curves", metric, _known(documents))
    across, down = _labels(documents, columns), [""] if rows is None else _labels(documents, rows)
    logarithmic = all(
        metric in _GRADIENTS and all(value > 0 for document in documents for _, value in _curve(document, metric))
        for metric in metrics
    )
    figure, axes = plt.subplots(
        len(down),
        len(across),
        figsize=(1.0 + 2.9 * len(across), 1.2 + 2.2 * len(down)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for i, row in enumerate(down):
        for j, column in enumerate(across):
            here = [
                document
                for document in documents
                if document["labels"][columns] == column and (rows is None or document["labels"][rows] == row)
            ]
            _panel(axes[i][j], here, metrics)
            if i == 0:
                axes[i][j].set_title(f"{columns}: {column}", fontsize=10)
            if i == len(down) - 1:
                axes[i][j].set_xlabel("round")
        axes[i][0].set_ylabel((f"{rows}: {row}\n" if rows else "") + _unit(metrics))
    if logarithmic:
        _use_logarithms(axes[0][0])
    else:
        axes[0][0].set_ylim(bottom=0)
    handles = named_lines(axes.flat)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        frameon=False,
        ncols=min(len(handles), len(across)),
    )
    return figure


def _panel(axis: Axes, documents: Sequence[Document], metrics: Sequence[str]) -> None:
    for index, metric in enumerate(metrics):
        curves = [_curve(document, metric) for document in documents]
        if not any(curves):
            continue
        colour, dashes = _LINES[index % len(_LINES)]
        band(axis, curves, _factor(metric), color=colour, ls=dashes, lw=1.7, label=_title(metric))
    axis.grid(alpha=0.3)


def _use_logarithms(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers as labels."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def of_one_unit(metrics: Sequence[str]) -> list[list[str]]:
    """Return metrics in groups that can share a vertical axis, in their order."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(_unit_of(metric), []).append(metric)
    return [*groups.values()]


def _title(metric: str) -> str:
    unit = ", %" if metric_named(metric).share else ""
    return _TITLES.get(metric, f"{metric.replace('_', ' ')}{unit}")


def _unit_of(metric: str) -> str:
    return _GRADIENTS.get(metric, _title(metric))


def _unit(metrics: Sequence[str]) -> str:
    """Return the text of the vertical axis that the metrics share."""
    units = {_unit_of(metric) for metric in metrics}
    return units.pop() if len(units) == 1 else "value"


def _factor(metric: str) -> float:
    """Return the factor for a metric's values: shares appear in percent, others unchanged."""
    return 100.0 if metric_named(metric).share else 1.0


def _curve(document: Document, metric: str) -> list[tuple[int, float]]:
    """Return the points of a curve where a metric is a number."""
    points = ((int(point["round"]), point.get(metric)) for point in document["curve"])
    return [(at, float(value)) for at, value in points if value is not None and math.isfinite(value)]


def _known(documents: Sequence[Document]) -> list[str]:
    return sorted({key for document in documents for point in document["curve"] for key in point} - {"round"})


def _labels(documents: Sequence[Document], axis: str) -> list[str]:
    """Return the labels along an axis in their order of appearance; numbers are sorted."""
    labels = list(dict.fromkeys(document["labels"][axis] for document in documents))
    try:
        return sorted(labels, key=float, reverse=float(labels[0]) > float(labels[-1]))
    except ValueError:
        return labels


def _check_axes(documents: Sequence[Document], *axes: str) -> None:
    """Raise if documents differ in anything but these axes and the seed, as the plot would mix them."""
    if not documents:
        raise ConfigurationError("plot: documents must hold at least one result; got none: run the study first")
    known = list(documents[0]["labels"])
    for axis in axes:
        if axis not in known:
            raise UnknownNameError("axis of the results", axis, known)
    if len(set(axes)) < len(axes):
        raise ConfigurationError(f"plot: axes must differ; got {', '.join(axes)}")
    for axis in known:
        if axis not in axes and axis != REPETITION and len(labels := _labels(documents, axis)) > 1:
            raise ConfigurationError(
                f"plot: results must not differ along axis {axis}, which the plot does not show; got "
                f"{', '.join(labels)}: choose the results of one"
            )
