"""Which value of a run's curve counts: that of its end, or that of its best round.

A report of the best of N test values has looked at the test set N times, and a deployment cannot know that value. So
``best`` finds the round on validation samples, and takes the test value of this round. The largest test value, as some
papers report it, has the name ``best_on_test``, and is shown with the number of looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr_robust.errors import ConfigurationError
from flwr_robust.tasks.metrics import VALIDATION, metric_named

__all__ = ["BEST", "BEST_ON_TEST", "FINAL", "TAKES", "comparable", "looks", "taken", "told"]

FINAL, BEST, BEST_ON_TEST = "final", "best", "best_on_test"

TAKES = (FINAL, BEST, BEST_ON_TEST)
"""The values of ``take`` in [report]: the end, the best round on validation samples, or the best test value."""


def _higher(metric: str) -> bool:
    return metric_named(metric).higher


def taken(
    document: Mapping[str, Any], metric: str, take: str, higher: Callable[[str], bool] = _higher, by: str = ""
) -> float:
    """Return the value of a run.

    Parameters
    ----------
    document : mapping
        The result of the run, whose curve and last point hold the metric.
    metric : str
        The metric.
    take : str
        One of `TAKES`.
    higher : callable (str) -> bool
        Says whether a higher value of a metric is better.
    by : str
        With ``best``: the metric whose best value on validation samples decides on the round; ``metric`` if empty.

    Raises
    ------
    ConfigurationError
        With ``best``, if no point of the curve holds that metric on validation samples.

    Examples
    --------
    >>> curve = [
    ...     {"round": 1, "accuracy": 0.7, "validation_accuracy": 0.9},
    ...     {"round": 2, "accuracy": 0.8, "validation_accuracy": 0.8},
    ...     {"round": 3, "accuracy": 0.6, "validation_accuracy": 0.9},
    ... ]
    >>> [taken({"curve": curve, "final": curve[-1]}, "accuracy", take) for take in TAKES]
    [0.6, 0.7, 0.8]
    """
    if take == FINAL:
        return float(document["final"][metric])
    judged = metric if take == BEST_ON_TEST else f"{VALIDATION}{(by or metric).removeprefix(VALIDATION)}"
    points = [point for point in document["curve"] if metric in point and judged in point]
    if not points:
        raise ConfigurationError(
            f"report: take = {take!r} finds the best round by {judged}, which a result lacks; take another metric"
        )
    pick, up = (max, True) if higher(judged) else (min, False)
    return float(pick(points, key=lambda point: comparable(point[judged], up))[metric])  # of equals the first


def comparable(value: float | None, higher: bool) -> float:
    """Return a value for comparisons, in which one that is missing or not finite is the worst."""
    if value is not None and math.isfinite(value):
        return value
    return -math.inf if higher else math.inf


def looks(counts: Iterable[int]) -> str:
    """Return how often runs were evaluated, in words.

    Parameters
    ----------
    counts : iterable of int
        The number of evaluations of each run.

    Examples
    --------
    >>> looks([21, 21]), looks([21, 3])
    ('21', 'up to 21')
    """
    found = {*counts}
    return f"{'up to ' if len(found) > 1 else ''}{max(found, default=0)}"


def told(take: str, what: str, count: str) -> str:
    """Return what the values of a table or plot are.

    Parameters
    ----------
    take : str
        One of `TAKES`.
    what : str
        What the metric is called.
    count : str
        The number of evaluations of a run, as `looks` says it.

    Examples
    --------
    >>> told("final", "test accuracy, %", "21")
    'final test accuracy, %'
    >>> told("best_on_test", "test accuracy, %", "21")
    'test accuracy, %, best of 21 looks at the test set'
    """
    if take == FINAL:
        return f"final {what}"
    of = f"in the best of {count} rounds on validation samples"
    return f"{what}, {of if take == BEST else f'best of {count} looks at the test set'}"
