"""Robust aggregation of clients' metrics: no minority of clients can control what the operator reads.

A server cannot know beforehand which metrics clients will report. With ``train_metrics=`` and ``evaluate_metrics=`` the
operator names them, and a reply that lacks one is refused. Without these options, a metric is used if more than half of
the round's admitted replies hold it in the same form. Other metrics are left out, but never a reason to refuse a reply.
Otherwise a client that reports special metrics in round 1 could get honest clients refused in all later rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from flwr.app import MetricRecord, RecordDict

from flwr_robust.errors import check_integer
from flwr_robust.flower._compat import fill
from flwr_robust.flower.wire import records_of

__all__ = ["MOST_NUMBERS", "PARTITION", "MetricsFunction", "levelled", "robust_metrics", "trimmed_metrics"]

MOST_NUMBERS = 10_000
"""The largest number of values in the metrics of one reply, and in one list that is aggregated."""

PARTITION = "partition-id"
"""The metric in which a client states its partition; only the server uses it."""

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]
"""A function that aggregates metrics for Flower's strategies, from replies and the name of the number of examples."""


def levelled(
    records: Sequence[MetricRecord], key: str, clamp: float | None, stated: Collection[str] | None = None
) -> list[MetricRecord]:
    """Return the metrics of admitted replies, made uniform: all hold the same ones.

    Parameters
    ----------
    records : sequence of MetricRecord
        The metrics of the admitted replies.
    key : str
        Name of the number of examples, which every record holds.
    clamp : float or None
        A number of examples above this multiple of the median is lowered to it.
    stated : collection of str, optional
        The only metrics to keep. When not given, these are the metrics that more than half of the replies hold in the
        same form. A form is a number, or a list of one length. A reply that lacks such a metric gets the median of the
        others.

    Returns
    -------
    list of MetricRecord
        New records, without ``partition-id``.
    """
    held: dict[tuple[str, int | None], dict[int, Any]] = {}
    for index, record in enumerate(records):
        for name, value in record.items():
            if name not in (key, PARTITION) and (stated is None or name in stated):
                form = name, len(value) if isinstance(value, list) else None
                held.setdefault(form, {})[index] = value
    forms = sorted((form for form in held if 2 * len(held[form]) > len(records)), key=str)
    agreed = {form: held[form] for form in forms}
    typical = {form: _typical(list(values.values())) for form, values in agreed.items() if len(values) < len(records)}
    counts: list[Any] = [record[key] for record in records]
    most = math.inf if clamp is None else clamp * _median(counts) if counts else 0
    return [
        fill(
            MetricRecord(),
            {key: min(count, most)}
            | {form[0]: values[i] if i in values else typical[form] for form, values in agreed.items()},
        )
        for i, count in enumerate(counts)
    ]


def _typical(values: Sequence[Any]) -> float | list[float]:
    """Return the median of numbers; for lists, the median at each position."""
    if isinstance(values[0], list):
        return [_median(column) for column in zip(*values, strict=True)]
    return _median(values)


def _median(values: Sequence[float]) -> float:
    return _trimmed(values, (len(values) - 1) // 2)


def _trimmed(values: Sequence[float], f: int) -> float:
    """Return the mean of the values without the f smallest and the f largest."""
    kept = sorted(values)[f : len(values) - f]
    # Divide first and limit to the extremes, so that the mean of values near the largest float does not overflow.
    return float(min(max(sum(value / len(kept) for value in kept), kept[0]), kept[-1]))


def _columns(contents: Sequence[RecordDict], key: str) -> Iterator[tuple[str, bool, list[list[float]]]]:
    """Yield the name, whether it is a list, and the values of each metric that more than half hold in one form.

    A form is a number, or a list of one length. A number is yielded as a list of length 1. Empty lists, and lists of
    more than `MOST_NUMBERS` values, are left out.
    """
    columns: dict[tuple[str, int | None], list[list[float]]] = {}
    for content in contents:
        for name, value in records_of(content, MetricRecord)[0].items():
            if name in (key, PARTITION):
                continue
            if not isinstance(value, list):
                columns.setdefault((name, None), []).append([float(value)])
            elif 0 < len(value) <= MOST_NUMBERS:
                columns.setdefault((name, len(value)), []).append([float(each) for each in value])
    for name, length in sorted(columns, key=str):
        column = columns[name, length]
        if 2 * len(column) > len(contents):
            yield name, length is not None, column


def _aggregated(
    contents: Sequence[RecordDict], key: str, centre: Callable[[Sequence[float]], float], least: int = 1
) -> MetricRecord:
    """Return the centre of each metric that enough replies hold; for lists, the centre at each position."""
    found: dict[str, float | list[float]] = {}
    for name, listed, column in _columns(contents, key):
        if len(column) < least:
            continue
        centres = [centre(values) for values in zip(*column, strict=True)]
        found[name] = centres if listed else centres[0]
    return MetricRecord({**found})


def robust_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Aggregate each of the clients' metrics by its median, without regard to their numbers of examples.

    Parameters
    ----------
    contents : list of RecordDict
        Admitted replies.
    weighted_by_key : str
        Name of the number of examples. The result holds neither it nor ``partition-id``.

    Returns
    -------
    MetricRecord
        The metrics that more than half of the replies hold in the same form: as a number, or as a list of one length. A
        list, such as the accuracy of each class, is aggregated position by position.

    Examples
    --------
    >>> replies = [RecordDict({"m": MetricRecord({"num-examples": 1, "recall": [0.5, x]})}) for x in (0.1, 0.2, 9.0)]
    >>> dict(robust_metrics(replies, "num-examples"))
    {'recall': [0.5, 0.2]}
    """
    return _aggregated(contents, weighted_by_key, _median)


def trimmed_metrics(f: int) -> MetricsFunction:
    """Return a function that aggregates each of the clients' metrics by its trimmed mean.

    Parameters
    ----------
    f : int
        How many of the smallest and of the largest values are dropped, for lists at each position. A metric with fewer
        than 2f + 1 values is left out.

    Returns
    -------
    callable
        For ``train_metrics_aggr_fn`` and ``evaluate_metrics_aggr_fn``.
    """
    check_integer("trimmed_metrics", "f", f, 0)

    def aggregate(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        return _aggregated(contents, weighted_by_key, partial(_trimmed, f=f), least=2 * f + 1)

    return aggregate
