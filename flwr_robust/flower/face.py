"""Face: the constructor call, the text and the end of a run of strategies with a guard.

The constructors take named parameters only. A value without a name, or an unknown name, raises an error that says what
to write. The text (``repr``) of a strategy is the call that made it, on one line.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from flwr_robust.core.rule import Rule
from flwr_robust.errors import ConfigurationError, UnknownNameError
from flwr_robust.flower.loop import Guarding

__all__ = ["Face"]

log = logging.getLogger("flwr")

_BY_NAME = inspect.Parameter.KEYWORD_ONLY
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FITTED = ("min_train_nodes", "min_available_nodes")  # the rule determines their defaults
_SIMPLE = (str, int, float, tuple)
_LONGEST = 80


class Face(Guarding):
    """What callers see of a strategy with a guard.

    A subclass may have another constructor; its calls are not checked here.
    """

    _options: ClassVar[Collection[str]] = ()  # what the constructor accepts as ``**options``
    _made: Mapping[str, Any]  # the arguments of the constructor

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Make a strategy after checking the call.

        Raises
        ------
        ConfigurationError, UnknownNameError
            If a value is given without a name, or a name is unknown.
        """
        parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
        if cls.__init__.__module__.partition(".")[0] == __name__.partition(".")[0]:
            _check_call(cls, parameters, values, options)
        made = super().__new__(cls)
        by_place = [parameter.name for parameter in parameters if parameter.kind in _BY_PLACE]
        made._made = {**dict(zip(by_place, values, strict=False)), **options}
        return made

    def __repr__(self) -> str:
        """Return the call that made the strategy on one line, without arguments equal to their defaults."""
        kind = type(self)
        by_place = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.kind in _BY_PLACE]
        defaults = _defaults(kind)
        parts = [
            _shown(value) if name in by_place else f"{name}={_shown(value)}"
            for name, value in getattr(self, "_made", {}).items()
            if not _same(value, defaults.get(name, inspect.Parameter.empty))
        ]
        return f"{kind.__name__}({', '.join(parts)})"

    def initialize_parameters(self, client_manager: object) -> NoReturn:
        """Raise; ``ServerApp(server_fn=...)`` and Flower's legacy workflows call this method first.

        Raises
        ------
        ConfigurationError
            Always: they run legacy strategies only.
        """
        raise ConfigurationError(
            f"{type(self).__name__}: ServerApp(server_fn=...) and workflows run Flower's legacy strategies only; write "
            f"a function main(grid, context) under @app.main() that calls strategy.start(grid, initial_arrays, "
            f"num_rounds)"
        )

    def _ends_before(self, server_round: int) -> bool:
        """Say whether the run ended before this round, so that no node is asked.

        If this strategy's `start` runs the loop over the rounds, the loop ends with the run. The loop of another
        strategy continues; a lower round number means that it has started another run.
        """
        guard = self.guard
        if guard.stopped and not self._stopped_before(server_round):
            guard.stopped = ""
        if guard.stopped:
            log.warning("configure_train: no node is asked: the run ended with round %s", self.history[-1].round)
            return True
        return False

    def _stopped_before(self, server_round: int) -> bool:
        """Say whether an earlier round stopped the run."""
        return bool(self.guard.stopped and self.history) and server_round > self.history[-1].round


def _check_call(
    cls: type[Face], parameters: list[inspect.Parameter], values: tuple[Any, ...], options: Mapping[str, Any]
) -> None:
    """Raise unless a constructor of this package is called correctly."""
    owner = cls.__name__
    by_place = [parameter.name for parameter in parameters if parameter.kind in _BY_PLACE]
    by_name = [parameter.name for parameter in parameters if parameter.kind is _BY_NAME]
    allowed = {*by_place, *by_name, *cls._options}
    if unknown := next((name for name in options if name not in allowed), None):
        raise UnknownNameError(f"option of {owner}", unknown, allowed)
    if len(values) > len(by_place):
        free = [name for name in [*by_name, *cls._options] if name not in options]
        named = zip(free, values[len(by_place) :], strict=False)
        written = [*map(_shown, values[: len(by_place)]), *(f"{name}={_shown(value)}" for name, value in named)]
        raise ConfigurationError(f"{owner}: name the parameter: {owner}({', '.join(written)})")


def _defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a class's constructor and of the constructors that receive its options."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        if isinstance(own := vars(each).get("__init__"), type(_defaults)):
            for parameter in inspect.signature(own).parameters.values():
                found.setdefault(parameter.name, parameter.default)
    return {name: default for name, default in found.items() if name not in _FITTED}


def _same(value: Any, default: Any) -> bool:
    """Say whether a value equals the default; for arrays and other objects, ``==`` may not return a boolean."""
    return value is default or (isinstance(value, _SIMPLE) and isinstance(default, _SIMPLE) and value == default)


def _shown(value: Any) -> str:
    """Return a value as written in a call, on one short line."""
    if isinstance(value, Rule):
        return repr(str(value))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        inside = ", ".join(_each(value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    own: object = type(value).__repr__
    text = f"{type(value).__name__}(...)" if own is object.__repr__ else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _each(values: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """Yield the first few values as written in a call."""
    most = 8
    yield from map(_shown, values[:most])
    if len(values) > most:
        yield "..."
