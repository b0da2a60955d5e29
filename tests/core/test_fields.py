"""Constraints of fields: what each kind allows, and every field of every component held to its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest

from flwr_robust import ConfigurationError
from flwr_robust.attacks.data.base import data_attacks
from flwr_robust.attacks.fault.base import faults
from flwr_robust.attacks.message.base import message_attacks
from flwr_robust.core.fields import (
    Choice,
    Constraint,
    Dictionary,
    Either,
    Flag,
    Integer,
    ListOf,
    Number,
    OrNone,
    Text,
    constraints,
    plain,
)
from flwr_robust.core.rule import aggregators, preaggregators
from flwr_robust.core.spec import Component, Registry
from flwr_robust.tasks.partition import partitions

REGISTRIES = (aggregators, preaggregators, data_attacks, message_attacks, faults, partitions)
COMPONENTS = {name: cls for registry in REGISTRIES for name, cls in registry.members().items()}

# Fields that are checked against each other: what goes with a field's valid values.
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("geometric_median", "start"): {"iterations": 3},
    ("backdoor", "size"): {"parts": 1},
    ("clip", "earlier"): {"c": "median"},
    ("clip", "quantile"): {"c": "quantile"},
    ("targeted_flip", "source"): {"target": 7},
    ("targeted_flip", "target"): {"source": 7},
    ("trimmed_mean", "fraction"): {"f": None},
}
REQUIRED = {"targeted_flip": {"source": 5, "target": 7}, "trimmed_mean": {"f": 1}}


def given(name: str, field: str) -> dict[str, Any]:
    """Return values for the other fields of a component that must be given."""
    cls = COMPONENTS[name]
    required = {
        each.name: constraints(cls)[each.name].valid()[-1]
        for each in dataclasses.fields(cls)
        if each.default is dataclasses.MISSING
    }
    beside = {"weighted": True} if field == "most" else BESIDE.get((name, field), {})
    return {**required, **REQUIRED.get(name, {}), **beside}


def trials(kind: str) -> Iterator[Any]:
    for name, cls in COMPONENTS.items():
        for field, constraint in constraints(cls).items():
            for value in getattr(constraint, kind)():
                yield pytest.param(name, field, value, id=f"{name}-{field}-{value!r:.30}")


def described(constraint: Constraint) -> list[str]:
    """Return the bounds and words that a sentence must name."""
    text = constraint.describe().removesuffix(", or None")
    if text.startswith("one of "):
        return text.removeprefix("one of ").split(", ")
    bounds = re.findall(
        r"[<>]=? \S+\b|'\w+'|True or False|the name of an array|a \w+ (?:string|attack|of values)", text
    )
    return bounds or ["finite number"]


# -- every component ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_field_has_a_constraint(name):
    cls = COMPONENTS[name]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    assert set(fields) == set(constraints(cls))
    for field, constraint in constraints(cls).items():
        assert fields[field].metadata["constraint"] == constraint
        default = fields[field].default
        assert default is dataclasses.MISSING or constraint.admits(default)
        assert described(constraint)


@pytest.mark.parametrize(("name", "field", "value"), trials("invalid"))
def test_what_a_field_refuses_is_refused_with_names_bound_and_value(name, field, value):
    constraint = constraints(COMPONENTS[name])[field]
    with pytest.raises(ConfigurationError) as caught:
        COMPONENTS[name](**{**given(name, field), field: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: {field} must be ")
    assert message.endswith(f"; got {field}={plain(value)!r}")
    for bound in described(constraint):
        assert bound in message


@pytest.mark.parametrize(("name", "field", "value"), trials("valid"))
def test_what_a_field_allows_is_taken(name, field, value):
    cls = COMPONENTS[name]
    if name == "trimmed_mean" and value is None:
        with pytest.raises(ConfigurationError, match="give either f or fraction"):
            cls(f=None, fraction=None)
        return
    component = cls(**{**given(name, field), field: value})
    assert getattr(component, field) == plain(value)
    registry = next(registry for registry in REGISTRIES if registry.members().get(name) is cls)
    assert registry.parse(str(component)) == component
    assert hash(component) == hash(registry.parse(str(component)))


@pytest.mark.parametrize("name", COMPONENTS)
def test_numbers_of_numpy_are_numbers(name):
    cls = COMPONENTS[name]
    for field, constraint in constraints(cls).items():
        for value in constraint.valid():
            if type(value) not in (bool, int, float):
                continue
            component = cls(**{**given(name, field), field: np.array(value)[()]})
            assert type(getattr(component, field)) is type(value)
            assert getattr(component, field) == value
            assert str(component) == str(cls(**{**given(name, field), field: value}))


def test_a_boolean_of_numpy_is_no_number():
    with pytest.raises(ConfigurationError, match=r"krum: f must be an integer >= 0; got f=True"):
        COMPONENTS["krum"](f=np.True_)
    assert COMPONENTS["krum"](f=1, strict=np.False_).strict is False


# -- kinds of constraints --------------------------------------------------------------------------

KINDS = [
    Flag(),
    Integer(minimum=0),
    Integer(minimum=3, words=("auto", "own")),
    Number(),
    Number(above=0),
    Number(minimum=0, below=0.5),
    Number(above=-1, maximum=1, words=("max",)),
    Choice(("b", "a")),
    Choice({"x": 1}),
    Choice((-1, 1)),
    Text("the name of an array", example="bias"),
    ListOf(Number(above=0)),
    Either(Integer(minimum=1), ListOf(Text("a word", example="x"))),
    OrNone(Integer(minimum=0)),
    Dictionary((("size", 3),)),
]


@pytest.mark.parametrize("constraint", KINDS, ids=lambda constraint: constraint.describe())
def test_examples_are_what_they_are_said_to_be(constraint):
    assert constraint.valid()
    assert constraint.invalid()
    for value in constraint.valid():
        constraint.check("owner", "field", value)
        assert constraint.admits(value)
    for value in constraint.invalid():
        assert not constraint.admits(value)
        with pytest.raises(ConfigurationError, match=r"^owner: field must be .*; got field="):
            constraint.check("owner", "field", value)


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Flag(), "True or False"),
        (Integer(minimum=1), "integer >= 1"),
        (Integer(minimum=1, words=("auto",)), "integer >= 1 or 'auto'"),
        (Number(), "number"),
        (Number(above=0, maximum=1), "number > 0 and <= 1"),
        (Number(minimum=1, below=2.5, words=("inf",)), "number >= 1 and < 2.5 or 'inf'"),
        (Choice(("b", "a")), "one of a, b"),
        (Choice(("a",)), "'a'"),
        (Choice((1, -1)), "one of -1, 1"),
        (Text("the name of an array", example="bias"), "the name of an array"),
        (ListOf(Integer(minimum=1)), "a list, not empty, of: integer >= 1"),
        (Either(Flag(), Integer(minimum=2)), "True or False, or integer >= 2"),
        (OrNone(Integer(minimum=0)), "integer >= 0, or None"),
        (Dictionary((("size", 3),)), "a dictionary of values by name"),
    ],
)
def test_what_is_allowed_in_words(constraint, text):
    assert constraint.describe() == text


@pytest.mark.parametrize(
    ("constraint", "near", "beyond"),
    [
        (Integer(minimum=2), 2, 1),
        (Number(above=0), 5e-324, 0.0),
        (Number(minimum=0), 0.0, -5e-324),
        (Number(below=0.5), 0.49999999999999994, 0.5),
        (Number(maximum=1), 1, 1.0000000000000002),
    ],
)
def test_bounds_are_exact(constraint, near, beyond):
    assert constraint.admits(near)
    assert not constraint.admits(beyond)
    assert beyond in constraint.invalid()


# -- reading them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base(Component):
    size: Annotated[int, Integer(minimum=1)] = 1
    free: str = ""
    KIND: ClassVar[str] = "x"


@dataclass(frozen=True)
class Derived(Base):
    size: Annotated[int, Integer(minimum=5)] = 5
    share: Annotated[float | None, "a remark", Number(minimum=0, maximum=1)] = None


def test_a_class_inherits_and_replaces_constraints():
    assert constraints(Base) == {"size": Integer(minimum=1)}
    assert constraints(Derived) == {"size": Integer(minimum=5), "share": OrNone(Number(minimum=0, maximum=1))}
    assert Base(size=1).size == 1
    assert Derived(share=None).share is None
    with pytest.raises(ConfigurationError, match=r"^Derived: size must be an integer >= 5; got size=4$"):
        Derived(size=4)  # a class without a name goes by its own


def test_the_order_of_the_decorators_does_not_matter():
    @dataclass(frozen=True)
    @Registry("thing", "json").register("upside_down")
    class UpsideDown(Component):
        size: Annotated[int, Integer(minimum=1)]

    assert UpsideDown(size=1).size == 1
    with pytest.raises(ConfigurationError, match=r"upside_down: size must be an integer >= 1; got size=0"):
        UpsideDown(size=0)


def test_types_that_cannot_be_read_are_an_error_that_says_so():
    @dataclass(frozen=True)
    class Elsewhere(Component):
        size: Annotated[int, NotHere(minimum=1)] = 1  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"Elsewhere: the types .* cannot be read .*NotHere.*; import or"):
        Elsewhere()


def test_plain_values():
    assert plain([np.float64(0.5), [np.int32(1)]]) == (0.5, (1,))
    assert type(plain(np.float32(0.5))) is float
    assert plain("text") == "text"
    assert plain(np.array([1])).tolist() == [1]  # an array is none of its numbers
