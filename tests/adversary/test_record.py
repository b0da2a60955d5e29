"""A record that proves too little: deletions, times, ids, and other chains, against what was believed before."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flwr_robust.audit import (
    AuditedRun,
    CheckpointsDeleted,
    Fault,
    RunStarted,
    model_sha256,
    read_log,
    rollback,
    verify,
    verify_run,
)
from flwr_robust.audit.card import make_card
from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.log import SELF_SIGNED, head_file, read_heads
from flwr_robust.audit.run import log_file
from flwr_robust.audit.signing import Signer, make_keys, read_public_key
from flwr_robust.cli import app
from flwr_robust.errors import AuditError, CheckpointError, ConfigurationError
from flwr_robust.flower import Audit, Median
from tests.audit_runs import CONFIG, LIAR, make, rounds
from tests.flower_helpers import client_app, drive


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
    assert event == CheckpointsDeleted((1,), "2 are kept")
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


# -- another chain ----------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    """The files of a private and of a public key."""
    return make_keys(tmp_path / "key")


def change(number, fields):
    """A small lie about the run."""
    if fields["kind"] == "reply_refused":
        fields["reason"] = "ERROR"


def by(private):
    """What the attacker adds when signing with a key of their own."""
    signer = Signer(private)

    def signed(log):
        told = json.loads(head_file(log).read_text())
        told["public_key"] = signer.public
        told["signature"] = signer.sign(f"{told['lines']} {told['head']}".encode())
        head_file(log).write_text(json.dumps(told))

    return signer, signed


@pytest.mark.parametrize("forged", ["unsigned", "own key", "own key, named", "no key named", "old signature"])
def test_a_chain_that_was_rewritten_whole_is_found_with_the_public_key_alone(tmp_path, keys, forged):
    private, public = keys
    run = make(tmp_path / "run", signing_key=private)
    log, public = log_file(run), read_public_key(public)
    verdict = verify_run(run, public_key=public)
    assert (verdict.findings, verdict.remarks) == ((), ())
    before = json.loads(head_file(log).read_text())
    other, sign = by(make_keys(tmp_path / "other")[0])

    def lie(number, fields):
        change(number, fields)
        if forged in ("own key, named", "no key named") and number == 0:
            fields["public_key"] = other.public if forged == "own key, named" else ""

    rewritten(log, lie)
    if forged.startswith("own key"):
        sign(log)
    elif forged == "old signature":
        head_file(log).write_text(json.dumps({**json.loads(head_file(log).read_text()), **_signature_of(before)}))
    shutil.rmtree(run / "checkpoints")  # they know the old heads
    assert not verify(log, public_key=public).intact
    assert old_chain_is_whole(log)
    # Without a key from elsewhere, a chain that names a key of the attacker's or none is as good as any.
    assert verify(log).intact is (forged in ("own key, named", "no key named"))


def _signature_of(told):
    return {"public_key": told["public_key"], "signature": told["signature"]}


def old_chain_is_whole(log):
    """What was looked at before: the chain of hashes, and the head file's number and hash."""
    previous = "0" * 64
    for line in log.read_bytes().splitlines():
        if json.loads(line)["previous"] != previous:
            return False
        previous = hashlib.sha256(line).hexdigest()
    return json.loads(head_file(log).read_text())["head"] == previous


def test_a_signed_log_says_with_which_key_it_was_checked(tmp_path, keys):
    private, public = keys
    run = make(tmp_path / "run", signing_key=private)
    assert verify(log_file(run)).remarks == (SELF_SIGNED,)
    assert verify(log_file(make(tmp_path / "plain"))).remarks == ()
    assert not verify(log_file(tmp_path / "plain"), public_key=read_public_key(public)).intact
    assert read_log(log_file(run))[0].event.public_key == read_public_key(public)
    other = read_public_key(make_keys(tmp_path / "other")[1])
    assert [each.fault for each in verify(log_file(run), public_key=other).findings] == [Fault.SIGNER, Fault.HEAD]


def test_a_signed_run_goes_on_with_its_key_only(tmp_path, keys):
    run = make(tmp_path / "run", signing_key=keys[0], ended=False)
    for wrong in (None, make_keys(tmp_path / "other")[0]):
        with pytest.raises(AuditError, match=r"names the public key [0-9a-f]{64}: pass its private key"):
            AuditedRun(run, CONFIG, resume=True, sync=False, signing_key=wrong)
        with pytest.raises(AuditError, match="pass its private key"):
            rollback(run, 1, sync=False, signing_key=wrong)
    rollback(run, 1, sync=False, signing_key=keys[0])
    with AuditedRun(run, CONFIG, resume=True, sync=False, signing_key=Path(keys[0])) as going_on:
        rounds(going_on, 2, 3)
    assert verify_run(run, public_key=read_public_key(keys[1])).findings == ()
    plain = make(tmp_path / "plain", ended=False)
    with pytest.raises(AuditError, match="is not signed: pass none"):
        AuditedRun(plain, CONFIG, resume=True, sync=False, signing_key=keys[0])


def test_announced_lines_are_signed_too(tmp_path, keys):
    run = make(tmp_path / "run", signing_key=keys[0])
    told = json.loads(head_file(log_file(run)).read_text())
    told["announced"] = ["f" * 64]  # by someone else
    head_file(log_file(run)).write_text(json.dumps(told))
    assert not verify(log_file(run)).intact


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigurationError, match="must hold an Ed25519 private key in PEM without a password"):
        Audit(tmp_path / "run", signing_key=tmp_path / "key")
    with pytest.raises(ConfigurationError, match="must hold an Ed25519 public key"):
        read_public_key(tmp_path / "key")
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Signer(tmp_path / "none")


def test_keys_are_made_once_and_for_their_owner(tmp_path, keys):
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    assert Signer(private).public == read_public_key(public)
    (tmp_path / "hex").write_text(f"{Signer(private).public}\n")
    assert read_public_key(tmp_path / "hex") == Signer(private).public
    with pytest.raises(AuditError, match="cannot be written: File exists"):
        make_keys(private)


# -- heads elsewhere --------------------------------------------------------------------------------

ONE = {"w": np.zeros(2, np.float32)}
APP = client_app(lambda partition, model, config, context: {"w": model["w"] + np.float32(1)})


def trained(folder, **options):
    strategy = Median(audit=Audit(folder, sync=False, **options), fraction_evaluate=0.0, min_train_nodes=3)
    return drive(strategy, APP, ONE, 3, rounds=2)[0]


def test_heads_that_were_handed_out_find_a_log_that_is_an_earlier_one(tmp_path, keys):
    noted = tmp_path / "witness.jsonl"
    trained(tmp_path / "run", heads=noted, signing_key=keys[0])
    log, public = log_file(tmp_path / "run"), read_public_key(keys[1])
    heads = read_heads(noted, public)
    assert len(heads) == 4  # the initial model, two rounds, and the end
    whole = noted.read_bytes()
    noted.write_bytes(whole + b'{"lines": 9')  # its writer was stopped
    assert read_heads(noted, public) == heads
    noted.write_bytes(whole)
    assert heads[-1] == verify(log).head
    assert verify(log, expect=heads, public_key=public).intact
    # An earlier log with an earlier head, signed well: only what was noted shows it.
    lines = log.read_bytes().splitlines(keepends=True)
    early = json.loads(noted.read_text().splitlines()[1])
    log.write_bytes(b"".join(lines[: early["lines"]]))
    head_file(log).write_text(json.dumps(early))
    assert verify(log, public_key=public).intact
    assert [each.fault for each in verify(log, public_key=public, expect=heads).findings] == [Fault.MISSING] * 2
    with pytest.raises(AuditError, match=r"line 1 of .* does not bear a signature by the public key"):
        read_heads(noted, read_public_key(make_keys(tmp_path / "other")[1]))


def test_a_witness_is_told_and_may_fail(tmp_path, caplog):
    caplog.set_level("WARNING", logger="flwr")  # other tests make it quiet
    seen = []

    def witness(head):
        seen.append(dict(head))
        if len(seen) == 2:
            raise OSError("no connection")

    trained(tmp_path / "run", heads=witness)
    assert [set(each) for each in seen] == [{"lines", "head"}] * 4
    assert verify(log_file(tmp_path / "run"), expect=[each["head"] for each in seen]).intact
    assert sum("could not be shown to its witness" in message for message in caplog.messages) == 1


def test_a_file_of_heads_goes_on_after_a_line_that_was_cut(tmp_path):
    noted = tmp_path / "witness.jsonl"
    noted.write_text('{"lines": 9')
    with pytest.raises(AuditError, match="holds no whole line"):
        read_heads(noted)
    trained(tmp_path / "run", heads=noted)
    with pytest.raises(AuditError, match=r"line 1 of .* cannot be read"):
        read_heads(noted)
    assert json.loads(noted.read_text().splitlines()[-1])["head"] == verify(log_file(tmp_path / "run")).head


@pytest.mark.parametrize("heads", [3, "none/heads", "run/heads"])
def test_a_place_for_heads_is_checked_before_the_run(tmp_path, heads):
    with pytest.raises(ConfigurationError, match="audit: heads must"):
        Audit(tmp_path / "run", heads=heads if heads == 3 else tmp_path / heads)


# -- commands ---------------------------------------------------------------------------------------


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_commands_for_keys_and_heads(tmp_path):
    assert call("audit", "keygen", tmp_path / "key").exit_code == 0
    assert call("audit", "keygen", tmp_path / "key").exit_code == 2
    run, public = make(tmp_path / "run", signing_key=tmp_path / "key"), tmp_path / "key.pub"
    noted = tmp_path / "heads"
    done = call("audit", "head", run, "--out", noted, "--public-key", public)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["head"] == verify(log_file(run)).head == read_heads(noted)[0]
    assert "with the key that the log itself names" in call("audit", "verify", run).stdout
    done = call("audit", "verify", run, "--public-key", public, "--expect", noted, "--expect", read_heads(noted)[0])
    assert (done.exit_code, "note" in done.stdout) == (0, False)
    assert call("audit", "verify", run, "--expect", tmp_path / "no").exit_code == 2
    assert call("rollback", run, "--to-round", 2).exit_code == 2
    assert call("rollback", run, "--to-round", 2, "--signing-key", tmp_path / "key").exit_code == 0
    assert call("ban", run, "--client", LIAR).exit_code == 2
    assert call("ban", run, "--client", LIAR, "--signing-key", tmp_path / "key").exit_code == 0
    assert call("audit", "verify", run, "--public-key", public, "--expect", noted).exit_code == 0
    rewritten(log_file(run), change)
    assert call("audit", "verify", run, "--public-key", public).exit_code == 1
    assert call("audit", "head", run).exit_code == 1


def test_a_model_file_is_found_in_the_log(tmp_path):
    found = trained(tmp_path / "run", keep=None)
    np.savez(tmp_path / "model.npz", **found)
    torch.save({name: torch.from_numpy(values) for name, values in found.items()}, tmp_path / "model.pt")
    last = tmp_path / "run/checkpoints/round-00000002"
    for model in ("model.npz", "model.pt", last, last / "arrays.npz"):
        done = call("hash", tmp_path / model, "--run", tmp_path / "run")
        assert done.exit_code == 0
        assert done.stdout.splitlines()[0] == model_sha256(found)
        assert "the model after round 2\n" in done.stdout
        assert "the model after round 2, with which the run ended" in done.stdout
    rollback(tmp_path / "run", 1, sync=False)
    told = json.loads(call("hash", tmp_path / "model.pt", "--run", tmp_path / "run", "--json").stdout)
    assert [(each["round"], each["undone"], each["final"]) for each in told["places"]] == [
        (2, True, False),
        (2, False, True),
    ]
    assert re.fullmatch("[0-9a-f]{32}", told["run"])
    np.savez(tmp_path / "initial.npz", **ONE)
    assert "the initial model" in call("hash", tmp_path / "initial.npz", "--run", tmp_path / "run").stdout
    np.savez(tmp_path / "other.npz", w=np.ones(5))
    assert call("hash", tmp_path / "other.npz").exit_code == 0
    assert call("hash", tmp_path / "other.npz", "--run", tmp_path / "run").exit_code == 1


def test_what_is_no_model_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):  # the sentence that was shown
        torch.load(tmp_path / "evil.pt", weights_only=True)
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    np.savez_compressed(tmp_path / "small.npz", w=np.ones(2))
    (tmp_path / "text.npz").write_text("text")
    for name in ("evil.pt", "plain.pt", "tensor.pt", "small.npz", "text.npz", "none.npz", "none.pt"):
        done = call("hash", tmp_path / name)
        assert done.exit_code == 2
        assert "unpickled" not in done.stdout
        assert "weights_only" not in done.output
        assert "Warning" not in done.output
        assert ("it holds no state_dict of tensors" in done.stderr) == (name.endswith(".pt") and name != "none.pt")
        assert "name an .npz file of named arrays" in done.stderr


def test_the_card_says_how_signatures_were_checked(tmp_path, keys):
    run = make(tmp_path / "run", signing_key=keys[0])

    def signatures(folder, **options):
        return make_card(folder, **options)["deployment"]["evidence"]["value"]["signatures"]

    assert signatures(run) == "checked with the key that the log names"
    assert signatures(run, public_key=read_public_key(keys[1])) == "checked with the given public key"
    assert signatures(make(tmp_path / "plain")) == "none"
    assert call("card", run, "--public-key", keys[1]).exit_code == 0
    assert call("card", tmp_path / "plain", "--public-key", keys[1]).exit_code == 1
