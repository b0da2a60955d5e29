"""Curves over rounds, as the mean of repetitions with a band from the lowest to the highest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from flwr_robust.errors import extra

with extra("studies"):
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["band", "named_lines"]


def band(axis: Axes, curves: Iterable[Sequence[tuple[int, float]]], factor: float, *, color: Any, **line: Any) -> None:
    """Draw repetitions of a curve.

    Parameters
    ----------
    axis : Axes
        Where.
    curves : iterable of sequence of (round, value)
        The repetitions; one that ended early counts in the rounds that it has.
    factor : float
        What values are multiplied by.
    color, **line
        How the mean is drawn; the band has the same colour.
    """
    values: dict[int, list[float]] = {}
    for curve in curves:
        for at, value in curve:
            values.setdefault(at, []).append(factor * value)
    rounds = sorted(values)
    axis.plot(rounds, [statistics.fmean(values[at]) for at in rounds], color=color, **line)
    low, high = ([bound(values[at]) for at in rounds] for bound in (min, max))
    axis.fill_between(rounds, low, high, color=color, alpha=0.18, lw=0)


def named_lines(axes: Iterable[Axes]) -> dict[str, Artist]:
    """Return what the legend of several panels must name: the lines by their labels."""
    found: dict[str, Artist] = {}
    for axis in axes:
        found.update({label: line for line, label in zip(*axis.get_legend_handles_labels(), strict=True)})
    return found
