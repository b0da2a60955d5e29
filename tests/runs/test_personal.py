"""Personal parameters: what is sent, what stays, how clients are tested, and that both engines agree to the bit."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict

from flwr_robust import ConfigurationError
from flwr_robust.app.client import app as client_app
from flwr_robust.app.evaluation import asking
from flwr_robust.app.numpy_clients import HonestClient
from flwr_robust.app.server import app as server_app
from flwr_robust.audit import ClientStatesKept, read_log
from flwr_robust.audit.run import log_file
from flwr_robust.flower import InProcessGrid, run_in_process
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import simulate
from flwr_robust.runs.personal import ClientScore, averaged, evaluated_clients, evaluation_shares
from flwr_robust.seeds import torch_generator
from flwr_robust.studies.flower_run import FlowerRuns
from flwr_robust.tasks import build_model, load_task, split_arrays
from tests.apps import run
from tests.runs.test_fast import both, untimed

KEYS = {
    "message": "parameters",
    "server_learning_rate": 1.0,
    "local_steps": 3,
    "model": "mlp",
    "personal": "head.*",
    "partition": "dirichlet(beta=0.5)",
}
MLP = "1.weight, 1.bias, 3.weight, 3.bias, 5.weight, 5.bias"

# -- which arrays ------------------------------------------------------------------------------------


def shapes(name, shape=(1, 8, 8)):
    return {key: tuple(value.shape) for key, value in build_model(name, shape, 10, 0).state_dict().items()}


@pytest.mark.parametrize(
    ("model", "patterns", "personal"),
    [
        ("mlp", "head.*", ["5.weight", "5.bias"]),
        ("mlp", "5.*", ["5.weight", "5.bias"]),
        ("mlp", "head.bias", ["5.bias"]),
        ("mlp", "1.*, head.weight", ["1.weight", "1.bias", "5.weight"]),
        ("mlp", " *.bias ", ["1.bias", "3.bias", "5.bias"]),
        ("mlp", "[13].weight 5.bias", ["1.weight", "3.weight", "5.bias"]),
        ("cnn", "head.*", ["9.weight", "9.bias"]),
        ("cnn", "0.*,3.*", ["0.weight", "0.bias", "3.weight", "3.bias"]),
        ("softmax", "head.bias", ["1.bias"]),
    ],
)
def test_patterns_name_arrays(model, patterns, personal):
    held = shapes(model)
    split = split_arrays(held, patterns)
    names = list(held)
    assert [names[i] for i in split.personal] == personal
    assert sorted([*split.shared, *split.personal]) == list(range(len(names)))
    assert split == RunConfig(message="delta", model=model, personal=patterns).split
    arrays = [np.full(1, i) for i in range(len(names))]
    parts = [arrays[i] for i in split.shared], [arrays[i] for i in split.personal]
    assert [int(a[0]) for a in split.join(*parts)] == list(range(len(names)))
    sizes = [int(np.prod(shape)) for shape in held.values()]
    flat = np.concatenate([np.full(size, i) for i, size in enumerate(sizes)])
    for part, columns in zip((split.shared, split.personal), split.columns(sizes), strict=True):
        np.testing.assert_array_equal(flat[columns], np.concatenate([np.full(sizes[i], i) for i in part]))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"personal": "6.*"}, f"the pattern '6.*' matches none of the model's arrays, {MLP} (the last layer's also as"),
        ({"personal": "head.*, tail.*"}, "the pattern 'tail.*' matches none"),
        ({"personal": "*"}, f"personal must match some, but not all, of the model's arrays, {MLP}"),
        ({"personal": " , "}, "personal must match some, but not all, of the model's arrays"),
        (
            {"personal": "head.*", "model": "softmax"},
            "personal must match some, but not all, of the model's arrays, 1.",
        ),
        (
            {"message": "momentum", "local_steps": 1},
            "personal='head.*' changes nothing with message='momentum', only with 'delta' or 'parameters'",
        ),
        ({"attack": "label_flip()", "attackers": 1, "redraw": True}, "needs attackers that stay"),
        ({"attack": "label_flip()", "attackers": 10}, "attackers must be below clients=10; got attackers=10"),
    ],
)
def test_what_cannot_be_personal_is_refused(keys, words):
    with pytest.raises(ConfigurationError) as caught:
        RunConfig(**{**KEYS, **keys})
    assert words in str(caught.value)


# -- test samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "dirichlet(beta=0.3)", "by_label", "k_classes(k=3)"])
def test_test_samples_are_dealt_as_the_training_samples_are(partition):
    config = RunConfig(partition=partition, clients=7)
    shares, labels = evaluation_shares(config), config.data_set.y_test.numpy()
    assert sorted(np.concatenate(shares)) == list(range(len(labels)))
    trained = config.data_set.y_train.numpy()
    for client, share in enumerate(shares):
        assert (np.diff(share) > 0).all()
        for label in range(10):
            held = (trained[config.samples[client]] == label).sum() / (trained == label).sum()
            assert abs((labels[share] == label).sum() - held * (labels == label).sum()) <= 1
    again = evaluation_shares.__wrapped__(dataclasses.replace(config))  # not from the cache
    other = evaluation_shares(dataclasses.replace(config, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))
    same = all(np.array_equal(a, b) for a, b in zip(shares, other, strict=True))
    assert same == (partition == "by_label")  # whole classes leave nothing to draw


@pytest.fixture
def sites(tmp_path):
    """Return the path of digits of five sites of unequal sizes, whose test samples have sites, too."""
    task, draw = load_task("digits"), np.random.default_rng(0)
    held, asked = (draw.choice(5, size=len(y), p=[0.4, 0.3, 0.15, 0.1, 0.05]) for y in (task.y_train, task.y_test))
    arrays = {"x_train": task.x_train, "y_train": task.y_train, "x_test": task.x_test, "y_test": task.y_test}
    np.savez(tmp_path / "sites.npz", **{k: v.numpy() for k, v in arrays.items()}, owners_train=held, owners_test=asked)
    return str(tmp_path / "sites.npz"), asked


def test_each_client_is_tested_on_what_its_own_owners_have(sites):
    path, asked = sites
    natural = RunConfig(task=path, partition="natural(largest=True)", clients=4)
    shares = evaluation_shares(natural)
    assert [share.tolist() for share in shares] == [np.flatnonzero(asked == site).tolist() for site in range(4)]
    dealt = RunConfig(task=path, partition="natural", clients=2)
    owners = dealt.data_set.owners.numpy()
    for held, share in zip(dealt.samples, evaluation_shares(dealt), strict=True):
        assert set(owners[held]) == set(asked[share])
    mixed = RunConfig(task=path, partition="iid", clients=4)  # every owner lies with all clients
    assert len({len(share) // 4 for share in evaluation_shares(mixed)}) == 1
    assert sum(map(len, evaluation_shares(mixed))) == len(asked)


def test_clients_without_test_samples_are_not_evaluated():
    config = RunConfig(**{**KEYS, "clients": 400, "partition": "iid"})  # 355 test samples
    empty = {client for client, share in enumerate(evaluation_shares(config)) if not len(share)}
    assert empty
    assert set(evaluated_clients(config)) == set(range(400)) - empty
    attacked = dataclasses.replace(config, attack="sign_flip()", attackers=100)
    assert set(evaluated_clients(attacked)) == set(range(300)) - empty
    alone = dataclasses.replace(config, attack="sign_flip()", attackers=399 if 0 in empty else 398)
    if not set(range(400 - alone.attackers)) - empty:
        with pytest.raises(ConfigurationError, match="needs an honest client with test samples"):
            evaluated_clients(alone)


def score(samples, loss, accuracy, trials=0, success=0.0):
    return ClientScore(samples, {"loss": loss, "accuracy": accuracy}, trials, success)


def test_what_is_reported_by_hand():
    scores = [
        ClientScore(30, {"loss": 1.0, "accuracy": 0.5}, 10, 0.5),
        ClientScore(10, {"loss": 2.0, "accuracy": 0.9}, 0, 0.0),
        ClientScore(10, {"loss": 0.0, "accuracy": 1.0}, 30, 1.0),
    ]
    assert averaged(scores) == {
        "loss": pytest.approx(1.0),
        "accuracy": pytest.approx((15 + 9 + 10) / 50),
        "accuracy_unweighted": pytest.approx(0.8),
        "honest_clients": 3,
        "attack_success": pytest.approx(35 / 40),
    }
    assert averaged([]) == {}


def test_validation_counts_for_those_that_held_out_samples():
    held_out = [
        ClientScore(5, {"loss": 3.0, "accuracy": 0.2}, 2, 0.5),
        None,
        ClientScore(15, {"loss": 1.0, "accuracy": 0.6}, 0, 0.0),
    ]
    scores = [ClientScore(10, {"loss": 1.0, "accuracy": 0.5}, validation=score) for score in held_out]
    found = averaged(scores)
    assert {name: value for name, value in found.items() if name.startswith("validation")} == {
        "validation_loss": pytest.approx(1.5),
        "validation_accuracy": pytest.approx(0.5),
        "validation_accuracy_unweighted": pytest.approx(0.4),
        "validation_honest_clients": 2,
        "validation_attack_success": pytest.approx(0.5),
    }
    assert found["accuracy"] == 0.5


def test_a_client_evaluates_its_model_on_the_samples_that_it_held_out():
    config = RunConfig(**{**KEYS, "clients": 3, "validation": 0.25})
    arrays = config.learner().arrays()
    _, _, metrics = HonestClient(config, 1, RecordDict()).evaluate([arrays[i] for i in config.split.shared], {})
    x, y = config.data_set.batch(torch.from_numpy(config.held_out[1]))
    found = config.learner().evaluate(x, y)
    assert {name: metrics[f"validation_{name}"] for name in found} == found
    assert len(y) == pytest.approx(0.25 / 0.75 * len(config.samples[1]), abs=1)


# -- runs --------------------------------------------------------------------------------------------


def naive_run(config):
    """Softmax regression whose bias is the client's own, in float64: weight, biases, accuracies and test samples."""
    task = config.data_set
    w, first = (array.astype(np.float64) for array in config.learner().arrays())
    biases = [first.copy() for _ in range(config.clients)]

    def scaled(x):
        return x.double().flatten(1).numpy() * task.scale + task.shift

    for at in range(1, config.rounds + 1):
        results = []
        for client, held in enumerate(config.samples):
            draw = torch_generator(config.seed, "batch", client, at)
            u = w.copy()
            for _ in range(config.local_steps):
                picked = held[torch.randint(len(held), (config.batch_size,), generator=draw).numpy()]
                x, y = scaled(task.x_train[picked]), task.y_train[picked].numpy()
                p = np.exp(x @ u.T + biases[client])
                error = p / p.sum(1, keepdims=True) - np.eye(task.classes)[y]
                u = u - config.local_learning_rate * error.T @ x / len(x)
                biases[client] = biases[client] - config.local_learning_rate * error.mean(0)
            results.append(u)
        w = sum(results) / len(results)
    accuracies, sizes = [], []
    for client, share in enumerate(evaluation_shares(config)):
        scores = scaled(task.x_test[share]) @ w.T + biases[client]
        accuracies.append((scores.argmax(1) == task.y_test[share].numpy()).mean())
        sizes.append(len(share))
    return w, biases, accuracies, sizes


def test_a_run_is_the_transcription(tmp_path):
    keys = {**KEYS, "model": "softmax", "personal": "head.bias", "clients": 5, "rounds": 6, "local_learning_rate": 0.5}
    document, model = run(tmp_path, **keys)
    assert list(model) == ["1.weight"]  # the server has nothing else
    w, biases, accuracies, sizes = naive_run(RunConfig.from_mapping(keys))
    np.testing.assert_allclose(model["1.weight"], w, atol=5e-6)
    final = document["curve"][-1]
    assert final["accuracy"] == pytest.approx(np.average(accuracies, weights=sizes), abs=1e-9)
    assert final["accuracy_unweighted"] == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert final["honest_clients"] == 5
    # The biases differ, and with shared ones the weights become others.
    assert np.abs(biases[0] - biases[1]).max() > 1e-2
    _, whole = run(tmp_path, **{**keys, "personal": ""})
    assert np.abs(whole["1.weight"] - w).max() > 1e-3


CASES = {
    "head": {},
    "body": {"personal": "1.*, 3.bias", "defence": "trimmed_mean(f=2)"},
    "delta": {"message": "delta", "tail_averaging": True, "defence": "geometric_median(f=2, weighted=True)"},
    "sampled": {"fraction_train": 0.4, "rounds": 7},
    "cnn": {"model": "cnn", "personal": "head.*", "clients": 4, "rounds": 2, "batch_size": 6},
    "flip": {"attack": "label_flip(scale=3.0)", "attackers": 3, "defence": "krum(f=3)"},
    "looking": {"attack": "dynamic_label_flip(p=0.7)", "attackers": 2, "fraction_train": 0.5, "rounds": 6},
    "trial": {"attack": "backdoor(target=0)", "attackers": 2, "attack_start": 2, "weight_decay": 0.01},
    "validated": {"validation": 0.2, "attack": "backdoor(target=0)", "attackers": 2, "fraction_train": 0.5},
    "momentary": {"attack": "targeted_flip(source=1, target=7)", "attackers": 1, "attack_stop": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_the_fast_engine_gives_the_same_bits(tmp_path, name):
    keys = {**KEYS, "rounds": 4, "evaluate_every": 2, **CASES[name]}
    (slow, expected), (quick, found) = both(tmp_path, **keys)
    assert untimed(quick) == untimed(slow)
    assert list(found) == list(expected)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    config = RunConfig.from_mapping(keys)
    assert len(found) == len(config.split.shared)
    assert {point["honest_clients"] for point in quick["curve"]} == {config.clients - config.attackers}
    assert ("attack_success" in quick["curve"][-1]) == (name in ("trial", "momentary", "validated"))
    assert ("validation_accuracy" in quick["curve"][-1]) == (name == "validated")
    # What is personal matters to what is shared.
    plain = simulate(RunConfig.from_mapping({**keys, "personal": ""}))
    assert plain["curve"][-1]["accuracy"] != quick["curve"][-1]["accuracy"]


@pytest.mark.parametrize("attack", ["sign_flip()", "mean_reversal(weighted=True)", "crash(p=0.5, error=True)"])
def test_attacks_on_messages_see_what_is_sent(tmp_path, attack):
    keys = {**KEYS, "attack": attack, "attackers": 3, "defence": "geometric_median(f=3)", "rounds": 3}
    (slow, expected), (quick, found) = both(tmp_path, **keys)
    assert untimed(quick) == untimed(slow)
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)
    assert len(found) == 4
    assert quick["curve"][-1]["honest_clients"] == 7
    assert quick["outcomes"]["OK"] == 3


@pytest.mark.parametrize(("keys", "kept"), [(KEYS, [0, 3, 3]), ({**KEYS, "personal": ""}, [])])
def test_an_audited_run_is_the_same_and_its_checkpoints_hold_what_is_personal(tmp_path, keys, kept):
    keys = {**keys, "clients": 3, "rounds": 2, "audit": str(tmp_path / "audit")}
    document, _ = run(tmp_path, **keys)
    quick = simulate(RunConfig.from_mapping({**keys, "audit": ""}))
    assert document["model_sha256"] == quick["model_sha256"]
    events = [record.event for record in read_log(log_file(tmp_path / "audit"))]
    assert [event.clients for event in events if isinstance(event, ClientStatesKept)] == kept


def contexts_after(folder, monkeypatch, keys):
    """Return the clients' contexts after a run in process."""
    grids, made = [], InProcessGrid.__init__
    monkeypatch.setattr(InProcessGrid, "__init__", lambda self, *given: (made(self, *given), grids.append(self))[0])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    config = RunConfig.from_mapping({**keys, "output": str(folder / "result.json")})
    run_in_process(server_app, client_app, config.clients, config.to_mapping())
    return list(grids[0].contexts.values())


def test_personal_parameters_stay_with_the_clients_and_nothing_of_them_is_sent(tmp_path, monkeypatch):
    sent = []
    deliver = InProcessGrid._deliver

    def listen(self, message):
        reply = deliver(self, message)
        for side in (message, reply):
            if side.metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE):
                records = [r for r in side.content.values() if isinstance(r, ArrayRecord)]
                sent.extend((side.metadata.message_type, tuple(record)) for record in records)
        return reply

    monkeypatch.setattr(InProcessGrid, "_deliver", listen)
    keys = {**KEYS, "clients": 4, "rounds": 3, "fraction_train": 0.5, "evaluate_every": 3}
    contexts = contexts_after(tmp_path, monkeypatch, keys)
    assert {names for _, names in sent} == {("1.weight", "1.bias", "3.weight", "3.bias")}
    assert {kind for kind, _ in sent} == {MessageType.TRAIN, MessageType.EVALUATE}
    held = [context.state["personal"] for context in contexts if "personal" in context.state]
    assert len(held) >= 3  # two of four in each of three rounds
    arrays = [record["5.bias"].numpy() for record in held]
    assert all(list(record) == ["5.weight", "5.bias"] for record in held)
    assert not any(np.array_equal(arrays[0], other) for other in arrays[1:])


# -- asking ------------------------------------------------------------------------------------------


def full(**changes):
    """Return what an honest client answers."""
    rest = ("balanced_accuracy", "macro_f1", "worst_class", "calibration_error")
    return {"loss": 1.0, "accuracy": 0.5, **dict.fromkeys(rest, 0.5), **changes}


class Liars:
    """A grid whose nodes answer an evaluation with what they please."""

    def __init__(self, answers):
        self.answers = answers

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            answer = self.answers.get(message.metadata.dst_node_id, full())
            if isinstance(answer, Error):
                yield Message(answer, reply_to=message)
            elif answer is not None:
                yield Message(RecordDict({"metrics": MetricRecord(answer)}), reply_to=message)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Error(2, "it raised"),
        {},
        {"loss": 1.0},
        {"loss": 1.0, "accuracy": 0.5},
        full(accuracy=float("nan")),
        full(accuracy=1.5),
        full(worst_class=-0.5),
        full(accuracy=[0.5]),
        full(success=-1.0),
        full(trials=10**9),
    ],
)
def test_an_answer_without_an_accuracy_is_left_out(answer, caplog):
    InProcessGrid(client_app, 1)  # tells Flower that this process is a server
    config = RunConfig(**{**KEYS, "clients": 4, "attack": "sign_flip()", "attackers": 1})
    partitions = {10 + client: client for client in range(4)}
    ask = asking(Liars({11: answer}), config, partitions)
    model = dict(zip(("1.weight", "1.bias"), (np.zeros((2, 2), np.float32), np.zeros(2, np.float32)), strict=True))
    with caplog.at_level(logging.WARNING, "flwr"):
        scores = ask(model)
    shares = evaluation_shares(config)
    assert [score.samples for score in scores] == [len(shares[0]), len(shares[2])]
    assert "no metrics came from clients [1]" in caplog.text
    caplog.clear()
    # Whatever number of examples it claims, it counts as many as it was dealt.
    ask = asking(Liars({11: full(accuracy=1.0, **{"num-examples": 10**9})}), config, partitions)
    assert [score.samples for score in ask(model)] == [len(shares[c]) for c in range(3)]
    assert caplog.text == ""


@pytest.mark.parametrize("wrong", [{"validation_accuracy": 1.5}, {"validation_loss": [1.0]}, {}])
def test_an_answer_without_its_validation_is_left_out(wrong):
    InProcessGrid(client_app, 1)  # tells Flower that this process is a server
    config = RunConfig(**{**KEYS, "clients": 2, "validation": 0.2})
    held_out = full(loss=2.0, accuracy=0.25)
    whole = {**full(), **{f"validation_{name}": value for name, value in held_out.items()}}
    lacking = {**whole, **wrong} if wrong else full()
    model = dict(zip(("1.weight", "1.bias"), (np.zeros((2, 2), np.float32), np.zeros(2, np.float32)), strict=True))
    (score,) = asking(Liars({10: whole, 11: lacking}), config, {10: 0, 11: 1})(model)
    assert score.validation == ClientScore(len(config.held_out[0]), held_out)


def test_a_client_that_was_never_asked_has_the_seeded_parameters():
    config = RunConfig(**KEYS, clients=3)
    arrays = config.learner().arrays()
    client = HonestClient(config, 1, RecordDict())
    loss, samples, metrics = client.evaluate([arrays[i] for i in config.split.shared], {})
    task, share = config.data_set, evaluation_shares(config)[1]
    x, y = task.inputs(task.x_test[torch.from_numpy(share)]), task.y_test[torch.from_numpy(share)]
    assert metrics == {**config.learner().evaluate(x, y), "trials": 0, "success": 0.0}
    assert loss == metrics["loss"]
    assert samples == len(share)


@pytest.mark.ray
def test_ray_gives_the_same_bits(tmp_path):
    cases = [
        {**KEYS, "clients": 4, "rounds": 3, "evaluate_every": 2, "tail_averaging": True, "fraction_train": 0.5},
        {**KEYS, "clients": 4, "rounds": 2, "attack": "backdoor(target=0)", "attackers": 1, "message": "delta"},
    ]
    with FlowerRuns() as flower:
        for keys in cases:
            on_ray = flower.run(RunConfig.from_mapping(keys))
            in_process, _ = run(tmp_path, **keys)
            assert on_ray["model_sha256"] == in_process["model_sha256"], keys
            assert on_ray["curve"] == in_process["curve"]
