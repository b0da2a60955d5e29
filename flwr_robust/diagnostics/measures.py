"""Measures at one model: xi, A, sigma^2, and the rho of a rule.

Notation of Peng et al. (JMLR 2025): W workers, R of them regular; f_w is worker w's loss, f~_w that on its poisoned
labels, f the mean of the regular ones. A stack holds one worker's gradient, or message, per row. Everything is computed
in float64. A number that is not finite in a stack makes a result that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flwr_robust.errors import ConfigurationError, check_flag, check_integer, check_number

__all__ = ["Moments", "disturbance", "feature_bound", "heterogeneity", "rho", "variance"]


def heterogeneity(honest: Tensor) -> float:
    """Return xi: how far the regular worker that differs most is from the mean of the regular ones.

    xi = max over regular w of ||grad f_w - grad f||; Assumption 3 of Peng et al. bounds it over all models.

    Parameters
    ----------
    honest : Tensor (R, d)
        Gradients of the regular workers at one model; R >= 1.

    Returns
    -------
    float
        xi >= 0, in units of the gradient.

    Raises
    ------
    ConfigurationError
        If there is no row.

    Examples
    --------
    >>> heterogeneity(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    5.0
    """
    return _farthest(_stack("heterogeneity", "honest", honest), _centre("heterogeneity", honest))


def disturbance(poisoned: Tensor, honest: Tensor) -> float:
    """Return A: how far the worst poisoned worker is from the mean of the regular ones.

    A = max over poisoned w of ||grad f~_w - grad f||; Assumption 5 of Peng et al. bounds it over all models.

    Parameters
    ----------
    poisoned : Tensor (W - R, d)
        Gradients of the poisoned workers, on the labels that they train on; at least one.
    honest : Tensor (R, d)
        Gradients of the regular workers at the same model; at least one.

    Returns
    -------
    float
        A >= 0, in units of the gradient.

    Raises
    ------
    ConfigurationError
        If one of the stacks has no row, or their rows differ in length.

    Examples
    --------
    >>> disturbance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    4.0
    """
    poisoned = _stack("disturbance", "poisoned", poisoned)
    centre = _centre("disturbance", honest)
    _same_length("disturbance", "poisoned", poisoned.shape[1], centre)
    return _farthest(poisoned, centre)


def rho(value: Tensor, honest: Tensor) -> float:
    """Return how far an aggregate is from the honest mean, in units of the largest honest distance.

    ||value - mean|| / max over w of ||m_w - mean||, over the regular messages m_w. A rho-robust aggregator (Peng et
    al.) keeps this at or below its rho for any messages of the others. So one call gives a lower bound of rho.

    Parameters
    ----------
    value : Tensor (d,)
        The aggregate of all messages.
    honest : Tensor (R, d)
        The regular ones among them; at least one.

    Returns
    -------
    float
        >= 0. If all regular messages are equal: 0 if the value equals them, infinity otherwise.

    Raises
    ------
    ConfigurationError
        If there is no regular message, or the value is of another length.

    Examples
    --------
    >>> rho(torch.tensor([3.0, 3.0]), torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    0.2
    """
    centre = _centre("rho", honest)
    if value.dim() != 1:
        raise ConfigurationError(f"rho: value must have one dimension; got shape {tuple(value.shape)}: flatten it")
    _same_length("rho", "value", len(value), centre)
    error, unit = _farthest(value.unsqueeze(0), centre), _farthest(honest, centre)
    if unit == 0:
        return 0.0 if error == 0 else math.nan if math.isnan(error) else math.inf
    return error / unit


class Moments:
    """Mean and variance of gradients that come one by one, so that memory need not hold all of them.

    Examples
    --------
    >>> moments = Moments()
    >>> for gradient in torch.tensor([[1.0, 0.0], [3.0, 0.0]]):
    ...     moments.add(gradient)
    >>> moments.mean.tolist(), moments.variance
    ([2.0, 0.0], 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._weight = 0.0
        self._mean: Tensor | None = None
        self._spread = 0.0

    def add(self, gradient: Tensor, samples: float = 1.0) -> None:
        """Take in a gradient.

        Parameters
        ----------
        gradient : Tensor (d,)
            The gradient of the mean loss of a batch.
        samples : float
            How many samples the batch has; > 0.
        """
        gradient = gradient.detach().double()
        if self._mean is None:
            self._mean = torch.zeros_like(gradient)
        self.count += 1
        self._weight += samples
        # West's updates: sums of squares would lose the spread of gradients that differ little.
        before = gradient - self._mean
        self._mean += before * (samples / self._weight)
        self._spread += samples * float(before.dot(gradient - self._mean))

    @property
    def mean(self) -> Tensor:
        """The gradient (d,) of the mean loss of all samples, float64."""
        if self._mean is None:
            raise ConfigurationError("moments: a mean needs at least 1 gradient; got 0: add one")
        return self._mean

    @property
    def variance(self) -> float:
        """Return the variance of the gradient of one sample, without bias; NaN for fewer than two gradients.

        A batch of b independent samples has 1 / b of it. With batches of a single size b this is b times the sum of
        ||g_k - mean||^2 over the batches, divided by their number less one.
        """
        return self._spread / (self.count - 1) if self.count > 1 else math.nan


def variance(gradients: Iterable[Tensor], samples: Sequence[float] | None = None) -> float:
    """Return sigma^2 of one worker: the variance of its stochastic gradients, summed over the coordinates.

    E ||grad f_(w,i) - grad f_w||^2 over the worker's samples i, which Assumption 4 of Peng et al. bounds. Give
    per-sample gradients, or per-batch gradients and the sizes of the batches; either way the result is **per sample**.
    A worker that sends the mean over b independent samples has 1 / b of this variance.

    Parameters
    ----------
    gradients : Tensor (k, d), or iterable of Tensor (d,)
        Gradients of independent samples or batches at one model; k >= 2.
    samples : sequence (k,) of float, optional
        Size of each batch; 1 each when left out.

    Returns
    -------
    float
        An estimate without bias, >= 0, in squared units of the gradient.

    Raises
    ------
    ConfigurationError
        If there are fewer than two gradients, the number of sizes differs from theirs, or a size is not positive.

    Examples
    --------
    >>> variance(torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]))
    4.0
    >>> variance(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), samples=[32, 32])
    64.0
    """
    rows = list(gradients)
    sizes = [1.0] * len(rows) if samples is None else list(samples)
    if len(rows) < 2:
        raise ConfigurationError(f"variance: gradients must be at least 2; got {len(rows)}: take more, smaller batches")
    if len(sizes) != len(rows):
        raise ConfigurationError(
            f"variance: samples must have one size per gradient; got {len(sizes)} sizes for {len(rows)} gradients"
        )
    moments = Moments()
    for row, size in zip(rows, sizes, strict=True):
        check_number("variance", "samples", size, above=0)
        moments.add(row, size)
    return moments.variance


def feature_bound(features: Sequence[Tensor], classes: int, bias: bool = True) -> float:
    """Return the largest A that any flip of labels can have under softmax regression.

    A <= 2 sqrt(K) max over w of the mean norm of worker w's features (Peng et al., on softmax regression): the gradient
    of a sample is (p - e_y) a^T, and neither the model's probabilities p nor the label y can make p - e_y long.

    Parameters
    ----------
    features : sequence of Tensor (N_w, ...)
        Every worker's inputs as the model sees them, poisoned workers included; each flattened to a.
    classes : int
        K; at least 2.
    bias : bool
        Whether the model has a bias, that is, whether a has one more coordinate, 1.

    Returns
    -------
    float
        The bound, in units of the gradient (without weight decay).

    Raises
    ------
    ConfigurationError
        If there is no worker, or one without samples.

    Examples
    --------
    >>> feature_bound([torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])], classes=4, bias=False)
    20.0
    """
    check_integer("feature_bound", "classes", classes, 2)
    check_flag("feature_bound", "bias", bias)
    if not features or any(len(own) == 0 for own in features):
        raise ConfigurationError(
            "feature_bound: features must hold at least one worker, and of each at least one sample; "
            f"got {[len(own) for own in features]} samples"
        )
    means = []
    for own in features:
        squares = own.reshape(len(own), -1).double().square().sum(1) + float(bias)
        means.append(float(squares.sqrt().mean()))
    return 2 * math.sqrt(classes) * max(means)


def _stack(owner: str, name: str, stack: Tensor) -> Tensor:
    """Return a stack that has rows; raise an error for any other."""
    if stack.dim() != 2 or len(stack) == 0:
        raise ConfigurationError(
            f"{owner}: {name} must be a stack (n >= 1, d); got shape {tuple(stack.shape)}: put one worker per row"
        )
    return stack


def _centre(owner: str, honest: Tensor) -> Tensor:
    return _stack(owner, "honest", honest).mean(0, dtype=torch.float64)


def _same_length(owner: str, name: str, length: int, centre: Tensor) -> None:
    if length != len(centre):
        raise ConfigurationError(
            f"{owner}: {name} must be as long as the honest rows, d={len(centre)}; got {length}: take one model's"
        )


def _farthest(rows: Tensor, centre: Tensor) -> float:
    """Return the largest distance of a row from a point; row by row, to avoid a float64 copy of the stack."""
    return float(torch.stack([torch.linalg.vector_norm(row.double() - centre) for row in rows]).max())
