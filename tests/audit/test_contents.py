"""What a run's folder holds against its log: forged checkpoints, changed updates, models that do not follow."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from flwr_robust.audit import (
    Aggregated,
    AuditedRun,
    AuditLog,
    CheckpointsDeleted,
    CheckpointStore,
    CheckpointWritten,
    Fault,
    Resumed,
    RolledBack,
    Snapshot,
    UpdateKept,
    read_log,
    rollback,
    verify,
    verify_run,
)
from flwr_robust.audit.card import make_card
from flwr_robust.audit.contents import check_contents, log_file, update_file
from flwr_robust.audit.log import UNCHECKED, head_file
from flwr_robust.errors import CheckpointError, TamperedError
from flwr_robust.files import file_sha256
from tests.audit_runs import make, rounds

KEY = b"a key of at least sixteen bytes"
GONE = "line {}: the checkpoint round-{:08} is gone, and no line says that it was deleted"


def head_of(folder):
    return json.loads(head_file(log_file(folder)).read_text())["head"]


def line_of(folder, server_round):
    written = (each for each in read_log(log_file(folder)) if isinstance(each.event, CheckpointWritten))
    return next(each.line for each in written if each.event.round == server_round)


def forge(folder, server_round, *, head=None, change=True, says=None, path=None):
    """Change a checkpoint in its place so that it is whole, and knows the log's last line."""
    path = path or CheckpointStore(folder / "checkpoints").path(server_round)
    if change:
        with np.load(path / "arrays.npz") as held:
            arrays = {name: held[name] + 100 for name in held.files}
        np.savez(path / "arrays.npz", **arrays)
    document = json.loads((path / "checkpoint.json").read_text())
    document["log_head"] = head or head_of(folder)
    document["round"] = server_round if says is None else says
    (path / "checkpoint.json").write_text(json.dumps(document, indent=1))
    sums = [f"{file_sha256(path / name)}  {name}\n" for name in ("arrays.npz", "checkpoint.json")]
    (path / "SHA256SUMS").write_text("".join(sums))
    return path


def resumed(folder, resume=True, first=None, last=None, **options):
    config = json.loads(next((folder / "checkpoints").glob("round-*/checkpoint.json")).read_text())["config"]
    with AuditedRun(folder, config, resume=resume, keep=None, sync=False, **options) as run:
        if first is not None:
            rounds(run, first, last)
        return run.snapshot


def found(folder, **options):
    return [(each.fault, str(each)) for each in verify_run(folder, **options).findings]


# -- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("ended", [True, False])
def test_a_checkpoint_that_claims_the_last_head_is_not_believed(tmp_path, key, ended):
    make(tmp_path / "true", key=key, ended=ended)
    shutil.copytree(tmp_path / "true", tmp_path / "forged")
    assert resumed(tmp_path / "true", key=key).round == 3
    forge(tmp_path / "forged", 3)
    for resume in (True, 3):
        with pytest.raises(TamperedError, match=r"round 3 is not the one .* has on record: its hash is another one"):
            resumed(tmp_path / "forged", resume, key=key)
    with pytest.raises(TamperedError, match="is not the one"):
        rollback(tmp_path / "forged", 3, key=key, sync=False)
    assert resumed(tmp_path / "forged", 2, key=key).round == 2  # which nobody touched


@pytest.mark.parametrize("says", [2, 4])
def test_a_checkpoint_of_a_round_that_never_was_is_not_believed(tmp_path, says):
    make(tmp_path, ended=False)
    path = tmp_path / "checkpoints"
    shutil.copytree(path / "round-00000003", path / "round-00000004")
    forge(tmp_path, 4, says=says, change=False)
    with pytest.raises(CheckpointError if says == 2 else TamperedError, match=r"of round (2|4)"):
        resumed(tmp_path)
    (line,) = [sentence for fault, sentence in found(tmp_path) if fault is Fault.CHECKPOINT]
    assert "round-00000004" in line
    shutil.rmtree(path / "round-00000004")
    assert resumed(tmp_path).round == 3


def killed_before_it_is_on_record(folder, monkeypatch):
    """A run in whose folder the checkpoint of round 3 is, but not in its log."""
    with AuditedRun(folder, {"seed": 0}, keep=None, sync=False) as run:
        rounds(run, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr("flwr_robust.audit.run.CheckpointWritten", None)
            with pytest.raises(TypeError):
                rounds(run, 3, 3)


def test_the_newest_may_not_be_on_record_if_it_fits(tmp_path, monkeypatch):
    killed_before_it_is_on_record(tmp_path / "true", monkeypatch)
    shutil.copytree(tmp_path / "true", tmp_path / "forged")
    verdict = verify_run(tmp_path / "true")
    assert verdict.intact
    assert any("round-00000003 is not on record" in remark for remark in verdict.remarks)
    assert resumed(tmp_path / "true").round == 3
    last = [record.event for record in read_log(log_file(tmp_path / "true"))][-2:]
    assert isinstance(last[0], CheckpointWritten)
    assert last[1] == Resumed(3)
    assert verify_run(tmp_path / "true").remarks == ()
    forge(tmp_path / "true", 3)  # now it is on record, it cannot be replaced
    with pytest.raises(TamperedError, match="its hash is another one"):
        resumed(tmp_path / "true")
    forge(tmp_path / "forged", 3)
    assert Fault.CHECKPOINT in dict(found(tmp_path / "forged"))
    with pytest.raises(TamperedError, match="does not hold the model"):
        resumed(tmp_path / "forged")


def test_one_that_was_not_on_record_is_when_it_is_put_aside(tmp_path, monkeypatch):
    killed_before_it_is_on_record(tmp_path, monkeypatch)
    resumed(tmp_path, 2, 3, 3)
    assert (tmp_path / "checkpoints/aside/round-00000003.1").is_dir()
    verdict = verify_run(tmp_path)
    assert (verdict.findings, verdict.remarks) == ((), ())


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("how", ["flipped", "gone", "forged"])
def test_every_checkpoint_is_held_against_the_log(tmp_path, how, aside):
    make(tmp_path)
    assert found(tmp_path) == []
    path = tmp_path / "checkpoints/round-00000002"
    if aside:
        rollback(tmp_path, 1, sync=False)
        path = tmp_path / "checkpoints/aside/round-00000002.1"
        assert found(tmp_path) == []
    if how == "forged":
        forge(tmp_path, 2, path=path)
    elif how == "flipped":
        data = bytearray((path / "arrays.npz").read_bytes())
        data[60] ^= 1
        (path / "arrays.npz").write_bytes(data)
    elif how == "gone":
        (path / "checkpoint.json").unlink()
    (only,) = found(tmp_path)
    assert only[0] is Fault.CHECKPOINT
    assert f"{'aside/' * aside}{path.name} is not the one on record" in only[1]
    evidence = make_card(tmp_path)["deployment"]["evidence"]["value"]
    assert (evidence["log_intact"], evidence["files_intact"], evidence["findings"]) == (True, False, [only[1]])
    shutil.rmtree(path)
    if not aside:
        assert found(tmp_path) == [(Fault.GONE, GONE.format(line_of(tmp_path, 2), 2))]
        with AuditLog(log_file(tmp_path), sync=False) as log:
            log.append(CheckpointsDeleted((2,)))
    assert found(tmp_path) == []
    assert make_card(tmp_path)["deployment"]["evidence"]["value"]["files_intact"]


def test_a_rollback_that_was_killed_before_it_moved_anything_is_finished(tmp_path, monkeypatch):
    make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "put_aside", lambda *_: None)
        rollback(tmp_path, 1, sync=False)
    verdict = verify_run(tmp_path)
    assert verdict.intact
    assert sum("was undone, but not put aside" in remark for remark in verdict.remarks) == 2
    assert resumed(tmp_path, True, 2, 3).round == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints/aside").iterdir()) == [
        "round-00000002.1",
        "round-00000003.1",
    ]
    verdict = verify_run(tmp_path)
    assert (verdict.findings, verdict.remarks) == ((), ())


# -- updates ------------------------------------------------------------------------------------------


def test_kept_updates_outlast_a_round_done_once_more(tmp_path):
    config = {"seed": 0}
    for time in range(3):
        with AuditedRun(tmp_path, config, keep_updates=True, keep=None, sync=False, resume=1 if time else False) as run:
            for number in (2,) if time else (1, 2):
                run.keep_update(number, 7, {"w": np.full(3, 10 * number + time)})
                run.checkpoint(Snapshot(number, config, {"w": np.full(3, number)}))
    kept = [each.event for each in read_log(log_file(tmp_path)) if isinstance(each.event, UpdateKept)]
    assert [event.round for event in kept] == [1, 2, 2, 2]
    assert file_sha256(tmp_path / kept[-1].file) == kept[-1].sha256
    names = sorted(path.name for path in (tmp_path / "updates/aside/round-00000002").iterdir())
    assert names == ["7.1.npz", "7.2.npz"]
    assert found(tmp_path) == []
    path = tmp_path / "updates/aside/round-00000002/7.1.npz"
    data = path.read_bytes()
    for spoil in (lambda: path.write_bytes(data[:-1] + b"x"), path.unlink):
        spoil()
        ((fault, sentence),) = found(tmp_path)
        assert fault is Fault.UPDATE
        assert "7.npz is not as it was kept: its hash is another one" in sentence
    path.write_bytes(data)
    update_file(tmp_path, 1, 7).unlink()
    ((fault, sentence),) = found(tmp_path)
    assert "round-00000001/7.npz is not as it was kept: it cannot be read" in sentence
    shutil.rmtree(tmp_path / "updates")
    ((fault, sentence),) = found(tmp_path)
    assert fault is Fault.GONE
    assert "the folder of the 4 updates that were kept is gone, and no line says that it was deleted" in sentence


# -- models -------------------------------------------------------------------------------------------


def models(folder, *steps):
    """Return the rounds that are found to begin with another model; steps are rounds, or where the run goes back to."""
    with AuditLog(log_file(folder), sync=False) as log:
        for step in steps:
            log.append(step if not isinstance(step, tuple) else Aggregated(step[0], "OK", "", step[1], step[2]))
    assert verify(log_file(folder)).intact
    return [
        int(each.sentence.split()[1])
        for each in check_contents(folder, read_log(log_file(folder)))[0]
        if each.fault is Fault.MODEL
    ]


@pytest.mark.parametrize(
    ("steps", "odd"),
    [
        ([(1, "a", "b"), (2, "b", "c"), (3, "c", "c")], []),
        ([(1, "a", "b"), (2, "x", "c"), (3, "c", "d")], [2]),
        ([(1, "a", "b"), (2, "b", "c"), RolledBack(2, 1), (2, "b", "d")], []),
        ([(1, "a", "b"), (2, "b", "c"), RolledBack(2, 1), (2, "c", "d")], [2]),
        ([(1, "a", "b"), (2, "b", "c"), Resumed(2), (3, "c", "d")], []),
        ([(1, "a", "b"), (2, "b", "c"), Resumed(2), (3, "x", "d")], [3]),
        ([(1, "a", "b"), RolledBack(1, 0), Resumed(0), (1, "x", "b")], []),  # begun anew by its caller
        ([CheckpointWritten(0, "", "", 0), (1, "a", "b"), RolledBack(1, 0), (1, "a", "b")], []),
        ([CheckpointWritten(0, "", "", 0), (1, "a", "b"), RolledBack(1, 0), (1, "x", "b")], [1]),
    ],
)
def test_every_round_begins_with_the_model_that_is_current(tmp_path, steps, odd):
    assert models(tmp_path, *steps) == odd


# -- keys ---------------------------------------------------------------------------------------------


def test_the_card_says_whether_macs_were_checked(tmp_path):
    make(tmp_path / "keyed", key=KEY)
    make(tmp_path / "plain")

    def macs(name, **options):
        return make_card(tmp_path / name, **options)["deployment"]["evidence"]["value"]["macs"]

    assert "not checked" in macs("keyed")
    assert macs("keyed", key=KEY) == "checked with the key"
    assert macs("plain") == "none"
    assert UNCHECKED in verify_run(tmp_path / "keyed").remarks
    assert UNCHECKED not in verify_run(tmp_path / "keyed", key=KEY).remarks


# -- what was deleted together -----------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
def test_a_tail_deleted_with_all_that_knew_it_is_found_by_the_head_file_that_is_gone(tmp_path, key):
    """A checkpoint's head does not stand for the head file: whoever deletes the one can delete up to the other."""
    make(tmp_path, key=key)
    log, records = log_file(tmp_path), read_log(log_file(tmp_path))
    written = [r for r in records if isinstance(r.event, CheckpointWritten) and r.event.round == 3][-1]
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: written.line - 1]))
    head_file(log).unlink()
    assert not verify_run(tmp_path, key=key).intact
    with pytest.raises(TamperedError):
        rollback(tmp_path, 2, key=key, sync=False)


@pytest.mark.parametrize("command", ["rollback", "resume"])
def test_a_checkpoint_that_is_not_the_one_on_record_is_not_even_read(tmp_path, command):
    make(tmp_path)
    path = forge(tmp_path, 3)
    (path / "arrays.npz").write_bytes(b"no archive at all")
    sums = [f"{file_sha256(path / name)}  {name}\n" for name in ("arrays.npz", "checkpoint.json")]
    (path / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(TamperedError, match=r"is not the one that .* has on record: its hash is another one"):
        rollback(tmp_path, 3, sync=False) if command == "rollback" else resumed(tmp_path)


@pytest.mark.parametrize("text", ['"mac": "\\u00e9"', '"mac": 5', '"head": "\\ud800"', '"announced": ["x"]'])
def test_a_head_file_that_holds_anything_is_a_finding(tmp_path, text):
    make(tmp_path, key=KEY)
    told = json.loads(head_file(log_file(tmp_path)).read_text())
    told.update(json.loads("{" + text + "}"))
    head_file(log_file(tmp_path)).write_text(json.dumps(told))
    assert not verify_run(tmp_path, key=KEY).intact
