"""Plots across the cells of a study: who wins where, and how measured quantities go with training.

Pure functions of result documents, as `flwr_robust.studies.runner` writes them. Of each, its ``labels`` (its place on
every axis) and its ``curve`` are read. Documents that differ only by seed are repetitions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice, extra
from flwr_robust.studies.bands import band, named_lines
from flwr_robust.studies.showing import REPETITION, SHARES

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

# What an axis calls the metrics of a curve.
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
# Told apart with any colour vision, and in print by their dashes.
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
    """Draw which label of the contest is best at every place of two axes.

    A cell's colour, and its first line, is the value of the best label, the mean over seeds; the second line is
    that label. The third says how far the baseline is ahead (+) or behind the best other label, and the cells that
    it wins are framed. A cell where not all labels have a result says how many have.

    Parameters
    ----------
    documents : sequence of mapping
        Results; those of unfinished cells may be missing.
    rows, columns : str
        The axes of the picture. Their labels appear in the order in which the documents bring them, numbers in theirs.
    contest : str
        The axis whose labels compete.
    metric : str
        A key of the curves' points, of which more is better.
    take : str
        Whether a run's value is the ``best`` of its curve or the ``final``.
    baseline : str
        The label whose lead is told; where it does not take part, no lead is.

    Raises
    ------
    ConfigurationError
        If there is no document, an axis does not exist, or there is a further axis that is not ``seed``.
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
            place.setdefault(labels[contest], []).append(factor * (max(values) if take == "best" else values[-1]))
    best = np.full((len(down), len(across)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    framed = []
    for i, row in enumerate(down):
        for j, column in enumerate(across):
            scores = {name: statistics.fmean(values) for name, values in found.get((row, column), {}).items()}
            if not scores:
                continue
            winner = max(scores, key=lambda name: scores[name])  # ties fall to the first
            best[i, j] = scores[winner]
            lines = [f"{scores[winner]:.1f}", winner.replace("_", " ")]
            others = [score for name, score in scores.items() if name != baseline]
            if baseline in scores and others:
                lead = scores[baseline] - max(others)
                lines.append(f"{baseline} {lead:+.{2 if metric in SHARES else 4}f}")
                if lead >= 0:
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
    figure.colorbar(image, ax=axis, label=f"{take} {_TITLES.get(metric, metric)}")
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

    Lines are means over seeds, bands reach from the smallest to the largest. Distances and variances of gradients
    stand on a logarithmic axis, on which equal ratios, which matter for them, are equally high; other quantities on one
    from 0.

    Parameters
    ----------
    documents : sequence of mapping
        Results.
    columns : str
        The axis along which panels stand side by side.
    rows : str, optional
        The axis along which they stand below each other.
    metrics : sequence of str
        Keys of the curves' points, a line each; they share the panels' vertical axis. Points without a key are left
        out.

    Raises
    ------
    ConfigurationError
        If there is no document or metric, an axis does not exist, there is a further axis that is not ``seed``, or no
        curve has one of the metrics.
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
        band(axis, curves, _factor(metric), color=colour, ls=dashes, lw=1.7, label=_TITLES.get(metric, metric))
    axis.grid(alpha=0.3)


def _use_logarithms(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers beside it."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def of_one_unit(metrics: Sequence[str]) -> list[list[str]]:
    """Return metrics in groups that can share a vertical axis, as they come."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(_unit_of(metric), []).append(metric)
    return [*groups.values()]


def _unit_of(metric: str) -> str:
    return _GRADIENTS.get(metric, _TITLES.get(metric, metric))


def _unit(metrics: Sequence[str]) -> str:
    """Return what the vertical axis shows, where the metrics have it in common."""
    units = {_unit_of(metric) for metric in metrics}
    return units.pop() if len(units) == 1 else "value"


def _factor(metric: str) -> float:
    """Return what a metric's values are shown by: shares in percent, all else as it is."""
    return 100.0 if metric in SHARES else 1.0


def _curve(document: Document, metric: str) -> list[tuple[int, float]]:
    """Return the points of a curve at which a metric is a number."""
    points = ((int(point["round"]), point.get(metric)) for point in document["curve"])
    return [(at, float(value)) for at, value in points if value is not None and math.isfinite(value)]


def _known(documents: Sequence[Document]) -> list[str]:
    return sorted({key for document in documents for point in document["curve"] for key in point} - {"round"})


def _labels(documents: Sequence[Document], axis: str) -> list[str]:
    """Return the labels along an axis as they come; numbers, of which some may come late, in their order."""
    labels = list(dict.fromkeys(document["labels"][axis] for document in documents))
    try:
        return sorted(labels, key=float, reverse=float(labels[0]) > float(labels[-1]))
    except ValueError:
        return labels


def _check_axes(documents: Sequence[Document], *axes: str) -> None:
    """Raise unless documents differ along these axes and by seed alone: others would be thrown together unseen."""
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
