"""The fast engine: the same run as in process, to the bit, and what it leaves to it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments.runner import read_results, run_fast_cell, run_study
from experiments.study import load_study
from flwr_robust import ConfigurationError, Rows
from flwr_robust.config import MESSAGES, RunConfig
from flwr_robust.fault import faults
from flwr_robust.message_attack import message_attacks
from flwr_robust.rule import parse
from flwr_robust.simulation import simulate, unbatched
from flwr_robust.tasks import MODELS, Grouped, grouped
from tests.runs import run

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("seconds", "median_round_seconds")

# Every kind of message, attack, sampling and batching, and rules of both kinds, some with a memory, over three models.
CASES = {
    "mean": {},
    "mlp": {"model": "mlp", "partition": "by_label", "defence": "faba(f=1)"},
    "cnn": {"model": "cnn", "rounds": 3, "batch_size": 6, "clients": 4, "defence": "trimmed_mean(f=1)"},
    "decay": {"weight_decay": 0.01, "alpha": 0.5, "defence": "geometric_median(f=2)"},
    "gradient": {"message": "gradient", "defence": "centered_clipping(tau=0.3)", "batching": "consecutive"},
    "foolsgold": {"message": "gradient", "model": "mlp", "defence": "foolsgold()", "clients": 5, "batch_size": 7},
    "static flip": {"attack": "label_flip(p=0.5)", "attackers": 2, "defence": "trimmed_mean(f=2)"},
    "batch flip": {"attack": "label_flip(p=0.5, per='batch')", "attackers": 2, "defence": "krum(f=2)"},
    "dynamic flip": {"attack": "dynamic_label_flip(p=0.7)", "attackers": 2, "defence": "lfighter()", "model": "mlp"},
    "random label": {"attack": "random_label()", "attackers": 1, "defence": "nnm(f=1) | median()"},
    "redrawn": {
        "attack": "backdoor(target=0, scale=3.0, parts=2)",
        "attackers": 3,
        "attack_start": 3,
        "attack_stop": 7,
        "redraw": True,
        "defence": "norm_bound(c=1.0)",
    },
    "sampled": {"fraction_train": 0.5, "defence": "mean(weighted=True)", "partition": "dirichlet(beta=0.5)"},
    "sampled attackers": {"fraction_train": 0.6, "attack": "label_flip(scale=2.0)", "attackers": 4, "redraw": True},
    "single samples": {"batch_size": 1, "model": "mlp"},
    "odd batches": {"batch_size": 5, "model": "mlp", "defence": "multi_krum(f=2)"},
    "delta": {"message": "delta", "local_steps": 3, "server_learning_rate": 1.0, "defence": "median()"},
    "parameters": {
        "message": "parameters",
        "local_steps": 2,
        "server_learning_rate": 1.0,
        "attack": "dynamic_label_flip(scale=2.0)",
        "attackers": 1,
        "defence": "trimmed_mean(f=1)",
    },
    "cnn delta": {"message": "delta", "local_steps": 2, "model": "cnn", "rounds": 2, "batch_size": 4, "clients": 3},
    "one client": {"clients": 1},
}


def both(folder, **keys):
    """Return the document and the model of a run in process and by the fast engine."""
    keys = {"rounds": 8, "evaluate_every": 3, "device": "cpu", **keys}
    slow = run(folder, **keys)
    path = folder / "fast.npz"
    quick = json.loads(json.dumps(simulate(RunConfig.from_mapping({**keys, "save_model": str(path)}))))
    with np.load(path) as file:
        return slow, (quick, dict(file))


def untimed(document):
    return json.dumps({key: value for key, value in document.items() if key not in TIMES})


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_run_in_process_to_the_bit(tmp_path, name):
    (slow, expected), (quick, found) = both(tmp_path, **CASES[name])
    assert list(quick) == list(slow)  # the same document, times included
    assert untimed(quick) == untimed(slow)
    assert list(found) == list(expected)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    assert quick["outcomes"]["OK"] == slow["curve"][-1]["round"]


def test_local_steps_on_single_samples_agree_to_rounding(tmp_path):
    (_, expected), (_, found) = both(tmp_path, message="delta", batch_size=1, model="mlp", local_steps=2)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-6)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"attack": "none", "attackers": 0}, {"alpha": 0.2}])
def test_another_run_is_another_model(changes):
    keys = {"rounds": 5, "evaluate_every": 5, "attack": "label_flip()", "attackers": 1}
    first, again = (simulate(RunConfig.from_mapping(keys)) for _ in range(2))
    assert untimed(first) == untimed(again)
    assert simulate(RunConfig.from_mapping({**keys, **changes}))["model_sha256"] != first["model_sha256"]


HUGE = {
    "one liar's": ({"attack": "label_flip(scale=1e39)", "attackers": 1, "attack_start": 2}, {4}),
    "all": ({"server_learning_rate": 1e39}, {0, 1, 2, 3, 4}),  # after one step no gradient is a number
}


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("name", HUGE)
def test_messages_that_are_not_finite_are_refused_as_the_server_refuses_them(tmp_path, name):
    keys, refused = HUGE[name]
    (slow, _), (quick, _) = both(tmp_path, **keys, clients=5, defence="trimmed_mean(f=1)")
    assert untimed(quick) == untimed(slow)
    assert {r["partition"] for r in quick["refused"]} == refused
    assert len(quick["refused"]) == 7 * len(refused)
    assert {r["reason"] for r in quick["refused"]} == {"NOT_FINITE"}
    assert quick["outcomes"]["INFEASIBLE"] == (7 if name == "all" else 0)


# -- attacks on messages, and faults -----------------------------------------------------------------

# Every attack, those of several kinds more than once; in them, what attackers remember, draw and look at.
ON_MESSAGES = {
    "alie": ["alie()"],
    "constant": ["constant(c=0.5)", "constant(c=1e39)"],
    "crash": ["crash(p=0.5)", "crash(p=0.5, error=True)"],
    "delay": ["delay(rounds=2)"],
    "drop_layers": ["drop_layers()", "drop_layers(layers=['none'])"],
    "fang_krum": ["fang_krum()"],
    "fang_median": ["fang_median()"],
    "fang_trimmed_mean": ["fang_trimmed_mean(known='own')"],
    "gaussian": ["gaussian(sigma=0.1)"],
    "inf": ["inf()"],
    "ipm": ["ipm(epsilon=0.5)"],
    "mean_reversal": ["mean_reversal()", "mean_reversal(c=0.5, weighted=True)"],
    "mimic": ["mimic(warmup=3)"],
    "min_max": ["min_max()", "min_max(deviation='std')"],
    "min_sum": ["min_sum(deviation='sign')"],
    "model_based": ["model_based(size=0.5)", "model_based(size=0.5, movement='past')"],
    "nan": ["nan()"],
    "optimised": ["optimised(base='ipm(epsilon=1.0)', budget=5)"],
    "pool": ["pool(pool=['krum(f=2)', 'median()'], similarity=0.01, budget=4)"],
    "scale": ["scale(c=2.0)"],
    "sign_flip": ["sign_flip(c=3.0)"],
    "stale": ["stale(rounds=2)"],
    "sybil": ["sybil(k=2, divide=True, base='mimic()')"],
    "tailored": ["tailored(epsilon=[0.1, 1.0])", "tailored(epsilon='search', budget=4)"],
    "zero": ["zero()"],
}
REWRITTEN = [text for texts in ON_MESSAGES.values() for text in texts]
UNDER_ATTACK = {
    "rounds": 5,
    "evaluate_every": 1,
    "clients": 8,
    "attackers": 2,
    "batch_size": 8,
    "knowledge": "defence",
    "defence": "trimmed_mean(f=2)",
}


def test_every_attack_on_messages_and_fault_is_among_them():
    assert set(ON_MESSAGES) == {*message_attacks.members(), *faults.members()}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("attack", REWRITTEN)
def test_an_attack_on_messages_is_the_grids_to_the_bit(tmp_path, attack, message):
    keys = {**UNDER_ATTACK, "attack": attack, "message": message}
    (slow, expected), (quick, found) = both(tmp_path, **keys)
    assert untimed(quick) == untimed(slow)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    honest = simulate(RunConfig.from_mapping({**keys, "attack": "none", "attackers": 0, "device": "cpu"}))
    assert (honest["model_sha256"] == quick["model_sha256"]) == (attack == "drop_layers(layers=['none'])")


# Who attacks when, what they see, what they remember of rounds they were not in, and defences with a memory.
ROUNDS_OF_ATTACK = {
    "some rounds": {"attack": "mimic(warmup=2)", "attack_start": 3, "attack_stop": 5, "rounds": 8},
    "redrawn": {"attack": "stale(rounds=1)", "redraw": True, "rounds": 8, "message": "momentum"},
    "redrawn and remembering": {"attack": "sybil(k=2, base='mimic()')", "redraw": True, "attackers": 3},
    "sampled": {"attack": "alie()", "attackers": 3, "fraction_train": 0.5, "rounds": 8, "defence": "median()"},
    "sampled faults": {"attack": "delay()", "attackers": 3, "fraction_train": 0.5, "rounds": 8, "defence": "mean()"},
    "sampled and redrawn": {
        "attack": "model_based(size=1.0)",
        "fraction_train": 0.5,
        "redraw": True,
        "defence": "mean(weighted=True)",
        "partition": "dirichlet(beta=0.3)",
    },
    "a few are seen": {"attack": "min_max(known=3)", "knowledge": "partial", "known": 3},
    "fewer are seen than asked": {"attack": "ipm(epsilon=2.0, known=2)", "knowledge": "partial", "known": 4},
    "their own": {"attack": "alie(known='own')", "knowledge": "own"},
    "nothing": {"attack": "gaussian(sigma=0.1)", "knowledge": "nothing", "redraw": True},
    "a defence with a memory": {
        "attack": "optimised(base='alie()', budget=4)",
        "defence": "clip(c=1.0) | centered_clipping(tau=0.3)",
    },
    "weights": {"attack": "tailored(epsilon='search')", "defence": "mean(weighted=True)", "partition": "shards"},
    "all of them silent": {"attack": "crash()", "attackers": 8, "defence": "mean()"},
    "all of them wrong": {"attack": "nan()", "attackers": 8, "defence": "mean()"},
    "too many": {"attack": "crash(error=True)", "attackers": 5},
    "mlp": {"attack": "fang_krum()", "model": "mlp", "defence": "krum(f=2)", "batch_size": 7},
    "parameters of an mlp": {"attack": "min_sum()", "model": "mlp", "message": "parameters", "local_steps": 2},
}


@pytest.mark.parametrize("name", ROUNDS_OF_ATTACK)
def test_who_attacks_when_and_what_they_know_is_as_in_the_grid(tmp_path, name):
    keys = {**UNDER_ATTACK, **ROUNDS_OF_ATTACK[name]}
    (slow, expected), (quick, found) = both(tmp_path, **keys)
    assert untimed(quick) == untimed(slow)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    stopped = {"all of them silent", "all of them wrong", "too many"}
    assert quick["outcomes"]["OK"] == (0 if name in stopped else keys["rounds"])


def test_what_attackers_chose_is_on_record(tmp_path):
    keys = {**UNDER_ATTACK, "attack_start": 2, "attack_stop": 3}
    slow, _ = run(tmp_path, **keys, attack="tailored(epsilon='search')")
    quick = simulate(RunConfig.from_mapping({**keys, "attack": "tailored(epsilon='search')", "device": "cpu"}))
    assert quick["strengths"] == slow["strengths"]
    assert [entry["round"] for entry in quick["strengths"]] == [2, 3]
    assert all(entry["strength"] > 0 for entry in quick["strengths"])
    for attack in ("gaussian(sigma=1.0)", "crash()"):
        assert simulate(RunConfig.from_mapping({**keys, "attack": attack}))["strengths"] == []


# -- the parts ---------------------------------------------------------------------------------------


def walked(model, batch, clients=3, decay=0.01, shared=True):
    """Return gradients (n, d) of a model's grouped walk, and those that autograd gives each client."""
    config = RunConfig(model=model, weight_decay=decay)
    learner, task = config.learner(), config.data_set
    x = task.inputs(task.x_train[: clients * batch]).unflatten(0, (clients, batch))
    y = task.y_train[: clients * batch].unflatten(0, (clients, batch))
    expected = torch.stack(
        [torch.cat([g.reshape(-1) for g in learner.gradient(*pair)]) for pair in zip(x, y, strict=True)]
    )
    walk, found = Grouped(learner), torch.empty_like(expected)
    parameters = [p.detach()[None].expand(1 if shared else clients, *p.shape) for p in learner.parameters]
    walk.gradients(parameters, x, y, walk.layers(found))
    return found, expected


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("model", "batch"), [("softmax", 1), ("softmax", 32), ("mlp", 3), ("mlp", 32), ("cnn", 5), ("small_cnn", 17)]
)
def test_a_walk_gives_autograds_gradients_to_the_bit(model, batch, shared):
    found, expected = walked(model, batch, shared=shared)
    assert torch.equal(found, expected)
    assert bool((found[0] != found[1]).any())


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn"])
def test_all_clients_at_once_as_on_a_gpu_give_the_same_to_rounding(monkeypatch, model):
    monkeypatch.setattr(grouped, "_apart", lambda tensor: False)
    found, expected = walked(model, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


STRANGE = [
    nn.Linear(4, 2),
    nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)),
    nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout()),
    nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)),
    nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(4, 2)),
]


@pytest.mark.parametrize("model", STRANGE, ids=lambda model: str(model).replace("\n", ""))
def test_models_with_other_parts_are_named(model):
    assert "the model " in Grouped.check(model)


def test_the_studies_models_are_walked():
    assert [Grouped.check(MODELS[name]((1, 8, 8), 10)) for name in MODELS] == [None] * len(MODELS)


@pytest.mark.parametrize("rule", ["mean()", "trimmed_mean(f=2)", "geometric_median(f=2)", "centered_clipping(tau=1.0)"])
@pytest.mark.parametrize("relative", [False, True])
def test_stacks_give_what_layers_give_to_the_bit(rule, relative):
    x = torch.randn(8, 70, generator=torch.Generator().manual_seed(0))
    start = list(torch.ones(70).split([50, 0, 20])) if relative else None
    stacks = x.split([50, 0, 20], dim=1)
    layers = [[stack[i] for stack in stacks] for i in range(8)]
    rows = Rows.from_stacks(stacks, reference=start), Rows.from_layers(layers, reference=start)
    (first, _), (second, _) = (parse(rule)(r) for r in rows)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.weights, second.weights)
    stacks[0][3, 5] = torch.nan
    assert Rows.from_stacks(stacks, reference=start).faulty.tolist() == [i == 3 for i in range(8)]


def test_stacks_of_other_shapes_are_an_error():
    with pytest.raises(ConfigurationError, match="as many rows"):
        Rows.from_stacks([torch.ones(3, 2), torch.ones(2, 2)])


# -- studies -----------------------------------------------------------------------------------------

STUDY = """
[config]
rounds = 3
evaluate-every = 2
attack = "label_flip()"
attackers = 1
[axes]
model = ["softmax", "odd"]
defence = ["mean()", "faba(f=1)"]
"""


def odd(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes), nn.Identity())


def test_what_is_not_batched_runs_in_process_and_says_so(monkeypatch):
    monkeypatch.setitem(MODELS, "odd", odd)
    config = RunConfig(model="odd", rounds=3, attack="label_flip()", attackers=1, message="gradient")
    assert unbatched(config) == "the model holds Identity()"
    with pytest.raises(ConfigurationError, match=r"holds Identity.*; run it in process"):
        simulate(config)
    document = run_fast_cell(config.to_mapping())
    assert (document["engine"], document["fallback"]) == ("in-process", "the model holds Identity()")
    batched = run_fast_cell({**config.to_mapping(), "model": "softmax"})
    assert not {"engine", "fallback"} & set(batched)
    assert set(document) - set(batched) == {"engine", "fallback"}


def test_rules_that_need_trust_are_not_batched():
    assert "update of the server's own" in unbatched(RunConfig(defence="fltrust()"))


def test_a_rule_that_the_model_does_not_fit_is_an_error_before_round_1():
    with pytest.raises(ConfigurationError, match="head must name a matrix"):
        simulate(RunConfig(defence="lfighter(head='tail')"))


def test_a_study_s_cells_are_those_in_process_and_resume(tmp_path, monkeypatch):
    def here(cells, workers, run):
        return ((cell, run(cell.config.to_mapping())) for cell in cells)

    monkeypatch.setattr("experiments.runner._in_processes", here)  # processes are test_experiments' business
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace('"odd"', '"mlp"'))
    study = load_study(str(path))
    assert run_study(study, tmp_path / "fast", engine="fast").finished == 4
    sorted((tmp_path / "fast").glob("*.json"))[1].unlink()
    again = run_study(study, tmp_path / "fast", engine="fast")
    assert (again.finished, again.skipped, again.failed) == (1, 3, {})
    assert run_study(study, tmp_path / "process").failed == {}
    quick, slow = (read_results(study, tmp_path / engine) for engine in ("fast", "process"))
    assert [d["model_sha256"] for d in quick] == [d["model_sha256"] for d in slow]
    assert {d["engine"] for d in quick} == {"fast"}


def test_a_cluster_is_not_for_flowers_own_engine(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace('"odd"', '"mlp"'))
    with pytest.raises(ConfigurationError, match=r"--ray-address .* got --engine ray"):
        run_study(load_study(str(path)), tmp_path, engine="ray", ray_address="auto")


@pytest.mark.ray
def test_cells_run_as_tasks_of_a_ray_cluster(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace('"odd"', '"mlp"'))
    study = load_study(str(path))
    # In a process of its own: Ray leaves warnings behind in the one that starts it.
    command = [sys.executable, "-m", "experiments", "run", str(path), "--results", str(tmp_path), "--engine", "fast"]
    done = subprocess.run([*command, "--ray-address", "local"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [d["model_sha256"] for d in read_results(study, tmp_path / "small")] == [
        simulate(cell.config)["model_sha256"] for cell in study.cells
    ]


@pytest.mark.gpu
def test_the_same_run_on_a_gpu_agrees_to_rounding(tmp_path):
    keys = {"rounds": 5, "evaluate_every": 5, "model": "mlp", "attack": "dynamic_label_flip()", "attackers": 2}
    models = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.npz"
        simulate(RunConfig.from_mapping({**keys, "device": device, "save_model": str(path)}))
        with np.load(path) as file:
            models.append(dict(file))
    for key in models[0]:
        np.testing.assert_allclose(models[1][key], models[0][key], atol=1e-3)
