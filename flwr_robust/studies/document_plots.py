"""Plots over the cells of a study: the winner at each place, and measured quantities during training.

All are pure functions of result documents, as written by `flwr_robust.studies.runner`. They read the ``labels`` (the
position on every axis) and the ``curve`` of each document. Documents that differ only by seed are repetitions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flwr_robust.diagnostics import floors
from flwr_robust.errors import ConfigurationError, UnknownNameError, check_choice, extra
from flwr_robust.studies.bands import band, named_lines
from flwr_robust.studies.canvas import PAGE, SMALL, chunks, finish, fold, make_panels, room, styled
from flwr_robust.studies.intervals import Estimate, paired
from flwr_robust.studies.showing import REPETITION
from flwr_robust.studies.take import BEST, BEST_ON_TEST, TAKES, looks, taken, told
from flwr_robust.studies.words import called, factor, unit, written
from flwr_robust.tasks.metrics import metric_named

with extra("studies"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["floor_curves", "metric_curves", "of_one_unit", "winners_heatmap"]

Document = Mapping[str, Any]

# The text of an axis for the metrics that have a symbol.
_TITLES = {
    "xi": r"$\xi$: honest client farthest from the mean",
    "A": r"$A$: poisoned client farthest from it",
    "sigma2": r"$\sigma^2$: variance of a batch's gradient",
    "gradient2": r"measured: $||\nabla f(x)||^2$",
    "floor any": r"any rule, from below: $\delta^2 \min(A^2, \xi^2)$",
    "floor mean": r"mean: $\delta^2 A^2$",
    "floor faba": r"FABA: $\rho^2 \xi^2$",
    "floor trimmed_mean": r"trimmed mean: $\rho^2 \xi^2$",
    "floor centered_clipping": r"centered clipping: $\rho^2 \xi^2$",
}
_SQUARES = "squared gradient"
_GRADIENTS = {
    "xi": "distance of gradients",
    "A": "distance of gradients",
    "sigma2": "squared distance of gradients",
    **{name: _SQUARES for name in _TITLES if name == "gradient2" or name.startswith("floor ")},
}
# Distinguishable with any colour vision, and in print by their dashes.
_LINES = [
    ("#0072b2", "-"),
    ("#d55e00", "--"),
    ("#009e73", "-."),
    ("#cc79a7", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#56b4e9", (0, (1, 3))),
]


def winners_heatmap(
    documents: Sequence[Document],
    rows: str = "beta",
    columns: str = "p",
    contest: str = "defence",
    *,
    metric: str = "accuracy",
    take: str = BEST_ON_TEST,
    baseline: str = "mean",
    higher: bool | None = None,
    width: float = PAGE,
    said: str = "",
) -> Figure:
    """Draw the best label of the contest at every place of two axes.

    The colour and the first line of a cell show the value of the best label, as the mean over seeds. The second line is
    that label. The third is the lead (+) or the deficit of the baseline against the best other label, with the
    half-width of its interval over seeds. Cells that the baseline wins have a frame; the frame is dashed where the
    interval holds 0. If some labels have no result yet, the cell shows how many have one.

    Parameters
    ----------
    documents : sequence of mapping
        Results; unfinished cells may be missing.
    rows, columns : str
        The axes of the picture. Labels appear in the order of the documents, numbers in ascending order.
    contest : str
        The axis whose labels compete.
    metric : str
        A key of the curves' points.
    take : str
        Whether a run's value is the ``best`` or the ``final`` value of its curve.
    baseline : str
        The label whose lead is shown; cells without this label show no lead.
    higher : bool, optional
        Whether larger values are better; when not given, what is known of the metric.
    width : float
        The width of the figure, in inches.
    said : str
        The setting of the runs, which is written below.

    Raises
    ------
    ConfigurationError
        If there is no document, an axis does not exist, or there is another axis except ``seed``.
    """
    check_choice("plot", "take", take, TAKES)
    _check_axes(documents, rows, columns, contest)
    higher = metric_named(metric).higher if higher is None else higher
    pick = max if higher else min
    down, across, names = (_labels(documents, axis) for axis in (rows, columns, contest))
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for document in documents:
        labels = document["labels"]
        if curve := _curve(document, metric):
            place = found.setdefault((labels[rows], labels[columns]), {})
            last = {**document, "final": {metric: curve[-1][1]}}  # of the finite values
            value = taken(last, metric, take, lambda _: higher)
            place.setdefault(labels[contest], {})[labels.get(REPETITION, "")] = value
    best: dict[tuple[str, str], float] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    framed: dict[tuple[str, str], Literal["-", "--"]] = {}  # the style of the line
    for at, rivals in found.items():
        scores = {name: statistics.fmean(values.values()) for name, values in rivals.items()}
        winner = pick(scores, key=lambda name: scores[name])  # a tie goes to the first label
        best[at] = scores[winner]
        lines = [written(metric, scores[winner]), winner.replace("_", " ")]
        others = [name for name in scores if name != baseline]
        if baseline in scores and others:
            rival = pick(others, key=lambda name: scores[name])
            lead = paired(rivals[baseline], rivals[rival])
            lines.append(f"{baseline} {_lead(lead, metric, higher)}")
            if lead is not None and lead.sign == 0:
                framed[at] = "--"
            elif (scores[baseline] - scores[rival]) * (1 if higher else -1) >= 0:
                framed[at] = "-"
        if len(scores) < len(names):
            lines.append(f"{len(scores)} of {len(names)} done")
        texts[at] = lines
    if not texts:
        raise UnknownNameError("metric of the curves", metric, _known(documents))
    free = width - 0.35 - _BESIDE * max(map(len, down))
    parts = chunks(across, int(free / _PLACE))
    most = max(map(len, parts))
    letters = room(free / most - 0.08)
    folded = {place: "\n".join(fold(line, letters) for line in lines if line) for place, lines in texts.items()}
    tall = 0.12 * max(text.count("\n") + 1 for text in folded.values()) + 0.1
    with styled():
        size = (width, len(parts) * (tall * len(down) + 0.4) + 0.7)
        figure, axes = make_panels(len(parts), 1, size)
        lowest, highest = min(best.values()), max(best.values())
        for axis, part in zip(axes[:, 0], parts, strict=True):
            shown = [[best.get((row, column), math.nan) for column in part] for row in down]
            image = axis.imshow(
                np.ma.masked_invalid(factor(metric) * np.array(shown)),
                cmap="cividis" if higher else "cividis_r",
                aspect="auto",
                vmin=factor(metric) * lowest,
                vmax=factor(metric) * highest,
            )
            axis.set_facecolor("#e0e0e0")
            for i, row in enumerate(down):
                for j, column in enumerate(part):
                    if (row, column) not in best:
                        continue
                    dark = (best[row, column] - lowest < 0.55 * (highest - lowest)) == higher
                    ink = "white" if dark and highest > lowest else "black"
                    axis.text(j, i, folded[row, column], ha="center", va="center", fontsize=SMALL, color=ink)
                    if (row, column) in framed:
                        frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, lw=1.6, ec="#d55e00")
                        frame.set_linestyle(framed[row, column])
                        axis.add_patch(frame)
            axis.set_xticks(range(len(part)), part)
            axis.set_yticks(range(len(down)), down)
            axis.set_xlim(-0.5, most - 0.5)
            axis.set_ylabel(rows)
        axes[-1, 0].set_xlabel(columns)
        bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(told(take, _named(metric), looks(len(_curve(document, metric)) for document in documents)))
        seeds = _labels(documents, REPETITION) if REPETITION in documents[0]["labels"] else []
        by = {BEST: "best round on validation samples", BEST_ON_TEST: "best test value in training"}.get(take, "end")
        note = f"best {contest} by its {by}" + (f", mean over {len(seeds)} seeds" if len(seeds) > 1 else "")
        if any(baseline in rivals for rivals in found.values()):
            note += f"; third line: by how much {baseline} is ahead of the best other; framed where it is not behind"
            if len(seeds) > 1:
                note += ", dashed where the 95 % interval over seeds holds 0"
        axes[0, 0].set_title(fold(note, room(width - 0.6, 8)), loc="left")
        finish(figure, said)
    return figure


def _lead(found: Estimate | None, metric: str, higher: bool) -> str:
    """Return by how much the baseline is ahead, with the half-width of the interval."""
    if found is None:
        return "has no seed in common"
    digits = 2 if metric_named(metric).share else 4
    text = f"{factor(metric) * found.mean * (1 if higher else -1):+.{digits}f}"
    return text if math.isnan(found.half) else f"{text} ± {factor(metric) * found.half:.{digits}f}"


_PLACE = 0.92  # least width of a place with the name of its winner, in inches
_BESIDE = 0.055  # width of a letter beside the panels, in inches


def metric_curves(
    documents: Sequence[Document],
    columns: str = "partition",
    rows: str | None = None,
    metrics: Sequence[str] = ("xi", "A"),
    *,
    width: float = PAGE,
    said: str = "",
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
    width : float
        The width of the figure, in inches.
    said : str
        The setting of the runs, which is written below.

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
    places = [(row, column) for row in down for column in across]
    beside = len(across) if width / len(across) >= _NARROW else max(1, int(width / _NARROW))
    lines = math.ceil(len(places) / beside)
    grid = beside == len(across)  # otherwise the panels follow each other, and each says its place
    with styled():
        size = (width, 0.3 + (1.35 if grid else 1.5) * lines)
        figure, axes = make_panels(lines, beside, size, sharex=True, sharey=True)
        for axis in list(axes.flat)[len(places) :]:
            axis.set_visible(False)
        for place, (axis, (row, column)) in enumerate(zip(axes.flat, places, strict=False)):
            here = [
                document
                for document in documents
                if document["labels"][columns] == column and (rows is None or document["labels"][rows] == row)
            ]
            _panel(axis, here, metrics)
            of_row = f"{rows}: {row}" if rows else ""
            if grid and place < beside:
                axis.set_title(fold(f"{columns}: {column}", room(width / beside - 0.3, 8)))
            elif not grid:
                title = "\n".join(word for word in (f"{columns}: {column}", of_row) if word)
                axis.set_title("\n".join(fold(line, room(width / beside - 0.3, 8)) for line in title.split("\n")))
            if place + beside >= len(places):
                axis.set_xlabel("round")
                axis.tick_params(labelbottom=True)
            axis.locator_params(axis="x", nbins=4)
            if place % beside == 0:
                words = [of_row] * bool(rows and grid) + [_unit(metrics)]
                axis.set_ylabel("\n".join(fold(word, room(1.25, 8)) for word in words))
        if logarithmic:
            _use_logarithms(axes[0][0])
        else:
            axes[0][0].set_ylim(bottom=0)
        finish(figure, said, named_lines(axes.flat))
    return figure


def floor_curves(
    documents: Sequence[Document],
    columns: str = "partition",
    rows: str | None = None,
    *,
    width: float = PAGE,
    said: str = "",
) -> Figure:
    """Draw the measured squared gradient of the honest clients' mean loss, and theory's floors at the same models.

    A floor takes xi and A as they are at the model of the round. The theory takes their largest values over all models,
    and leaves constants out. So the curves compare orders of magnitude, and their order among each other.

    Parameters
    ----------
    documents : sequence of mapping
        Results of runs with ``diagnose`` and an attack on data.
    columns, rows, width, said
        As for `metric_curves`.

    Raises
    ------
    ConfigurationError
        As `metric_curves`; also if no curve holds both xi and A.
    """
    added = [
        {**document, "curve": [_with_floors(document, point) for point in document["curve"]]} for document in documents
    ]
    known = [name for name in _TITLES if name == "gradient2" or name.startswith("floor ")]
    shown = [name for name in known if any(_curve(document, name) for document in added)]
    if not any(name.startswith("floor ") for name in shown):
        raise ConfigurationError(
            "plot: floors need curves with xi and A; got none: run with diagnose and poisoned data"
        )
    note = "floors at the xi and A of each round, constants left out"
    return metric_curves(added, columns, rows, shown, width=width, said=f"{said}; {note}" if said else note)


def _with_floors(document: Document, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point of a curve with the floors at its xi and A."""
    config = document["config"]
    clients, attackers = int(config["clients"]), int(config["attackers"])
    xi, poison = (float(point.get(name, math.nan)) for name in ("xi", "A"))
    if not math.isfinite(xi + poison) or 2 * attackers >= clients:
        return {**point}
    regular = clients - attackers  # a model has more parameters than there are workers
    each = floors(xi, poison, attackers / clients, dimension=regular, regular=regular)
    return {**point, **{f"floor {name}": value for name, value in each.items()}}


_NARROW = 1.3  # least width of a panel, in inches


def _panel(axis: Axes, documents: Sequence[Document], metrics: Sequence[str]) -> None:
    for index, metric in enumerate(metrics):
        curves = [_curve(document, metric) for document in documents]
        if not any(curves):
            continue
        colour, dashes = _LINES[index % len(_LINES)]
        band(axis, curves, factor(metric), color=colour, ls=dashes, lw=1.2, label=_named(metric))
    axis.grid(alpha=0.3)


def _use_logarithms(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers as labels."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    wide = high > 300 * low  # then the powers of ten are enough
    subs = (1,) if wide else (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
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


_POOL = ("pool_broken", "pool_bearable")  # shares of one pool


def _unit_of(metric: str) -> str:
    return "share of the pool, %" if metric in _POOL else _GRADIENTS.get(metric, _named(metric))


def _unit(metrics: Sequence[str]) -> str:
    """Return the text of the vertical axis that the metrics share."""
    units = {_unit_of(metric) for metric in metrics}
    return units.pop() if len(units) == 1 else "value"


def _named(metric: str) -> str:
    """Return the text of an axis for a metric."""
    return _TITLES.get(metric, f"{called(metric)}{', %' if unit(metric) else ''}")


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
