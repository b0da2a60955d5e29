"""Errors, all under one root, and the checks that raise them in the same words.

Every message names the parameter, the bound and the value, and says what to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

__all__ = [
    "AuditError",
    "CheckpointError",
    "ConfigurationError",
    "DataUnavailableError",
    "FlwrRobustError",
    "InfeasibleError",
    "KnowledgeError",
    "LogInUseError",
    "MissingExtraError",
    "TamperedError",
    "UnknownNameError",
    "UntrainedError",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_number",
    "extra",
]


class FlwrRobustError(Exception):
    """Root of every error that flwr-robust raises on purpose."""


class ConfigurationError(FlwrRobustError, ValueError):
    """A parameter is outside its bounds; raised before any round starts."""


class UnknownNameError(ConfigurationError):
    """A name (rule, field, task, partition, attack) that is not known.

    Parameters
    ----------
    kind : str
        What the name should have been: "aggregator", "task", ...
    name : str
        The name that was given.
    allowed : iterable of str
        The names that exist.
    """

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        self._arguments = (kind, name, names := sorted(allowed))
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f". Did you mean '{near[0]}'? Allowed" if near else "; allowed"  # before the list, which may be long
        super().__init__(f"unknown {kind} '{name}'{hint}: {', '.join(names) or 'none'}.")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        """Rebuild the error from its arguments, not from its message, in another process."""
        return type(self), self._arguments


class InfeasibleError(FlwrRobustError, ValueError):
    """The number of rows is too small for the rule; nothing was aggregated."""


class UntrainedError(FlwrRobustError, RuntimeError):
    """A run has ended, and none of its rounds changed the model."""


class KnowledgeError(FlwrRobustError, RuntimeError):
    """An attack asked for something that its view does not allow.

    Parameters
    ----------
    asked : str
        What it asked for.
    needed : str
        The knowledge that allows it.
    granted : str
        The knowledge it has.
    """

    def __init__(self, asked: str, needed: str, granted: str) -> None:
        self._arguments = (asked, needed, granted)
        super().__init__(
            f"view: '{asked}' needs knowledge={needed!r}, but {granted!r} is granted; "
            f"grant more, or choose an attack that needs less"
        )

    def __reduce__(self) -> tuple[type[KnowledgeError], tuple[str, str, str]]:
        """Rebuild the error from its arguments, not from its message, in another process."""
        return type(self), self._arguments


class DataUnavailableError(FlwrRobustError, FileNotFoundError):
    """A data set is neither on disk nor downloadable; the message says how to get it."""


class MissingExtraError(FlwrRobustError, ModuleNotFoundError):
    """A package is missing that one of the project's extras installs.

    Parameters
    ----------
    module : str
        The module that cannot be imported.
    name : str
        The extra that installs it.
    """

    def __init__(self, module: str, name: str) -> None:
        self._arguments = (module, name)
        super().__init__(f"this needs {module}: pip install 'flwr-robust[{name}]'", name=module)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Rebuild the error from its arguments, not from its message, in another process."""
        return type(self), self._arguments


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra that installs a package, if an import inside fails because the package is missing.

    Parameters
    ----------
    name : str
        ``sim``, ``fast``, ``studies`` or ``datasets``, as pyproject.toml has them.

    Raises
    ------
    MissingExtraError
        If a package is missing.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or str(error)).split(".")[0], name) from None


class AuditError(FlwrRobustError, RuntimeError):
    """An audit log cannot be used: the file is not a log, or another process writes it."""


class LogInUseError(AuditError):
    """Another process has an audit log open and writes to it."""


class TamperedError(AuditError):
    """An audit log, or a checkpoint recorded in it, was changed after it was written."""


class CheckpointError(FlwrRobustError, RuntimeError):
    """A checkpoint is missing, damaged, or of another configuration.

    Parameters
    ----------
    sentence : str
        What is wrong and what to do.
    offered : int, optional
        The round of the latest intact checkpoint before it, if there is one.
    """

    def __init__(self, sentence: str, offered: int | None = None) -> None:
        self.offered = offered
        super().__init__(sentence)

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, int | None]]:
        """Keep the offered round when the error is sent to another process."""
        return type(self), (str(self), self.offered)


def check_flag(owner: str, field: str, value: object) -> None:
    """Raise unless ``value`` is True or False.

    Parameters
    ----------
    owner : str
        The owner of the parameter, which opens the sentence.
    field : str
        The parameter's name.
    value : object
        The given value.

    Raises
    ------
    ConfigurationError
        If ``value`` is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{owner}: {field} must be True or False; got {field}={value!r}")


def check_integer(owner: str, field: str, value: object, minimum: int, *, words: Sequence[str] = ()) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``, or one of some words.

    Parameters
    ----------
    owner : str
        The owner of the parameter, which opens the sentence.
    field : str
        The parameter's name.
    value : object
        The given value; numpy's integers are integers, booleans are not.
    minimum : int
        The smallest value allowed.
    words : sequence of str
        Words that are allowed beside integers, such as ``auto``.

    Raises
    ------
    ConfigurationError
        If ``value`` is of another type or below ``minimum``.
    """
    if isinstance(value, str) and value in words:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        wanted = " or ".join([*map(repr, words), f"an integer >= {minimum}"])
        raise ConfigurationError(f"{owner}: {field} must be {wanted}; got {field}={value!r}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def check_number(
    owner: str,
    field: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    words: Sequence[str] = (),
) -> None:
    """Raise unless ``value`` is a finite number inside the named bounds, or one of some words.

    Parameters
    ----------
    owner : str
        The owner of the parameter, which opens the sentence.
    field : str
        The parameter's name.
    value : object
        The given value.
    above, below : float, optional
        Exclusive bounds.
    minimum, maximum : float, optional
        Inclusive bounds.
    words : sequence of str
        Words that are allowed beside numbers, such as ``auto``.

    Raises
    ------
    ConfigurationError
        If ``value`` is not a finite number or outside the bounds.
    """
    if isinstance(value, str) and value in words:
        return
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", minimum), ("<", below), ("<=", maximum))
        if bound is not None
    ]
    given: Any = value
    inside = (
        isinstance(value, Real)  # numpy's numbers are among them, its booleans are not
        and not isinstance(value, bool | Fraction)  # which tensors do not take
        and _finite(given)
        and (above is None or given > above)
        and (minimum is None or given >= minimum)
        and (below is None or given < below)
        and (maximum is None or given <= maximum)
    )
    if not inside:
        wanted = " or ".join([*map(repr, words), " and ".join(["a finite number", *bounds])])
        raise ConfigurationError(f"{owner}: {field} must be {wanted}; got {field}={value!r}")


def check_choice(owner: str, field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Parameters
    ----------
    owner : str
        The owner of the parameter, which opens the sentence.
    field : str
        The parameter's name.
    value : object
        The given value.
    allowed : iterable of str
        The values that exist.

    Raises
    ------
    ConfigurationError
        If ``value`` is not among ``allowed``.
    """
    names = sorted(allowed)
    if value not in names:
        raise ConfigurationError(f"{owner}: {field} must be one of {', '.join(names)}; got {field}={value!r}")
