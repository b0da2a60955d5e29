"""A client's numerical work: gradients, local steps and the evaluation of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_robust.tasks.layers import scorer
from flwr_robust.tasks.objective import CLASSES, Objective

__all__ = ["Learner", "descend"]

_PLAIN = (nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten)
"""Layers that compute the same in training and in evaluation, and draw nothing."""


def descend(parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> None:
    """Move parameters by -step times a direction."""
    with torch.no_grad():
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.sub_(d, alpha=step)


class Learner:
    """A model whose parameters are set from arrays, with the steps that clients take on it.

    Parameters
    ----------
    model : nn.Module
        The model; moved to the device. It computes gradients in training mode, and scores in evaluation mode.
    weight_decay : float
        lambda: a gradient is that of the mean loss plus lambda times the parameters, biases included.
    device : torch.device or str
        Where to compute.
    objective : Objective
        The loss, and what is measured; when not given, cross-entropy on classes.

    Attributes
    ----------
    names : list of str
        Names of the model's arrays, in order.
    state : list of Tensor
        The arrays themselves: all parameters and buffers, in the order of the state dict. Writing into them changes the
        model.
    """

    def __init__(
        self,
        model: nn.Module,
        weight_decay: float = 0.0,
        device: torch.device | str = "cpu",
        objective: Objective = CLASSES,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.parameters = list(model.parameters())
        self._trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self._moody = any(type(module) not in _PLAIN for module in model.modules())
        if self._moody:
            model.train()
        self._score = scorer(self.model)
        self.weight_decay = weight_decay
        self.objective = objective
        state = model.state_dict()
        self.names = list(state)
        self.state = list(state.values())

    def load(self, arrays: Sequence[NDArray[np.generic]]) -> None:
        """Set all parameters and buffers, in the order of the state dict."""
        with torch.no_grad():
            for name, held, array in zip(self.names, self.state, arrays, strict=True):
                if held.shape != array.shape:
                    raise ValueError(f"array {name} must have shape {tuple(held.shape)}; got {array.shape}")
                held.copy_(torch.tensor(array))

    def arrays(self) -> list[NDArray[np.generic]]:
        """Return copies of all parameters and buffers, in the order of the state dict."""
        return [held.detach().cpu().numpy().copy() for held in self.state]

    def gradient(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the gradient of the mean loss of a batch plus lambda times the parameters.

        That of a frozen parameter is zero.

        Parameters
        ----------
        x : Tensor (b, ...)
            Inputs, scaled.
        y : Tensor (b, ...)
            Targets.
        """
        loss = self.objective.loss(self.model(x), y)
        gradient = torch.autograd.grad(loss, self._trained, materialize_grads=True)
        if self.weight_decay:
            gradient = tuple(g + self.weight_decay * p.detach() for g, p in zip(gradient, self._trained, strict=True))
        if len(self._trained) == len(self.parameters):
            return list(gradient)
        found = iter(gradient)
        return [next(found) if p.requires_grad else torch.zeros_like(p) for p in self.parameters]

    @contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Let layers that draw, such as dropout, draw from a seed; afterwards the global generators are as before."""
        if not self._moody:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def descend(self, direction: Sequence[Tensor], step: float) -> None:
        """Move the parameters by -step times a direction."""
        descend(self.parameters, direction, step)

    def scores(self, x: Tensor) -> Tensor:
        """Return the model's scores (b, ..., K), with its layers in evaluation mode."""
        if self._moody:
            self.model.eval()
        with torch.no_grad():
            scores = self._score(x)
        if self._moody:
            self.model.train()
        return scores

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return all metrics over samples, by name; see `Objective.evaluate`."""
        return self.objective.evaluate(self.scores, x, y)
