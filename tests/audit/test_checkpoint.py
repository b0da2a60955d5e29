"""Checkpoints, resumption and rollback: bit for bit, whatever is killed and whenever."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from flwr_robust.audit import checkpoint as module
from flwr_robust.audit.checkpoint import CheckpointStore, Snapshot
from flwr_robust.audit.digest import config_sha256, model_sha256
from flwr_robust.audit.events import Aggregated, CheckpointWritten, Resumed, RolledBack, RunStarted, UpdateKept
from flwr_robust.audit.log import AuditLog, head_file, read_log, verify
from flwr_robust.audit.run import AuditedRun, log_file, rollback
from flwr_robust.errors import AuditError, CheckpointError, ConfigurationError, UnknownNameError
from flwr_robust.seeds import numpy_generator

FORK = multiprocessing.get_context("fork")
CONFIG = {"seed": 0, "rounds": 6, "defence": "centered_clipping(tau=1.0)", "alpha": 0.1, "redraw": False}


def snapshot(server_round, **changes):
    fields = {
        "round": server_round,
        "config": CONFIG,
        "model": {"w": np.full((2, 3), server_round, np.float32), "n": np.array(server_round)},
        "states": {"rule": {"centre": torch.full((6,), float(server_round))}},
        "partitions": {2**63 + 11: 0, 5: 1},
        "values": {"history": [{"round": server_round}], "sampling": {"seed": 0}},
    }
    return Snapshot(**{**fields, **changes})


def store(folder, count=0, **options):
    made = CheckpointStore(folder, **{"sync": False, **options})
    for server_round in range(1, count + 1):
        saved(made, snapshot(server_round))
    return made


def saved(made, one):
    """Write a checkpoint and delete the old ones, as a run does."""
    made.save(one)
    made.delete(made.surplus())


def same(one, other):
    """Equal to the bit, types included."""
    assert (one.round, dict(one.config), one.partitions, one.head) == (
        other.round,
        dict(other.config),
        other.partitions,
        other.head,
    )
    assert json.dumps(one.values) == json.dumps(other.values)  # NaN equals NaN there
    assert list(one.model) == list(other.model)
    for name, values in one.model.items():
        twin = other.model[name]
        assert (values.dtype, values.shape) == (twin.dtype, twin.shape)
        assert values.tobytes() == twin.tobytes()
    assert {name: list(state) for name, state in one.states.items()} == {
        name: list(state) for name, state in other.states.items()
    }
    for name, state in one.states.items():
        for key, tensor in state.items():
            twin = other.states[name][key]
            assert (tensor.dtype, tensor.shape) == (twin.dtype, twin.shape)
            flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, twin) if t.numel()]
            assert not flat or torch.equal(*flat)


# -- what comes back --------------------------------------------------------------------------------


def test_a_snapshot_comes_back_to_the_bit(tmp_path):
    odd = np.array([np.nan, -0.0, np.inf, 5e-324, 1 / 3])
    odd.view(np.uint64)[0] ^= 0x1234  # a NaN with a payload
    model = {str(dtype): np.arange(6).reshape(2, 3).astype(dtype) for dtype in "?bBhHiIlLqQefdgFDG"}
    model |= {
        "float64 of all kinds": odd,
        "big-endian": odd.astype(">f8"),
        "zero dimensions": np.array(2.5),
        "nothing": np.ones((0, 3), np.float32),
        "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(12.0)[::3],
        "text": np.array(["a", "bcd"]),
        "time": np.array(["2026-01-01"], "datetime64[D]"),
        "a/b.weight": np.ones(1),
        "../up": np.ones(2),
        "file": np.ones(3),
        "": np.ones(4),
        "ключ \ud800": np.ones(5),
    }
    numbers = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    types = [
        *numbers,
        "bool",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
    ]
    state = {name: torch.tensor([[0.0, 1.0, 2.0]]).to(getattr(torch, name)) for name in types}
    state |= {
        "0-d": torch.tensor(7),
        "0-d bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
        "nothing": torch.ones(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "nan": torch.from_numpy(odd),
        "grad": torch.ones(2, requires_grad=True),
    }
    written = snapshot(
        3,
        model=model,
        states={"rule": state, "attack": {}, "messages": {"5": torch.ones(3)}},
        values={"x": [0.1, float("nan"), 1e300, 2**70, None, True, "ключ", {}], "empty": []},
        head="f" * 64,
    )
    made = store(tmp_path)
    made.save(written)
    read = made.load()
    same(written, read)
    assert all(values.flags.writeable for values in read.model.values())


def test_the_files_are_what_the_documentation_says(tmp_path):
    made = store(tmp_path, 1)
    path = made.path(1)
    assert sorted(each.name for each in path.iterdir()) == ["SHA256SUMS", "arrays.npz", "checkpoint.json"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, capture_output=True)
    document = json.loads((path / "checkpoint.json").read_bytes())
    assert (document["version"], document["round"], document["config"]) == (1, 1, CONFIG)
    assert document["config_sha256"] == config_sha256(CONFIG)
    assert made.sha256(1) == hashlib.sha256((path / "SHA256SUMS").read_bytes()).hexdigest()
    with np.load(path / "arrays.npz") as held:
        np.testing.assert_array_equal(held["0"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": {"w": np.array([object()])}}, "array 'w' must not hold Python objects"),
        ({"values": {"history": [{1: 2}]}}, r"checkpoint.values.history: keys must be text; got 1"),
        ({"values": {"x": np.float32(1)}}, r"checkpoint.values.x: float32 cannot be written"),
        ({"values": {"x": {1, 2}}}, "set cannot be written"),
        ({"round": -1}, "round must be an integer >= 0"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, changes, match):
    made = store(tmp_path / "none")
    with pytest.raises(ConfigurationError, match=match):
        made.save(snapshot(1, **changes))
    assert not (tmp_path / "none").exists()


def test_the_last_ones_are_kept(tmp_path):
    assert store(tmp_path / "a", 7, keep=3).rounds() == [5, 6, 7]
    assert store(tmp_path / "b", 7, keep=1).rounds() == [7]
    assert store(tmp_path / "c", 7, keep=None).rounds() == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"round-{k:08}" for k in (5, 6, 7)]
    with pytest.raises(ConfigurationError, match="keep must be an integer >= 1; got keep=0"):
        store(tmp_path, keep=0)


def test_a_round_done_once_more_puts_the_old_one_aside(tmp_path):
    made = store(tmp_path, 2)
    for value in (8.0, 9.0):
        made.save(snapshot(2, model={"w": np.array([value])}))
    assert made.load(2).model["w"] == [9.0]
    assert sorted(path.name for path in (tmp_path / "aside").iterdir()) == ["round-00000002.1", "round-00000002.2"]


# -- what is refused --------------------------------------------------------------------------------


def test_there_may_be_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is none in .*; rounds there: none"):
        store(tmp_path / "no").load()
    with pytest.raises(CheckpointError, match=r"there is none of round 9 in .*; rounds there: 1, 2"):
        store(tmp_path, 2).load(9)


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    made = store(tmp_path, 1)
    assert made.load(config=CONFIG).round == 1
    assert made.load(config={**CONFIG, "rounds": 12}, may_differ=("rounds",)).round == 1
    other = {**CONFIG, "rounds": 12, "seed": 1, "device": "cpu", "redraw": 0}
    del other["alpha"]
    with pytest.raises(CheckpointError) as caught:
        made.load(config=other, may_differ=("rounds",))
    assert (
        'another configuration: alpha was 0.1 and is absent; device was absent and is "cpu"; redraw was false and '
        "is 0; seed was 0 and is 1; use" in str(caught.value)
    )


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["arrays.npz", "checkpoint.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_one_is_refused_and_the_one_before_offered(tmp_path, name, how):
    made = store(tmp_path, 3)
    for place in range(5):
        path = made.path(3) / name
        data = path.read_bytes()
        if how == "flipped":
            flip(path, len(data) * place // 5)
        elif how == "gone":
            path.unlink()
        else:
            path.write_bytes(data[: len(data) * place // 5] if how == "cut" else b"")
        with pytest.raises(
            CheckpointError, match=r"that of round 3 is damaged: .*; that of round 2 is intact"
        ) as caught:
            made.load()
        assert caught.value.offered == 2 == made.latest_intact()
        assert pickle.loads(pickle.dumps(caught.value)).offered == 2
        path.write_bytes(data)
    same(made.load(), snapshot(3))


def test_none_may_be_intact(tmp_path):
    made = store(tmp_path, 2)
    for server_round in (1, 2):
        flip(made.path(server_round) / "arrays.npz", 100)
    with pytest.raises(CheckpointError, match="no earlier one is intact") as caught:
        made.load()
    assert caught.value.offered is None
    assert made.latest_intact() is None


def test_a_forged_one_with_hashes_that_fit_is_damaged_all_the_same(tmp_path):
    made = store(tmp_path, 1)
    path = made.path(1)
    original = json.loads((path / "checkpoint.json").read_bytes())
    for forged in (
        [],
        {**original, "version": 2},
        {**original, "model": ["w", "n", "more"]},
        {**original, "states": {"rule": {"centre": {"type": "load", "shape": [6]}}}},
        {**original, "states": {"rule": {"centre": {"type": "float32", "shape": [7]}}}},
        {**original, "model": [1, 2, 3]},
        {**original, "config": 3},
        {**original, "values": 3},
        {**original, "partitions": 3},
        {**original, "log_head": 3},
    ):
        (path / "checkpoint.json").write_text(json.dumps(forged))
        names = ("arrays.npz", "checkpoint.json")
        sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (path / "SHA256SUMS").write_text("".join(sums))
        with pytest.raises(CheckpointError, match="does not hold what it must"):
            made.load()


def broken_deflate(path):
    """Write an archive whose compressed data are none."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", bytes(5000))
    data = bytearray(path.read_bytes())
    data[40:52] = b"\xff" * 12
    path.write_bytes(data)


def huge(path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def empty_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.npy", b"")


@pytest.mark.parametrize("make", [broken_deflate, huge, empty_member])
def test_arrays_that_are_none_are_damage(tmp_path, make):
    made = store(tmp_path, 1)
    path = made.path(1)
    make(path / "arrays.npz")
    names = ("arrays.npz", "checkpoint.json")
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(CheckpointError, match="does not hold what it must"):
        made.load()


def test_nothing_is_unpickled(tmp_path):
    made = store(tmp_path, 1)
    path = made.path(1)

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/exploded",)

    np.savez(path / "arrays.npz", **{str(index): np.array([Bomb()]) for index in range(3)})
    names = ("arrays.npz", "checkpoint.json")
    sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(CheckpointError, match="does not hold what it must"):
        made.load()
    assert not (tmp_path / "exploded").exists()


# -- a run ------------------------------------------------------------------------------------------


def step(server_round, model, state):
    """One round of something that depends on all that came before it."""
    noise = numpy_generator(0, "noise", server_round).standard_normal(4).astype(np.float32)
    state = 0.9 * state + torch.from_numpy(noise)
    return model - np.float32(0.1) * state.numpy() * (1 + model), state


def train(folder, rounds=6, told=None, **options):
    """A strategy in miniature, as it would call the audit: it logs and checkpoints every round."""
    with AuditedRun(folder, {**CONFIG, "rounds": rounds}, rule=CONFIG["defence"], **{"sync": False, **options}) as run:
        first, model, state = 0, np.zeros(4, np.float32), torch.zeros(4)
        if run.snapshot is not None:
            first, model = run.snapshot.round, run.snapshot.model["w"]
            state = run.snapshot.states["rule"]["centre"]
        for server_round in range(first + 1, rounds + 1):
            before = model_sha256({"w": model})
            model, state = step(server_round, model, state)
            run.record(Aggregated(server_round, "OK", "", before, model_sha256({"w": model})))
            run.checkpoint(Snapshot(server_round, run.config, {"w": model}, {"rule": {"centre": state}}))
            if told is not None:
                os.write(told, b"%c" % server_round)
        run.end(rounds, "finished", model=model_sha256({"w": model}))
        return model


def events(folder, kind):
    return [record.event for record in read_log(log_file(folder)) if isinstance(record.event, kind)]


def test_two_and_two_rounds_are_four(tmp_path):
    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "halves", 2)
    halves = train(tmp_path / "halves", 4, resume=True)
    assert halves.tobytes() == whole.tobytes()
    assert train(tmp_path / "other", 3).tobytes() != whole.tobytes()
    assert events(tmp_path / "halves", Resumed) == [Resumed(2)]
    assert verify(log_file(tmp_path / "halves")).intact
    log = events(tmp_path / "halves", Aggregated)
    assert [event.round for event in log] == [1, 2, 3, 4]
    assert all(one.model_after == other.model_before for one, other in itertools.pairwise(log))


def test_checkpoints_come_every_few_rounds(tmp_path):
    train(tmp_path, 6, every=4, keep=None)
    assert CheckpointStore(tmp_path / "checkpoints").rounds() == [4]
    with AuditedRun(tmp_path / "b", CONFIG, every=4, sync=False) as run:
        assert not run.checkpoint(snapshot(3))
        assert run.checkpoint(snapshot(3), force=True)
    assert [event.round for event in events(tmp_path / "b", CheckpointWritten)] == [3]


def test_the_start_is_on_record(tmp_path):
    statements = {"authentication": "node keys"}
    with AuditedRun(tmp_path, CONFIG, rule="median()", strategy="Median", statements=statements, sync=False) as run:
        head = run.end(0, "stopped", "nobody came")
        run.close()
    started = events(tmp_path, RunStarted)[0]
    assert (started.config, started.config_sha256) == (CONFIG, config_sha256(CONFIG))
    assert (started.rule, started.strategy, started.statements) == ("median()", "Median", statements)
    assert started.software["torch"] == torch.__version__.partition("+")[0]
    assert verify(log_file(tmp_path), expect=[head]).intact
    with pytest.raises(UnknownNameError, match=r"unknown statement 'autentication'.*Did you mean 'authentication'"):
        AuditedRun(tmp_path / "b", CONFIG, statements={"autentication": "x"})


def test_a_folder_holds_one_run(tmp_path):
    train(tmp_path, 2)
    with pytest.raises(AuditError, match="holds a run already; resume it, or name another folder"):
        train(tmp_path, 2)
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        AuditedRun(tmp_path, {**CONFIG, "seed": 1}, resume=True)
    log_file(tmp_path).unlink()
    head_file(log_file(tmp_path)).unlink()
    with pytest.raises(AuditError, match=r"holds checkpoints of rounds .* but its log is empty or gone"):
        train(tmp_path, 2)


def test_a_run_may_be_stopped_before_its_first_checkpoint(tmp_path):
    with AuditedRun(tmp_path, {**CONFIG, "rounds": 4}, sync=False):
        pass
    assert train(tmp_path, 4, resume=True).tobytes() == train(tmp_path / "whole", 4).tobytes()
    assert events(tmp_path, Resumed) == [Resumed(0)]
    assert train(tmp_path / "new", 4, resume=True).tobytes() == train(tmp_path / "whole2", 4).tobytes()
    assert events(tmp_path / "new", Resumed) == []


def test_a_damaged_checkpoint_stops_the_resumption_until_another_is_named(tmp_path):
    train(tmp_path, 4)
    flip(tmp_path / "checkpoints/round-00000004/arrays.npz", 50)
    with pytest.raises(CheckpointError, match="that of round 3 is intact, so use it") as caught:
        train(tmp_path, 6, resume=True)
    model = train(tmp_path, 6, resume=caught.value.offered)
    assert model.tobytes() == train(tmp_path / "whole", 6).tobytes()
    assert events(tmp_path, Resumed) == [Resumed(3, ("round-00000004",))]
    assert (tmp_path / "checkpoints/aside/round-00000004.1").is_dir()


def test_a_checkpoint_shows_that_the_log_lost_its_end(tmp_path):
    train(tmp_path, 3)
    log = log_file(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)[:4]
    log.write_bytes(b"".join(lines))
    head_file(log).write_text(json.dumps({"lines": 4, "head": hashlib.sha256(lines[-1].rstrip()).hexdigest()}))
    assert verify(log).intact
    with pytest.raises(AuditError, match=r"the checkpoint of round 3 knows lines that .* lacks"):
        train(tmp_path, 6, resume=True)


def test_the_log_shows_that_a_checkpoint_is_another(tmp_path):
    train(tmp_path, 3)
    made = CheckpointStore(tmp_path / "checkpoints")
    forged = made.load(3)
    for head in (forged.head, made.load(2).head, json.loads(head_file(log_file(tmp_path)).read_text())["head"]):
        made.save(Snapshot(3, forged.config, {"w": np.ones(4, np.float32)}, forged.states, head=head))
        with pytest.raises(AuditError, match=r"the checkpoint of round 3 is not the one that .* has on record"):
            train(tmp_path, 6, resume=True)
        with pytest.raises(AuditError, match="is not the one"):
            rollback(tmp_path, 3)


def test_a_checkpoint_whose_writer_was_killed_before_it_was_on_record_is_used(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("flwr_robust.audit.run.CheckpointWritten", None)
        with pytest.raises(TypeError):
            train(tmp_path, 3)
    assert train(tmp_path, 3, resume=True).tobytes() == train(tmp_path / "whole", 3).tobytes()
    assert events(tmp_path, Resumed) == [Resumed(1)]
    train(tmp_path, 6, resume=True)


def test_raw_updates_are_kept_only_where_asked(tmp_path):
    arrays = {"a/b": np.ones(2), "file": np.zeros((2, 2), np.float32)}
    with AuditedRun(tmp_path / "a", CONFIG, sync=False) as run, pytest.raises(ConfigurationError, match="keep_updates"):
        run.keep_update(1, 7, arrays)
    with AuditedRun(tmp_path / "b", CONFIG, keep_updates=True, sync=False) as run:
        run.keep_update(1, 7, arrays)
    assert events(tmp_path / "b", RunStarted)[0].keeps_updates
    kept = events(tmp_path / "b", UpdateKept)[0]
    data = (tmp_path / "b" / kept.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == kept.sha256
    with np.load(tmp_path / "b" / kept.file, allow_pickle=False) as held:
        assert held["names"].tolist() == list(arrays)
        np.testing.assert_array_equal(held["1"], arrays["file"])


# -- rollback ---------------------------------------------------------------------------------------


def test_rollback_makes_an_earlier_model_current(tmp_path):
    train(tmp_path, 6, keep=None)
    middle = train(tmp_path / "middle", 4)
    snapshot = rollback(tmp_path, 4, reason="a backdoor came in round 5", sync=False)
    assert snapshot.round == 4
    assert snapshot.model["w"].tobytes() == middle.tobytes()
    made = CheckpointStore(tmp_path / "checkpoints")
    assert made.rounds() == [1, 2, 3, 4]
    assert made.load().round == 4
    later = ("round-00000006", "round-00000005")
    assert events(tmp_path, RolledBack) == [RolledBack(6, 4, "a backdoor came in round 5", later)]
    assert sorted(p.name for p in (tmp_path / "checkpoints/aside").iterdir()) == [
        "round-00000005.1",
        "round-00000006.1",
    ]
    assert verify(log_file(tmp_path)).intact
    again = train(tmp_path, 6, resume=True, keep=None)
    assert again.tobytes() == train(tmp_path / "whole", 6).tobytes()
    rollback(tmp_path, 4, sync=False)
    names = sorted(p.name for p in (tmp_path / "checkpoints/aside").iterdir())
    assert names == [f"round-0000000{k}.{i}" for k in (5, 6) for i in (1, 2)]


@pytest.mark.parametrize("to_round", [2, 4])
def test_rollback_after_a_kill_between_a_checkpoint_and_its_record(tmp_path, monkeypatch, to_round):
    train(tmp_path, 3, keep=None)
    with monkeypatch.context() as patch:
        patch.setattr("flwr_robust.audit.run.CheckpointWritten", None)
        with pytest.raises(TypeError):
            train(tmp_path, 4, resume=True, keep=None)
    assert CheckpointStore(tmp_path / "checkpoints").rounds() == [1, 2, 3, 4]
    assert [event.round for event in events(tmp_path, CheckpointWritten)] == [1, 2, 3]
    assert rollback(tmp_path, to_round, sync=False).round == to_round
    # Round 4's checkpoint comes on record first, whether it is put aside or rolled back to.
    assert CheckpointStore(tmp_path / "checkpoints").rounds() == list(range(1, to_round + 1))
    assert [event.round for event in events(tmp_path, CheckpointWritten)] == [1, 2, 3, 4]
    later = () if to_round == 4 else ("round-00000004", "round-00000003")
    assert events(tmp_path, RolledBack) == [RolledBack(4, to_round, "", later)]
    assert verify(log_file(tmp_path)).intact
    assert train(tmp_path, 6, resume=True).tobytes() == train(tmp_path / "whole", 6).tobytes()


def test_rollback_needs_a_run_that_rests_and_an_intact_checkpoint(tmp_path):
    with pytest.raises(AuditError, match="holds no run"):
        rollback(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    train(tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"none of round 1 in .*; rounds there: 2, 3, 4"):
        rollback(tmp_path, 1)
    with AuditLog(log_file(tmp_path)), pytest.raises(AuditError, match="another writer has"):
        rollback(tmp_path, 3)
    flip(tmp_path / "checkpoints/round-00000003/checkpoint.json", 50)
    with pytest.raises(CheckpointError, match="that of round 3 is damaged"):
        rollback(tmp_path, 3)
    assert events(tmp_path, RolledBack) == []


# -- killed -----------------------------------------------------------------------------------------


def call_with_death(function, arguments, killed_at):
    """Call a function, and be killed at the ``killed_at``-th call of the system that has to do with files."""
    calls = 0

    def counted(real):
        def call(*given, **keywords):
            nonlocal calls
            calls += 1
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **keywords)

        return call

    for name in ("write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "open"):
        setattr(os, name, counted(getattr(os, name)))
    function(*arguments)
    os._exit(0)


def deaths(function, *arguments, limit=2000, step=1):
    """Let processes call a function, each killed later than the last; yield after each death, until one survives."""
    for killed_at in range(1, limit, step):
        process = FORK.Process(target=call_with_death, args=(function, arguments, killed_at))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
        yield killed_at
    pytest.fail("the process never came to its end")


def test_a_save_killed_at_every_call_leaves_the_last_one_or_the_new_one(tmp_path):
    seen = set()
    made = store(tmp_path, 3, keep=2)
    for _ in deaths(saved, CheckpointStore(tmp_path, keep=2), snapshot(4)):
        rounds = made.rounds()
        assert rounds in ([2, 3], [2, 3, 4], [3, 4])
        assert all(made.damage(server_round) is None for server_round in rounds)
        seen.add(tuple(rounds))
    assert seen >= {(2, 3), (2, 3, 4)}
    assert made.rounds() == [3, 4]
    same(made.load(), snapshot(4))
    made.clean()  # as a run does when it is resumed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def resumed(folder):
    train(folder, 3, resume=True, sync=True, keep=2)


def test_a_run_killed_at_every_call_goes_on_to_the_same_model(tmp_path):
    """Each process is killed a little later after its start than the one before it, and the next one goes on."""
    folder, last = tmp_path / "run", 0
    for _ in deaths(resumed, folder, step=3):
        rounds = CheckpointStore(folder / "checkpoints").rounds()
        assert (rounds or [0])[-1] >= last  # nothing that was finished is lost
        last = (rounds or [0])[-1]
        if head_file(log_file(folder)).exists():
            assert verify(log_file(folder)).intact
    assert CheckpointStore(folder / "checkpoints").load().model["w"].tobytes() == train(tmp_path / "whole", 3).tobytes()
    assert verify(log_file(folder)).intact


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_loses_at_most_the_running_round(tmp_path, seed):
    rng, rounds, told = np.random.default_rng(seed), 15, 0
    for attempt in range(200):
        reader, writer = os.pipe()
        process = FORK.Process(
            target=train, args=(tmp_path / "run", rounds, writer), kwargs={"resume": True, "sync": bool(seed % 2)}
        )
        process.start()
        os.close(writer)
        process.join(rng.uniform(0.02, 0.2) * (1 + attempt / 10))  # longer where the machine is busy
        process.kill()
        process.join()
        heard = os.read(reader, 1000)
        os.close(reader)
        told = heard[-1] if heard else told
        found = CheckpointStore(tmp_path / "run/checkpoints").latest_intact() or 0
        assert found >= told  # a round that was finished is never lost
        if found == rounds:
            break
    final = CheckpointStore(tmp_path / "run/checkpoints").load()
    assert final.model["w"].tobytes() == train(tmp_path / "whole", rounds).tobytes()
    assert verify(log_file(tmp_path / "run"), expect=[final.head]).intact


def killed_rollback(folder):
    rollback(folder, 2)


def test_a_rollback_killed_at_every_call_can_be_done_again(tmp_path):
    train(tmp_path, 5, keep=None)
    made = CheckpointStore(tmp_path / "checkpoints")
    for _ in deaths(killed_rollback, tmp_path):
        assert made.rounds() == list(range(1, made.rounds()[-1] + 1))  # no hole
        assert made.rounds()[-1] >= 2
        assert verify(log_file(tmp_path)).intact
    assert made.rounds() == [1, 2]
    assert events(tmp_path, RolledBack)[-1].to_round == 2
    assert len(list((tmp_path / "checkpoints/aside").iterdir())) == 3


def test_the_version_is_stated():
    assert module.VERSION == 1


def test_a_run_stopped_before_its_first_checkpoint_keeps_its_configuration(tmp_path):
    AuditedRun(tmp_path, {"seed": 0, "rounds": 2}, sync=False).close()
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        AuditedRun(tmp_path, {"seed": 1, "rounds": 2}, sync=False, resume=True)
    with AuditedRun(tmp_path, {"seed": 0, "rounds": 3}, sync=False, resume=True) as run:
        assert run.snapshot is None
