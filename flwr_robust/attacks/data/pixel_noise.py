"""Pixel noise: Gaussian noise on every input, its label stays.

    x becomes clip(x + sigma (t - s) e, s, t),   e standard normal, drawn anew for every pixel and step

s, t: the smallest and the largest input of the task, as a model sees them, so that sigma means the same for every
normalisation. It is the corruption "gaussian noise" of Hendrycks, Dietterich, "Benchmarking neural network robustness
to common corruptions and perturbations" (ICLR 2019). Here a client applies it to its training data; in the paper sigma
goes from 0.08 to 0.38. An honest client with a bad camera does the same.

Knows: own data, the span of the task's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from flwr_robust.attacks.data.base import ClientView, DataAttack, DataCase, data_attacks
from flwr_robust.core.fields import Number

__all__ = ["PixelNoise"]


@data_attacks.register("pixel_noise")
@dataclass(frozen=True)
class PixelNoise(DataAttack):
    """Add noise to an input with probability p.

    Attributes
    ----------
    sigma : float
        Standard deviation of the noise, in widths of the span of inputs; > 0.

    Examples
    --------
    >>> import torch
    >>> x, labels = torch.full((1, 1000), 0.5), torch.tensor([5])
    >>> inputs, labels = PixelNoise(sigma=0.1)(x, labels, ClientView(10, torch.Generator(), scores=lambda: x))
    >>> round(float(inputs.std()), 1), labels.tolist()
    (0.1, [5])
    """

    sigma: Annotated[float, Number(above=0)] = 0.5
    changes_labels: ClassVar[bool] = False

    def poisoned(self, x: Tensor, labels: Tensor, view: ClientView) -> tuple[Tensor, Tensor]:
        """Draw noise for all samples, used or not, and stay within the span."""
        smallest, largest = view.span
        noise = torch.randn(x.shape, generator=view.generator).to(x.device)
        return (x + self.sigma * (largest - smallest) * noise).clamp(smallest, largest), labels


CASES = (
    DataCase(
        "pixel_noise(sigma=1e-9)", (5,), (5,), source="noise too small to see", x=((0, 0.25, 1),), shows=((0, 0.25, 1),)
    ),
    DataCase(
        "pixel_noise(sigma=0.5)",
        (5,),
        (5,),
        source="a span of no width has no noise",
        x=((2, 2),),
        shows=((2, 2),),
        span=(2, 2),
    ),
)
