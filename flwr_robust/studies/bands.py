"""Curves over rounds: the mean of repetitions, with a band from the lowest to the highest."""

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
    """Draw the mean and the band of a curve's repetitions.

    Parameters
    ----------
    axis : Axes
        Where.
    curves : iterable of sequence of (round, value)
        The repetitions. One that ended early counts only in its rounds.
    factor : float
        Factor of the values.
    color, **line
        Style of the mean; the band has the same colour.
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
    """Return the lines by label, for a legend of several panels."""
    found: dict[str, Artist] = {}
    for axis in axes:
        found.update({label: line for line, label in zip(*axis.get_legend_handles_labels(), strict=True)})
    return found
