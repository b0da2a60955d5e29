"""Runs on other targets than classes, and with functions of a user's own: both engines, by hand, refusals."""

import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from torch import nn

from flwr_robust.core import spec
from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.runner import run_fast_cell
from flwr_robust.tasks import TARGETS
from tests.apps import run

OWN = '''
import numpy as np
import torch
from torch import nn

from flwr_robust.tasks import task_of

draw = np.random.default_rng(1)
X = draw.normal(size=(160, 5)).astype(np.float32)
PLANE = X @ np.array([[1.0, 2, 0, -1, 0.5], [0, 0, 3, 1, -2]]).T
COUNT = (np.arange(9) + np.arange(160)[:, None]) % 6  # the next number is the last one plus one

def values(folder):
    return task_of("values", X[:120], PLANE[:120], X[120:], PLANE[120:], target="values", owners=np.arange(120) % 7)

def labels(folder):
    return task_of("labels", X[:120], PLANE[:120] > 0, X[120:], PLANE[120:] > 0, target="labels")

def tokens(folder):
    x, y = COUNT[:, :-1], COUNT[:, 1:].copy()
    y[::3, -2:] = -100
    return task_of("tokens", x[:120], y[:120], x[120:], y[120:], target="tokens", tokens=True)

def classes(folder):
    y = PLANE.argmax(1)
    return task_of("classes", X[:120], y[:120], X[120:], y[120:])

class Table(nn.Module):
    """Scores the next token by the last one alone."""
    def __init__(self, shape, classes, vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary, classes)

    def forward(self, x):
        return self.table(x)

def focal(scores, y):
    """Focal loss of Lin et al. (ICCV 2017)."""
    logs = torch.log_softmax(scores, 1)[torch.arange(len(y)), y]
    return -((1 - logs.exp()) ** 2 * logs).mean()

def largest_error(scores, y):
    return (scores - y).abs().max()

def broken(scores, y):
    return scores - y
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return how a configuration names one of the functions above."""
    monkeypatch.setattr(spec.sys, "path", [*spec.sys.path])
    monkeypatch.setenv(spec.PLUGINS, "")
    path = tmp_path / f"targets_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(OWN)
    yield lambda function: f"{path}:{function}"
    spec.sys.modules.pop(path.stem, None)


CASES = {
    "values": {"metrics": "largest_error"},
    "labels": {"metrics": "worst_client"},
    "tokens": {"model": "Table", "metrics": "worst_client"},
    "classes": {"loss": "focal", "model": "mlp"},
}


def keys_of(own, task, **changes):
    functions = {key: own(name) if name in OWN else name for key, name in CASES[task].items()}
    few = {"clients": 4, "rounds": 4, "evaluate_every": 2, "batch_size": 8, "defence": "median()", "device": "cpu"}
    return {"task": own(task), **few, **functions, **changes}


@pytest.mark.parametrize("message", ["momentum", "parameters"])
@pytest.mark.parametrize("task", CASES)
def test_both_engines_have_the_same_bits(own, tmp_path, task, message):
    attack = "pixel_noise(sigma=0.2)" if task == "values" else "sign_flip()"
    keys = keys_of(own, task, message=message, attack=attack, attackers=1)
    slow, _ = run(tmp_path, **keys)
    quick = run_fast_cell(RunConfig(**keys).to_mapping())
    assert slow["curve"] == quick["curve"]
    assert slow["model_sha256"] == quick["model_sha256"]
    assert "one client at a time: the " in quick["gradients"]
    kind = "class" if task == "classes" else task
    also = {"values": {"largest_error"}, "classes": set()}.get(task, {"worst_client"})
    assert all(set(point) == {"round", *TARGETS[kind].metrics, *also} for point in slow["curve"])
    assert run_fast_cell(RunConfig(**{**keys, "seed": 1}).to_mapping())["model_sha256"] != quick["model_sha256"]


def test_momenta_of_classes_take_a_loss_of_ones_own(own, tmp_path):
    keys = keys_of(own, "classes", message="class_momentum", model="softmax")
    slow, _ = run(tmp_path, **keys)
    quick = run_fast_cell(RunConfig(**keys).to_mapping())
    assert slow["curve"] == quick["curve"]
    assert slow["model_sha256"] == quick["model_sha256"]
    plain = run_fast_cell({**RunConfig(**keys).to_mapping(), "loss": "auto"})
    assert plain["model_sha256"] != quick["model_sha256"]


def test_a_regression_is_that_of_least_squares(own, tmp_path):
    # Full batches of equally many samples: the mean of the clients' gradients is that of all samples.
    keys = {
        "message": "gradient",
        "batching": "consecutive",
        "batch_size": 30,
        "defence": "mean()",
        "weight_decay": 0.5,
    }
    document, model = run(tmp_path, **keys_of(own, "values", **keys, rounds=200, server_learning_rate=0.2))
    task = RunConfig(**keys_of(own, "values")).data_set
    x, y = np.c_[task.x_train, np.ones(120)], task.y_train.numpy()
    # The loss is the mean over both numbers, and the bias decays, too: (2 / (N K)) |x w - y|^2 / 2 + 0.5 / 2 |w|^2.
    exact = Ridge(alpha=0.5 * 120 * 2 / 2, fit_intercept=False).fit(x, y).coef_
    found = np.c_[model["1.weight"], model["1.bias"]]
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.abs(exact[:, 0] - [1, 0]).max() > 0.1  # the decay shows
    assert 0.5 < document["curve"][-1]["r2"] < 0.99


@pytest.mark.parametrize(
    ("task", "metric", "before", "after"),
    [
        ("values", "r2", (-9, 0.3), (0.9, 1)),
        ("labels", "exact_match", (0, 0.6), (0.75, 1)),
        ("tokens", "accuracy", (0, 0.6), (1, 1)),
    ],
)
def test_each_target_is_learnt(own, task, metric, before, after):
    rates = {"values": 0.1, "labels": 0.5, "tokens": 5.0}
    keys = keys_of(own, task, message="delta", rounds=40, local_steps=4, local_learning_rate=rates[task])
    curve = run_fast_cell({**RunConfig(**keys).to_mapping(), "evaluate-every": 40})["curve"]
    first, last = (point[metric] for point in (curve[0], curve[-1]))
    assert before[0] <= first <= before[1]
    assert after[0] <= last <= after[1]


def test_an_attack_on_messages_shows_and_a_rule_withstands_it(own):
    keys = keys_of(own, "values", rounds=30, attack="ipm(epsilon=6)", attackers=1, message="gradient", clients=5)
    robust, plain = (
        run_fast_cell({**RunConfig(**keys).to_mapping(), "defence": rule})["curve"][-1]["r2"]
        for rule in ("trimmed_mean(f=1)", "mean()")
    )
    assert robust > 0.9
    assert plain < 0.5


@pytest.mark.parametrize("partition", ["iid", "sizes(shares=[1, 2, 3, 4, 5])", "natural"])
@pytest.mark.parametrize("task", ["values", "labels", "tokens"])
def test_partitions_without_classes_work(own, task, partition):
    keys = keys_of(own, task, partition=partition, clients=5)
    if partition == "natural" and task != "values":  # the data name no owners
        with pytest.raises(ConfigurationError, match="the task must say who"):
            _ = RunConfig(**keys).samples
        return
    samples = RunConfig(**keys).samples
    assert sorted(np.concatenate(samples).tolist()) == list(range(120))
    validation = RunConfig(**keys, validation=0.25)
    assert sum(map(len, validation.held_out)) == pytest.approx(30, abs=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"partition": "dirichlet(beta=1.0)"},
            "partition='dirichlet(beta=1.0)' follows the classes of samples, and task",
        ),
        ({"partition": "by_label"}, "has target='values': take iid, sizes or natural"),
        ({"partition": "k_classes(k=1)"}, "follows the classes"),
        ({"partition": "shards"}, "follows the classes"),
        ({"partition": "peng2025(beta=1.0)"}, "follows the classes"),
        ({"attack": "label_flip()", "attackers": 1}, "attack='label_flip()' changes the classes of samples"),
        ({"attack": "backdoor(target=0)", "attackers": 1}, "choose an attack on inputs or on messages"),
        ({"message": "class_momentum"}, "has one momentum per class, and task"),
        ({"loss": "cross_entropy"}, "loss='cross_entropy' does not fit the targets"),
        ({"loss": "binary_cross_entropy"}, "take squared_error, absolute_error, huber, or a function of your own"),
        ({"metrics": "worst_client"}, "worst_client is an accuracy"),
        ({"loss": "broken"}, "it must return one finite number"),
        ({"metrics": "broken"}, "metric broken: its function fails on scores (40, 2) and targets (40, 2)"),
    ],
)
def test_what_needs_classes_says_so_before_round_1(own, changes, words):
    changes = {key: own(value) if value == "broken" else value for key, value in changes.items()}
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        RunConfig(**keys_of(own, "values", **changes)).learner()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loss": "squared"}, "unknown loss 'squared'"),
        ({"metrics": "auc"}, "unknown metric 'auc'"),
        ({"loss": "huber"}, "loss='huber' does not fit the targets, and task digits has target='class'"),
        (
            {"metrics": "worst_client", "personal": "1.bias", "message": "delta"},
            "worst_client measures the global model",
        ),
        (
            {"metrics": "worst_client", "attack": "alie()", "attackers": 2, "redraw": True},
            "worst_client needs a client that never attacks; got attackers=2 of clients=10 with redraw=True",
        ),
    ],
)
def test_keys_that_do_not_fit_are_one_sentence(keys, words):
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        RunConfig(**keys).learner()


def test_models_of_the_project_refuse_tokens_at_each_position(own):
    with pytest.raises(ConfigurationError, match="computes with real numbers"):
        RunConfig(**keys_of(own, "tokens", model="mlp")).learner()


def test_personal_parameters_work_without_classes(own, tmp_path):
    keys = keys_of(own, "values", message="delta", personal="1.bias")
    document, _ = run(tmp_path, **keys)
    quick = run_fast_cell(RunConfig(**keys).to_mapping())
    assert document["curve"] == quick["curve"]
    assert set(document["curve"][-1]) == {"round", *TARGETS["values"].metrics, "largest_error", "honest_clients"}


def test_an_audit_log_has_no_label_distances_then(own, tmp_path):
    keys = {"message": "delta", "rounds": 1}
    for task in ("values", "classes"):
        run(tmp_path, **keys_of(own, task, **keys), audit=str(tmp_path / task))
        told = b"".join(path.read_bytes() for path in (tmp_path / task).rglob("*") if path.is_file())
        assert (b"label distribution distance" in told) == (task == "classes")


def test_a_model_of_other_scores_is_refused(own, monkeypatch):
    from flwr_robust.tasks import MODELS

    monkeypatch.setitem(MODELS, "flat", lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(5, 1)))
    with pytest.raises(ConfigurationError, match=re.escape("must return scores of shape (2, 2); got shape (2, 1)")):
        RunConfig(**keys_of(own, "values", model="flat")).learner()
