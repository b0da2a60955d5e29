"""Components (rules, pre-aggregators, attacks, ...) by name, and their one-string form.

A component is a frozen dataclass of hyperparameters that one file registers under a name. Its text is
``name(field=literal, ...)``; a chain of them is joined by ``|``. Python's own parser reads the text, so the literals
are Python's. Nothing in the text is ever executed.

Components from outside this package come from two places, which the first look-up of a name reads. An installed
distribution names its modules as entry points of a group such as ``flwr_robust.rules``. Your own module or file is a
plugin: `load_plugin` imports it. The environment variable FLWR_ROBUST_PLUGINS names it to processes that start later.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar, cast

from flwr_robust.core.fields import constraints, plain
from flwr_robust.errors import ConfigurationError, UnknownNameError

__all__ = [
    "PLUGINS",
    "Component",
    "JoinedRegistry",
    "Registry",
    "entry_points",
    "load_function",
    "load_plugin",
    "parse_chain",
    "plugin_of",
]

PLUGINS = "FLWR_ROBUST_PLUGINS"
"""The environment variable that names plugins: modules and files, separated by commas or as in PATH."""

_SEPARATORS = re.compile(f"[,{os.pathsep}]")
_LOADING = threading.RLock()
_FOUND: dict[str, dict[str, Any]] = {}


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
    group : str, optional
        The group of entry points that name other people's modules; imported then, too.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.group = group
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
            found = constraints(cls)
            for field in dataclasses.fields(cls):  # also there, for whoever lists a dataclass's fields
                if field.name in found:
                    field.metadata = MappingProxyType({**field.metadata, "constraint": found[field.name]})
            self._members[name] = cls  # type: ignore[assignment]
            return cls

        return enter

    def members(self) -> dict[str, type[C]]:
        """Return the registered classes by name, loading the package's modules, entry points and plugins first."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            folder = getattr(package, "__path__", ())  # a kind may also live in a single module
            for module in pkgutil.iter_modules(folder, f"{self.package}."):
                importlib.import_module(module.name)
            if self.group is not None:
                entry_points(self.group)
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
        """Make the component ``name`` from its fields; every mistake gets its own error message."""
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


def entry_points(group: str) -> dict[str, Any]:
    """Return the loaded objects of a group's entry points by their names, and import the plugins.

    An entry point that cannot be loaded is left out with a warning. So a broken distribution does no harm to users who
    do not need it.

    Parameters
    ----------
    group : str
        ``flwr_robust.rules`` (aggregators and pre-aggregators), ``flwr_robust.attacks`` (on data and messages, and
        faults), ``flwr_robust.partitions``, ``flwr_robust.tasks`` or ``flwr_robust.models``.

    Raises
    ------
    ConfigurationError
        If a module registers a name that is taken, or a plugin cannot be imported.
    """
    with _LOADING:
        if group not in _FOUND:
            _FOUND[group] = {}  # now: a module that is being loaded may look at what there is so far
            try:
                _FOUND[group].update(_loaded(group))
            except ConfigurationError:
                del _FOUND[group]  # it fails every time
                raise
        if named := _named_plugins():
            os.environ[PLUGINS] = os.pathsep.join(map(_import, named))
        return dict(_FOUND[group])


def _loaded(group: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in importlib.metadata.entry_points(group=group):
        try:
            found[entry.name] = entry.load()
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:  # another's module may raise anything
            owner = entry.dist.name if entry.dist else "unknown"
            warnings.warn(
                f"{group}: entry point '{entry.name} = {entry.value}' of the package {owner} cannot be loaded "
                f"({type(error).__name__}: {error}); repair, update or uninstall {owner}",
                RuntimeWarning,
                stacklevel=3,
            )
    return found


def load_plugin(plugin: str, owner: str = "plugin") -> None:
    """Import a module or a file, and so make its components known by their names.

    Processes that start later know the plugin, too: the environment variable FLWR_ROBUST_PLUGINS names it, unless it is
    of this package. The folder of a file comes last in the module search path, for components that are sent to other
    processes.

    Parameters
    ----------
    plugin : str
        The name of a module that can be imported, or the path of a file that ends in ``.py``.
    owner : str
        What error messages begin with.

    Raises
    ------
    ConfigurationError
        If there is no such module or file, if it cannot be imported, or if it registers a name that is taken.
    """
    known = _import(plugin, owner)
    if known.partition(".")[0] == __name__.partition(".")[0]:
        return  # every process has the modules of this package, and some lack what these need
    os.environ[PLUGINS] = os.pathsep.join(dict.fromkeys([*_named_plugins(), known]))


def plugin_of(cls: type) -> str:
    """Return the plugin, as the environment names it, that holds a class; empty if none does.

    Parameters
    ----------
    cls : type
        A registered component.
    """
    names = {Path(name).stem if name.endswith(".py") else name: name for name in _named_plugins()}
    return names.get(cls.__module__, "")


def load_function(text: str, what: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` or ``path/file.py:function`` names.

    The module is loaded as a plugin, so processes that start later find it, too.

    Parameters
    ----------
    text : str
        The module or file, a colon, and the name of a function or class in it.
    what : str
        What error messages call it.

    Raises
    ------
    ConfigurationError
        If there is no such module, file or function, or the module cannot be imported.

    Examples
    --------
    >>> load_function("math:hypot", "model")(3, 4)
    5.0
    """
    plugin, _, attribute = text.rpartition(":")
    if not plugin or not attribute.isidentifier():
        raise ConfigurationError(f"{what}: expected 'module:function' or 'path/file.py:function'; got {text!r}")
    load_plugin(plugin, f"{what} {text}")
    module = sys.modules[Path(plugin).stem if plugin.endswith(".py") else plugin]
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigurationError(f"{what}: {plugin} has no function {attribute!r}; correct {text!r}")
    return cast("Callable[..., Any]", found)


def _named_plugins() -> list[str]:
    """Return the plugins that the environment names."""
    return [text.strip() for text in _SEPARATORS.split(os.environ.get(PLUGINS, "")) if text.strip()]


def _import(plugin: str, owner: str = "plugin") -> str:
    """Import a plugin and return its name for other processes: a module's name, or a file's full path."""
    if not plugin.endswith(".py"):
        _import_module(plugin, plugin, owner)
        return plugin
    path = Path(plugin).expanduser().absolute()
    if _SEPARATORS.search(str(path)):
        raise ConfigurationError(
            f"{owner}: the path of a file must be without ',' and '{os.pathsep}'; got {path}: move the file"
        )
    if not path.is_file():
        raise ConfigurationError(f"{owner}: there is no file {path}; give the path of a Python file")
    if not path.stem.isidentifier():
        raise ConfigurationError(f"{owner}: {path} must have a name of letters, digits and '_'; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(path.stem)
    except ValueError:  # the main module has none
        spec = None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        other = "__main__" if spec is None else spec.origin or "a folder"
        raise ConfigurationError(f"{owner}: {path} has the name of another module, {other}; rename the file")
    _import_module(path.stem, str(path), owner)
    return str(path)


def _import_module(module: str, plugin: str, owner: str) -> None:
    try:
        importlib.import_module(module)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        raise ConfigurationError(
            f"{owner}: there is no module '{module}'; install it, or give the path of a file that ends in .py"
            if absent
            else f"{owner}: {plugin} cannot be imported ({type(error).__name__}: {error}); correct it"
        ) from error


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
        If the text is not of this form.
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
