"""What a field of a component may hold, as data.

A component writes the constraint of a field beside its type:

    f: Annotated[int, Integer(minimum=0)]
    tau: Annotated[float | str, Number(above=0, words=("median",))] = "median"

The constraint gives the check when a component is made, the sentence that describes the field, and the values that the
generated tests try. A field whose type allows None may also be None.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_robust.errors import ConfigurationError, check_choice, check_flag, check_integer, check_number

__all__ = [
    "Choice",
    "Constraint",
    "Dictionary",
    "Either",
    "Flag",
    "Integer",
    "ListOf",
    "Number",
    "OrNone",
    "Text",
    "constraints",
    "plain",
]


@dataclass(frozen=True)
class Constraint(ABC):
    """What one field may hold."""

    @abstractmethod
    def check(self, owner: str, name: str, value: object) -> None:
        """Raise unless a field may hold a value.

        Parameters
        ----------
        owner : str
            The component; it opens the sentence.
        name : str
            The field.
        value : object
            What was given.

        Raises
        ------
        ConfigurationError
            If the value is not allowed; the message names component, field, bound and value.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return what is allowed in a few words, such as "integer >= 1"."""

    @abstractmethod
    def valid(self) -> tuple[Any, ...]:
        """Return examples of what is allowed, the bounds among them."""

    @abstractmethod
    def invalid(self) -> tuple[Any, ...]:
        """Return examples of what is refused, the nearest beyond each bound among them."""

    def admits(self, value: object) -> bool:
        """Say whether a field may hold a value."""
        try:
            self.check("", "", value)
        except ConfigurationError:
            return False
        return True

    def _refuse(self, owner: str, name: str, value: object) -> typing.NoReturn:
        raise ConfigurationError(f"{owner}: {name} must be {self.describe()}; got {name}={value!r}")


@dataclass(frozen=True)
class Flag(Constraint):
    """True or False.

    Examples
    --------
    >>> Flag().admits(True), Flag().admits(1)
    (True, False)
    """

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse all but True and False."""
        check_flag(owner, name, value)

    def describe(self) -> str:
        """Return "True or False"."""
        return "True or False"

    def valid(self) -> tuple[Any, ...]:
        """Return True and False."""
        return True, False

    def invalid(self) -> tuple[Any, ...]:
        """Return values that stand for True and False in other languages."""
        return 0, 1, "True", None


@dataclass(frozen=True)
class Integer(Constraint):
    """An integer of at least ``minimum``, or one of some words; booleans are not integers.

    Examples
    --------
    >>> Integer(minimum=1, words=("auto",)).describe()
    "integer >= 1 or 'auto'"
    """

    minimum: int
    words: tuple[str, ...] = ()

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse other types, smaller numbers and other words."""
        check_integer(owner, name, value, self.minimum, words=self.words)

    def describe(self) -> str:
        """Name the bound, and the words."""
        return " or ".join([f"integer >= {self.minimum}", *map(repr, self.words)])

    def valid(self) -> tuple[Any, ...]:
        """Return the bound, the number after it, and the words."""
        return self.minimum, self.minimum + 1, *self.words

    def invalid(self) -> tuple[Any, ...]:
        """Return the number before the bound, and other types."""
        return self.minimum - 1, self.minimum + 0.5, float(self.minimum), True, str(self.minimum), None, [self.minimum]


@dataclass(frozen=True)
class Number(Constraint):
    """A finite number within bounds, or one of some words; booleans are not numbers.

    Attributes
    ----------
    above, below : float, optional
        Exclusive bounds.
    minimum, maximum : float, optional
        Inclusive bounds.
    words : tuple of str
        What is allowed beside numbers.

    Examples
    --------
    >>> Number(above=0, maximum=1).describe()
    'number > 0 and <= 1'
    """

    _: dataclasses.KW_ONLY
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    words: tuple[str, ...] = ()

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse other types, numbers outside and other words."""
        check_number(
            owner,
            name,
            value,
            above=self.above,
            minimum=self.minimum,
            below=self.below,
            maximum=self.maximum,
            words=self.words,
        )

    def describe(self) -> str:
        """Name the bounds, and the words."""
        signs = ((">", self.above), (">=", self.minimum), ("<", self.below), ("<=", self.maximum))
        bounds = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None]
        return " or ".join([" ".join(["number", " and ".join(bounds)]).strip(), *map(repr, self.words)])

    def valid(self) -> tuple[Any, ...]:
        """Return a number inside, the bounds that are inclusive, and the words."""
        lower = self.above if self.minimum is None else self.minimum
        upper = self.below if self.maximum is None else self.maximum
        if lower is not None and upper is not None:
            inside = [(lower + upper) / 2]
        elif lower is not None or upper is not None:
            inside = [lower + 1.5 if lower is not None else typing.cast(float, upper) - 1.5]
        else:
            inside = [-1.5, 0, 1.5]
        return *inside, *(bound for bound in (self.minimum, self.maximum) if bound is not None), *self.words

    def invalid(self) -> tuple[Any, ...]:
        """Return what lies just outside, what is not finite, and other types."""
        outside = [bound for bound in (self.above, self.below) if bound is not None]
        outside += [math.nextafter(self.minimum, -math.inf)] if self.minimum is not None else []
        outside += [math.nextafter(self.maximum, math.inf)] if self.maximum is not None else []
        return *outside, math.nan, math.inf, -math.inf, 10**400, True, "1.0", None, [1.0]


@dataclass(frozen=True)
class Choice(Constraint):
    """One of a few texts, or of a few integers.

    Examples
    --------
    >>> Choice(("zero", "mean")).describe()
    'one of mean, zero'
    """

    allowed: Collection[str] | Collection[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed", tuple(sorted(self.allowed)))

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse all others; 1.0 and True are not 1."""
        if texts := [each for each in self.allowed if isinstance(each, str)]:
            check_choice(owner, name, value, texts)
        elif isinstance(value, bool) or not isinstance(value, int) or value not in self.allowed:
            self._refuse(owner, name, value)

    def describe(self) -> str:
        """List the allowed values."""
        texts = [str(each) for each in self.allowed]
        return f"one of {', '.join(texts)}" if len(texts) > 1 else repr(texts[0])

    def valid(self) -> tuple[Any, ...]:
        """Return all allowed values."""
        return tuple(self.allowed)

    def invalid(self) -> tuple[Any, ...]:
        """Return another text or number, and other types."""
        *_, last = self.allowed
        if isinstance(last, str):
            return "no such choice", "", 0, True, None, [last]
        return last + 1, float(last), True, str(last), None


@dataclass(frozen=True)
class Text(Constraint):
    """A text whose meaning is checked elsewhere.

    Attributes
    ----------
    what : str
        The description, with its article: "the name of an array".
    example : str
        An allowed text.
    """

    what: str
    example: str

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse anything but text."""
        if not isinstance(value, str):
            self._refuse(owner, name, value)

    def describe(self) -> str:
        """Return the description of the text."""
        return self.what

    def valid(self) -> tuple[Any, ...]:
        """Return the example."""
        return (self.example,)

    def invalid(self) -> tuple[Any, ...]:
        """Return other types."""
        return 3, True, None, [self.example], self.example.encode()


@dataclass(frozen=True)
class ListOf(Constraint):
    """At least one item, each of which meets a constraint.

    Examples
    --------
    >>> ListOf(Integer(minimum=1)).describe()
    'a list, not empty, of: integer >= 1'
    """

    item: Constraint

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse anything but a list or tuple, an empty one, and each item that is not allowed."""
        if not isinstance(value, list | tuple) or not value or not all(map(self.item.admits, value)):
            self._refuse(owner, name, value)

    def describe(self) -> str:
        """Say what its items are."""
        return f"a list, not empty, of: {self.item.describe()}"

    def valid(self) -> tuple[Any, ...]:
        """Return a list of all allowed items, and a list of a single item."""
        items = self.item.valid()
        return tuple(items), [items[0]]

    def invalid(self) -> tuple[Any, ...]:
        """Return an empty list, values that are no list, and lists with one refused item."""
        good = self.item.valid()[0]
        return (), [], None, {good: good}, *((good, bad) for bad in self.item.invalid())


@dataclass(frozen=True)
class Dictionary(Constraint):
    """Values by name; which names are allowed is checked where they are used.

    Attributes
    ----------
    example : sequence of (str, value)
        The items of an allowed dictionary.

    Examples
    --------
    >>> Dictionary((("size", 3),)).admits({"any": "value"}), Dictionary((("size", 3),)).admits({3: "value"})
    (True, False)
    """

    example: tuple[tuple[str, Any], ...]

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse anything but a dictionary whose keys are names."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
            self._refuse(owner, name, value)

    def describe(self) -> str:
        """Say what the keys are."""
        return "a dictionary of values by name"

    def valid(self) -> tuple[Any, ...]:
        """Return the example, and a dictionary without items."""
        return dict(self.example), {}

    def invalid(self) -> tuple[Any, ...]:
        """Return other types, and keys that are no names."""
        return list(self.example), "size=3", 3, {3: 1}, {"a b": 1}


@dataclass(frozen=True)
class Either(Constraint):
    """What one of two constraints allows."""

    first: Constraint
    second: Constraint

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse what both constraints refuse."""
        if not (self.first.admits(value) or self.second.admits(value)):
            self._refuse(owner, name, value)

    def describe(self) -> str:
        """Join both descriptions."""
        return f"{self.first.describe()}, or {self.second.describe()}"

    def valid(self) -> tuple[Any, ...]:
        """Return what each constraint allows."""
        return *self.first.valid(), *self.second.valid()

    def invalid(self) -> tuple[Any, ...]:
        """Return what both constraints refuse."""
        return tuple(value for value in (*self.first.invalid(), *self.second.invalid()) if not self.admits(value))


@dataclass(frozen=True)
class OrNone(Constraint):
    """None, or what a constraint allows."""

    other: Constraint

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuse what the constraint refuses, except None."""
        if value is not None:
            self.other.check(owner, name, value)

    def describe(self) -> str:
        """Name None last."""
        return f"{self.other.describe()}, or None"

    def valid(self) -> tuple[Any, ...]:
        """Return None and what the constraint allows."""
        return *self.other.valid(), None

    def invalid(self) -> tuple[Any, ...]:
        """Return what the constraint refuses, except None."""
        return tuple(value for value in self.other.invalid() if value is not None)


def constraints(cls: type) -> Mapping[str, Constraint]:
    """Return the constraints of a dataclass's fields by name; a field without one is left out.

    Parameters
    ----------
    cls : type
        The dataclass.

    Raises
    ------
    ConfigurationError
        If the annotations cannot be read.

    Examples
    --------
    >>> from flwr_robust.aggregators import Krum
    >>> constraints(Krum)["f"].describe()
    'integer >= 0'
    """
    return _read(cls)


@functools.cache
def _read(cls: type) -> Mapping[str, Constraint]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(
            f"{cls.__name__}: the types of its fields cannot be read ({error}); import or define them at the top of "
            f"its module"
        ) from error
    found = {}
    for name, hint in hints.items():  # not the dataclass's fields: it may be registered before it is made one
        constraint = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Constraint)), None)
        if constraint is not None:
            found[name] = OrNone(constraint) if _takes_none(typing.get_args(hint)[0]) else constraint
    return types.MappingProxyType(found)


def _takes_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def plain(value: Any) -> Any:
    """Return Python's own number for numpy's, and a tuple for a list, as texts and hashes need them.

    Examples
    --------
    >>> plain([np.float64(0.5), 1])
    (0.5, 1)
    """
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
