"""The models of the studies, initialised from a seed and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.seeds import torch_generator

__all__ = ["MODELS", "build_model"]

Shape = tuple[int, ...]


def _softmax(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def _mlp(shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 50),
        nn.ReLU(),
        nn.Linear(50, 50),
        nn.ReLU(),
        nn.Linear(50, classes),
    )


def _cnn(shape: Shape, classes: int) -> nn.Module:
    return _convolutional("cnn", shape, classes, 16, 128)


def _small_cnn(shape: Shape, classes: int) -> nn.Module:
    return _convolutional("small_cnn", shape, classes, 8, 64)


def _convolutional(name: str, shape: Shape, classes: int, width: int, units: int) -> nn.Module:
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ConfigurationError(f"model {name} needs images (channels, height >= 4, width >= 4); got inputs {shape}")
    channels, *sides = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * math.prod(side // 4 for side in sides), units),
        nn.ReLU(),
        nn.Linear(units, classes),
    )


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "cnn": _cnn,
    "mlp": _mlp,
    "small_cnn": _small_cnn,
    "softmax": _softmax,
}
"""Builders by model name; each takes the shape of one input and the number of classes.

softmax: softmax regression with bias (7,850 parameters on MNIST). mlp: two hidden layers of 50 with ReLU (42,310).
cnn: two 3x3 convolutions of 16 and 32 channels, each with ReLU and max-pooling, then 128 units (268,650 on CIFAR-10).
They are the models of Peng et al., JMLR 26 (2025). small_cnn: cnn with half of all channels and units, 8, 16 and 64
(52,138 on Fashion-MNIST).
"""


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model with PyTorch's default initialisation, drawn from the seed.

    Parameters
    ----------
    name : str
        ``softmax``, ``mlp``, ``cnn`` or ``small_cnn``.
    shape : tuple of int
        Shape of one input.
    classes : int
        K.
    seed : int
        The run's seed; the global generator is neither read nor advanced.

    Raises
    ------
    UnknownNameError
        If there is no such model.

    Examples
    --------
    >>> sum(p.numel() for p in build_model("softmax", (1, 28, 28), 10, seed=0).parameters())
    7850
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    with torch.device("meta"):
        model = MODELS[name](shape, classes)
    model = model.to_empty(device="cpu")
    generator = torch_generator(seed, "model", name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                # kaiming_uniform with a = sqrt(5) is U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), as is the bias.
                bound = 1 / math.sqrt(fan_in)
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
    return model
