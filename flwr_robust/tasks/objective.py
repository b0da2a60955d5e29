"""The objective: the loss that training minimises, and all that is measured of a model, from one pass over its scores.

Sums are formed in float64. Predictions are the largest score (``class``, ``tokens``; of equal ones the first), a score
above 0 (``labels``), or the score itself (``values``).

accuracy
    The share of right answers: of samples, of labels, or of the tokens that count.
balanced_accuracy, worst_class
    The mean and the smallest recall of the classes that occur among the targets.
macro_f1
    The mean of F1 = 2 TP / (2 TP + FP + FN) over the classes or labels that occur or are predicted; 1 if there is none.
calibration_error
    sum_m |right_m - sure_m| / N over 15 equal bins of the largest probability; right_m and sure_m sum the right answers
    and the probabilities in bin m. It is the expected calibration error of Guo, Pleiss, Sun, Weinberger, "On
    calibration of modern neural networks" (ICML 2017). The bins are (0, 1/15], ..., (14/15, 1].
exact_match
    The share of samples of which all labels are right.
perplexity
    exp of the mean cross-entropy of the tokens that count, whichever loss is minimised.
mean_absolute_error, root_mean_squared_error
    Over all N K numbers.
r2
    The mean over the K numbers of 1 - sum (y - s)^2 / sum (y - mean y)^2. Where all targets are equal it is 1 if
    all scores are right, else 0, as in scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flwr_robust.core.spec import load_function
from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.tasks.metrics import METRICS, VALIDATION
from flwr_robust.tasks.targets import IGNORED, TARGETS, Target

__all__ = ["CLASSES", "LOSSES", "WORST_CLIENT", "Loss", "Objective", "OwnMetric", "load_loss", "load_metrics"]

WORST_CLIENT = "worst_client"
"""The metric that costs a pass over all training samples, and so comes only if it is asked for."""

_BINS = 15  # of the calibration error, as in Guo et al.
_PART = 1000  # samples, or tokens, that a model scores at once
_TAKEN = ("round", "trials", "success", "honest_clients")  # other numbers beside the metrics


def _cross_entropy(scores: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of scores (..., K) and classes (...)."""
    return functional.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORED, reduction=reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "absolute_error": functional.l1_loss,
    "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
    "cross_entropy": _cross_entropy,
    "huber": functional.huber_loss,
    "squared_error": functional.mse_loss,
}
"""The losses by name; each takes scores, targets and a reduction, "mean" or "sum".

cross_entropy: -log of the softmax probability of the right class or token. squared_error: (s - y)^2. absolute_error:
|s - y|. huber: (s - y)^2 / 2 where |s - y| <= 1, else |s - y| - 1/2. binary_cross_entropy: -log of the sigmoid
probability of each label. "mean" is that over all targets of a batch.
"""


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes
    ----------
    name : str
        Its name, as a configuration has it.
    function : callable
        (scores, targets) -> Tensor: the mean over a batch. A project's own also takes ``reduction``.
    own : bool
        Whether the function is a user's.
    """

    name: str
    function: Callable[..., Tensor]
    own: bool = False

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the mean over a batch, to be minimised."""
        return self.function(scores, y)

    def total(self, scores: Tensor, y: Tensor, count: int) -> float:
        """Return the sum over ``count`` targets; a user's loss computes in the type in which it trains."""
        if self.own:
            return float(self.function(scores, y)) * count
        return float(self.function(scores.double(), y.double() if y.is_floating_point() else y, reduction="sum"))


def load_loss(name: str) -> Loss | None:
    """Return the loss of a name; None for ``auto``, which depends on the target.

    Raises
    ------
    ConfigurationError
        If there is no such loss, or a user's function cannot be loaded.
    """
    if name == "auto":
        return None
    if ":" in name:
        return Loss(name, load_function(name, "loss"), own=True)
    if name not in LOSSES:
        raise UnknownNameError("loss", name, ["auto", *LOSSES, "<module>:<function>"])
    return Loss(name, LOSSES[name])


@dataclass(frozen=True)
class OwnMetric:
    """A metric of the user's own.

    Attributes
    ----------
    name : str
        The name of its function, under which it is recorded.
    function : callable
        (scores, targets) -> float, with all samples at once, on the CPU.
    """

    name: str
    function: Callable[[Tensor, Tensor], Any]

    def __call__(self, scores: Tensor, y: Tensor) -> float:
        """Return the metric.

        Raises
        ------
        ConfigurationError
            If the function fails or returns no number.
        """
        try:
            return float(self.function(scores, y))
        except Exception as error:  # a function of the user's may raise anything
            raise ConfigurationError(
                f"metric {self.name}: its function fails on scores {tuple(scores.shape)} and targets {tuple(y.shape)} "
                f"({type(error).__name__}: {error}); let it return one number, or nan where there is none"
            ) from error


def load_metrics(text: str) -> tuple[bool, tuple[OwnMetric, ...]]:
    """Read the key ``metrics``.

    Parameters
    ----------
    text : str
        ``worst_client`` and functions as ``module:function``, separated by commas.

    Returns
    -------
    bool
        Whether worst_client is among them.
    tuple of OwnMetric
        The functions.

    Raises
    ------
    ConfigurationError
        If a name is unknown, given twice, or that of another metric, or a function cannot be loaded.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    found: dict[str, OwnMetric | None] = {}
    for name in names:
        if name != WORST_CLIENT and ":" not in name:
            raise UnknownNameError("metric", name, [WORST_CLIENT, "<module>:<function>"])
        short = name.rpartition(":")[2]
        if short in found:
            raise ConfigurationError(f"metrics: each must have a name of its own; got {short} twice: rename one")
        if name == WORST_CLIENT:
            found[short] = None
            continue
        if short in (*METRICS, *_TAKEN) or short.startswith(VALIDATION):
            raise ConfigurationError(f"metrics: {short} is the name of another number of the curve; rename {name}")
        found[short] = OwnMetric(short, load_function(name, "metric"))
    return WORST_CLIENT in found, tuple(metric for metric in found.values() if metric is not None)


class _Measure(Protocol):
    """Collects what the metrics of one kind of target need."""

    def add(self, scores: Tensor, y: Tensor) -> float | None:
        """Take the scores of further samples; return the sum of their cross-entropies where that is known."""

    def found(self, y: Tensor) -> dict[str, float]:
        """Return the metrics but the loss, given all targets."""


class _Classes:
    def __init__(self) -> None:
        self._predicted: list[Tensor] = []
        self._sure: list[Tensor] = []
        self._classes = 0

    def add(self, scores: Tensor, y: Tensor) -> float:
        logarithms = scores.double().log_softmax(1)
        self._predicted.append(scores.argmax(1))
        self._sure.append(logarithms.amax(1).exp_())
        self._classes = scores.shape[1]
        return float(functional.nll_loss(logarithms, y, reduction="sum"))

    def found(self, y: Tensor) -> dict[str, float]:
        labels, predicted, sure = (
            part.cpu().numpy() for part in (y, torch.cat(self._predicted), torch.cat(self._sure))
        )
        right = predicted == labels
        hits, held, claimed = (np.bincount(some, None, self._classes) for some in (labels[right], labels, predicted))
        recalls = hits[held > 0] / held[held > 0]
        return {
            "accuracy": int(hits.sum()) / len(labels),
            "balanced_accuracy": float(recalls.mean()),
            "macro_f1": _macro_f1(hits, held + claimed),
            "worst_class": float(recalls.min()),
            "calibration_error": _calibration_error(sure, right),
        }


def _macro_f1(hits: NDArray[Any], both: NDArray[Any]) -> float:
    """Return the mean F1, given TP and 2 TP + FP + FN of each class."""
    known = both > 0
    return 2 * float((hits[known] / both[known]).mean()) if known.any() else 1.0


def _calibration_error(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of largest probabilities; NaN if one of them is NaN."""
    if math.isnan(sure.sum()):
        return math.nan
    bins = np.ceil(sure * _BINS).astype(np.int64)  # from 1, because a largest probability is above 0
    return float(np.abs(np.bincount(bins, right - sure)).sum()) / len(sure)


class _Values:
    def __init__(self) -> None:
        self._absolute: Tensor | float = 0.0
        self._squared: Tensor | float = 0.0

    def add(self, scores: Tensor, y: Tensor) -> None:
        error = scores.double() - y
        self._absolute = self._absolute + error.abs().sum(0)
        self._squared = self._squared + error.square().sum(0)

    def found(self, y: Tensor) -> dict[str, float]:
        absolute, squared = (torch.as_tensor(part).cpu() for part in (self._absolute, self._squared))
        targets = y.double().cpu()
        spread = (targets - targets.mean(0)).square().sum(0)
        constant = (targets == targets[0]).all(0)
        shares = torch.where(constant, (squared != 0).double(), squared / spread)
        return {
            "mean_absolute_error": float(absolute.sum()) / y.numel(),
            "root_mean_squared_error": math.sqrt(float(squared.sum()) / y.numel()),
            "r2": 1 - float(shares.mean()),
        }


class _Labels:
    def __init__(self) -> None:
        self._hits: Tensor | int = 0
        self._claimed: Tensor | int = 0
        self._right = 0
        self._exact = 0

    def add(self, scores: Tensor, y: Tensor) -> None:
        predicted, held = scores > 0, y > 0
        right = predicted == held
        self._hits = self._hits + (predicted & held).sum(0)
        self._claimed = self._claimed + predicted.sum(0)
        self._right += int(right.sum())
        self._exact += int(right.all(1).sum())

    def found(self, y: Tensor) -> dict[str, float]:
        hits, claimed = (torch.as_tensor(part).double().cpu().numpy() for part in (self._hits, self._claimed))
        return {
            "accuracy": self._right / y.numel(),
            "macro_f1": _macro_f1(hits, claimed + y.double().sum(0).cpu().numpy()),
            "exact_match": self._exact / len(y),
        }


class _Tokens:
    def __init__(self) -> None:
        self._right = 0
        self._surprise = 0.0

    def add(self, scores: Tensor, y: Tensor) -> float:
        self._right += int((scores.argmax(-1) == y).sum())
        surprise = float(_cross_entropy(scores.double(), y, "sum"))
        self._surprise += surprise
        return surprise

    def found(self, y: Tensor) -> dict[str, float]:
        count = _count(y)
        mean = self._surprise / count
        return {"accuracy": self._right / count, "perplexity": math.exp(mean) if not mean > 700 else math.inf}


_MEASURES: dict[str, Callable[[], _Measure]] = {
    "class": _Classes,
    "values": _Values,
    "labels": _Labels,
    "tokens": _Tokens,
}


def _count(y: Tensor) -> int:
    """Return the number of targets that count."""
    return y.numel() if y.is_floating_point() or y.dim() == 1 else int((y != IGNORED).sum())


@dataclass(frozen=True)
class Objective:
    """What a model is trained for, and how it is measured.

    Attributes
    ----------
    target : str
        The kind of target: a name in `TARGETS`.
    loss : Loss
        The loss.
    own : tuple of OwnMetric
        The user's metrics.
    """

    target: str
    loss: Loss
    own: tuple[OwnMetric, ...] = ()

    @property
    def kind(self) -> Target:
        """What the kind of target is."""
        return TARGETS[self.target]

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of all metrics that `evaluate` returns, in their order."""
        return (*self.kind.metrics, *(metric.name for metric in self.own))

    def evaluate(self, score: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """Return all metrics of a model on samples, about a thousand samples or tokens at a time.

        Parameters
        ----------
        score : callable (Tensor) -> Tensor
            Returns the model's scores for inputs.
        x : Tensor (N, ...)
            Inputs, as the model sees them; N >= 1.
        y : Tensor (N, ...)
            Targets of the kind.
        """
        size = max(1, _PART // y.shape[1]) if self.target == "tokens" else _PART
        measure, total, kept = _MEASURES[self.target](), 0.0, []
        for inputs, targets in zip(torch.split(x, size), torch.split(y, size), strict=True):
            scores = score(inputs)
            known = measure.add(scores, targets)
            if known is None or self.loss.own:
                known = self.loss.total(scores, targets, _count(targets))
            total += known
            if self.own:
                kept.append(scores.cpu())
        found = {"loss": total / _count(y), **measure.found(y)}
        for metric in self.own:
            found[metric.name] = metric(torch.cat(kept), y.cpu())
        return found

    def check(self, model: nn.Module, x: Tensor, y: Tensor, y_test: Tensor) -> None:
        """Call a user's functions once, and raise if they do not do what is asked of them.

        Parameters
        ----------
        model : nn.Module
            The model; it is not changed.
        x : Tensor (2, ...)
            Two inputs of zeros.
        y : Tensor (2, ...)
            The targets of two training samples.
        y_test : Tensor (N, ...)
            The targets of the test samples. Metrics see them all, with the scores of the zeros.

        Raises
        ------
        ConfigurationError
            If a metric returns no number, or the loss no finite, differentiable scalar.
        """
        if not self.loss.own and not self.own:
            return
        trains = model.training
        with torch.no_grad():
            scores = model.eval()(x)
        model.train(trains)
        if self.loss.own:
            _check_loss(self.loss, scores.detach().clone().requires_grad_(), y)
        for metric in self.own:
            metric(scores[:1].cpu().repeat(len(y_test), *[1] * (scores.dim() - 1)), y_test.cpu())


def _check_loss(loss: Loss, scores: Tensor, y: Tensor) -> None:
    shapes = f"scores {tuple(scores.shape)} and targets {tuple(y.shape)}"
    try:
        with torch.enable_grad():
            value = loss(scores, y)
    except Exception as error:  # a function of the user's may raise anything
        raise ConfigurationError(
            f"loss {loss.name}: its function fails on {shapes} ({type(error).__name__}: {error}); correct it"
        ) from error
    if not isinstance(value, Tensor) or value.dim() or not bool(value.isfinite()) or not value.requires_grad:
        if not isinstance(value, Tensor):
            got = type(value).__name__
        elif value.dim():
            got = f"shape {tuple(value.shape)}"
        else:
            got = (
                f"{float(value.detach()):g}" if not bool(value.isfinite()) else "one that does not depend on the scores"
            )
        raise ConfigurationError(
            f"loss {loss.name}: for {shapes} it must return one finite number that can be differentiated by the "
            f"scores, as a tensor; got {got}: return the mean over the batch"
        )


CLASSES = Objective("class", Loss("cross_entropy", _cross_entropy))
"""Cross-entropy on classes."""
