"""Face: what the calls of strategies with a constructor of the user's own mean."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from flwr_robust import ConfigurationError, UnknownNameError
from flwr_robust.flower import Guarded, Krum, Median, RobustStrategy
from flwr_robust.flower.face import Face


def test_all_strategies_have_it():
    assert issubclass(RobustStrategy, Face)
    assert issubclass(Guarded, Face)


def test_a_constructor_of_the_users_own_is_called_as_it_says():
    class Mine(Krum):
        def __init__(self, faulty, *rest, **options):
            self.more = options.pop("more", None)
            super().__init__(f=faulty, **options)
            self.rest = rest

    made = Mine(2, "a", "b", more=3, message="delta")
    assert (made.rule.f, made.rest, made.more, made.message) == (2, ("a", "b"), 3, "delta")
    assert repr(made) == "Mine(2, more=3, message='delta')"
    with pytest.raises(UnknownNameError, match="option of Mine 'mroe'"):
        Mine(2, mroe=3)


def test_a_subclass_without_one_is_called_as_its_parent():
    class Mine(Krum):
        pass

    assert repr(Mine(f=2, variant="paper")) == "Mine(f=2)"
    with pytest.raises(ConfigurationError, match=r"Mine: name the parameter: Mine\(f=2\)"):
        Mine(2)
    assert inspect.signature(Mine) == inspect.signature(Krum)


def test_what_cannot_be_written_on_one_line_is_shortened():
    class Odd:
        def __repr__(self):
            return "first\nsecond" + "x" * 500

    class Mine(Median):
        def __init__(self, odd, plain, arrays):
            super().__init__()

    text = repr(Mine(Odd(), object(), np.zeros((100, 100))))
    assert "\n" not in text
    assert len(text) < 300
    assert text.startswith("Mine(first secondxxx")
    assert ", object(...), array([[0., 0.," in text


def test_an_array_is_compared_with_a_default_by_no_equality_of_its_own():
    class Mine(Median):
        def __init__(self, weights=None):
            super().__init__()

    assert repr(Mine()) == "Mine()"
    assert repr(Mine(np.zeros(3))) == "Mine(array([0., 0., 0.]))"
