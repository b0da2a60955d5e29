"""Variables of a study: names in braces inside the texts of its values.

defence = "nnm(f={f}) | trimmed_mean(f={f})"     with f = 2 is nnm(f=2) | trimmed_mean(f=2)

Braces hold the name of a variable, or of a key of the run config with underscores. They also hold arithmetic of
numbers and names with + - * / // % and parentheses: ``multi_krum(f={f}, m={n-f})``. A variable is any name that is
no key of the run config. Its own text may hold braces, too. A text that is one pair of braces alone takes the type
of its content: ``clients = "{3*f+1}"`` is a number. ``{{`` and ``}}`` stand for braces.

Two variables also set a key: ``n`` sets ``clients``, and ``f`` sets ``attackers``. So ``n`` and ``clients`` cannot both
be given. Where ``attackers`` is given or the attack is ``none``, ``f`` sets nothing: the declared and the real f may
differ.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import KEYS

__all__ = ["Filled", "fill", "is_scalar"]

_PART = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")
_ALONE = re.compile(r"\{[^{}]*\}")

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
    }
)


@dataclass(frozen=True)
class Filled:
    """The keys of one cell.

    Attributes
    ----------
    keys : dict of str to object
        Keys of the run config, without braces and variables.
    used : frozenset of str
        The variables that had an effect.
    by_f : bool
        Whether ``f`` set the number of attackers.
    """

    keys: dict[str, object]
    used: frozenset[str]
    by_f: bool


def is_scalar(value: object) -> bool:
    """Say whether a value is a text, a number or a boolean."""
    return isinstance(value, str | int | float)


def fill(values: Mapping[str, object]) -> Filled:
    """Replace the braces in a cell's values, and apply ``n`` and ``f``.

    Parameters
    ----------
    values : mapping of str to object
        Keys of the run config, with hyphens, and variables.

    Raises
    ------
    ConfigurationError
        If a name in braces is unknown or stands for itself, or arithmetic is not possible.

    Examples
    --------
    >>> fill({"defence": "nnm(f={f}) | multi_krum(f={f}, m={n-f})", "attack": "alie()", "f": 2, "n": 11}).keys
    {'defence': 'nnm(f=2) | multi_krum(f=2, m=9)', 'attack': 'alie()', 'clients': 11, 'attackers': 2}
    >>> fill({"defence": "{before}{rule}", "before": "nnm(f={f}) | ", "rule": "krum(f={f})", "f": 1}).keys["defence"]
    'nnm(f=1) | krum(f=1)'
    """
    if "n" in values and "clients" in values:
        raise ConfigurationError(
            f"n sets clients, so only one of them can be given; got n={values['n']!r} and "
            f"clients={values['clients']!r}: leave one out"
        )
    cell = _Cell(values)
    keys = {name: cell.value(name) for name in values if name in KEYS}
    if "n" in values:
        keys["clients"] = cell.value("n")
    by_f = "f" in values and "attackers" not in values and keys.get("attack", "none") != "none"
    if by_f:
        keys["attackers"] = cell.value("f")
    return Filled(keys, frozenset(cell.used | ({"n"} & values.keys()) | ({"f"} if by_f else set())), by_f)


class _Cell:
    """The values of a cell; each is filled when it is asked for."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values
        self.used: set[str] = set()
        self._asked: list[str] = []  # the names on the way to the present one

    def value(self, name: str) -> object:
        """Return the value of a variable or a key with its braces replaced."""
        value = self.values[name] if name in self.values else KEYS[name].default
        if name not in KEYS and not is_scalar(value):
            raise ConfigurationError(f"variable {name} must be a text, a number or a boolean; got {value!r}")
        if not isinstance(value, str):
            return value
        if name in self._asked:
            raise ConfigurationError(f"{' asks for '.join([*self._asked, name])}: a name cannot stand for itself")
        self._asked.append(name)
        try:
            if _ALONE.fullmatch(value):
                content = self._evaluated(value[1:-1], value)
                return str(content) if name in KEYS and KEYS[name].kind is str else content
            return _PART.sub(lambda part: self._written(part.group(), value), value)
        finally:
            self._asked.pop()

    def _written(self, part: str, text: str) -> str:
        if part in ("{{", "}}"):
            return part[0]
        if part in ("{", "}"):
            raise ConfigurationError(
                f"{self._place(text)} has a brace without its partner: close it, or write {part * 2} for {part}"
            )
        return str(self._evaluated(part[1:-1], text))

    def _place(self, text: str) -> str:
        return f"{self._asked[-1]}={text!r}"

    def _evaluated(self, content: str, text: str) -> object:
        try:
            tree = ast.parse(content.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._not_arithmetic(text) from None
        try:
            return self._computed(tree.body, text)
        except (ZeroDivisionError, OverflowError) as error:
            raise ConfigurationError(f"{self._place(text)} cannot be computed: {error}") from None
        except RecursionError:
            raise self._not_arithmetic(text) from None

    def _computed(self, node: ast.expr, text: str) -> object:
        match node:
            case ast.Name():
                return self._named(node.id, text)
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return node.value
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand, text)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                left, right = (self._number(side, text) for side in (node.left, node.right))
                return _OPERATORS[type(node.op)](left, right)
        raise self._not_arithmetic(text)

    def _number(self, node: ast.expr, text: str) -> float:
        value = self._computed(node, text)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"{self._place(text)} computes with {ast.unparse(node)}, which is {value!r}")
        return value

    def _named(self, name: str, text: str) -> object:
        key = name.replace("_", "-")
        if name in self.values and name not in KEYS:
            self.used.add(name)
            return self.value(name)
        if name == "n":
            return self.value("clients")
        if key in KEYS:
            return self.value(key)
        known = ", ".join(sorted({*(name for name in self.values if name not in KEYS), "n"}))
        raise ConfigurationError(
            f"{self._place(text)} names {name} in braces, which is unknown; known are {known} and the keys of the run "
            f"config: set {name} in [config] or along an axis, or write {{{{ and }}}} for braces"
        )

    def _not_arithmetic(self, text: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._place(text)}: braces hold names, numbers, + - * / // % and parentheses; write {{{{ and }}}} for "
            f"braces themselves"
        )
