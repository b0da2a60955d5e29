"""The facts about a component, read from its file, its docstrings, its fields and its own checks.

Everything comes from the component itself, so third-party components are described in the same way.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flwr_robust.errors import FlwrRobustError

if TYPE_CHECKING:
    from flwr_robust.core.spec import Component, Registry

__all__ = ["KINDS", "describe", "fields", "registries", "signature", "summary"]

KINDS = {"rules": "rule", "preaggregators": "pre-aggregator", "attacks": "attack", "partitions": "partition"}
"""The kinds of components: the name of their list, and the name of one."""

_F = range(1, 6)  # the declared f for which the least n is shown
_CLIENTS = 10  # the number of clients of a run config without this key
_MOST = 500  # rows; a rule that does not fit any number up to this one fits none
_VALUES: Mapping[str, Any] = {  # values of required fields in examples
    "f": 2,
    "beta": 0.5,
    "c": 2.0,
    "epsilon": 1.0,
    "gamma": 0.66,
    "k": 2,
    "partitioner": "IidPartitioner",
    "pool": ["krum(f=1)", "median()"],
    "s": 2,
    "shares": (0.6, 10.2, 37.5, 51.7),
    "sigma": 1.0,
    "size": 1.0,
    "source": 1,
    "target": 7,
    "tau": 1.0,
}


def registries() -> dict[str, Registry[Any]]:
    """Return the registries of components by kind, with the names in `KINDS`."""
    from flwr_robust.attacks.registry import all_attacks
    from flwr_robust.core.rule import aggregators, preaggregators
    from flwr_robust.tasks.partition import partitions

    found = (aggregators, preaggregators, all_attacks, partitions)
    return dict(zip(KINDS, found, strict=True))


def signature(cls: type[Component]) -> str:
    """Return the text form of a component with the defaults of its fields: ``krum(f, variant='paper')``.

    Parameters
    ----------
    cls : type
        The class of the component.
    """
    parts = [
        field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"
        for field in dataclasses.fields(cls)
    ]
    return f"{cls.name}({', '.join(parts)})"


def summary(cls: type[Component]) -> dict[str, Any]:
    """Return the facts for a list of components: name, title, condition, signature, fields.

    Parameters
    ----------
    cls : type
        The class of the component.
    """
    title, *others = _paragraphs(cls)
    return {
        "name": cls.name,
        "title": _sentence(title),
        "condition": _labelled(others, "Condition", "Knows"),
        "signature": signature(cls),
        "fields": fields(cls),
    }


def describe(cls: type[Component], kind: str) -> dict[str, Any]:
    """Return all facts about a component.

    Parameters
    ----------
    cls : type
        The class of the component.
    kind : str
        The kind, as in `KINDS`.

    Returns
    -------
    dict
        The facts of `summary`, and kind, family (of an attack: data, message or fault), formula and text. Also least_n
        (by f, or under "" without f), lacks (case, property, reason), module, examples (text, python, run_config).
    """
    _, *others = _paragraphs(cls)
    formula = next((text for text in others if _is_formula(text)), "")
    text = [paragraph for paragraph in others if paragraph != formula]
    example = _example(cls)
    return {
        **summary(cls),
        "kind": kind,
        "family": _family(cls),
        "formula": inspect.cleandoc(formula),
        "text": [part if _is_formula(part) else " ".join(part.split()) for part in text],
        "least_n": _least_n(cls, example) if kind in ("rule", "pre-aggregator") else {},
        "lacks": _lacks(cls),
        "module": cls.__module__,
        "examples": _examples(cls, kind, example),
    }


def fields(cls: type[Component]) -> list[dict[str, Any]]:
    """Return the fields of a component: name, type, required, default, constraint, meaning.

    Parameters
    ----------
    cls : type
        The class of the component.
    """
    constraints, meanings = _constraints(cls), _meanings(cls)
    return [
        {
            "name": field.name,
            "type": _type(field.type),
            "required": field.default is dataclasses.MISSING,
            "default": None if field.default is dataclasses.MISSING else field.default,
            "constraint": constraints.get(field.name, ""),
            "meaning": meanings.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]


# -- docstrings ------------------------------------------------------------------------------------


def _paragraphs(cls: type[Component]) -> list[str]:
    """Return the paragraphs of the file's docstring, or of the class's if the file holds several components."""
    module = sys.modules[cls.__module__]
    alone = sum(_registered(value, module.__name__) for value in vars(module).values()) == 1
    text = (inspect.getdoc(module) if alone else None) or inspect.getdoc(cls) or cls.name
    return re.split(r"\n\s*\n", re.split(r"\n\n\w+\n-{3,}\n", text)[0])


def _registered(value: object, module: str) -> bool:
    return inspect.isclass(value) and value.__module__ == module and bool(getattr(value, "name", ""))


def _is_formula(paragraph: str) -> bool:
    return all(line.startswith("    ") for line in paragraph.splitlines())


def _sentence(title: str) -> str:
    return " ".join(title.split())


def _labelled(paragraphs: list[str], *labels: str) -> str:
    """Return the paragraph that begins with one of the labels, without the label."""
    for paragraph in paragraphs:
        label, colon, text = paragraph.partition(": ")
        if colon and label in labels:
            return " ".join(text.split())
    return ""


def _meanings(cls: type[Component]) -> dict[str, str]:
    """Return the meaning of each attribute in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = (base.__doc__ or "").partition("Attributes\n")
        for names, text in _entries(inspect.cleandoc(section)):
            found |= dict.fromkeys(names, text)
    return found


def _entries(section: str) -> Iterator[tuple[list[str], str]]:
    """Yield the names and the text of each entry of a section."""
    names: list[str] = []
    lines: list[str] = []
    for line in section.splitlines():
        if re.match(r"\w+(, \w+)*\s*(:|$)", line):
            if names:
                yield names, " ".join(lines)
            names, lines = line.partition(":")[0].replace(" ", "").split(","), []
        elif line.startswith("    "):
            lines.append(line.strip())
        elif line and not line.startswith("-"):  # the next section
            break
    if names:
        yield names, " ".join(lines)


# -- fields ----------------------------------------------------------------------------------------


def _type(annotation: object) -> str:
    """Return a field's type as written, without annotations."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Annotated"):
        assert isinstance(node.slice, ast.Tuple)
        return ast.unparse(node.slice.elts[0])
    return text


def _constraints(cls: type[Component]) -> dict[str, str]:
    """Return the allowed values of each field in words."""
    from flwr_robust.core.fields import constraints

    return {name: constraint.describe() for name, constraint in constraints(cls).items()}


# -- examples --------------------------------------------------------------------------------------


def _example(cls: type[Component]) -> Component | None:
    """Return one instance with values for required fields; None if none can be made."""
    given = {
        field.name: _VALUES[field.name]
        for field in dataclasses.fields(cls)
        if field.name in _VALUES and (field.default is dataclasses.MISSING or field.name == "f")
    }
    try:
        return cls(**given)
    except (FlwrRobustError, TypeError):
        return _from_cases(cls)


def _from_cases(cls: type[Component]) -> Component | None:
    """Return the first single component of this class among the cases of its file."""
    for registry in registries().values():
        if cls.name in registry.members():
            for text, _ in _cases(cls):
                try:
                    return registry.parse(text)  # type: ignore[no-any-return]
                except FlwrRobustError:
                    continue
    return None


def _cases(cls: type[Component]) -> list[tuple[str, Mapping[str, str]]]:
    """Return the cases of a component's file: their text, and the properties that they lack with the reasons."""
    cases = getattr(sys.modules[cls.__module__], "CASES", ())
    texts = [(str(getattr(case, dataclasses.fields(case)[0].name)), getattr(case, "lacks", {})) for case in cases]
    return [(text, lacks) for text, lacks in texts if re.search(rf"\b{re.escape(cls.name)}\b", text)]


def _lacks(cls: type[Component]) -> list[dict[str, str]]:
    return [
        {"case": text, "property": name, "reason": reason}
        for text, lacks in _cases(cls)
        for name, reason in lacks.items()
    ]


def _least_n(cls: type[Component], example: Any) -> dict[str, int]:
    """Return the least number of rows that fits, by declared f; under "" if the rule has no f."""
    if example is None:
        return {}
    if getattr(example, "f", None) is None:
        tried = {"": example}
    else:
        tried = {}
        for f in _F:
            try:
                tried[str(f)] = dataclasses.replace(example, f=f)
            except FlwrRobustError:  # another field does not fit this f
                continue
    least = {f: next((n for n in range(1, _MOST) if made.check(n) is None), None) for f, made in tried.items()}
    return {f: n for f, n in least.items() if n is not None}


def _family(cls: type[Component]) -> str:
    """Return the target of an attack: data, message or fault; empty for other components."""
    from flwr_robust.attacks.data.base import DataAttack
    from flwr_robust.attacks.fault.base import Fault
    from flwr_robust.attacks.message.base import MessageAttack

    families = {"data": DataAttack, "fault": Fault, "message": MessageAttack}
    return next((name for name, base in families.items() if issubclass(cls, base)), "")


def _examples(cls: type[Component], kind: str, example: Any) -> dict[str, str]:
    """Return examples of a component as text, in Python and in a run config."""
    from flwr_robust.core.spec import plugin_of

    text = f"{cls.name}(...)" if example is None else str(example)
    # The strategy class of the rule, if there is one with its name.
    named = cls.__module__.startswith("flwr_robust.aggregators.")
    arguments = text.partition("(")[2].removesuffix(")")
    if kind in ("rule", "pre-aggregator"):
        chain = text if kind == "rule" else f"{text} | trimmed_mean(f=2)"
        trusted = bool(getattr(example, "needs_trust", False))
        options = ", ".join([*([arguments] if arguments else []), *(["trusted_fn=..."] if trusted else [])])
        made = f"{cls.__name__}({options})" if named else f'RobustStrategy("{chain}")'
        lines = [f"from flwr_robust.flower import {made.partition('(')[0]}", f"strategy = {made}"]
        config = {} if trusted else {"defence": chain}  # a run config cannot give the server's own update
    elif kind == "partition":
        lines = [
            f"from {cls.__module__} import {cls.__name__}",
            f"parts = {cls.__name__}({arguments})(labels, clients=10, seed=0)",
        ]
        config = {"partition": text}
    elif _family(cls) == "data":
        lines = [
            "from flwr_robust.runs.config import RunConfig",
            f'config = RunConfig(attack="{text}", attackers=2)',
        ]
        config = {"attack": text}
    else:
        needs_rule = getattr(getattr(example, "knowledge", None), "name", "") == "DEFENCE"
        options = ', knowledge="defence", rule="krum(f=2)"' if needs_rule else ""
        lines = [
            "from flwr_robust.flower import AdversarialGrid",
            f'grid = AdversarialGrid(grid, "{text}", attackers=2{options})',
        ]
        config = {"attack": text} | ({"knowledge": "defence"} if needs_rule else {})
    if plugin := plugin_of(cls):
        lines = ["from flwr_robust.core.spec import load_plugin", f"load_plugin({plugin!r})", *lines]
    entries = [f'{key} = "{value}"' for key, value in config.items()]
    entries += ["attackers = 2"] if "attack" in config else []
    least = 1 if kind != "rule" else next((n for n in range(1, _MOST) if example and example.check(n) is None), 1)
    entries += [f"clients = {least}"] if config and least > _CLIENTS else []
    return {"text": text, "python": "\n".join(lines), "run_config": "\n".join(entries)}
