"""A record that proves too little: deletions, times, ids, and other chains, against what was believed before."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest

from flwr_robust.audit import (
    AuditedRun,
    CheckpointsDeleted,
    Fault,
    RunStarted,
    read_log,
    verify,
    verify_run,
)
from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.log import head_file
from flwr_robust.audit.run import log_file
from flwr_robust.errors import CheckpointError
from tests.audit_runs import CONFIG, make, rounds


def old_findings(folder):
    """The checkpoints that were compared before: those that are there, and no others."""
    store = CheckpointStore(folder / "checkpoints")
    return [each for each in store.rounds() if store.damage(each) is not None]


def kept(folder, last=5, **options):
    with AuditedRun(folder, CONFIG, keep=2, sync=False, **options) as run:
        rounds(run, 1, last)
    return folder


# -- deletions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [(5,), (4,), (4, 5)])
def test_checkpoints_removed_by_hand_are_found(tmp_path, gone):
    kept(tmp_path)
    assert verify_run(tmp_path).intact
    for server_round in gone:
        shutil.rmtree(tmp_path / f"checkpoints/round-{server_round:08}")
    assert old_findings(tmp_path) == []  # "intact", it said
    findings = verify_run(tmp_path).findings
    assert [each.fault for each in findings] == [Fault.GONE] * len(gone)
    assert [int(re.search(r"round-(\d+)", each.sentence)[1]) for each in findings] == list(gone)


def test_the_whole_folder_removed_is_found(tmp_path):
    kept(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert old_findings(tmp_path) == []
    assert [each.fault for each in verify_run(tmp_path).findings] == [Fault.GONE] * 2


def test_what_the_run_itself_deletes_is_on_record_before_it_is_gone(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "delete", killed)
        with pytest.raises(Killed):
            kept(tmp_path, 3)
    (event,) = [each.event for each in read_log(log_file(tmp_path)) if isinstance(each.event, CheckpointsDeleted)]
    assert event == CheckpointsDeleted((1,), "the latest 2 are kept")
    verdict = verify_run(tmp_path)
    assert verdict.intact
    assert verdict.remarks == ("round-00000001 is deleted on record, but there: its process was killed or is at work",)
    with AuditedRun(tmp_path, CONFIG, keep=2, sync=False, resume=True) as run:
        assert run.snapshot.round == 3
        assert run.store.rounds() == [2, 3]
    assert verify_run(tmp_path).remarks == ()


def test_a_run_does_not_go_back_silently_when_its_newest_checkpoint_is_removed(tmp_path):
    kept(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/round-00000005")
    with pytest.raises(CheckpointError, match=r"knows the checkpoint of round 5, but the newest .* is that of round 4"):
        AuditedRun(tmp_path, CONFIG, sync=False, resume=True)
    with AuditedRun(tmp_path, CONFIG, sync=False, resume=4) as run:
        assert run.snapshot.round == 4


# -- who, when, what --------------------------------------------------------------------------------


def test_every_run_has_an_id_of_its_own_and_names_its_source(tmp_path):
    ids = set()
    for name in ("one", "two"):
        first = read_log(log_file(kept(tmp_path / name, 1)))[0].event
        assert isinstance(first, RunStarted)
        assert re.fullmatch("[0-9a-f]{32}", first.run)
        assert re.fullmatch("([0-9a-f]{40})?", first.commit)
        ids.add(first.run)
    assert len(ids) == 2


def rewritten(log, change):
    """Write the log anew with changed lines, chained and sealed well: what anyone can who writes both files."""
    previous, lines = "0" * 64, []
    for number, line in enumerate(log.read_bytes().splitlines()):
        fields = json.loads(line)
        change(number, fields)
        fields["previous"] = previous
        lines.append(json.dumps(fields, separators=(",", ":")).encode())
        previous = hashlib.sha256(lines[-1]).hexdigest()
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    head_file(log).write_text(json.dumps({"lines": len(lines), "head": previous}))
    return previous


@pytest.mark.parametrize("time", ["2020-01-01T00:00:00.000+00:00", "yesterday"])
def test_times_that_decrease_are_remarked_on(tmp_path, time):
    log = log_file(make(tmp_path))
    assert not any("have a time" in remark for remark in verify(log).remarks)

    def backdate(number, fields):
        if number in (4, 6):
            fields["time"] = time

    rewritten(log, backdate)
    assert verify(log).intact
    assert any(remark.startswith("2 lines have a time before") for remark in verify(log).remarks)
    assert any("the first in line 5" in remark for remark in verify(log).remarks)
