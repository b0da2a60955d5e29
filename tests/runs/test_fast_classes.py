"""Byz-DeSGD: its clients against naive numpy, one run on every engine, and what it is for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from flwr_robust import ConfigurationError
from flwr_robust.flower import InProcessGrid
from flwr_robust.protocol.classes import (
    draw_class_batch,
    part_sizes,
)
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.world import World
from flwr_robust.studies.flower_run import FlowerRuns
from tests import apps
from tests.flower_helpers import FIRST, record, same_bits, values

# -- the studies' clients ----------------------------------------------------------------------------

DIGITS = {
    "message": "class_momentum",
    "alpha": 0.9,
    "partition": "k_classes(k=3, others=4)",
    "clients": 24,
    "batch_size": 20,
    "device": "cpu",
}


class Alone:
    """One of the studies' clients, as its node would run it."""

    def __init__(self, config, client):
        from flwr_robust.app.client import app

        self.config, self.app = config, app
        self.context = Context(1, 1, {"partition-id": client}, RecordDict(), config.to_mapping())

    def __call__(self, model, server_round, classes):
        grid = InProcessGrid(self.app, 1, self.config.to_mapping())
        sent = RecordDict(
            {"arrays": record(model), "config": ConfigRecord({"server-round": server_round, "classes": classes})}
        )
        message = grid.create_message(sent, "train", FIRST, "")
        reply = self.app(message, self.context)
        assert isinstance(reply, Message)
        return values(reply.content["arrays"]) if "arrays" in reply.content else {}


def softmax_gradient(weight, bias, x, y, decay):
    s = x @ weight.T + bias
    p = np.exp(s - s.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    return error.T @ x + decay * weight, error.sum(0) + decay * bias


@pytest.mark.parametrize(("attack", "client"), [("none", 2), ("none", 23), ("label_flip()", 9)])
def test_a_clients_momenta_like_oracle(attack, client):
    keys = {**DIGITS, "weight_decay": 0.02, "alpha": 0.8}
    if attack != "none":
        keys |= {"attack": attack, "attackers": 1, "clients": 10, "partition": "k_classes(k=3)"}
    config = RunConfig.from_mapping(keys)
    alone = Alone(config, client)
    held = sorted({int(k) for k in config.data_set.y_train[torch.from_numpy(config.samples[client])]})
    assert len(held) == (10 if client == 23 else 3)
    shown = [9 - k for k in held] if attack != "none" else held  # whoever holds flipped labels holds these classes
    rng = np.random.default_rng(0)
    momenta = {}
    for t in range(1, 5):
        model = {"1.weight": rng.normal(size=(10, 64)).astype(np.float32) / 5, "1.bias": np.zeros(10, np.float32)}
        parts = draw_class_batch(config.seed, client, t, World(config).classes_of(client), "random", 20)
        assert list(parts) == held
        assert [len(part) for part in parts.values()] == part_sizes(20, len(held))
        for k, part in parts.items():
            assert set(config.data_set.y_train[part].tolist()) == {k}
            assert set(part.tolist()) <= set(config.samples[client].tolist())
            x = config.data_set.x_train[part].numpy().reshape(len(part), -1) / 16
            label = 9 - k if attack != "none" else k
            w, b = (model[name].astype(np.float64) for name in ("1.weight", "1.bias"))
            g = np.concatenate([v.ravel() for v in softmax_gradient(w, b, x, np.full(len(x), label), 0.02)])
            momenta[label] = g if label not in momenta else 0.2 * momenta[label] + 0.8 * g
        asked = [t % 10, (t + 5) % 10]
        found = alone(model, t, sorted(asked))
        expected = sorted(k for k in asked if k in shown)
        assert sorted({int(name.partition("/")[0]) for name in found}) == expected
        for k in expected:
            sent = np.concatenate([found[f"{k}/1.weight"].ravel(), found[f"{k}/1.bias"]])
            np.testing.assert_allclose(sent, momenta[k], atol=1e-5)


def test_batches_are_drawn_per_class_round_and_client():
    held = World(RunConfig.from_mapping(DIGITS)).classes_of(23)

    def drawn(client=23, t=1, seed=0, held=held, size=20):
        return [part.tolist() for part in draw_class_batch(seed, client, t, held, "random", size).values()]

    assert drawn() == drawn()
    assert drawn() != drawn(t=2)
    assert drawn() != drawn(client=22)
    assert drawn() != drawn(seed=1)
    fewer = {k: held[k] for k in list(held)[::2]}
    assert drawn(held=fewer, size=10) == drawn()[::2]  # a class's draw does not depend on the other classes
    assert [len(part) for part in drawn(size=3)] == [1] * 10


def test_a_whole_batch_of_each_class_asked_for():
    held = World(RunConfig.from_mapping(DIGITS)).classes_of(2)
    first, other = list(held)[:2]
    parts = draw_class_batch(0, 2, 1, held, "random", 20, [first, max(set(range(10)) - set(held))])
    assert {k: len(part) for k, part in parts.items()} == {first: 20}
    assert set(parts[first].tolist()) <= set(held[first].tolist())
    assert list(draw_class_batch(0, 2, 1, held, "random", 20, held)) == list(held)
    assert draw_class_batch(0, 2, 1, held, "random", 20, []) == {}
    split = draw_class_batch(0, 2, 1, held, "random", 20 * len(held))
    assert split[other].tolist() == draw_class_batch(0, 2, 1, held, "random", 20, [other])[other].tolist()


def test_only_the_momentum_of_a_class_asked_for_moves():
    model = {"1.weight": np.zeros((10, 64), np.float32), "1.bias": np.zeros(10, np.float32)}

    def last(asked, **keys):
        """Answer rounds, and return what the last one says about class 4."""
        alone = Alone(RunConfig.from_mapping({**DIGITS, "batch_size": 40, "alpha": 0.5, **keys}), 23)
        return [alone(model, t, [k]) for t, k in asked.items()][-1]["1.weight"]

    whole = {"class_batch": "asked"}
    assert np.array_equal(last({1: 4, 2: 5, 3: 4}, **whole), last({1: 4, 3: 4}, **whole))
    assert not np.array_equal(last({1: 4, 2: 5, 3: 4}), last({1: 4, 3: 4}))  # a split batch moves all momenta
    assert not np.array_equal(last({1: 4, 3: 4}, **whole), last({3: 4}, **whole))


# -- one run on every engine -------------------------------------------------------------------------

CASES = {
    "no attack": {"defence": "trimmed_mean(f=4)"},
    "flipped": {"attack": "label_flip()", "attackers": 4, "defence": "krum(f=3)", "weight_decay": 0.001},
    "few classes, flipped": {
        "partition": "k_classes(k=3)",
        "attack": "label_flip(p=0.5)",
        "attackers": 4,
        "defence": "median()",
    },
    "dynamic": {"attack": "dynamic_label_flip()", "attackers": 3, "redraw": True, "defence": "faba(f=3)"},
    "scaled": {"attack": "backdoor(target=0, scale=3.0)", "attackers": 2, "attack_start": 3, "attack_stop": 5},
    "several classes": {"classes_per_round": 3, "schedule": "random", "defence": "centered_clipping(tau=0.5)"},
    "several, scaled": {
        "classes_per_round": 4,
        "attack": "label_flip(scale=2.0)",
        "attackers": 2,
        "defence": "bucketing(s=2) | geometric_median()",
    },
    "sampled": {"fraction_train": 0.5, "defence": "dnc(f=1)", "gamma": 0.2},
    "asked": {"class_batch": "asked", "classes_per_round": 2, "defence": "median()"},
    "asked, flipped": {
        "class_batch": "asked",
        "attack": "label_flip()",
        "attackers": 4,
        "defence": "trimmed_mean(f=4)",
    },
    "asked, claimed": {
        "class_batch": "asked",
        "partition": "k_classes(k=3)",
        "attack": "sign_flip()",
        "attackers": 4,
        "defence": "median()",
    },
    "no compensation": {"gamma": 0.0, "model": "mlp", "batching": "consecutive", "batch_size": 7},
    "all compensation": {"gamma": 1.0, "alpha": 0.3},
    "small cnn": {"model": "small_cnn", "rounds": 3, "defence": "multi_krum(f=4, strict=False)"},
    "dirichlet": {"partition": "dirichlet(beta=0.5)", "clients": 6, "batch_size": 33, "defence": "clustering()"},
    "validation": {"validation": 0.15, "attack": "sign_flip()", "attackers": 1, "defence": "median()"},
    "not finite": {
        "attack": "label_flip(scale=1e39)",
        "attackers": 1,
        "attack_start": 2,
        "classes_per_round": 2,
        "defence": "trimmed_mean(f=1)",
    },
}
CASES |= {
    f"{attack}, {count} a round": {"attack": attack, "attackers": 4, "classes_per_round": count, **keys}
    for count in (1, 3)
    for attack, keys in {
        "mimic(worker=0)": {"defence": "krum(f=3)"},
        "mimic(warmup=3)": {"defence": "median()"},
        "constant(c=5.0)": {"defence": "clip_mean()"},
        "gaussian(sigma=2.0)": {"defence": "multi_krum(f=3)", "redraw": True},
        "sign_flip()": {"partition": "k_classes(k=3)", "defence": "faba(f=4)"},
        "ipm(epsilon=0.1)": {"defence": "dnc(f=4)", "attack_start": 3, "attack_stop": 8},
        "alie(z=1.0)": {"defence": "clustering()", "fraction_train": 0.8},
        "optimised(base='ipm(epsilon=1.0)')": {"defence": "centered_clipping(tau=0.5)", "knowledge": "defence"},
        "model_based(size=2.0)": {"defence": "geometric_median(f=4)"},
        "nan()": {"defence": "trimmed_mean(f=2)"},
        "crash(p=0.5)": {"defence": "median()"},
        "crash(p=0.5, error=True)": {"defence": "median()"},
        "delay(rounds=2)": {"defence": "median()"},
        "stale(rounds=2)": {"defence": "median()", "partition": "k_classes(k=3)"},
        "drop_layers(layers=['1.bias'])": {"defence": "median()"},
    }.items()
}
TIMES = ("seconds", "median_round_seconds")


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("name", CASES)
def test_the_fast_engine_is_the_run_in_process_to_the_bit(tmp_path, name):
    keys = {**DIGITS, "rounds": 12, "evaluate_every": 4, **CASES[name]}
    slow, expected = apps.run(tmp_path, **keys)
    path = tmp_path / "fast.npz"
    quick = json.loads(json.dumps(simulate(RunConfig.from_mapping({**keys, "save_model": str(path)}))))
    assert quick.pop("gradients") == "batched"
    assert list(quick) == list(slow)
    for key in set(slow) - set(TIMES):
        assert quick[key] == slow[key], key
    with np.load(path) as file:
        assert all(file[key].tobytes() == expected[key].tobytes() for key in expected)
    assert sum(slow["abstentions"]) > 0
    told = {reason for reason in ("refused", "missing") if slow[reason]}
    attack = CASES[name].get("attack", "")
    if attack.startswith(("delay", "stale", "drop")):
        return
    refused = attack.startswith("nan") or "error=True" in attack or name == "not finite"
    assert told == ({"refused"} if refused else {"missing"} if attack.startswith("crash") else set())


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 0.6},
        {"buffer_fade": 0.5},
        {"schedule": "random"},
        {"classes_per_round": 2},
        {"seed": 1},
        {"class_batch": "asked"},
    ],
)
def test_another_run_is_another_model(changes):
    keys = {**DIGITS, "rounds": 4, "evaluate_every": 4}
    first, again = (simulate(RunConfig.from_mapping(keys))["model_sha256"] for _ in range(2))
    assert first == again
    assert simulate(RunConfig.from_mapping({**keys, **changes}))["model_sha256"] != first


@pytest.mark.parametrize(
    "changes",
    [{"gamma": 0.9}, {"buffer_fade": 0.9}, {"schedule": "random"}, {"classes_per_round": 2}, {"class_batch": "asked"}],
)
def test_keys_of_class_momenta_are_refused_with_other_messages(changes):
    with pytest.raises(ConfigurationError, match="changes nothing with message='momentum', only with 'class_momentum'"):
        RunConfig.from_mapping(changes)


@pytest.mark.parametrize("attack", ["sign_flip()", "mimic(warmup=2)", "alie(z=1.0)", "constant(c=5.0)"])
def test_attackers_on_messages_claim_the_classes_they_lack(tmp_path, attack):
    keys = {**DIGITS, "partition": "k_classes(k=3)", "clients": 20, "rounds": 10, "evaluate_every": 10}
    keys |= {"attackers": 2, "defence": "median()"}
    found, _ = apps.run(tmp_path, **keys, attack=attack)
    assert found["abstentions"][-2:] == [0, 0]
    assert found["abstentions"][:18] == [7] * 18
    assert found["outcomes"]["OK"] == 10
    assert found["refused"] == found["missing"] == []
    honest, _ = apps.run(tmp_path, **{**keys, "attackers": 0}, attack="none")
    assert honest["abstentions"] == [7] * 20
    early, _ = apps.run(tmp_path, **keys, attack=attack, attack_stop=4)
    assert 0 < early["abstentions"][-1] < 7  # then they are honest


def test_the_app_goes_on_from_a_checkpoint(tmp_path):
    """Model and buffer come back; what clients keep begins anew in another process, so momenta are left out here."""
    keys = {**DIGITS, "alpha": 1.0, "evaluate_every": 1, "defence": "centered_clipping(tau=0.5)"}
    folder = str(tmp_path / "run")
    apps.run(tmp_path, rounds=2, audit=folder, **keys)
    found, model = apps.run(tmp_path, rounds=4, audit=folder, resume=True, **keys)
    expected, whole = apps.run(tmp_path, rounds=4, **keys)
    assert same_bits(model, whole)
    assert found["abstentions"] == expected["abstentions"]


# -- what it is for ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_saves_krum_among_clients_of_three_classes(tmp_path):
    keys = {**DIGITS, "server_learning_rate": 0.5, "rounds": 200, "evaluate_every": 200}
    krum = {"defence": "krum(f=4)", "message": "momentum"}
    saved = {"defence": "krum(f=4, strict=False)"}

    def accuracy(**changes):
        attackers = 0 if changes.get("attack", "none") == "none" else 4
        return 100 * apps.run(tmp_path, **{**keys, "attackers": attackers, **changes})[0]["curve"][-1]["accuracy"]

    assert 88 < accuracy(**krum) < 97  # 92 without attack, and 93 with class-wise momenta
    assert 88 < accuracy(**saved) < 97
    assert accuracy(**krum, attack="sign_flip()") < 60  # 43
    assert 88 < accuracy(**saved, attack="sign_flip()") < 97  # 93
    # The attackers, who hold all classes, resemble each other most: Krum trusts them alone.
    assert accuracy(**krum, attack="label_flip()") < 10  # 1
    assert 88 < accuracy(**saved, attack="label_flip()") < 97  # 94


@pytest.mark.ray
def test_ray_gives_the_same_model_to_the_bit(tmp_path):
    keys = {**DIGITS, "clients": 10, "partition": "k_classes(k=3, others=2)", "rounds": 4, "evaluate_every": 2}
    cases = [
        {**keys, "attack": "label_flip()", "attackers": 2, "defence": "trimmed_mean(f=1)"},
        {**keys, "attack": "ipm(epsilon=0.5)", "attackers": 2, "classes_per_round": 2, "schedule": "random"},
    ]
    with FlowerRuns() as flower:
        for each in cases:
            on_ray = flower.run(RunConfig.from_mapping(each))
            in_process, _ = apps.run(tmp_path, **each)
            for key in ("model_sha256", "curve", "abstentions", "mean_weights", "refused", "missing", "outcomes"):
                assert on_ray[key] == in_process[key]
            assert sum(on_ray["abstentions"]) > 0


@pytest.mark.gpu
def test_the_same_run_on_a_gpu_agrees_to_rounding(tmp_path):
    keys = {**DIGITS, "rounds": 5, "evaluate_every": 5, "model": "mlp", "attack": "label_flip()", "attackers": 4}
    models = []
    for device in ("cpu", "cuda"):
        path = tmp_path / f"{device}.npz"
        simulate(RunConfig.from_mapping({**keys, "device": device, "save_model": str(path)}))
        with np.load(path) as file:
            models.append(dict(file))
    for key in models[0]:
        np.testing.assert_allclose(models[1][key], models[0][key], atol=1e-3)
