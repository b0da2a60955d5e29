"""The fast engine: the same run as in process, to the bit, and what it leaves to it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flwr_robust import ConfigurationError, Rows, UntrainedError
from flwr_robust.attacks.fault.base import faults
from flwr_robust.attacks.message.base import message_attacks
from flwr_robust.core.pipeline import parse
from flwr_robust.protocol.messages import MESSAGES
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import batches, simulate, simulate_many, unbatched
from flwr_robust.studies import runner
from flwr_robust.studies.runner import Summary, read_results, run_fast_cell, run_study
from flwr_robust.studies.study import Cell, load_study
from flwr_robust.tasks import MODELS, Grouped, depends_on_data, grouped, load_task
from tests.apps import run

ROOT = Path(__file__).resolve().parents[2]
OWN = ("seconds", "median_round_seconds", "gradients")

# Every kind of message, attack, sampling and batching, and rules of both kinds, some with a memory, over three models.
CASES = {
    "mean": {},
    "mlp": {"model": "mlp", "partition": "by_label", "defence": "faba(f=1)"},
    "cnn": {"model": "cnn", "rounds": 3, "batch_size": 6, "clients": 4, "defence": "trimmed_mean(f=1)"},
    "decay": {"weight_decay": 0.01, "alpha": 0.5, "defence": "geometric_median(f=2)"},
    "gradient": {"message": "gradient", "defence": "centered_clipping(tau=0.3)", "batching": "consecutive"},
    "the server's momentum": {
        "message": "gradient",
        "server_momentum": 0.9,
        "defence": "krum(f=2)",
        "fraction_train": 0.7,
    },
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
    "local steps on single samples": {"message": "delta", "local_steps": 3, "batch_size": 1, "model": "mlp"},
    "one client": {"clients": 1},
    "validation": {
        "validation": 0.2,
        "attack": "backdoor(target=0)",
        "attackers": 2,
        "batching": "consecutive",
        "partition": "dirichlet(beta=0.5, order='by_class')",
    },
    "parts that draw": {
        "defence": "resampling(s=2) | mixtailor(f=1, pool=['dnc(sub_dimension=50)', 'median', 'bucketing(s=2) | cge'])",
        "clients": 10,
        "fraction_train": 0.8,
        "attack": "tailored(epsilon='search')",
        "knowledge": "defence",
        "attackers": 1,
        "seed": 5,
    },
    "classes and parts that draw": {
        "message": "class_momentum",
        "defence": "bucketing(s=2) | dnc(f=1, sub_dimension=50)",
        "schedule": "random",
        "clients": 8,
        "attack": "optimised(base='ipm(epsilon=1.0)', budget=4)",
        "knowledge": "defence",
        "attackers": 1,
        "seed": 6,
    },
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
    return json.dumps({key: value for key, value in document.items() if key not in OWN})


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_run_in_process_to_the_bit(tmp_path, name):
    (slow, expected), (quick, found) = both(tmp_path, **CASES[name])
    assert quick.pop("gradients") == "batched"
    assert list(quick) == list(slow)  # the same document, times included
    assert untimed(quick) == untimed(slow)
    assert list(found) == list(expected)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    assert quick["outcomes"]["OK"] == slow["curve"][-1]["round"]


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
    "multiples": ["multiples(c=5.0)"],
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
    honest = simulate(
        RunConfig.from_mapping({**keys, "attack": "none", "attackers": 0, "knowledge": "omniscient", "device": "cpu"})
    )
    assert (honest["model_sha256"] == quick["model_sha256"]) == (attack == "drop_layers(layers=['none'])")


# Who attacks when, what they see, what they remember of rounds they were not in, and defences with a memory.
ROUNDS_OF_ATTACK = {
    "some rounds": {"attack": "mimic(warmup=2)", "attack_start": 3, "attack_stop": 5, "rounds": 8},
    "redrawn": {"attack": "stale(rounds=1)", "redraw": True, "rounds": 8, "message": "momentum"},
    "redrawn and remembering": {"attack": "sybil(k=2, base='mimic()')", "redraw": True, "attackers": 3},
    "sampled": {"attack": "alie()", "attackers": 3, "fraction_train": 0.5, "rounds": 8, "defence": "median()"},
    "sampled faults": {
        "attack": "delay()",
        "attackers": 3,
        "fraction_train": 0.5,
        "rounds": 8,
        "defence": "mean()",
        "min_replies": 1,
    },
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
    "all of them silent": {"attack": "crash()", "attackers": 8, "defence": "mean()", "attack_start": 2},
    "all of them wrong": {"attack": "nan()", "attackers": 8, "defence": "mean()", "attack_start": 2},
    "too many": {"attack": "crash(error=True)", "attackers": 5, "attack_start": 2},
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
    assert quick["outcomes"]["OK"] == (1 if name in stopped else keys["rounds"])


@pytest.mark.parametrize("attack", ["crash()", "nan()"])
def test_a_run_in_vain_fails_on_both_engines_and_writes_no_result(tmp_path, attack):
    keys = {**UNDER_ATTACK, "attack": attack, "attackers": 8, "defence": "mean()", "rounds": 2}
    with pytest.raises(UntrainedError, match=r"^run: 0 of 2 rounds changed the model; the last one: no reply"):
        run(tmp_path, **keys)
    path = tmp_path / "fast.json"
    with pytest.raises(UntrainedError, match=r"^run: 0 of 2 rounds changed the model; the last one: no reply"):
        simulate(RunConfig.from_mapping({**keys, "device": "cpu", "output": str(path)}))
    assert list(tmp_path.iterdir()) == []


def test_what_attackers_chose_is_on_record(tmp_path):
    keys = {**UNDER_ATTACK, "attack_start": 2, "attack_stop": 3}
    slow, _ = run(tmp_path, **keys, attack="tailored(epsilon='search')")
    quick = simulate(RunConfig.from_mapping({**keys, "attack": "tailored(epsilon='search')", "device": "cpu"}))
    assert quick["strengths"] == slow["strengths"]
    assert [entry["round"] for entry in quick["strengths"]] == [2, 3]
    assert all(entry["strength"] > 0 for entry in quick["strengths"])
    for attack in ("gaussian(sigma=1.0)", "crash()"):
        assert simulate(RunConfig.from_mapping({**keys, "attack": attack}))["strengths"] == []


# -- several runs together ---------------------------------------------------------------------------

TOGETHER = {"rounds": 5, "evaluate_every": 2, "clients": 6, "batch_size": 8, "device": "cpu"}

# Runs that differ in all that may differ, over each model, kind of message and sampling.
SIDE_BY_SIDE = {
    "softmax": {},
    "mlp": {"model": "mlp", "batch_size": 7, "weight_decay": 0.01},
    "cnn": {"model": "cnn", "clients": 5, "batch_size": 4, "rounds": 2},
    "gradient": {"message": "gradient", "weight_decay": 0.1, "batching": "consecutive"},
    "delta": {"message": "delta", "local_steps": 2, "model": "mlp"},
    "parameters": {"message": "parameters", "local_steps": 2},
    "personal heads": {
        "message": "parameters",
        "model": "mlp",
        "local_steps": 3,
        "tail_averaging": True,
        "personal": "head.*",
        "fraction_train": 0.85,
    },
    "class-wise": {"message": "class_momentum", "classes_per_round": 2, "rounds": 4},
    "sampled": {"fraction_train": 0.85, "weight_decay": 0.01},
}
THEIR_OWN = [
    {"seed": 1, "defence": "trimmed_mean(f=2)"},
    {"seed": 2, "attack": "label_flip(scale=2.0)", "attackers": 1, "partition": "dirichlet(beta=0.5)"},
    {"attack": "dynamic_label_flip()", "attackers": 2, "defence": "centered_clipping(tau=0.3)", "redraw": True},
    {
        "attack": "mimic()",
        "attackers": 1,
        "server_learning_rate": 0.2,
        "defence": "krum(f=1)",
        "local_learning_rate": 0.2,
    },
    {"attack": "stale()", "attackers": 2, "evaluate_every": 1},
]


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_runs_side_by_side_are_those_one_by_one_to_the_bit(name):
    fixed = {"redraw": False} if name == "personal heads" else {}
    if SIDE_BY_SIDE[name].get("message") not in ("delta", "parameters"):  # no local steps
        fixed["local_learning_rate"] = 0.1
    configs = [RunConfig.from_mapping({**TOGETHER, **SIDE_BY_SIDE[name], **own, **fixed}) for own in THEIR_OWN]
    found = dict(simulate_many(configs, most=len(configs)))
    assert sorted(found) == list(range(len(configs)))
    for place, config in enumerate(configs):
        assert found[place].pop("runs_together", 1) == (1 if name == "class-wise" else len(configs))
        assert untimed(found[place]) == untimed(simulate(config))
    assert len({document["model_sha256"] for document in found.values()}) == len(configs)


def test_only_runs_of_one_shape_go_together():
    differ = [{}, {"clients": 7}, {"model": "mlp"}, {"batch_size": 9}, {"rounds": 3}, {"message": "gradient"}]
    differ += [{"alpha": 0.2}, {"weight_decay": 0.1}, {"batching": "consecutive"}, {"seed": 5}, {"seed": 6}]
    configs = [RunConfig.from_mapping({**TOGETHER, **own}) for own in differ]
    places = batches(configs, 2)
    assert places[:2] == [[0, 9], [10]]
    assert places[2:] == [[place] for place in range(1, 9)]
    documents = dict(simulate_many(configs, most=2))
    assert [documents[place].get("runs_together") for place in (0, 9, 10, 1)] == [2, 2, None, None]
    assert documents[4]["model_sha256"] == simulate(configs[4])["model_sha256"]


def test_a_run_that_cannot_be_stops_no_other():
    configs = [
        RunConfig(rounds=3, defence=d) for d in ("mean()", "lfighter(head='tail')", "lfighter(head='tail')", "median()")
    ]
    found = dict(simulate_many(configs, most=4))
    assert [isinstance(found[place], ConfigurationError) for place in range(4)] == [False, True, True, False]
    assert found[0]["outcomes"]["OK"] == found[3]["outcomes"]["OK"] == 3
    with pytest.raises(ConfigurationError, match="most must be"):
        next(simulate_many(configs, most=0))


def test_files_are_written_for_each_run(tmp_path):
    configs = [
        RunConfig(rounds=2, seed=s, output=str(tmp_path / f"{s}.json"), save_model=str(tmp_path / f"{s}.npz"))
        for s in (0, 1)
    ]
    for place, found in simulate_many(configs, most=2):
        assert json.loads((tmp_path / f"{place}.json").read_text())["model_sha256"] == found["model_sha256"]
    with np.load(tmp_path / "0.npz") as first, np.load(tmp_path / "1.npz") as second:
        assert not np.array_equal(first["1.weight"], second["1.weight"])


def test_cells_run_in_batches_are_those_run_alone(tmp_path, monkeypatch):
    def here(function, calls, workers):
        return ((key, function(*arguments)) for key, arguments in calls)

    monkeypatch.setattr("flwr_robust.studies.runner.side_by_side", here)
    monkeypatch.setitem(MODELS, "odd", odd)
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    study = load_study(str(path))
    assert run_study(study, tmp_path / "batched", engine="fast", batch_runs=3) == Summary(4, 0, {})
    assert run_study(study, tmp_path / "alone", engine="fast") == Summary(4, 0, {})
    batched, alone = (read_results(study, tmp_path / folder) for folder in ("batched", "alone"))
    assert [d["model_sha256"] for d in batched] == [d["model_sha256"] for d in alone]
    assert [d.get("runs_together") for d in batched] == [2, 2, 2, 2]
    assert [d["engine"] for d in batched] == ["fast"] * 4
    assert [d["gradients"].partition(":")[0] for d in batched] == ["batched"] * 2 + ["one client at a time"] * 2
    assert run_study(study, tmp_path / "batched", engine="fast", batch_runs=3).skipped == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "ray"}, "--batch-runs=2 is for --engine fast .* got --engine ray"),
        ({"engine": "fast", "ray_address": "auto"}, "with --ray-address auto"),
        ({"engine": "fast", "batch_runs": 0}, "--batch-runs must be"),
    ],
)
def test_batches_of_runs_are_refused_where_there_are_none(tmp_path, options, words):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.replace('"odd"', '"mlp"'))
    with pytest.raises(ConfigurationError, match=words):
        run_study(load_study(str(path)), tmp_path, **{"batch_runs": 2, **options})


def test_on_a_gpu_runs_go_together_unasked(monkeypatch):
    study = [Cell({}, RunConfig(device=device)) for device in ("cpu", "auto")]
    assert runner._usual(study) == (16 if torch.cuda.is_available() else 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (runner._usual(study), runner._usual(study[:1])) == (16, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn"])
def test_runs_side_by_side_on_a_gpu_agree_with_the_cpu_to_rounding(tmp_path, model):
    models = {}
    for device in ("cpu", "cuda"):
        names = [str(tmp_path / f"{device}-{i}.npz") for i in range(len(THEIR_OWN))]
        configs = [
            RunConfig.from_mapping({**TOGETHER, "model": model, **own, "device": device, "save_model": path})
            for own, path in zip(THEIR_OWN, names, strict=True)
        ]
        assert len(list(simulate_many(configs, most=len(configs)))) == len(configs)
        models[device] = [dict(np.load(path)) for path in names]
    for here, there in zip(models["cpu"], models["cuda"], strict=True):
        for key in here:
            np.testing.assert_allclose(there[key], here[key], atol=1e-3)


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


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn"])
def test_clients_of_several_models_at_once_as_on_a_gpu_give_the_same_to_rounding(monkeypatch, model):
    learner, task = RunConfig(model=model, weight_decay=0.01).learner(), load_task("digits")
    walk, x = Grouped(learner), task.inputs(task.x_train[:48]).unflatten(0, (6, 8))
    parameters = walk.models(3)
    for parameter, start in zip(parameters, learner.parameters, strict=True):
        parameter.copy_(start.detach() * torch.tensor([1.0, 2.0, 3.0]).view(-1, *[1] * start.dim()))
    given = parameters, task.y_train[:48].view(6, 8)
    found, expected = torch.empty(2, 6, sum(p.numel() for p in learner.parameters)).unbind(0)
    walk.gradients(given[0], x.clone(), given[1], walk.layers(expected))
    monkeypatch.setattr(grouped, "_apart", lambda tensor: False)
    walk.gradients(given[0], x.clone(), given[1], walk.layers(found))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert bool((expected[0] - expected[5]).abs().max() > 1e-3)


def test_the_studies_models_are_walked():
    names = [name for name in MODELS if not depends_on_data(name)]
    assert [Grouped.check(MODELS[name]((1, 8, 8), 10)) for name in names] == [None] * 5


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
    with pytest.raises(ConfigurationError, match="the same number of rows"):
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
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes), nn.Softplus())


def test_what_is_for_flower_runs_in_process_and_says_so():
    config = RunConfig(rounds=3, attack="label_flip()", attackers=1, message="gradient", quarantine_after=2)
    assert "for the guard" in unbatched(config)
    with pytest.raises(ConfigurationError, match=r"for the guard.*; run it in process"):
        simulate(config)
    document = run_fast_cell(config.to_mapping())
    assert (document["engine"], document["fallback"]) == ("in-process", unbatched(config))
    batched = run_fast_cell({**config.to_mapping(), "quarantine-after": 0})
    assert not {"engine", "fallback"} & set(batched)
    assert set(document) ^ set(batched) == {"engine", "fallback", "gradients"}


def test_what_is_not_batched_is_computed_one_by_one_and_says_so(monkeypatch):
    monkeypatch.setitem(MODELS, "odd", odd)
    config = RunConfig(model="odd", rounds=3, attack="label_flip()", attackers=1, message="gradient")
    assert unbatched(config) is None
    document = run_fast_cell(config.to_mapping())
    assert document["gradients"] == "one client at a time: the model holds Softplus(beta=1.0, threshold=20.0)"
    assert run_fast_cell({**config.to_mapping(), "model": "softmax"})["gradients"] == "batched"


def test_a_rule_that_the_model_does_not_fit_is_an_error_before_round_1():
    with pytest.raises(ConfigurationError, match="head must name a matrix"):
        simulate(RunConfig(defence="lfighter(head='tail')"))


def test_a_study_s_cells_are_those_in_process_and_resume(tmp_path, monkeypatch):
    def here(cells, workers, run):
        return ((cell, run(cell.config.to_mapping())) for cell in cells)

    monkeypatch.setattr("flwr_robust.studies.runner._in_processes", here)  # processes are test_studies' business
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
