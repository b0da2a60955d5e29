"""Metrics: what each number of a curve means, whether it is a share, and which direction is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ["METRICS", "VALIDATION", "Metric", "best_of", "metric_named"]

VALIDATION = "validation_"
"""The prefix of a metric that is measured on the validation samples."""


@dataclass(frozen=True)
class Metric:
    """A number that a curve may hold.

    Attributes
    ----------
    name : str
        Its key in the points of a curve.
    doc : str
        What it is, in one sentence.
    share : bool
        Whether it lies in [0, 1]; shares are shown in percent.
    higher : bool
        Whether a higher value is better.
    """

    name: str
    doc: str
    share: bool = False
    higher: bool = True

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values: the largest, or the smallest if lower is better."""
        return max(values) if self.higher else min(values)


_ALL = (
    Metric("loss", "The mean loss, which training minimises.", higher=False),
    Metric("accuracy", "The share of right answers.", share=True),
    Metric("accuracy_unweighted", "The mean over clients of the accuracy of their own models.", share=True),
    Metric("balanced_accuracy", "The mean recall of the classes that occur.", share=True),
    Metric("macro_f1", "The mean over classes of the F1 score.", share=True),
    Metric("worst_class", "The smallest recall of a class.", share=True),
    Metric("worst_client", "The smallest accuracy on the training samples of an honest client.", share=True),
    Metric("calibration_error", "The expected calibration error, with 15 bins.", share=True, higher=False),
    Metric("attack_success", "The share of trials in which an attack reaches its target.", share=True, higher=False),
    Metric("exact_match", "The share of samples of which all labels are right.", share=True),
    Metric("perplexity", "The exponential of the mean cross-entropy of a token.", higher=False),
    Metric("mean_absolute_error", "The mean distance of values from their targets.", higher=False),
    Metric("root_mean_squared_error", "The root of the mean squared distance from the targets.", higher=False),
    Metric("r2", "The coefficient of determination: 1 minus the unexplained share of the variance; at most 1."),
    Metric("xi", "Distance of the honest client that is farthest from the mean gradient.", higher=False),
    Metric("A", "Distance of the poisoned client that is farthest from the honest mean gradient.", higher=False),
    Metric("sigma2", "The largest variance of a client's gradient on a batch.", higher=False),
    Metric("gradient2", "The squared length of the gradient of what the honest clients minimise.", higher=False),
    Metric("pool_broken", "The share of the pool's members that an attack breaks, q / M.", share=True, higher=False),
    Metric("pool_bearable", "The share of broken members that MixTailor's proposition 1 bears.", share=True),
    Metric("pool_expected", "How far the mean of the pool's members goes along the honest mean, which is 1."),
    Metric("pool_beta", "beta, the smallest step forward of a member that is not broken."),
    Metric("pool_lambda", "lambda, the largest cosine backward of a broken member.", higher=False),
    Metric("pool_length", "L, the length of the longest broken member.", higher=False),
    Metric("honest_clients", "The number of clients whose own models are measured."),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""All numbers that a curve may hold, by name."""


def metric_named(name: str) -> Metric:
    """Return the metric of a name.

    Parameters
    ----------
    name : str
        A name in `METRICS`, or one with the prefix ``validation_``: the same on the validation samples. Any other name
        is a metric of the user's own: no share, and higher is better.

    Examples
    --------
    >>> metric_named("validation_loss").higher, metric_named("profit").higher
    (False, True)
    """
    known = METRICS.get(name.removeprefix(VALIDATION))
    return Metric(name, "A metric of the user's own.") if known is None else replace(known, name=name)


def best_of(curve: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the best value of the metric by which a curve is judged first, as ``best_accuracy`` or ``best_loss``.

    Parameters
    ----------
    curve : sequence of mapping of str to float
        The points of a run, at least one. The metric is the accuracy if they have one, else the loss.

    Examples
    --------
    >>> best_of([{"round": 0, "loss": 3.0, "r2": 0.1}, {"round": 5, "loss": 2.0, "r2": 0.4}])
    {'best_loss': 2.0}
    """
    name = "accuracy" if "accuracy" in curve[-1] else "loss"
    return {f"best_{name}": metric_named(name).best(point[name] for point in curve)}
