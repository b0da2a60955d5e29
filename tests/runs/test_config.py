"""Every wrong configuration is one sentence before round 1, naming what is allowed."""

import pytest

from flwr_robust.attacks.data.base import DataAttack, data_attacks
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import MessageAttack, message_attacks
from flwr_robust.attacks.registry import all_attacks
from flwr_robust.errors import ConfigurationError, DataUnavailableError, FlwrRobustError, UnknownNameError
from flwr_robust.runs.config import RunConfig, pick_device

WRONG = [
    ({"defence": "krumm(f=1)"}, ["aggregator", "krumm", "krum", "trimmed_mean"]),
    ({"defence": "krum(g=1)"}, ["field of krum", "'g'", "f, strict, variant"]),
    ({"defence": "krum(f=4)"}, ["n >= 2f + 3", "n=10", "f=4", "11"]),
    ({"defence": "trimmed_mean(f=5)"}, ["n >= 2f + 1", "n=10", "f=5"]),
    ({"partition": "dirichlet(beta=0)"}, ["beta", "> 0", "beta=0"]),
    ({"partition": "dirichlet(beta=-1.0)"}, ["beta", "> 0", "-1.0"]),
    ({"partition": "by_lable"}, ["partition", "by_label", "iid"]),
    ({"attack": "label_flop", "attackers": 1}, ["attack", "label_flip", "dynamic_label_flip"]),
    ({"attack": "label_flip(p=1.5)", "attackers": 1}, ["p must be", "<= 1", "1.5"]),
    ({"attack": "label_flip", "attackers": 11}, ["attackers", "clients=10", "11"]),
    ({"attack": "label_flip"}, ["attackers >= 1", "attackers=0"]),
    ({"attackers": 2}, ["attackers=2", "label_flip"]),
    ({"attack": "backdoor", "attackers": 1}, ["backdoor: target must be given"]),
    ({"attack": "aliee()", "attackers": 1}, ["'aliee'", "none", "backdoor", "crash", "Did you mean 'alie'"]),
    ({"attack": "crash(p=2)", "attackers": 1}, ["crash: p must be", "<= 1", "p=2"]),
    ({"defence": "fltrust()"}, ["fltrust() compares with an update", "defence='fltrust()'", "trusted_fn"]),
    ({"attack": "optimised()", "attackers": 1}, ["optimised() needs knowledge='defence'", "'omniscient' is granted"]),
    ({"attack": "alie()", "attackers": 1, "knowledge": "own"}, ["needs knowledge='omniscient'", "'own' is granted"]),
    ({"attack": "alie()", "attackers": 10}, ["alie() looks at honest replies", "below clients=10", "attackers=10"]),
    (
        {"attack": "optimised()", "attackers": 1, "knowledge": "defence", "defence": "fltrust()"},
        ["optimised() cannot try fltrust()", "an update of the server's own"],
    ),
    (
        {"attack": "ipm(epsilon=1.0, known=5)", "attackers": 1, "knowledge": "partial", "known": 3},
        ["needs 5 honest replies", "known=3 are shown"],
    ),
    ({"knowledge": "all"}, ["unknown knowledge 'all'", "defence, nothing, omniscient, own, partial"]),
    ({"knowledge": "partial"}, ["goes with knowledge='partial'", "no known"]),
    ({"known": 3}, ["goes with knowledge='partial'", "knowledge='omniscient', known=3"]),
    ({"known": -1}, ["known", ">= 0", "-1"]),
    ({"attack-start": 0}, ["attack-start", ">= 1", "0"]),
    ({"attack-start": 101}, ["attack-start", "at most rounds=100", "101"]),
    ({"attack-stop": -1}, ["attack-stop", ">= 0", "-1"]),
    ({"attack-start": 9, "attack-stop": 8}, ["attack-stop", "0 (never)", "attack-start=9", "attack-stop=8"]),
    ({"redraw": 1}, ["redraw", "bool", "1"]),
    ({"model": "resnet"}, ["model", "resnet", "softmax"]),
    ({"message": "weights"}, ["message", "delta, gradient, momentum, parameters", "weights"]),
    ({"alpha": 0.0}, ["alpha", "> 0", "0.0"]),
    ({"rounds": 0}, ["rounds", ">= 1", "0"]),
    ({"clients": 0}, ["clients", ">= 1"]),
    ({"server-learning-rate": -0.1}, ["server_learning_rate".replace("_", "-"), "> 0"]),
    ({"fraction-train": 1.5}, ["fraction-train", "<= 1"]),
    ({"fraction-train": 0.2, "defence": "krum(f=1)"}, ["n=2"]),
    ({"batching": "sorted"}, ["batching", "consecutive, random"]),
    ({"seed": -1}, ["seed", ">= 0"]),
    ({"learning-rate": 0.1}, ["configuration key", "learning-rate", "server-learning-rate"]),
    ({"rounds": "ten"}, ["rounds", "int", "'ten'"]),
    ({"rounds": 2.5}, ["rounds", "int"]),
    ({"rounds": True}, ["rounds", "int", "True"]),
    ({"output": "/no/such/folder/result.json"}, ["output", "folder that exists"]),
]


@pytest.mark.parametrize(("keys", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_one_sentence_names_what_is_allowed(keys, words):
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.from_mapping(keys)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == []


def test_unknown_tasks_and_missing_folders(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown task 'mnits'.*cifar10.*Did you mean 'mnist'"):
        _ = RunConfig(task="mnits").data_set
    with pytest.raises(DataUnavailableError, match=r"data folder .*nowhere does not exist"):
        _ = RunConfig(task="mnist", data=str(tmp_path / "nowhere")).data_set


def test_hyphens_and_underscores_are_one():
    assert (
        RunConfig.from_mapping({"batch-size": 8})
        == RunConfig.from_mapping({"batch_size": 8})
        == RunConfig(batch_size=8)
    )
    config = RunConfig(defence="clip(c=2.0) | krum(f=1)", rounds=7)
    assert RunConfig.from_mapping(config.to_mapping()) == config


def test_whole_numbers_pass_for_floats():
    assert RunConfig.from_mapping({"alpha": 1}).alpha == 1.0


def test_the_last_clients_attack():
    config = RunConfig(clients=5, attackers=2, attack="label_flip")
    assert [config.attacks(client) for client in range(5)] == [False, False, False, True, True]


def test_attackers_of_a_round():
    config = RunConfig(clients=5, attackers=2, attack="label_flip", attack_start=3, attack_stop=4)
    assert [list(config.attackers_in(r)) for r in range(1, 7)] == [[], [], [3, 4], [3, 4], [], []]
    assert list(RunConfig(clients=5, attackers=2, attack="label_flip").attackers_in(10**6)) == [3, 4]
    assert list(RunConfig().attackers_in(1)) == []


def test_redrawn_attackers_come_from_the_seed_and_the_round():
    keys = {"clients": 10, "attackers": 3, "attack": "label_flip", "redraw": True, "rounds": 300}
    config = RunConfig(**keys)
    drawn = [tuple(config.attackers_in(r)) for r in range(1, 301)]
    assert drawn == [tuple(RunConfig(**keys).attackers_in(r)) for r in range(1, 301)]
    assert drawn != [tuple(RunConfig(**keys, seed=1).attackers_in(r)) for r in range(1, 301)]
    assert all(len(set(liars)) == 3 and list(liars) == sorted(liars) for liars in drawn)
    assert {client for liars in drawn for client in liars} == set(range(10))
    counts = [sum(client in liars for liars in drawn) for client in range(10)]
    assert max(counts) < 90 + 4 * 8 < 3 * min(counts)  # 90 each, with a standard deviation of 8
    late = RunConfig(**{**keys, "attack_start": 10})
    assert list(late.attackers_in(9)) == []
    assert tuple(late.attackers_in(10)) == drawn[9]
    assert all(config.attacks(client) for client in range(10))
    assert not any(RunConfig(redraw=True).attacks(client) for client in range(10))


def test_an_attack_is_found_by_its_name_alone():
    kinds = {"label_flip()": DataAttack, "ipm(epsilon=0.5)": MessageAttack, "crash(p=0.5)": Fault}
    for attack, kind in kinds.items():
        config = RunConfig(attack=attack, attackers=1)
        assert isinstance(config.attack_object, kind)
        assert str(config.attack_object) == attack
        assert (config.data_attack is None) == (kind is not DataAttack)
    assert RunConfig().data_attack is None
    parts = (data_attacks, message_attacks, faults)
    assert list(all_attacks.members()) == sorted(name for part in parts for name in part.members())
    assert "none" not in all_attacks.members()


def test_what_is_granted_is_enough_where_the_attack_needs_less():
    for keys in (
        {"attack": "optimised(base='ipm(epsilon=1.0)')", "knowledge": "defence"},
        {"attack": "ipm(epsilon=1.0, known=3)", "knowledge": "partial", "known": 3},
        {"attack": "ipm(epsilon=1.0, known='own')", "knowledge": "own", "attackers": 9},
        {"attack": "gaussian(sigma=1.0)", "knowledge": "nothing", "attackers": 10},
        {"attack": "label_flip()", "knowledge": "nothing"},
        {"attack": "crash()", "knowledge": "nothing", "attackers": 10},
    ):
        config = RunConfig(**{"attackers": 2, **keys})
        assert RunConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    "attack", ["backdoor(target=10)", "backdoor(target=0, size=9)", "targeted_flip(source=0, target=10)"]
)
def test_an_attack_that_does_not_fit_the_data_is_an_error_before_round_1(attack):
    config = RunConfig(attack=attack, attackers=1)
    with pytest.raises(ConfigurationError, match=r"(target must be below the task's 10|size must fit into inputs)"):
        config.learner()


def test_device_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(FlwrRobustError, match="client-resources-num-gpus"):
        pick_device("cuda")


def test_device_with_a_gpu(monkeypatch):
    import sys
    import types

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert pick_device("auto") == torch.device("cuda:0")
    # An actor that Ray gave no GPU takes none, even where it can see one.
    for gpus, kind in (([], "cpu"), ([0], "cuda")):
        ray = types.SimpleNamespace(is_initialized=lambda: True, get_gpu_ids=lambda gpus=gpus: gpus)
        monkeypatch.setitem(sys.modules, "ray", ray)
        assert pick_device("auto").type == kind


def test_clients_without_samples_are_an_error_before_round_1():
    config = RunConfig(clients=100, partition="dirichlet(beta=0.01, minimum=0)")
    with pytest.raises(ConfigurationError, match=r"leaves clients \[.*\] without samples"):
        _ = config.samples
