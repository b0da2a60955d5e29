"""Replays: every rule, message and state comes out as recorded, to the bit; what was changed or deleted does not."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_robust.audit import AuditLog, CheckpointStore, UpdatesDeleted, model_sha256, rollback, secret_file, verify_run
from flwr_robust.audit.contents import kept_rounds, update_file
from flwr_robust.audit.orders import give_order
from flwr_robust.audit.run import log_file
from flwr_robust.errors import AuditError, FlwrRobustError
from flwr_robust.flower import Audit, DeSGD, FLTrust, Guarded, RobustStrategy
from flwr_robust.flower.replay import replay
from tests import apps
from tests.flower_helpers import FIRST, client_app, content, drive

MODEL = {
    "w": np.zeros((30, 2), np.float32),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.num_batches_tracked": np.zeros((), np.int64),
}
LIAR = 9


def clients(message="parameters", scale=50.0):
    """Honest clients, one that sends far more, and another that sometimes fails."""

    def train(partition, model, config, context):
        number = config["server-round"]
        if partition == 8 and number == 2:
            raise RuntimeError("gone")
        draws = np.random.default_rng((number, partition))
        factor = scale if partition == LIAR else 1.0
        update = {
            "w": (factor * draws.standard_normal((30, 2))).astype(np.float32),
            "bn.running_mean": draws.standard_normal(3).astype(np.float32),
            "bn.num_batches_tracked": np.int64(partition + number),
        }
        if message == "parameters":
            update["w"] = model["w"] + update["w"]
        return content(update, 10 + partition, partition_id=partition)

    return client_app(train)


def run(folder, rule, rounds=4, *, message="parameters", every=1, keep=None, scale=50.0, audit=None, **options):
    audit = Audit(folder, every=every, keep=keep, sync=False, **{"keep_updates": True, **(audit or {})})
    strategy = RobustStrategy(rule, message=message, audit=audit, fraction_evaluate=0.0, **options)
    return drive(strategy, clients(message, scale), MODEL, 10, rounds)[0]


RULES = [
    "median()",
    "krum(f=2)",
    "clip(c=2.0) | nnm(f=2) | trimmed_mean(f=2)",
    "centered_clipping(tau=1.0)",
    "foolsgold()",
    "dnc(f=2, sub_dimension=20)",
    "bucketing(s=2) | geometric_median(f=1)",
    "mixtailor(f=1, seed=3)",
    "bulyan(f=1)",
]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_is_replayed_to_the_bit(tmp_path, rule):
    run(tmp_path, rule, seed=5)
    found = replay(tmp_path)
    assert found.of("equal") == (1, 2, 3, 4)
    assert found.checkpoints == (0,)
    assert all(each.length > 0 for each in found.rounds)


@pytest.mark.parametrize("rule", ["dnc(f=2, sub_dimension=20)", "bucketing(s=2) | krum(f=1)", "mixtailor(f=1)"])
def test_a_run_with_secret_seeds_is_replayed_from_what_its_log_reveals(tmp_path, rule):
    run(tmp_path, rule)
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4)
    secret_file(tmp_path).unlink()  # an auditor does not have it
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4)


@pytest.mark.parametrize("message", ["delta", "gradient", "momentum"])
def test_messages_with_velocities_and_buffers_are_replayed_to_the_bit(tmp_path, message):
    run(tmp_path, "krum(f=2)", message=message, server_momentum=0.9, server_learning_rate=0.1)
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4)


def test_the_checkpoint_before_the_kept_updates_is_kept_too(tmp_path):
    run(tmp_path / "all", "centered_clipping(tau=1.0)", 6, every=2, keep=1)
    assert CheckpointStore(tmp_path / "all" / "checkpoints").rounds() == [0, 6]
    assert replay(tmp_path / "all").of("equal") == (1, 2, 3, 4, 5, 6)
    run(tmp_path / "some", "centered_clipping(tau=1.0)", 8, every=2, keep=1, audit={"keep_updates": 3})
    assert kept_rounds(tmp_path / "some") == [6, 7, 8]
    assert CheckpointStore(tmp_path / "some" / "checkpoints").rounds() == [6, 8]
    assert replay(tmp_path / "some").of("equal") == (7, 8)
    with pytest.raises(AuditError, match="round 6 needs the checkpoint of an earlier one; there are checkpoints of"):
        replay(tmp_path / "some", 6)
    assert verify_run(tmp_path / "some").intact


def test_a_replay_from_a_later_checkpoint_takes_the_states_in_it(tmp_path):
    run(tmp_path, "centered_clipping(tau=1.0)", 6, every=2, server_momentum=0.5)
    found = replay(tmp_path, 4, 5)
    assert (found.checkpoints, found.of("equal")) == ((2,), (3, 4, 5))


def test_statistics_and_buffers_follow_the_recorded_options(tmp_path):
    for number, options in enumerate([{"buffers": "keep"}, {"statistics": ()}, {"statistics": ("*mean", "*var")}]):
        run(tmp_path / str(number), "median()", **options)
        assert replay(tmp_path / str(number)).of("equal") == (1, 2, 3, 4)


@pytest.mark.parametrize("rule", ["centered_clipping(tau=1.0)", "dnc(f=2, sub_dimension=20)"])
def test_a_resumed_and_rolled_back_run_is_replayed(tmp_path, rule):
    """The run has ended in between, so its later draws come from a new secret."""
    run(tmp_path, rule, 4)
    rollback(tmp_path, 2)
    run(tmp_path, rule, 6, audit={"resume": True})
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4, 5, 6)
    secret_file(tmp_path).unlink()
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("fade", [{}, {"buffer_fade": 0.9}])
def test_class_wise_momenta_are_replayed(tmp_path, fade):
    def train(partition, model, config, context):
        draws = np.random.default_rng((config["server-round"], partition))
        if partition in (3, 4, 5, 6):
            return content(None, 10, partition_id=partition)  # it has none of the classes
        return content({"w": draws.standard_normal((30, 2)).astype(np.float32)}, 10, partition_id=partition)

    audit = Audit(tmp_path, keep_updates=True, keep=None, sync=False)
    strategy = DeSGD(
        "centered_clipping(tau=1.0)", classes=3, gamma=0.5, alpha=0.5, **fade, audit=audit, fraction_evaluate=0.0
    )
    drive(strategy, client_app(train), {"w": MODEL["w"]}, 10, 6)
    assert replay(tmp_path).of("equal") == (1, 2, 3, 4, 5, 6)


def test_an_update_that_is_changed_or_deleted_is_named_and_the_next_checkpoint_taken(tmp_path):
    run(tmp_path, "median()", 5, every=3)
    give_order(tmp_path, UpdatesDeleted(0, (1,), (FIRST,)), sync=False)
    found = replay(tmp_path)
    assert [each.result for each in found.rounds] == ["missing", "missing", "missing", "equal", "equal"]
    assert found.rounds[0].sentence == f"the update of node {FIRST} was not kept, or was deleted"
    assert found.rounds[1].sentence == "the round before was not replayed"
    assert found.checkpoints == (0, 3)
    path = update_file(tmp_path, 5, FIRST)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert replay(tmp_path).rounds[-1].sentence == f"the update of node {FIRST} is not the one on record"


def test_a_model_that_the_updates_do_not_make_is_different(tmp_path):
    """Whoever changes the rule in the log, or aggregates something else, is found: the updates make another model."""
    text = "krum(f=2)"
    run(tmp_path, text, 2)
    lines = log_file(tmp_path).read_text().replace(f'"rule":"{text}"', '"rule":"krum(f=1)"')
    log_file(tmp_path).write_text(lines.replace('"rule":"krum(f=1)"', '"rule":"median()"'))
    found = replay(tmp_path, last=1)
    assert found.of("different") == (1,)
    assert found.rounds[0].sentence == "the model has another hash than the one on record"


def test_without_a_client_the_change_is_that_of_the_others(tmp_path):
    """The undefended mean follows the liar; without it, it is the mean of the others."""
    run(tmp_path, "mean()", 3)
    found = replay(tmp_path, without=FIRST + LIAR)
    assert found.of("equal") == (1, 2, 3)
    expected = np.zeros((30, 2))
    for number in (1, 2, 3):
        sent = CheckpointStore(tmp_path / "checkpoints").load(number - 1).model["w"].astype(float)
        others = [i for i in range(9) if (i, number) != (8, 2)]
        expected += np.mean([np.load(update_file(tmp_path, number, FIRST + i))["0"] - sent for i in others], 0)
    np.testing.assert_allclose(found.model["w"], expected, rtol=1e-5, atol=1e-6)
    assert found.total.length > 5 * found.total.without
    assert found.total.cosine < 0.5
    assert all(each.outcome_without == "OK" for each in found.rounds)


def test_without_a_client_that_took_no_part_nothing_changes(tmp_path):
    run(tmp_path, "centered_clipping(tau=1.0)", 3, server_momentum=0.5)
    found = replay(tmp_path, without=12345)
    assert found.total.distance == 0
    assert found.total.cosine == pytest.approx(1)


def test_without_a_client_the_rule_may_lack_replies(tmp_path):
    audit = Audit(tmp_path, keep_updates=True, keep=None, sync=False)
    strategy = RobustStrategy("krum(f=2)", audit=audit, fraction_evaluate=0.0)
    drive(strategy, clients(), MODEL, 7, 2)
    found = replay(tmp_path, without=FIRST)
    assert [each.outcome_without for each in found.rounds] == ["INFEASIBLE", "INFEASIBLE"]
    assert found.total.without == 0
    assert found.total.cosine is None
    assert model_sha256(found.model) == model_sha256(MODEL)


def test_what_cannot_be_replayed_says_why(tmp_path):
    guarded = Guarded(FedAvg(fraction_evaluate=0.0), audit=Audit(tmp_path / "guarded", keep_updates=True, sync=False))
    drive(guarded, clients(), MODEL, 10, 1)
    with pytest.raises(AuditError, match="the log names no rule of this project: Guarded\\(FedAvg\\) aggregated"):
        replay(tmp_path / "guarded")
    audit = Audit(tmp_path / "trusting", keep_updates=True, sync=False)
    trusting = FLTrust(
        audit=audit, fraction_evaluate=0.0, trusted_fn=lambda number, arrays: [v + 1 for v in MODEL.values()]
    )
    drive(trusting, clients(), MODEL, 10, 1)
    with pytest.raises(AuditError, match="compares replies with the server's own update, which is not kept"):
        replay(tmp_path / "trusting")
    run(tmp_path / "none", "median()", 2, audit={"hash_updates": True})
    with AuditLog(log_file(tmp_path / "none"), sync=False) as log:
        log.append(UpdatesDeleted(2))
    assert replay(tmp_path / "none").of("missing") == (1, 2)
    (tmp_path / "empty").mkdir()
    with AuditLog(log_file(tmp_path / "empty"), sync=False):
        pass
    with pytest.raises(AuditError, match="has no finished round of training that counts"):
        replay(tmp_path / "empty")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f'"asked":[{FIRST},', '"asked":['),
        ('"num_examples":10.0', '"num_examples":null'),
        ('"nodes":[2,', '"nodes":[99,'),
        ('"server-learning-rate":1.0', '"server-learning-rate":"x"'),
        ('"message":"parameters"', '"message":"gradient"'),
        ('"statistics":"', '"statistics":"w, '),
    ],
)
def test_a_log_that_was_made_up_gives_no_equal_round_and_no_other_error(tmp_path, old, new):
    run(tmp_path, "median()", 2, message="parameters")
    text = log_file(tmp_path).read_text()
    assert old in text
    log_file(tmp_path).write_text(text.replace(old, new))
    with contextlib.suppress(FlwrRobustError):
        assert replay(tmp_path).of("equal") == ()


@pytest.mark.parametrize(
    "keys",
    [
        {"message": "momentum", "attack": "alie()", "attackers": 2},
        {"message": "class_momentum"},
        {"message": "parameters", "model": "mlp", "personal": "5.*"},
        {"message": "delta", "server_momentum": 0.5},
    ],
    ids=lambda keys: keys["message"],
)
def test_runs_of_the_projects_app_are_replayed(tmp_path, keys):
    defence = "nnm(f=2) | centered_clipping(tau=1.0)"
    apps.run(tmp_path, rounds=3, audit=str(tmp_path / "run"), keep_updates=3, defence=defence, **keys)
    assert replay(tmp_path / "run").of("equal") == (1, 2, 3)
