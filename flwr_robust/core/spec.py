"""Components (rules, pre-aggregators, attacks, ...) by name, and their one-string form.

A component is a frozen dataclass of hyperparameters that one file registers under a name. Its text is
``name(field=literal, ...)``; a chain of them is joined by ``|``. Python's own parser reads the text, so the
literals are Python's, and nothing in it is ever evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

from flwr_robust.core.fields import constraints, plain
from flwr_robust.errors import ConfigurationError, UnknownNameError

__all__ = ["Component", "JoinedRegistry", "Registry", "parse_chain"]


@dataclasses.dataclass(frozen=True)
class Component:
    """A frozen dataclass of hyperparameters with a registered name and a text form.

    The fields are checked by their `constraints`. A class that checks several fields against each other does so in
    ``__post_init__``, after this one's.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the fields, which become Python's own numbers and tuples."""
        for name, constraint in constraints(type(self)).items():
            value = plain(getattr(self, name))
            constraint.check(self.name or type(self).__name__, name, value)
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """Write the component so that parsing the text gives an equal one."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = [
            f"{field.name}={values[field.name]!r}"
            for field in dataclasses.fields(self)
            if values[field.name] != field.default
        ]
        return f"{self.name}({', '.join(given)})"


C = TypeVar("C", bound=Component)
D = TypeVar("D", bound=Component)


class Registry(Generic[C]):
    """Components of one kind, found by listing the modules of one package (or in one module).

    Parameters
    ----------
    kind : str
        What error messages call a member: "aggregator", "attack", ...
    package : str
        The package whose modules register the members; imported at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, type[C]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[D]], type[D]]:
        """Return a class decorator that enters a component under ``name``.

        Parameters
        ----------
        name : str
            The name in configurations; a second component of the same name is an error.

        Raises
        ------
        ConfigurationError
            If the name is taken.
        """

        def enter(cls: type[D]) -> type[D]:
            holder = self._members.get(name)
            if holder is not None and (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ConfigurationError(
                    f"{self.kind} '{name}' is registered twice: by {holder.__module__} and by "
                    f"{cls.__module__}; rename one"
                )
            cls.name = name
            for field in dataclasses.fields(cls):  # also there, for whoever lists a dataclass's fields
                if constraint := constraints(cls).get(field.name):
                    field.metadata = MappingProxyType({**field.metadata, "constraint": constraint})
            self._members[name] = cls  # type: ignore[assignment]
            return cls

        return enter

    def members(self) -> dict[str, type[C]]:
        """Return the registered classes by name, loading the package's modules first."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            folder = getattr(package, "__path__", ())  # a kind may also live in a single module
            for module in pkgutil.iter_modules(folder, f"{self.package}."):
                importlib.import_module(module.name)
            self._loaded = True  # only now: a module that failed to import fails every time
        return dict(sorted(self._members.items()))

    def get(self, name: str) -> type[C]:
        """Return the class registered under ``name``.

        Raises
        ------
        UnknownNameError
            If there is none; the message lists the names that exist.
        """
        members = self.members()
        if name not in members:
            raise UnknownNameError(self.kind, name, members)
        return members[name]

    def build(self, name: str, fields: dict[str, Any]) -> C:
        """Make the component ``name`` from its fields, wording every mistake."""
        cls = self.get(name)
        known = {field.name: field for field in dataclasses.fields(cls)}
        for field in fields:
            if field not in known:
                raise UnknownNameError(f"field of {name}", field, known)
        missing = [
            field.name for field in known.values() if field.default is dataclasses.MISSING and field.name not in fields
        ]
        if missing:
            raise ConfigurationError(f"{name}: {', '.join(missing)} must be given, e.g. {name}({missing[0]}=...)")
        return cls(**fields)

    def parse(self, text: str) -> C:
        """Parse one component, ``name`` or ``name(field=literal, ...)``."""
        chain = parse_chain(text, self.kind)
        if len(chain) != 1:
            raise ConfigurationError(f"one {self.kind} is expected, without '|'; got '{text}'")
        return self.build(*chain[0])


class JoinedRegistry(Registry[C]):
    """Several registries under one flat set of names.

    Parameters
    ----------
    kind : str
        What error messages call a member.
    *registries : Registry
        Where the members are registered; a name that two of them hold is an error at the first look-up.
    """

    def __init__(self, kind: str, *registries: Registry[Any]) -> None:
        super().__init__(kind, ", ".join(registry.package for registry in registries))
        self._registries = registries

    def members(self) -> dict[str, type[C]]:
        """Return the classes of all registries by name."""
        for registry in self._registries:
            for name, cls in registry.members().items():
                self.register(name)(cls)
        return dict(sorted(self._members.items()))


def parse_chain(text: str, kind: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """Split ``"a(x=1) | b"`` into ``[("a", {"x": 1}), ("b", {})]``.

    Parameters
    ----------
    text : str
        Names with literal keyword fields, joined by ``|``.
    kind : str
        What error messages call the text.

    Raises
    ------
    ConfigurationError
        If the text is no such chain.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"{kind}: expected text such as 'name(field=1)'; got {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigurationError(
            f"{kind}: cannot read '{text}'; write 'name(field=value, ...)', stages joined by '|'"
        ) from None
    stages: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        stages.append(tree.right)
        tree = tree.left
    stages.append(tree)
    return [_stage(node, text, kind) for node in reversed(stages)]


def _stage(node: ast.expr, text: str, kind: str) -> tuple[str, dict[str, Any]]:
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ConfigurationError(f"{kind}: '{ast.unparse(node)}' in '{text}' is not of the form name(field=value, ...)")
    name = node.func.id
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ConfigurationError(f"{name}: name every field, as in {name}(field=value); got '{text}'")
    fields: dict[str, Any] = {}
    for keyword in node.keywords:
        assert keyword.arg is not None
        if keyword.arg in fields:
            raise ConfigurationError(f"{name}: field {keyword.arg} is given twice in '{text}'")
        try:
            fields[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ConfigurationError(
                f"{name}: {keyword.arg} must be a literal (number, text, True, None, list); "
                f"got '{ast.unparse(keyword.value)}'"
            ) from None
    return name, fields
