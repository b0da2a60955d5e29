"""The words and digits of tables and plots: what a metric is called, and how its values are written."""

from __future__ import annotations

import math

from flwr_robust.tasks.metrics import VALIDATION, metric_named

__all__ = ["called", "change", "factor", "points", "unit", "width", "written"]

_CALLED = {
    "accuracy_unweighted": "test accuracy of a client",
    "attack_success": "success of the attack",
    "loss": "test loss",
    "xi": "xi, distance of the honest client farthest from the mean",
    "A": "A, distance of the poisoned client farthest from it",
    "sigma2": "sigma2, variance of a batch's gradient",
    "pool_broken": "share of the pool that the attack breaks, q / M",
    "pool_bearable": "share that may be broken, 1 / (1 + lambda L / min beta)",
    "pool_expected": "step of the mean of the pool along the honest mean",
    "pool_beta": "min beta of the members that are not broken",
    "pool_lambda": "lambda of the broken members",
    "pool_length": "L of the broken members",
    "gradient2": "gradient2, squared gradient of the honest clients' mean loss",
}
_NO_TEST = ("worst_client", "honest_clients")  # not measured on the test samples


def called(metric: str) -> str:
    """Return what a metric is called in captions, without its unit.

    Parameters
    ----------
    metric : str
        A key of the points of a curve.

    Examples
    --------
    >>> called("worst_class"), called("validation_loss"), called("attack_success")
    ('test worst class', 'validation loss', 'success of the attack')
    """
    if metric in _CALLED:
        return _CALLED[metric]
    plain = metric.replace("_", " ")
    known = metric_named(metric).doc != metric_named("").doc  # a metric of the user's own may be of anything
    return f"test {plain}" if known and metric not in _NO_TEST and not metric.startswith(VALIDATION) else plain


def factor(metric: str) -> float:
    """Return the factor for a metric's values: shares are shown in percent, others unchanged."""
    return 100.0 if metric_named(metric).share else 1.0


def unit(metric: str) -> str:
    """Return the unit of a metric's shown values: a percent sign, or nothing."""
    return "%" if metric_named(metric).share else ""


def points(metric: str) -> str:
    """Return the unit of differences of a metric's shown values."""
    return "points" if metric_named(metric).share else ""


def written(metric: str, value: float) -> str:
    """Return a value: shares in percent with one decimal, others with three significant digits.

    Examples
    --------
    >>> written("accuracy", 0.9123), written("loss", 0.51234), written("loss", 1234.5)
    ('91.2', '0.512', '1234')
    """
    return _percent(value) if metric_named(metric).share else _digits(value, 3)


def change(metric: str, value: float) -> str:
    """Return a difference with its sign.

    Examples
    --------
    >>> change("accuracy", -0.031), change("loss", 0.1)
    ('-3.1', '+0.100')
    """
    text = written(metric, value)
    return text if text.startswith("-") or text == "NaN" else f"+{text}"


def width(metric: str, value: float) -> str:
    """Return half the width of an interval, or a standard deviation: with one digit fewer than a value.

    Examples
    --------
    >>> width("accuracy", 0.0123), width("loss", 0.01234)
    ('1.2', '0.012')
    """
    return _percent(value) if metric_named(metric).share else _digits(value, 2)


def _percent(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{100 * value:.1f}"


def _digits(value: float, digits: int) -> str:
    if math.isnan(value):
        return "NaN"
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")
