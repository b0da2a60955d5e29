"""Any model on the fast engine: one client after the other, and the same bits as in process."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate, simulate_many, unbatched
from flwr_robust.runs.fast_gradients import Places
from flwr_robust.studies.runner import run_fast_cell
from tests.apps import run

OWN = ("seconds", "median_round_seconds", "gradients")
SETTING = {"rounds": 3, "evaluate_every": 1, "clients": 5, "batch_size": 6, "weight_decay": 0.01, "device": "cpu"}
STEPS = {"message": "delta", "local_steps": 3, "local_learning_rate": 0.2}

CASES = {
    "batchnorm, delta": {"model": "batchnorm", **STEPS},
    "batchnorm, parameters": {"model": "batchnorm", **STEPS, "message": "parameters", "defence": "median()"},
    "batchnorm, sampled": {"model": "batchnorm", **STEPS, "fraction_train": 0.6, "batching": "consecutive"},
    "batchnorm, scaled": {
        "model": "batchnorm",
        **STEPS,
        "attack": "dynamic_label_flip(scale=2.0)",
        "attackers": 1,
        "defence": "trimmed_mean(f=1)",
    },
    "batchnorm, scaled parameters": {
        "model": "batchnorm",
        **STEPS,
        "message": "parameters",
        "attack": "label_flip(scale=3.0)",
        "attackers": 1,
    },
    "batchnorm, message": {"model": "batchnorm", **STEPS, "attack": "alie()", "attackers": 1},
    "batchnorm, stale": {"model": "batchnorm", **STEPS, "attack": "stale()", "attackers": 2, "defence": "median()"},
    "batchnorm, dropped": {"model": "batchnorm", **STEPS, "attack": "drop_layers(layers=2)", "attackers": 1},
    "batchnorm, personal norms": {"model": "batchnorm", **STEPS, "personal": "*.body.1.*, 1.*", "tail_averaging": True},
    "groupnorm, momentum": {"model": "groupnorm", "defence": "krum(f=1)"},
    "groupnorm, sampled": {"model": "groupnorm", "fraction_train": 0.6, "message": "momentum"},
    "groupnorm, gradient": {"model": "groupnorm", "message": "gradient", "server_momentum": 0.5},
    "transformer, momentum": {"model": "Transformer", "attack": "dynamic_label_flip()", "attackers": 1},
    "transformer, delta": {"model": "Transformer", **STEPS},
    "transformer, class-wise": {
        "model": "Transformer",
        "message": "class_momentum",
        "classes_per_round": 3,
        "attack": "dynamic_label_flip(scale=2.0)",
        "attackers": 1,
        "defence": "mean()",
    },
    "lstm, classes asked": {"model": "Lstm", "message": "class_momentum", "class_batch": "asked", "defence": "mean()"},
    "transformer, personal head": {
        "model": "Transformer",
        **STEPS,
        "personal": "head.*",
        "attack": "dynamic_label_flip()",
        "attackers": 1,
    },
    "lstm": {"model": "Lstm", "message": "gradient", "defence": "geometric_median(f=1)"},
    "lstm, parameters": {"model": "Lstm", **STEPS, "message": "parameters", "tail_averaging": True},
    "tokens": {"model": "Tokens", "attack": "label_flip()", "attackers": 1},
    "frozen": {"model": "frozen", "alpha": 0.5},
    "frozen, delta": {"model": "frozen", **STEPS},
    "shared": {"model": "shared", **STEPS},
    "buffers": {"model": "Buffers", **STEPS},
    "buffers, parameters": {"model": "Buffers", **STEPS, "message": "parameters", "attack": "delay()", "attackers": 1},
    "doubles": {"model": "Doubles", "attack": "ipm(epsilon=0.5)", "attackers": 1, "defence": "median()"},
    "doubles, delta": {"model": "Doubles", **STEPS},
    "dropout, class-wise": {"model": "dropout_mlp", "message": "class_momentum", "classes_per_round": 2},
}

BATCHED = {
    "dropout": {"model": "dropout_mlp", "attack": "dynamic_label_flip()", "attackers": 1},
    "dropout, sampled": {"model": "dropout_mlp", "message": "gradient", "fraction_train": 0.6},
    "dropout, delta": {"model": "dropout_mlp", **STEPS, "fraction_train": 0.6, "tail_averaging": True},
    "convolutions with dropout": {"model": "dropout_cnn", "defence": "trimmed_mean(f=1)"},
    "convolutions with dropout, personal head": {
        "model": "dropout_cnn",
        **STEPS,
        "message": "parameters",
        "personal": "head.*",
        "attack": "dynamic_label_flip(scale=2.0)",
        "attackers": 1,
    },
}


def of(keys):
    return {**SETTING, **keys, "model": f"tests.own_models:{keys['model']}"}


def untimed(document):
    return {key: value for key, value in json.loads(json.dumps(document)).items() if key not in OWN}


@pytest.mark.parametrize("name", [*CASES, *BATCHED])
def test_it_is_the_run_in_process_to_the_bit(tmp_path, name):
    keys = of({**CASES, **BATCHED}[name])
    slow, expected = run(tmp_path, **keys)
    path = tmp_path / "fast.npz"
    config = RunConfig.from_mapping({**keys, "save_model": str(path)})
    assert unbatched(config) is None
    quick = simulate(config)
    assert untimed(quick) == untimed(slow)
    with np.load(path) as file:
        assert list(file) == list(expected)
        assert all(file[key].tobytes() == expected[key].tobytes() for key in expected)
        assert [file[key].dtype for key in expected] == [expected[key].dtype for key in expected]
    told = quick["gradients"]
    assert told == "batched" if name in BATCHED else told.startswith("one client at a time: the model ")
    assert quick["outcomes"]["OK"] == 3


@pytest.mark.parametrize("model", ["Transformer", "Buffers", "dropout_mlp"])
def test_what_layers_draw_depends_on_the_seed_alone(model):
    keys = of({"model": model, **STEPS})
    first, again, other = (simulate(RunConfig.from_mapping({**keys, "seed": seed})) for seed in (0, 0, 1))
    assert first["model_sha256"] == again["model_sha256"] != other["model_sha256"]


@pytest.mark.parametrize("keys", [{"model": "Buffers", **STEPS}, {"model": "Lstm"}, {"model": "dropout_mlp"}])
def test_runs_side_by_side_are_those_one_by_one_to_the_bit(keys):
    theirs = [
        {"seed": 1, "defence": "median()"},
        {"seed": 2, "attack": "dynamic_label_flip(scale=2.0)", "attackers": 1},
        {"attack": "stale()", "attackers": 1, "defence": "trimmed_mean(f=1)"},
    ]
    configs = [RunConfig.from_mapping({**of(keys), **own}) for own in theirs]
    found = dict(simulate_many(configs, most=3))
    for place, config in enumerate(configs):
        assert found[place].pop("runs_together") == 3
        assert untimed(found[place]) == untimed(simulate(config))


def test_statistics_that_are_not_finite_are_refused_as_the_server_refuses_them(tmp_path):
    keys = of({"model": "Overflowing", **STEPS, "defence": "median()", "min_replies": 1, "rounds": 4})
    slow, _ = run(tmp_path, **keys)
    quick = simulate(RunConfig.from_mapping(keys))
    assert untimed(quick) == untimed(slow)
    assert {each["reason"] for each in quick["refused"]} == {"NOT_FINITE"}
    assert 0 < len(quick["refused"]) < 20


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "Mixed"}, "of several types, float32 and float64"),
        ({"model": "Named"}, "a parameter running_mean that is not learnt"),
    ],
)
def test_what_does_not_fit_runs_in_process_and_says_so(keys, words):
    config = RunConfig.from_mapping(of(keys))
    assert words in unbatched(config)
    document = run_fast_cell(config.to_mapping())
    assert document["engine"] == "in-process"
    assert words in document["fallback"]
    assert "gradients" not in document


def test_a_parameter_with_the_name_of_a_statistic_is_a_buffer_of_local_steps(tmp_path):
    keys = of({"model": "Named", **STEPS})
    slow, _ = run(tmp_path, **keys)
    assert untimed(simulate(RunConfig.from_mapping(keys))) == untimed(slow)


def test_places_tell_what_is_learnt_sent_and_kept():
    config = RunConfig.from_mapping(of({"model": "batchnorm", **STEPS, "personal": "6.*"}))
    learner = config.learner()
    places = Places.of(learner.names, learner.arrays(), config.split)
    assert [learner.names[place] for place in places.personal] == ["6.weight", "6.bias"]
    assert {learner.names[place].rpartition(".")[2] for place in places.buffers} == {
        *("running_mean", "running_var", "num_batches_tracked")
    }
    assert places.shared == sorted({*range(len(learner.names))} - {*places.personal})
