"""The evaluation of a run's model: on the test samples, and on what honest clients held out."""

import numpy as np
import pytest
import torch

from flwr_robust.protocol.messages import CLASS_MOMENTUM, MESSAGES
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.results import evaluator
from flwr_robust.tasks import TARGETS
from tests.apps import run

ATTACKED = {"clients": 6, "attackers": 2, "rounds": 3, "evaluate_every": 2, "partition": "dirichlet(beta=1.0)"}


def parts_of(point, prefix="validation_"):
    return {name.removeprefix(prefix): value for name, value in point.items() if name.startswith(prefix)}


def initial(config):
    """Return a learner with the initial model, and the model's arrays."""
    learner = config.learner()
    return learner, dict(zip(learner.names, learner.arrays(), strict=True))


def honest_samples(config, clients):
    return config.data_set.batch(torch.from_numpy(np.sort(np.concatenate([config.held_out[c] for c in clients]))))


@pytest.mark.parametrize("message", [*MESSAGES, CLASS_MOMENTUM])
def test_each_point_of_a_curve_holds_the_validation_on_both_engines(tmp_path, message):
    keys = {**ATTACKED, "message": message, "attack": "label_flip()", "validation": 0.2, "defence": "median()"}
    slow, model = run(tmp_path, **keys)
    quick = simulate(RunConfig(**keys))
    assert slow["curve"] == quick["curve"]
    assert slow["model_sha256"] == quick["model_sha256"]
    assert [point["round"] for point in quick["curve"]] == [0, 2, 3]
    # By hand: the last model on what the four honest clients held out.
    config = RunConfig(**keys)
    learner = config.learner()
    learner.load(list(model.values()))
    for point in quick["curve"]:
        assert parts_of(point).keys() == {*TARGETS["class"].metrics}
    assert parts_of(quick["curve"][-1]) == learner.evaluate(*honest_samples(config, range(4)))


def test_an_attacks_success_is_measured_on_the_validation_samples_too():
    config = RunConfig(**{**ATTACKED, "attack": "targeted_flip(source=1, target=7)", "validation": 0.3, "seed": 4})
    learner, model = initial(config)
    found = evaluator(config)(0, lambda: model)
    trial = config.data_attack.trial(*honest_samples(config, range(4)), config.data_set.span)
    assert found["validation_attack_success"] == learner.evaluate(*trial)["accuracy"] != found["attack_success"]


def test_without_validation_nothing_changes():
    keys = {**ATTACKED, "attack": "label_flip()"}
    plain, none = simulate(RunConfig(**keys)), simulate(RunConfig(**keys, validation=0.0))
    assert plain["curve"] == none["curve"]
    assert parts_of(plain["curve"][-1]) == {}
    assert plain["model_sha256"] == none["model_sha256"]
    assert simulate(RunConfig(**keys, validation=0.2))["model_sha256"] != plain["model_sha256"]


def test_attackers_that_the_configuration_does_not_know_do_not_count_either():
    config = RunConfig(clients=6, validation=0.2)
    learner, model = initial(config)
    every, four = (evaluator(config, honest=honest)(0, lambda: model) for honest in (None, range(4)))
    loss = learner.evaluate(*honest_samples(config, range(4)))["loss"]
    assert four["validation_loss"] == loss != every["validation_loss"]
    assert four["loss"] == every["loss"]


def test_the_worst_client_is_looked_for_among_the_honest():
    keys = {"clients": 5, "partition": "by_label", "attack": "label_flip()", "attackers": 2, "rounds": 8}
    config = RunConfig(**keys, metrics="worst_client")
    document = simulate(config)
    learner, model = initial(config)
    point = evaluator(config)(0, lambda: model)
    own = [learner.evaluate(*config.data_set.batch(torch.from_numpy(held)))["accuracy"] for held in config.samples]
    assert point["worst_client"] == min(own[:3]) < max(own[:3])
    assert evaluator(config, honest=[3, 4])(0, lambda: model)["worst_client"] == min(own[3:])
    plain = simulate(RunConfig(**keys))
    assert plain["model_sha256"] == document["model_sha256"]
    assert all("worst_client" not in point for point in plain["curve"])
    assert all(0 <= point["worst_client"] <= 1 for point in document["curve"])
