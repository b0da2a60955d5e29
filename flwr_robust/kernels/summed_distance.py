"""The point of least summed distance to weighted rows, found from inner products of the rows about one of them.

    F(z) = sum_i alpha_i ||x_i - z||
    g(z) = sum_i alpha_i (z - x_i) / ||x_i - z||   over the rows that do not lie at z
    eta(z) = sum of the alpha_i of the rows that lie at z

z is a minimum where ||g|| <= eta (Kuhn, "A note on Fermat's problem", Mathematical Programming 4, 1973). The search
starts at the row of least F, the medoid: if any row is a minimum, it is this one. A step off a row is that of Vardi and
Zhang ("The multivariate L1-median and associated data depth", PNAS 97, 2000),

    z <- x_k + (1 - eta / ||g||) (T(x_k) - x_k)
    T(z) = sum_i beta_i x_i / sum_i beta_i,   beta_i = alpha_i / ||x_i - z||

over the other rows. After that a step is the best of several multiples of Weiszfeld's, T(z) - z, and of Newton's. So F
falls at every step by at least what Weiszfeld's iteration lowers it, and a point reached is never worse than any row.

Nothing is lost to far rows or near ones. F is never formed to be compared: what a step gains is a sum of differences,
each as exact as the step is long. The inner products are about the row nearest to z. Then no row is much farther from
this row than from z, and the distances to z keep their digits; where another row comes much nearer, they are asked for
about that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Minimum", "least_summed_distance", "medoid"]

Matrix = NDArray[np.float64]

_LONGER = 8.0 ** np.arange(6)  # multiples of Weiszfeld's step: it is short where a row is near
_SHORTER = 0.25 ** np.arange(4)  # multiples of Newton's, which may be long
_NEARER = 32.0**2  # a row so many times nearer to z, squared, than to the centre asks for another centre
_FLAT = 1e-12  # rows along whose connection F rises no steeper are all minima
_ROUNDING = 1e-7  # below this share of the lengths it is formed of, a length is rounding


@dataclass(frozen=True)
class Minimum:
    """Where a search ended.

    Attributes
    ----------
    weights : array (n,)
        z in the rows; none is negative, and they sum to one.
    residual : float
        max{||g|| - eta, 0} where the last step ended; in [0, 1].
    objective : float
        F.
    steps : int
        How many steps were done; 0 where the medoid is the minimum.
    converged : bool
        Whether the residual is at most the tolerance.
    """

    weights: Matrix
    residual: float
    objective: float
    steps: int
    converged: bool


def _quotient(above: Matrix, below: Matrix) -> Matrix:
    """Divide, 0 / 0 being 0."""
    return above / np.where(below > 0, below, np.inf)


def medoid(gram: Matrix, squared: Matrix, alpha: Matrix) -> int:
    """Return the row of least F; of rows that agree to rounding, any.

    Parameters
    ----------
    gram : array (n, n)
        Inner products of the rows about a point near most of them.
    squared : array (n, n)
        Their squared distances.
    alpha : array (n,)
        Their importance, summing to one.
    """
    own = np.maximum(gram.diagonal(), 0)
    # ||x_i - x_k|| - ||y_i|| = (||y_k||^2 - 2 <y_i, y_k>) / (||x_i - x_k|| + ||y_i||), for far rows i, too.
    gained = _quotient(own - 2 * gram, np.sqrt(squared) + np.sqrt(own)[:, None])
    return int((alpha @ gained).argmin())


class _Place:
    """A point z = sum_i w_i x_i as seen in inner products about a row, the centre."""

    def __init__(self, gram: Matrix, weights: Matrix, alpha: Matrix) -> None:
        self.gram, self.weights, self.alpha = gram, weights, alpha
        self.own = gram.diagonal()
        self.towards = gram @ weights
        self.length = float(weights @ self.towards)  # squared, of z - centre
        self.squared = self.own - 2 * self.towards + self.length
        self.distances = np.sqrt(np.maximum(self.squared, 0))
        self.eta = float(alpha @ (self.distances == 0))
        self.beta = alpha / self.distances if self.eta == 0 else _quotient(alpha, self.distances)
        self.total = float(self.beta.sum())
        pull = self.total * weights - self.beta  # g in the rows
        self.slope = math.sqrt(max(float(pull @ gram @ pull), 0.0))
        self.residual = max(self.slope - self.eta, 0.0)
        self.weiszfeld = self.beta / self.total - weights if self.total > 0 else pull

    def nearest(self) -> int:
        """Return the row nearest to z."""
        return int(self.squared.argmin())

    def is_blurred_by(self, row: int) -> bool:
        """Say whether a row is so much nearer to z than to the centre that its distance has lost digits."""
        return bool(self.own[row] > _NEARER * self.squared[row])

    def is_at_centre(self) -> bool:
        """Say whether z lies at the centre, up to rounding."""
        reach = float(np.abs(self.weights) @ np.sqrt(self.own))
        return self.length <= (_ROUNDING * reach) ** 2

    def steps(self) -> Matrix:
        """Return the steps that are tried, one per line, in the rows."""
        if self.eta > 0:
            return _LONGER[:, None] * ((1 - self.eta / self.slope) * self.weiszfeld)
        return np.concatenate([_LONGER[:, None] * self.weiszfeld, _SHORTER[:, None] * self._newton()])

    def _newton(self) -> Matrix:
        """Return Newton's step: F has the curvature total I - sum_i beta_i u_i u_i^T, u_i the unit vectors to z."""
        about = (self.length - self.towards) + self.gram - self.towards[:, None]
        cosines = about / self.distances / self.distances[:, None]
        root = np.sqrt(self.beta)
        curved = -root[:, None] * cosines * root
        curved.flat[:: len(root) + 1] += self.total * (1 + _FLAT)
        try:
            solved = np.linalg.solve(curved, root * (cosines @ self.alpha))
        except np.linalg.LinAlgError:  # F is flat along a line
            return np.zeros_like(root)
        moved: Matrix = (self.alpha + root * solved) / self.distances / self.total
        size = float(moved.sum())
        return moved - self.weights * size if math.isfinite(size) else np.zeros_like(root)

    def gains(self, steps: Matrix) -> Matrix:
        """Return by how much F changes with each step (m, n)."""
        along = steps @ self.gram
        lengths = (along * steps).sum(1) + 2 * (steps @ self.towards)
        change = lengths[:, None] - 2 * along
        there = np.sqrt(np.maximum(self.squared + change, 0))
        summed = there + self.distances
        quotient = change / summed if self.eta == 0 else _quotient(change, summed)
        found: Matrix = quotient @ self.alpha
        return found

    def tied(self) -> NDArray[np.bool_]:
        """Return which rows are minima if the centre, where z is, is one; bool (n,)."""
        between = np.sqrt(np.maximum(self.own[:, None] + self.own - 2 * self.gram, 0))
        gained = _quotient(self.own - 2 * self.gram, between + self.distances[:, None])
        found: NDArray[np.bool_] = self.alpha @ gained <= _FLAT * self.distances
        return found


def least_summed_distance(
    about: Callable[[int], Matrix], start: int, alpha: Matrix, tolerance: float, maximum: int
) -> Minimum:
    """Search the point of least summed distance.

    Parameters
    ----------
    about : callable int -> array (n, n)
        The rows' inner products about a row, each exact to rounding of the two lengths; zero for rows equal to it.
    start : int
        The medoid.
    alpha : array (n,)
        Importance of the rows, positive and summing to one.
    tolerance : float
        Stop when the residual is no greater. Below 1e-8 rounding decides.
    maximum : int
        Stop after so many steps.
    """
    n, steps = len(alpha), 0
    rows = np.eye(n)
    centre, gram = start, about(start)
    place = _Place(gram, rows[start], alpha)
    while place.residual > tolerance and steps < maximum:
        tried = place.steps()
        gains = place.gains(tried)
        best = int(gains.argmin())
        if not gains[best] < 0:  # rounding allows no further step
            break
        weights = place.weights + tried[best]
        weights = weights / weights.sum()
        place, steps = _Place(gram, weights, alpha), steps + 1
        row = place.nearest()
        if row != centre and place.is_blurred_by(row):
            centre, gram = row, about(row)
            there = _Place(gram, rows[row], alpha)
            place = _Place(gram, weights, alpha)
            if there.residual <= tolerance or place.is_at_centre():
                place = there
        elif place.is_at_centre():
            place = _Place(gram, rows[centre], alpha)
    converged = place.residual <= tolerance
    if place.eta == 0:
        weights = place.beta / place.total  # one more of Weiszfeld's steps: z as an average of the rows
    elif converged:
        weights = alpha * place.tied()
        weights = weights / weights.sum()
    else:
        weights = rows[centre]
    towards = gram @ weights
    distances = np.sqrt(np.maximum(gram.diagonal() - 2 * towards + weights @ towards, 0))
    objective = float(alpha @ distances)
    return Minimum(weights, place.residual, objective, steps, converged)
