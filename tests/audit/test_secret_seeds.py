"""Secret seeds in a run's folder: a file for the server alone, and what the log commits to and reveals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flwr_robust.audit import AuditedRun, Fault, Snapshot, rollback, secret_file, seeds_of, verify_run
from flwr_robust.audit.events import Resumed, RunEnded, RunStarted
from flwr_robust.audit.log import read_log
from flwr_robust.audit.run import log_file
from flwr_robust.errors import AuditError, TamperedError
from flwr_robust.round_seeds import FixedSeed, SecretSeed

CONFIG = {"seed": "secret"}


def train(folder, upto, *, resume=False, outcome="finished", seeds=None):
    """Write the checkpoints of a run up to a round, and its end, if it has one; return its seeds."""
    run = AuditedRun(folder, CONFIG, seeds=seeds or SecretSeed(), resume=resume, keep=None, sync=False)
    for number in range(0 if run.snapshot is None else run.snapshot.round + 1, upto + 1):
        run.checkpoint(Snapshot(number, CONFIG, {"w": np.full(2, float(number))}))
    if outcome:
        run.end(upto, outcome)
    run.close()
    return run.seeds


def events(folder, kind):
    return [record.event for record in read_log(log_file(folder)) if isinstance(record.event, kind)]


def of(seeds, upto):
    return [seeds.of(number) for number in range(1, upto + 1)]


def test_the_log_commits_at_the_start_and_reveals_at_the_end(tmp_path):
    seeds = train(tmp_path, 3)
    assert read_log(log_file(tmp_path))[0].event.seed_commitment == seeds.commitment
    (end,) = events(tmp_path, RunEnded)
    assert end.seed_revealed == seeds.reveal(3)
    assert verify_run(tmp_path).intact
    assert secret_file(tmp_path).stat().st_mode & 0o777 == 0o600
    text = log_file(tmp_path).read_text() + "".join(p.read_text() for p in tmp_path.rglob("checkpoint.json"))
    assert seeds.parts[0][1].secret.hex() not in text
    assert of(seeds_of(tmp_path), 9) == of(seeds, 9)
    secret_file(tmp_path).unlink()  # as an auditor gets the folder
    assert of(seeds_of(tmp_path), 3) == of(seeds, 3)
    assert seeds_of(tmp_path).last == 3


def test_a_run_in_progress_or_failed_reveals_nothing(tmp_path):
    for name, outcome in (("open", ""), ("failed", "failed")):
        seeds = train(tmp_path / name, 2, outcome=outcome)
        assert {event.seed_revealed for event in events(tmp_path / name, RunEnded)} <= {""}
        assert of(seeds_of(tmp_path / name), 2) == of(seeds, 2)
        secret_file(tmp_path / name).unlink()
        with pytest.raises(AuditError, match=r"the seeds of the run in .* are secret: its log reveals them when"):
            seeds_of(tmp_path / name)


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed", ""])
def test_a_resumed_run_keeps_its_secret(tmp_path, outcome):
    seeds = train(tmp_path, 2, outcome=outcome)
    again = train(tmp_path, 4, resume=True)
    assert of(again, 6) == of(seeds, 6)
    assert events(tmp_path, Resumed)[0].seed_commitment == ""
    assert events(tmp_path, RunEnded)[-1].seed_revealed == seeds.reveal(4)
    assert verify_run(tmp_path).intact


def test_a_run_that_repeats_a_revealed_round_draws_anew(tmp_path):
    """Its keys are in the log, so clients may know them."""
    seeds = train(tmp_path, 4)
    again = train(tmp_path, 5, resume=2)
    assert of(again, 2) == of(seeds, 2)
    assert set(of(again, 9)[2:]).isdisjoint(of(seeds, 9))
    assert events(tmp_path, Resumed)[0].seed_commitment == again.commitment
    assert of(seeds_of(tmp_path), 9) == of(again, 9)
    assert verify_run(tmp_path).intact
    secret_file(tmp_path).rename(tmp_path.parent / "kept")
    assert of(seeds_of(tmp_path), 5) == of(again, 5)
    (tmp_path.parent / "kept").rename(secret_file(tmp_path))
    # After a rollback the same, and a run that goes on from there keeps what it has.
    rollback(tmp_path, 3, sync=False)
    third = train(tmp_path, 4, resume=True, outcome="")
    assert of(third, 3) == of(again, 3)
    assert third.of(4) != again.of(4)
    fourth = train(tmp_path, 6, resume=True)
    assert of(fourth, 6) == of(third, 6)
    assert verify_run(tmp_path).intact
    assert of(seeds_of(tmp_path), 6) == of(fourth, 6)


@pytest.mark.parametrize("how", ["rollback", "resume"])
def test_a_run_that_goes_back_draws_anew(tmp_path, how):
    """Clients know who was asked in the rounds that are undone, and what their models tell."""
    seeds = train(tmp_path, 4, outcome="")
    if how == "rollback":
        rollback(tmp_path, 2, sync=False)
    again = train(tmp_path, 5, resume=True if how == "rollback" else 2, outcome="")
    assert of(again, 2) == of(seeds, 2)
    assert set(of(again, 9)[2:]).isdisjoint(of(seeds, 9))
    third = train(tmp_path, 6, resume=True)
    assert of(third, 9) == of(again, 9)
    assert events(tmp_path, RunEnded)[-1].seed_revealed == again.reveal(6)
    assert verify_run(tmp_path).intact


def test_a_run_killed_before_its_first_checkpoint_commits_anew(tmp_path):
    AuditedRun(tmp_path, CONFIG, seeds=SecretSeed(), sync=False).close()
    seeds = train(tmp_path, 2, resume=True)
    assert events(tmp_path, Resumed)[0].seed_commitment == seeds.commitment
    assert events(tmp_path, RunStarted)[0].seed_commitment != seeds.commitment
    assert of(seeds_of(tmp_path), 3) == of(seeds, 3)
    assert verify_run(tmp_path).intact


def test_a_known_seed_is_the_configs(tmp_path):
    with AuditedRun(tmp_path, {"seed": 5}, seeds=FixedSeed(5), sync=False) as run:
        run.end(0, "finished")
    assert not secret_file(tmp_path).exists()
    assert seeds_of(tmp_path) == FixedSeed(5)
    assert (events(tmp_path, RunStarted)[0].seed_commitment, events(tmp_path, RunEnded)[0].seed_revealed) == ("", "")


def test_a_key_that_does_not_fit_the_commitment_is_found(tmp_path, monkeypatch):
    for name, odd in (("other", SecretSeed().reveal(3)), ("earlier", None), ("nonsense", "3:xyz")):
        monkeypatch.setattr(SecretSeed, "reveal", lambda seeds, at, odd=odd: odd or _text(seeds, 2))
        train(tmp_path / name, 3)
        monkeypatch.undo()
        (finding,) = verify_run(tmp_path / name).findings
        assert (finding.fault, finding.line) == (Fault.SEED, len(read_log(log_file(tmp_path / name))))
        assert finding.sentence == "the line reveals keys: they do not fit the commitment"


def _text(seeds, at):
    return f"{at}:{seeds.parts[0][1].key(at).hex()}"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": "xy"}', '{"a": "ab"}', '{"a": null}'])
def test_a_file_of_secrets_that_is_none(tmp_path, content):
    train(tmp_path, 2)
    secret_file(tmp_path).write_text(content)
    with pytest.raises(AuditError, match="does not hold the secrets of a run; put back the file that the run wrote"):
        train(tmp_path, 3, resume=True)


def test_a_file_of_secrets_that_lacks_one_or_holds_another(tmp_path):
    seeds = train(tmp_path, 2)
    secret_file(tmp_path).write_text(json.dumps({seeds.commitment: SecretSeed().parts[0][1].secret.hex()}))
    with pytest.raises(TamperedError, match="is not the one to which the log committed; put back the file"):
        train(tmp_path, 3, resume=True)
    secret_file(tmp_path).unlink()
    with pytest.raises(AuditError, match="is missing, or lacks a secret of this run; put back the file"):
        train(tmp_path, 3, resume=True)
    assert [type(event).kind for event in events(tmp_path, Resumed)] == []


def test_a_secret_without_a_commitment_is_no_seed(tmp_path):
    AuditedRun(tmp_path, CONFIG, sync=False).close()
    with pytest.raises(AuditError, match="names a secret seed, but no commitment"):
        seeds_of(tmp_path)


def test_a_log_that_asks_for_too_many_hashes_is_odd(tmp_path, monkeypatch):
    train(tmp_path, 3)
    for _ in range(3):
        train(tmp_path, 3, resume=True)
    assert verify_run(tmp_path).intact
    monkeypatch.setattr("flwr_robust.audit.commitments._MOST_HASHES", 7)  # those of two ends of three rounds
    assert len(verify_run(tmp_path).findings) == 2
