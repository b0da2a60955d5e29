"""Options: FedAvg's are checked before a run waits for ever, and numpy's numbers are numbers."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_robust import ConfigurationError
from flwr_robust.flower import DeSGD, Guarded, Krum, Mean, Median, RobustStrategy
from flwr_robust.flower.options import FedAvgOptions, Options, plain
from tests.flower_helpers import client_app, drive

WRONG = {
    "fraction_train": [7.0, -0.1, "x", None, float("nan"), True, np.bool_(True), [0.5]],
    "fraction_evaluate": [1.0001, "0.5", float("inf")],
    "min_train_nodes": [0, -1, 2.0, "3", None, True],
    "min_evaluate_nodes": [-1, 1.5, None],
    "min_available_nodes": [0, "2"],
    "weighted_by_key": ["", None, 3, b"num-examples"],
    "arrayrecord_key": ["", ("arrays",)],
    "configrecord_key": ["", 0],
    "train_metrics_aggr_fn": [3, "median", {}, False],
    "evaluate_metrics_aggr_fn": [0, [max]],
    "statistics": ["*/moving_mean", ["a"], ("",), (1,), None],
    "compromised": [-1, 1.5, "2", True],
    "trusted_fn": [3, "mine", [np.zeros(2)]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, each in WRONG.items() for value in each])
def test_a_wrong_option_is_one_sentence_that_names_it(name, value):
    for make in (Median, lambda **o: RobustStrategy("median", **o)):
        with pytest.raises(ConfigurationError, match=rf"^strategy: {name} must be .*; got {name}=") as told:
            make(**{name: value})
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [3, "medians"])
def test_a_metrics_function_of_guarded_is_one(value):
    with pytest.raises(ConfigurationError, match="Guarded: metrics_aggr_fn must be a function"):
        Guarded(FedAvg(), metrics_aggr_fn=value)
    assert Guarded(FedAvg(), metrics_aggr_fn=None).metrics_aggr_fn is None


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "fraction_train": [0.0, 0.5, 1, 1.0],
        "fraction_evaluate": [0, 1],
        "min_train_nodes": [1, 10],
        "min_evaluate_nodes": [0, 4],
        "min_available_nodes": [1],
        "weighted_by_key": ["x"],
        "train_metrics_aggr_fn": [lambda contents, key: None, max],
    }.items(),
)
def test_what_is_inside_the_bounds_is_taken_as_it_is(name, values):
    for value in values:
        assert getattr(Median(**{name: value}), name) is value


def test_the_table_of_wrong_values_is_complete():
    assert set(FedAvgOptions.__annotations__) < set(WRONG)


def test_every_option_reaches_the_constructor_that_takes_it():
    taken = {*RobustStrategy.__init__.__annotations__, *FedAvgOptions.__annotations__}
    assert set(Options.__annotations__) == taken - {"rule", "options", "return"}


def test_numpys_numbers_are_numbers():
    strategy = Krum(
        f=np.int64(1),
        fraction_train=np.float32(0.5),
        min_train_nodes=np.int32(5),
        min_available_nodes=np.uint8(6),
        server_learning_rate=np.float64(0.5),
        server_momentum=np.float16(0.25),
        seed=np.int64(3),
        quarantine_after=np.int64(2),
        max_examples=np.float32(100),
        fraction_evaluate=np.float32(0),
    )
    settings = strategy.settings()
    expected = {
        "fraction-train": 0.5,
        "min-train-nodes": 5,
        "min-available-nodes": 6,
        "server-learning-rate": 0.5,
        "server-momentum": 0.25,
        "fraction-evaluate": 0.0,
    }
    for name, value in expected.items():
        assert settings[name] == value
        assert type(settings[name]) is type(value)
    assert (type(strategy.guard.seeds.told), type(strategy.guard.nodes.quarantine_after)) == (int, int)
    app = client_app(lambda i, model, config, context: {"w": model["w"] + np.float32(1)})
    found, _ = drive(strategy, app, {"w": np.zeros(2, np.float32)}, 6)
    assert found["w"].tolist() == [0.5, 0.5]
    made = DeSGD("median", classes=np.int64(3), gamma=np.float32(0.5), alpha=np.float64(0.5))
    assert (type(made.classes), type(made.gamma), type(made.alpha), made.buffer_fade) == (int, float, float, 0.5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Krum(f=np.bool_(True)), "krum: f must be an integer >= 0"),
        (lambda: Krum(f=True), "krum: f must be an integer >= 0"),
        (lambda: Krum(f=np.float64(1)), "krum: f must be an integer >= 0"),
        (lambda: Mean(server_learning_rate=np.float32("nan")), "server_learning_rate must be a finite number"),
        (lambda: Mean(server_momentum=np.float32(1)), "server_momentum must be a finite number and >= 0 and < 1"),
        (lambda: Mean(server_learning_rate=np.complex64(1)), "server_learning_rate must be a finite number"),
        (lambda: Mean(server_learning_rate=np.array(1.0)), "server_learning_rate must be a finite number"),
    ],
)
def test_other_things_of_numpys_are_not(make, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make()


def test_plain_leaves_all_else_alone():
    text, array = "x", np.zeros(2)
    assert plain(text) is text
    assert plain(array) is array
    assert plain({"a": np.int64(1), "b": None}) == {"a": 1, "b": None}
