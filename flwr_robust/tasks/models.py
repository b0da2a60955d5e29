"""Models by name, initialised from a seed and nothing else: those of the studies, and a user's own.

A user's model is a function (input shape, classes) -> nn.Module. It is named as ``module:function``, as an entry point
of the group ``flwr_robust.models``, or by an entry in `MODELS`. It may hold any layers. It is built on the CPU, and
what it draws from PyTorch's global generator comes from the run's seed. A function with a parameter ``vocabulary`` is
also given the number of tokens of the task, for its ``nn.Embedding``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from flwr_robust.core.spec import entry_points, load_function
from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.seeds import derive, torch_generator

__all__ = ["MODELS", "build_model", "check_model_name", "depends_on_data", "model_outline", "model_sketch"]

Shape = tuple[int, ...]
Maker = Callable[..., nn.Module]


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


def _dropout_cnn(shape: Shape, classes: int) -> nn.Module:
    return _convolutional("dropout_cnn", shape, classes, 8, 64, nn.Dropout(0.5))


def _convolutional(name: str, shape: Shape, classes: int, width: int, units: int, *before: nn.Module) -> nn.Module:
    """Return two convolutions and two linear layers, with modules before the linear ones."""
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
        *before,
        nn.Linear(2 * width * math.prod(side // 4 for side in sides), units),
        nn.ReLU(),
        nn.Linear(units, classes),
    )


class _Characters(nn.Module):
    """A recurrent network that reads token numbers, and scores the next one."""

    def __init__(self, cells: type[nn.GRU | nn.LSTM], units: int, layers: int, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.cells = cells(8, units, layers, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (b, K) of token numbers (b, L)."""
        scores: torch.Tensor = self.head(self.cells(self.embedding(x))[0][:, -1])
        return scores


def _char_gru(shape: Shape, classes: int, vocabulary: int) -> nn.Module:
    return _Characters(nn.GRU, 128, 1, vocabulary, classes)


def _char_lstm(shape: Shape, classes: int, vocabulary: int) -> nn.Module:
    return _Characters(nn.LSTM, 256, 2, vocabulary, classes)


_OWN: dict[str, Maker] = {
    "cnn": _cnn,
    "dropout_cnn": _dropout_cnn,
    "mlp": _mlp,
    "small_cnn": _small_cnn,
    "softmax": _softmax,
}
"""Models of real numbers, whose layers are all filled below."""

_CHARACTERS: dict[str, Maker] = {"char_gru": _char_gru, "char_lstm": _char_lstm}
"""Models of token numbers."""

MODELS: dict[str, Maker] = {**_OWN, **_CHARACTERS}
"""Builders by model name; each takes the shape of one input and the number of scores.

softmax: softmax regression with bias (7,850 parameters on MNIST). mlp: two hidden layers of 50 with ReLU (42,310).
cnn: two 3x3 convolutions of 16 and 32 channels, each with ReLU and max-pooling, then 128 units (268,650 on CIFAR-10).
They are the models of Peng et al., JMLR 26 (2025). small_cnn: cnn with half of all channels and units, 8, 16 and 64
(52,138 on Fashion-MNIST). dropout_cnn: small_cnn with dropout of one half before the first linear layer. MixTailor
(TMLR 2022) has two convolutions, dropout and two linear layers; the widths and the place of dropout are ours.

The others read token numbers, and also take the size of the vocabulary. Each embeds a token in 8 numbers. char_lstm:
two layers of 256 LSTM units, the model of LEAF (Caldas et al., arXiv:1812.01097) for ``shakespeare`` (815,945).
char_gru: one layer of 128 GRU units, for CPUs (61,897). PyTorch initialises them, as it does a model of a user's.
"""


def _maker(name: str) -> Maker:
    """Return the function that makes a model."""
    if ":" in name:
        return load_function(name, "model")
    others = {} if name in MODELS else entry_points("flwr_robust.models")
    makers = {**others, **MODELS}
    if name not in makers:
        raise UnknownNameError("model", name, [*makers, "<module>:<function>"])
    maker: Maker = makers[name]
    return maker


def check_model_name(name: str) -> None:
    """Raise if there is no model of a name.

    Raises
    ------
    UnknownNameError
        If no model has this name.
    ConfigurationError
        If ``module:function`` cannot be loaded.
    """
    _maker(name)


def model_outline(
    name: str, shape: Shape, classes: int, vocabulary: int = 0, seed: int = 0, scores: Shape = ()
) -> nn.Module:
    """Return a model for its layers and shapes alone; the numbers in it mean nothing.

    Parameters
    ----------
    name, shape, classes, vocabulary, seed, scores
        As for `build_model`.
    """
    if not _is_own(name):
        return build_model(name, shape, classes, seed, vocabulary, scores)
    if vocabulary:
        raise ConfigurationError(
            f"model {name} computes with real numbers, and the task's inputs are token numbers below {vocabulary}: "
            f"take a model that embeds them"
        )
    if scores not in ((), (classes,)):
        raise ConfigurationError(
            f"model {name} gives scores of shape ({classes},) for an input, and the task's targets need {scores}: take "
            f"a model that scores the next token at each position"
        )
    with torch.device("meta"):
        return MODELS[name](shape, classes)


def model_sketch(name: str) -> nn.Module | None:
    """Return a model with the names of the arrays, and their numbers of dimensions, that it has for every task.

    None for a model of a user's, which may depend on the task. No data are read.

    Parameters
    ----------
    name : str
        As for `build_model`.

    Examples
    --------
    >>> list(model_sketch("char_gru").state_dict())[:2]
    ['embedding.weight', 'cells.weight_ih_l0']
    """
    if _is_own(name):
        return model_outline(name, (1, 8, 8), 2)
    if name in _CHARACTERS and MODELS.get(name) is _CHARACTERS[name]:
        with torch.device("meta"):
            return _CHARACTERS[name]((2,), 2, vocabulary=2)
    return None


def depends_on_data(name: str) -> bool:
    """Say whether the names and dimensions of a model's arrays may depend on the task.

    Examples
    --------
    >>> depends_on_data("mlp"), depends_on_data("module:function")
    (False, True)
    """
    return not _is_own(name)


def _is_own(name: str) -> bool:
    return name in _OWN and MODELS.get(name) is _OWN[name]


def build_model(name: str, shape: Shape, classes: int, seed: int, vocabulary: int = 0, scores: Shape = ()) -> nn.Module:
    """Build a model with its own initialisation, drawn from the seed.

    Parameters
    ----------
    name : str
        ``softmax``, ``mlp``, ``cnn``, ``small_cnn`` or ``dropout_cnn``, or ``char_gru`` or ``char_lstm`` for token
        numbers. All have PyTorch's default initialisation. Or a model of the user's: ``module:function``, or a name in
        `MODELS` or among the entry points.
    shape : tuple of int
        Shape of one input.
    classes : int
        K, the number of scores.
    seed : int
        The run's seed; afterwards the global generator is as it was before.
    vocabulary : int
        The number of tokens that inputs may hold, as `Task.vocabulary` has it; 0: inputs are real numbers.
    scores : tuple of int
        Shape of the scores of one input, as `Task.scores` has it; (classes,) if it is empty.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    ConfigurationError
        If a user's function fails, or what it makes is no model of such inputs: scores of the right shape, at least one
        trainable parameter, and finite numbers throughout. If inputs or targets are token numbers, and the model is one
        of the five for real numbers.

    Examples
    --------
    >>> sum(p.numel() for p in build_model("softmax", (1, 28, 28), 10, seed=0).parameters())
    7850
    """
    if not _is_own(name):
        return _built(name, shape, classes, seed, vocabulary, scores or (classes,))
    model = model_outline(name, shape, classes, vocabulary, seed, scores).to_empty(device="cpu")
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


def _built(name: str, shape: Shape, classes: int, seed: int, vocabulary: int, scores: Shape) -> nn.Module:
    """Return a user's model; a process builds it once, and copies it."""
    given = _maker(name), name, shape, classes, seed, vocabulary, scores
    known = _first_built(*given)
    try:
        return copy.deepcopy(known)
    except Exception:  # a user's module may hold what cannot be copied
        return _first_built.__wrapped__(*given)


@lru_cache(maxsize=4)
def _first_built(
    make: Maker, name: str, shape: Shape, classes: int, seed: int, vocabulary: int, scores: Shape
) -> nn.Module:
    """Build a user's model on the CPU, and check it."""
    also = {"vocabulary": vocabulary} if _asks_for(make, "vocabulary") else {}
    if also and not vocabulary:
        raise ConfigurationError(
            f"model {name} embeds token numbers, and the task's inputs are real numbers: take another model, or a task "
            f"whose tokens is True"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model", name.rpartition(":")[2]))  # wherever the file lies
        try:
            with torch.device("cpu"):
                model = make(shape, classes, **also)
        except Exception as error:  # a function of the user's may raise anything
            raise ConfigurationError(
                f"model {name}: making it for inputs {shape} and {classes} classes fails "
                f"({type(error).__name__}: {error}); correct the function"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"model {name}: its function must return an nn.Module; got {type(model).__name__}")
        _check_numbers(name, model)
        zeros = torch.zeros(2, *shape, dtype=torch.int64 if vocabulary else torch.float32)
        _check_scores(name, model, zeros, scores)
    return model


def _asks_for(make: Maker, parameter: str) -> bool:
    """Say whether a function has a parameter of this name."""
    try:
        return parameter in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return False


def _check_numbers(name: str, model: nn.Module) -> None:
    for key, array in model.state_dict().items():
        if array.is_floating_point() and not bool(array.isfinite().all()):
            raise ConfigurationError(f"model {name}: its array {key} holds NaN or Inf; initialise it")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigurationError(f"model {name}: it has no trainable parameter; leave at least one unfrozen")


def _check_scores(name: str, model: nn.Module, inputs: torch.Tensor, shape: Shape) -> None:
    """Raise unless the model turns two inputs into scores (2, *shape)."""
    trains, asked = model.training, (2, *shape)
    try:
        with torch.no_grad():
            scores = model.eval()(inputs)
    except Exception as error:
        kind = "inputs" if inputs.is_floating_point() else "token numbers (int64)"
        raise ConfigurationError(
            f"model {name}: it fails on {kind} of shape {tuple(inputs.shape)} "
            f"({type(error).__name__}: {error}); make it for this task"
        ) from error
    model.train(trains)
    got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != asked:
        raise ConfigurationError(
            f"model {name}: for 2 inputs it must return scores of shape {asked}; got {got}: correct the function"
        )
