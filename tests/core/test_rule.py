"""What a rule must return, and how results read."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from flwr_robust import Aggregate, ConfigurationError, Outcome, Pipeline, PreAggregator, Rule, aggregate, parse

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
GOOD = Aggregate(X.mean(0), torch.full((8,), 1 / 8, dtype=torch.float64))


@dataclass(frozen=True)
class Mine(Rule):
    """Somebody's own rule, which returns what it is told to."""

    found: Any = None

    def combine(self, rows, state):
        return self.found


@dataclass(frozen=True)
class Step(PreAggregator):
    """Somebody's own step, which returns what it is told to."""

    found: Any = None

    def matrix(self, rows, state):
        return self.found


def but(**changes):
    return dataclasses.replace(GOOD, **changes), {}


WRONG = [
    (None, "got NoneType"),
    (X[0], "got Tensor"),
    (GOOD, "got Aggregate"),
    ((GOOD, {}, 1), "got tuple of 3"),
    ((X[0], {}), "got Tensor for the Aggregate"),
    (but(value=X[0, :4]), r"got value \(4,\) float32"),
    (but(value=X[:1]), r"got value \(1, 5\) float32"),
    (but(value=X[0].double()), r"got value \(5,\) float64"),
    (but(value=X[0].numpy()), r"got value \(5,\) float32"),
    (but(value=[1.0] * 5), "got value list"),
    (but(weights=GOOD.weights[1:]), r"got weights \(7,\) float64"),
    (but(weights=GOOD.weights.float()), r"got weights \(8,\) float32"),
    (but(weights=None), "got weights NoneType"),
    (but(outcome="OK"), "got outcome 'OK'"),
    (but(stats=None), "got stats of type NoneType"),
    ((GOOD, None), "got state None"),
    ((GOOD, {"centre": 5}), "got state 1 entries"),
]


@pytest.mark.parametrize(("found", "words"), WRONG)
def test_a_rule_that_returns_something_else_is_told_the_contract(found, words):
    contract = r"Mine.combine must return \(Aggregate, state\): a value \(5,\) of torch.float32, weights \(8,\)"
    for rule in (Mine(found), Pipeline((parse("nnm(f=2) | mean").stages[0],), Mine(found))):
        with pytest.raises(ConfigurationError, match=f"{contract}.*{words}: correct the rule") as caught:
            aggregate(X, rule)
        assert "\n" not in str(caught.value)


def test_a_rule_that_keeps_the_contract_is_heard():
    result, state = aggregate(X, Mine((GOOD, {"seen": torch.ones(1)})), state=None)
    assert result is GOOD
    assert state["seen"].tolist() == [1]


def test_the_contract_holds_for_the_rows_that_are_left():
    x = X.clone()
    x[2] = torch.nan
    shorter = dataclasses.replace(GOOD, weights=torch.full((7,), 1 / 7, dtype=torch.float64))
    assert aggregate(x, Mine((shorter, {}))).weights[2] == 0
    with pytest.raises(ConfigurationError, match=r"weights \(7,\) of torch.float64.*got weights \(8,\) float64"):
        aggregate(x, Mine((GOOD, {})))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "got NoneType"),
        (torch.eye(8), "got Tensor"),
        ((torch.eye(8), {}, {}), r"got matrix \(8, 8\) float32"),
        ((torch.eye(7, dtype=torch.float64), {}, {}), r"got matrix \(7, 7\) float64"),
        ((torch.eye(8, dtype=torch.float64), None, {}), "stats NoneType"),
        ((torch.eye(8, dtype=torch.float64), {}, None), "state NoneType"),
    ],
)
def test_a_step_that_returns_something_else_is_told_the_contract(found, words):
    mean = parse("mean")
    with pytest.raises(ConfigurationError, match=rf"Step.matrix must return .* a matrix \(8, 8\).*{words}"):
        aggregate(X, Pipeline((Step(found),), mean))
    kept = aggregate(X, Pipeline((Step((torch.eye(8, dtype=torch.float64), {}, {})),), mean))
    torch.testing.assert_close(kept.value, X.mean(0))


def test_repr_is_one_short_line_without_pages_of_numbers():
    shown = repr(
        Aggregate(X.mean(0), GOOD.weights, stats={"radius": 0.123456789, "kept": [*range(900)], "far": [1, 2]})
    )
    assert shown == (
        "Aggregate(value=(5,) float32, weights=(8,) float64, outcome=OK, "
        "stats={radius: 0.1235, kept: 900 entries, far: [1, 2]})"
    )
    assert "outcome=NOT_CONVERGED" in repr(dataclasses.replace(GOOD, outcome=Outcome.NOT_CONVERGED))
    layered = aggregate([[np.ones((2, 3)), np.ones(4)]] * 3, "median")
    assert repr(layered).startswith("Aggregate(value=[(2, 3) float64, (4,) float64], weights=(3,) float64")


@pytest.mark.parametrize(
    "rule", ["dnc(f=2)", "nnm(f=2) | geometric_median()", "bulyan(f=1)", "signguard", "mixtailor(f=1)"]
)
def test_repr_of_real_results_and_pipelines(rule):
    x = torch.randn(12, 3000, generator=torch.Generator().manual_seed(2))
    for shown in (repr(aggregate(x, rule)), repr(parse(rule))):
        assert "\n" not in shown
        assert len(shown) < 600
        assert "tensor(" not in shown


def test_a_notebook_shows_weights_with_bars_and_the_scores_of_rows():
    shown = Aggregate(
        torch.tensor([3.0, 4.0]),
        torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64),
        outcome=Outcome.NOT_CONVERGED,
        stats={"<b>scores": [1.5, 2.5, 7.0], "radius": 0.5, "kept": [0, 1], "gaps": torch.ones(3)},
    )._repr_html_()
    assert "NOT_CONVERGED: the iteration limit" in shown
    assert "value: (2,) float32, norm 5; weights sum to 0.75; radius: 0.5, kept: [0, 1]<" in shown
    assert re.findall(r"<th [^>]*>(.*?)</th>", shown) == ["row", "weight", "&lt;b&gt;scores", "gaps"]
    assert re.findall(r"<td [^>]*>([^<]*)<", shown)[4:8] == ["1", "0.25", "2.5", "1"]
    assert re.findall(r"width:(\d+)px;height", shown) == ["80", "40", "0"]


def test_a_notebook_shows_layers_of_numpy_and_all_clients_up_to_fifty():
    shown = aggregate([[np.full((2, 2), i), np.zeros(3)] for i in np.arange(60.0)], "mean")._repr_html_()
    assert "value: 2 layers, norm 59;" in shown
    assert "and 10 more rows" in shown
    assert shown.count("<tr>") == 1 + 50 + 1
