"""Every wrong configuration is one sentence before round 1, naming what is allowed."""

import hashlib
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest

from flwr_robust.attacks.data.base import DataAttack, data_attacks
from flwr_robust.attacks.fault.base import Fault, faults
from flwr_robust.attacks.message.base import MessageAttack, message_attacks
from flwr_robust.attacks.registry import all_attacks
from flwr_robust.errors import ConfigurationError, DataUnavailableError, FlwrRobustError, UnknownNameError
from flwr_robust.protocol.messages import CLASS_MOMENTUM, MESSAGES
from flwr_robust.runs.config import (
    KEYS,
    RunConfig,
    UnreadKeyWarning,
    keys_table,
    pick_device,
)
from flwr_robust.runs.fast import simulate, unbatched
from flwr_robust.studies.study import Cell, load_study
from tests.apps import run

ALIE = {"attack": "alie()", "attackers": 1}
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
    ({"knowledge": "all"}, ["knowledge must be one of", "'all'", "nothing, own, partial, omniscient, defence"]),
    ({**ALIE, "knowledge": "partial"}, ["goes with knowledge='partial'", "no known"]),
    ({**ALIE, "known": 3}, ["goes with knowledge='partial'", "knowledge='omniscient', known=3"]),
    ({"known": -1}, ["known", ">= 1", "-1", "or 0: none"]),
    ({"attack-start": 0}, ["attack-start", ">= 1", "0"]),
    ({"attack-start": 101}, ["attack-start", "at most rounds=100", "101"]),
    ({"attack-stop": -1}, ["attack-stop", ">= 1", "-1", "or 0: never"]),
    ({"attack-start": 9, "attack-stop": 8}, ["attack-stop", "0 (never)", "attack-start=9", "attack-stop=8"]),
    ({"redraw": 1}, ["redraw", "true or false", "redraw=1"]),
    ({"validation": 1.0}, ["validation", ">= 0 and < 1", "1.0"]),
    (
        {"validation": 0.1, "attack": "crash()", "attackers": 10},
        ["validation=0.1", "never attacks", "attackers=10 of clients=10", "set fewer attackers"],
    ),
    (
        {"validation": 0.1, "attack": "crash()", "attackers": 1, "redraw": True},
        ["validation=0.1", "never attacks", "attackers=1 of clients=10, redraw=True", "set redraw=False"],
    ),
    ({"model": "resnet"}, ["model", "resnet", "softmax"]),
    ({"message": "weights"}, ["message", "delta, gradient, momentum, parameters", "weights"]),
    ({"alpha": 0.0}, ["alpha", "> 0", "0.0"]),
    ({"rounds": 0}, ["rounds", ">= 1", "0"]),
    ({"clients": 0}, ["clients", ">= 1"]),
    ({"server-learning-rate": -0.1}, ["server_learning_rate".replace("_", "-"), "> 0"]),
    ({"fraction-train": 1.5}, ["fraction-train", "<= 1"]),
    ({"fraction-train": 0.2, "defence": "krum(f=1)"}, ["n=2"]),
    ({"batching": "sorted"}, ["batching", "random, consecutive"]),
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
    with pytest.raises(UnknownNameError, match=r"unknown task 'mnits'. Did you mean 'mnist'.*cifar10"):
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
    assert not any(RunConfig().attacks(client) for client in range(10))


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


def test_validation_samples_are_held_out_of_training_after_the_partition():
    keys = {"clients": 7, "partition": "dirichlet(beta=0.5)", "attack": "label_flip()", "attackers": 2}
    plain, config = RunConfig(**keys), RunConfig(**keys, validation=0.2)
    assert [len(held) for held in plain.held_out] == [0] * 7
    for dealt, training, held in zip(plain.samples, config.samples, config.held_out, strict=True):
        assert np.array_equal(np.sort(np.concatenate([training, held])), dealt)
        assert abs(len(held) - 0.2 * len(dealt)) <= 0.5


def test_a_share_that_holds_out_nothing_is_an_error_before_round_1():
    config = RunConfig(clients=300, validation=0.05)  # four or five samples each
    with pytest.raises(ConfigurationError, match=r"validation=0.05 holds out no sample .*largest has 5: take a larger"):
        _ = config.samples
    enough = RunConfig(clients=300, validation=0.1)
    assert {len(held) for held in enough.held_out} == {0, 1}


# -- the table of keys ---------------------------------------------------------------------------------


def wrong_values(key):
    """Yield values that the constraints of a key leave out: of other types, next to a bound, no choice."""
    yield from {str: (3, None, True, b"x"), bool: (1, "yes", None), int: ("3", 2.5, True, None)}.get(key.kind, ())
    if key.kind is float:
        yield from ("0.5", True, None, math.nan, math.inf, -math.inf, 10**400, np.array([0.5]))
    if key.choices:
        first = next(iter(key.choices))
        yield from ("", first.upper(), f"{first} ")
    if key.kind is int and key.minimum is not None:
        below = int(key.minimum) - 1
        yield from {below if below or not key.zero else -1, np.int64(-1)}
    if key.kind is float:
        if key.above is not None:
            yield from {-1.0, *(() if key.zero else (key.above,))}
        if key.minimum is not None:
            yield math.nextafter(key.minimum, -math.inf)
        if key.below is not None:
            yield from (key.below, np.float64(key.below))
        if key.maximum is not None:
            yield math.nextafter(key.maximum, math.inf)


def right_values(key):
    """Yield values on the inner side of the bounds of a key."""
    yield from key.choices or (key.default,)
    if key.zero:
        yield 0
    if key.minimum is not None:
        yield from (key.kind(key.minimum), np.array(key.minimum, dtype=key.kind)[()])
    if key.above is not None:
        yield math.nextafter(key.above, math.inf)
    if key.below is not None:
        yield math.nextafter(key.below, -math.inf)
    if key.maximum is not None:
        yield from (key.maximum, int(key.maximum))


@pytest.mark.parametrize("name", KEYS)
def test_every_constraint_is_held(name):
    key = KEYS[name]
    for value in wrong_values(key):
        for make in (lambda value=value: RunConfig(**{key.attribute: value}), lambda value=value: key.checked(value)):
            with pytest.raises(ConfigurationError, match=f"configuration: {name} must be ") as caught:
                make()
            assert "\n" not in str(caught.value)
    for value in right_values(key):
        checked = key.checked(value)
        assert type(checked) is key.kind
        assert checked == value


@pytest.mark.parametrize(("name", "words"), [("rounds", "int"), ("redraw", "true or false"), ("task", "text")])
def test_words_say_what_is_allowed(name, words):
    assert words in KEYS[name].allowed
    assert (KEYS["alpha"].allowed, KEYS["attack-stop"].allowed) == (
        "a finite number > 0 and <= 1",
        "an integer >= 1, or 0: never",
    )


def test_numbers_of_numpy_become_plain_ones():
    config = RunConfig(
        rounds=np.int64(7), alpha=np.float32(0.5), redraw=np.False_, task=np.str_("digits"), gamma=np.float64(0.5)
    )
    assert config == RunConfig(rounds=7, alpha=0.5)
    assert {type(value) for value in config.to_mapping().values()} == {str, int, float, bool}
    assert json.loads(json.dumps(config.to_mapping())) == RunConfig.from_mapping(config.to_mapping()).to_mapping()
    assert type(RunConfig(weight_decay=1).weight_decay) is float


@pytest.mark.parametrize("make", [lambda keys: RunConfig(**keys), RunConfig.from_mapping])
def test_a_key_that_is_nearly_one_is_answered_with_it_first(make):
    with pytest.raises(
        UnknownNameError, match=r"^unknown configuration key 'round'\. Did you mean 'rounds'\? Allowed: "
    ):
        make({"round": 3})


def test_a_key_is_given_once():
    with pytest.raises(ConfigurationError, match="batch-size is given twice"):
        RunConfig.from_mapping({"batch-size": 8, "batch_size": 9})
    with pytest.raises(UnknownNameError, match="key '3'"):
        RunConfig.from_mapping({3: 8})


def test_the_servers_step_depends_on_the_kind_of_message():
    rates = {message: RunConfig(message=message).server_learning_rate for message in KINDS}
    assert rates == {"delta": 1.0, "parameters": 1.0, "gradient": 0.1, "momentum": 0.1, "class_momentum": 0.1}
    assert RunConfig(message="parameters").to_mapping()["server-learning-rate"] == 1.0
    assert RunConfig.from_mapping({"message": "delta", "server-learning-rate": 0.0}).server_learning_rate == 1.0
    for config in (RunConfig(message="delta"), RunConfig(message="delta", server_learning_rate=0.1)):
        assert RunConfig.from_mapping(config.to_mapping()) == config


def test_signature_and_docs_tell_all_keys():
    assert list(inspect.signature(RunConfig).parameters) == [key.attribute for key in KEYS.values()]
    assert [name for name, key in KEYS.items() if f"    {key.attribute} : " not in RunConfig.__doc__] == []
    page = Path(__file__).parents[2] / "docs" / "run-config.md"
    assert keys_table() in page.read_text(), "write flwr_robust.runs.config.keys_table() into docs/run-config.md"


# -- who reads a key: each value below changes the result of a run, or nobody is said to read it ------------

KINDS = (*MESSAGES, CLASS_MOMENTUM)
SMALL = {"clients": 5, "batch_size": 4, "rounds": 3, "evaluate_every": 1, "partition": "dirichlet(beta=1.0)"}
FLIP = {"attack": "label_flip()", "attackers": 2}
# What changes a run, and what must be set for that beside `SMALL`.
OTHER = {
    "task": ("<a file>", {}),
    "model": ("mlp", {}),
    "partition": ("iid", {}),
    "validation": (0.2, {}),
    "clients": (6, {}),
    "defence": ("median()", {}),
    "attack": ("sign_flip()", FLIP),
    "attackers": (1, FLIP),
    "attack-start": (2, FLIP),
    "attack-stop": (1, FLIP),
    "redraw": (True, FLIP),
    "alpha": (0.5, {}),
    "gamma": (0.25, {}),
    "buffer-fade": (0.9, {}),
    "class-batch": ("asked", {}),
    "schedule": ("random", {}),
    "classes-per-round": (2, {}),
    "server-learning-rate": (0.3, {}),
    "server-momentum": (0.5, {}),
    "local-steps": (2, {}),
    "local-learning-rate": (0.3, {}),
    "tail-averaging": (True, {"local_steps": 3}),
    "personal": ("head.*", {"model": "mlp"}),
    "batch-size": (40, {}),
    "batching": ("consecutive", {"batch_size": 40}),
    "weight-decay": (0.5, {}),
    "rounds": (2, {}),
    "evaluate-every": (2, {}),
    "metrics": ("worst_client", {}),
    "diagnose": (5, {}),
    "fraction-train": (0.6, {}),
    "min-replies": (6, {"attack": "crash()", "attackers": 3, "clients": 8, "attack_start": 2}),
    "seed": (1, {}),
}
ASK_FOR_A_GRANT = ("knowledge", "known")  # checked before round 1, see `WRONG`
OF_SPEED = ("threads",)
OF_FUNCTIONS = ("loss",)  # of a user's own, or for other targets, see `test_target_runs`
OF_THE_APPS = {
    "quarantine-after": (1, {"attack": "nan()", "attackers": 1}),
    "rest-after": (1, {"attack": "crash()", "attackers": 1}),
    "probation": (2, {}),
    "deadline": (5.0, {}),
    "quorum": (1.0, {"deadline": 5.0}),
    "wait": (5.0, {}),
    "on-infeasible": ("stop", {"attack": "crash()", "attackers": 5, "attack_start": 2}),
}
OF_DEPLOYMENTS = ("probation", "deadline", "quorum", "wait")  # in process all nodes are there, and answer at once


def outcome(config):
    """Return all of a run's result but times."""
    return {key: value for key, value in simulate(config).items() if not key.endswith("seconds")}


def forced(config, name, value):
    """Return a configuration with a key set though it is refused."""
    other = object.__new__(RunConfig)
    for key, held in {**config.to_mapping(), name: value}.items():
        object.__setattr__(other, KEYS[key].attribute, held)
    return other


@pytest.fixture(scope="module")
def another_task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "task.npz"
    draw = np.random.default_rng(0)
    parts = {f"x_{part}": draw.random((200, 8, 8), dtype=np.float32) for part in ("train", "test")}
    np.savez(path, **parts, **{f"y_{part}": np.arange(200) % 10 for part in ("train", "test")})
    return str(path)


def test_the_cases_cover_the_table():
    told = {*OTHER, *ASK_FOR_A_GRANT, *OF_SPEED, *OF_FUNCTIONS, *OF_THE_APPS, "message"}
    assert told == {name for name, key in KEYS.items() if not key.place}
    assert {*ASK_FOR_A_GRANT, *OF_SPEED} == {name for name, key in KEYS.items() if not key.result}
    assert set(OF_THE_APPS) == {name for name, key in KEYS.items() if "fast" not in key.engines and not key.place}


@pytest.mark.parametrize("message", KINDS)
@pytest.mark.parametrize("name", OTHER)
def test_a_key_changes_the_run_or_is_refused(name, message, another_task):
    key, (value, besides) = KEYS[name], OTHER[name]
    value = another_task if name == "task" else value
    read = message in key.messages
    beside = {k: v for k, v in besides.items() if message in KEYS[k.replace("_", "-")].messages}
    before = RunConfig(**{**SMALL, "message": message, **beside})
    assert getattr(before, key.attribute) != value
    if read:
        after = RunConfig(**{**SMALL, "message": message, **beside, key.attribute: value})
        assert after.unread == ()
        assert outcome(before) != outcome(after)
        assert outcome(before) == outcome(RunConfig.from_mapping(before.to_mapping()))
        return
    if message in key.tolerated:
        with pytest.warns(UnreadKeyWarning, match=f"{name}=.* changes nothing with message='{message}', only with "):
            assert RunConfig(**{**SMALL, "message": message, **beside, key.attribute: value}).unread == (name,)
    else:
        with pytest.raises(ConfigurationError, match=f"{name}=.* changes nothing with message='{message}', only with "):
            RunConfig(**{**SMALL, "message": message, **beside, key.attribute: value})
    if name != "personal":  # which engines take from the split, and no kind of message but its own can be split
        assert outcome(before) == outcome(forced(before, name, value))


def test_the_kind_of_message_changes_the_run():
    """One local step of 0.1 sends 0.1 gradients, so a server's step of 1 for them is one of 0.1 for gradients."""
    curves = {message: outcome(RunConfig(**SMALL, message=message))["curve"] for message in KINDS}
    losses = {message: [point["loss"] for point in curve] for message, curve in curves.items()}
    for message in ("parameters", "gradient"):
        assert losses[message] == pytest.approx(losses["delta"], rel=1e-4)
        assert losses[message] != pytest.approx(losses["momentum"], rel=1e-4)
    assert losses["momentum"] != losses["class_momentum"]


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.needs == "attack"])
def test_what_goes_with_an_attack_needs_one(name):
    key = KEYS[name]
    value = {"knowledge": "defence", "known": 2}.get(name) or OTHER[name][0]
    before = RunConfig(**SMALL)
    with pytest.raises(
        ConfigurationError, match=f"{name}=.* changes nothing with attack='none': leave {name} out, or set attack"
    ):
        RunConfig(**{**SMALL, key.attribute: value})
    assert outcome(before) == outcome(forced(before, name, value))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.needs == "audit"])
def test_what_goes_with_a_log_needs_one(name, tmp_path):
    keys = {KEYS[name].attribute: {"resume": True, "checkpoint-every": 3, "keep-updates": 2}[name]}
    with pytest.raises(
        ConfigurationError, match=f"{name}=.* changes nothing with audit='': leave {name} out, or set audit"
    ):
        RunConfig(**keys)
    assert RunConfig(**keys, audit=str(tmp_path)).unread == ()


@pytest.mark.parametrize("name", KEYS)
def test_the_fast_engine_says_which_keys_it_does_not_read(name, another_task, tmp_path):
    key = KEYS[name]
    places = {"data": str(tmp_path), "device": "cpu", "output": str(tmp_path / "a"), "save-model": str(tmp_path / "a")}
    logged = {"audit": str(tmp_path)}
    for_audit = {"audit": (str(tmp_path), {}), "checkpoint-every": (3, logged), "resume": (True, logged)}
    for_audit["keep-updates"] = (2, logged)
    of_grant = {"knowledge": ("own", FLIP), "known": (2, {**FLIP, "knowledge": "partial"})}
    cases = {**OTHER, **OF_THE_APPS, **{k: (v, {}) for k, v in places.items()}, **for_audit, **of_grant}
    cases.update(threads=(2, {}), message=("gradient", {}), task=(another_task, {}), loss=("cross_entropy", {}))
    value, besides = cases[name]
    kind = {"message": key.messages[0]} if name != "message" else {}
    config = RunConfig(**{**SMALL, **kind, **besides, key.attribute: value})
    assert (unbatched(config) is None) == ("fast" in key.engines)


@pytest.mark.parametrize("name", [name for name in OF_THE_APPS if name not in OF_DEPLOYMENTS])
def test_the_apps_read_what_the_fast_engine_leaves_out(name, tmp_path):
    value, besides = OF_THE_APPS[name]
    found = [run(tmp_path, **SMALL, **besides, **keys)[0] for keys in ({}, {name.replace("-", "_"): value})]
    assert (found[0]["quarantined"], found[0]["stopped"]) == ([], "")
    assert found[1]["quarantined"] or found[1]["stopped"] or len(found[1]["missing"]) < len(found[0]["missing"])


# -- recorded results are found by what a configuration changes of the defaults ------------------------------


def test_digests_are_those_of_the_old_defaults():
    """`server-learning-rate` was 0.1 for all kinds of message; results are found as they were then."""
    changed = {"message": "parameters", "server-learning-rate": 1.0}
    told = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]
    assert Cell({}, RunConfig(message="parameters")).digest == told
    assert Cell({}, RunConfig(message="parameters", server_learning_rate=1.0)).digest == told
    alone = hashlib.sha256(b'{"message": "parameters"}').hexdigest()[:12]
    assert Cell({}, RunConfig(message="parameters", server_learning_rate=0.1)).digest == alone
    assert Cell({}, RunConfig()).digest == hashlib.sha256(b"{}").hexdigest()[:12]


def test_a_study_may_share_a_key_that_some_of_its_cells_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[config]\nalpha = 0.5\n[axes]\nmessage = ["gradient", "momentum"]\n')
    gradient, momentum = (cell.config for cell in load_study(str(path)).cells)
    assert (gradient.unread, momentum.unread) == (("alpha",), ())
    path.write_text('[config]\nalpha = 0.5\n[axes]\nmessage = ["gradient"]\n')
    with pytest.warns(UnreadKeyWarning, match="study mine: no cell reads alpha: leave it out"):
        load_study(str(path))
