"""A hostile run folder: what an auditor is sent must not command the terminal, fill the memory, or lead elsewhere."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flwr_robust.audit import (
    AuditedRun,
    Banned,
    Fault,
    Snapshot,
    UpdatesDeleted,
    read_log,
    rollback,
    verify,
    verify_run,
)
from flwr_robust.audit import log as module_log
from flwr_robust.audit.arrays import read_arrays
from flwr_robust.audit.card import make_card, render_card
from flwr_robust.audit.checkpoint import CheckpointStore
from flwr_robust.audit.history import clients
from flwr_robust.audit.history import rounds as summaries
from flwr_robust.audit.log import head_file
from flwr_robust.audit.run import log_file
from flwr_robust.cli import app
from flwr_robust.errors import AuditError, CheckpointError
from flwr_robust.files import file_sha256
from flwr_robust.flower import Audit, Median, Reason, Refusal
from tests.audit_runs import CONFIG, LIAR, NODES, make, rounds
from tests.flower_helpers import FIRST, client_app, content, drive
from tests.house import MODULES, module_name

EVIL = "\x1b[2J\x1b]0;owned\x07[red]intact[/red]:warning:\u202e"
SHOWN = r"\x1b[2J\x1b]0;owned\x07[red]intact[/red]:warning:\u202e"


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def harmless(text):
    """Whether a terminal shows nothing but what the text says."""
    return all(line.isprintable() for line in text.split("\n"))


# -- terminals --------------------------------------------------------------------------------------


def test_the_old_way_to_print_was_commanded(capsys):
    Console(highlight=False).print(f"the heads in round-{EVIL} are among them")
    out = capsys.readouterr().out
    assert not harmless(out)
    assert "[red]" not in out  # taken as markup


@pytest.mark.parametrize("command", [["audit", "verify"], ["audit", "show"], ["audit", "clients"], ["card"]])
@pytest.mark.parametrize("where", ["folder", "checkpoint", "aside", "file", "log", "statement"])
def test_no_name_or_text_in_a_folder_commands_the_terminal(tmp_path, command, where):
    run = make(tmp_path / (EVIL.replace("/", "") if where == "folder" else "run"), statements={"tls": EVIL})
    path = run / "checkpoints/round-00000002"
    if where == "checkpoint":
        shutil.copytree(path, path.with_name(f"round-{EVIL.replace('/', '')}"))
    elif where == "aside":
        shutil.copytree(path, run / f"checkpoints/aside/round-{EVIL.replace('/', '')}")
    elif where == "file":
        (path / "SHA256SUMS").write_text(f"{'0' * 64}  {EVIL}\n")
    elif where == "log":
        log = log_file(run)
        log.write_bytes(log.read_bytes().replace(b'"NOT_FINITE"', json.dumps(EVIL).encode()))
    for extra in ([], ["--json"] if command[0] == "audit" else ["--html"]):
        done = call(*command, run, *extra)
        assert harmless(done.stdout + done.stderr)
        assert done.exit_code in (0, 1, 2)
    if where == "log" and command[-1] == "clients":
        assert "[red]" in call(*command, run).stdout


def test_what_a_client_writes_is_shown_as_it_is(tmp_path):
    run = make(tmp_path / "run")
    text = call("audit", "show", run, "--client", LIAR).stdout
    assert harmless(text)
    assert r"w \x1b[31m[bold]<b>`x`|" in " ".join(text.replace("│", " ").split())
    assert any("\x1b" in getattr(each.event, "detail", "") for each in read_log(log_file(run)))


def test_a_refusal_is_printable_from_the_start():
    assert Refusal(1, Reason.NAMES, f"{EVIL}\n{'x' * 500}").detail.startswith(SHOWN)
    assert len(Refusal(1, Reason.NAMES, "x" * 500).detail) == 200


COMMANDS = [p for p in MODULES if p.parent.name == "cli" and p.name not in ("shared.py", "__init__.py")]


@pytest.mark.parametrize("path", COMMANDS, ids=module_name)
def test_commands_print_in_one_place_only(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func) for call in calls}
    assert not named & {"print", "typer.secho", "Console", "Text", "Text.from_markup", "sys.stdout.write"}
    assert "typer.echo" not in named or path.name in ("main.py", "redteam.py")  # the version, and a template


# -- memory and time --------------------------------------------------------------------------------


def npy(shape, data=b""):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + data


def packed(members, how=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in members:
            with warnings.catch_warnings(action="ignore"):
                archive.writestr(name, data)
    return file.getvalue()


MIB = 1 << 20
BOMBS = {
    "deflated": lambda: packed([("0.npy", npy((16 * MIB,), bytes(64 * MIB)))], zipfile.ZIP_DEFLATED),
    "shape": lambda: packed([("0.npy", npy((16 * MIB,), bytes(64)))]),
}


def peak(function, *arguments):
    """The memory that a call takes, and what it returns or raises."""
    tracemalloc.start()
    try:
        found = function(*arguments)
    except Exception as error:
        found = error
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most, found


def old_read(path):
    with np.load(path, allow_pickle=False) as held:
        return [held[name] for name in held.files]


def with_checkpoint(run, data, *, record=False):
    """Put arrays of one's own into a newest checkpoint, with hashes that fit; with ``record``, into the log too."""
    path = run / "checkpoints/round-00000003"
    (path / "arrays.npz").write_bytes(data)
    sums = [f"{file_sha256(path / name)}  {name}\n" for name in ("arrays.npz", "checkpoint.json")]
    (path / "SHA256SUMS").write_text("".join(sums))
    log, head = log_file(run), head_file(log_file(run))
    lines = log.read_bytes().splitlines(keepends=True)
    written = max(r.line for r in read_log(log) if r.event.kind == "checkpoint_written")
    log.write_bytes(b"".join(lines[: written - 1]))
    anchor = module_log._Anchor(written - 1, json.loads(lines[written - 1])["previous"])
    head.write_text(json.dumps({"lines": anchor.lines, "head": anchor.head}))
    if record:
        store = CheckpointStore(run / "checkpoints")
        with module_log.AuditLog(log, sync=False) as writer:
            writer.append(module_log.kinds()["checkpoint_written"](3, path.name, store.sha256(3), store.size(3)))


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_as_newest_checkpoint_is_not_unpacked(tmp_path, bomb, record):
    run, data = make(tmp_path / "run"), BOMBS[bomb]()
    assert len(data) < 2 * MIB
    with_checkpoint(run, data, record=record)
    most, _ = peak(old_read, run / "checkpoints/round-00000003/arrays.npz")
    assert most > 40 * MIB
    most, verdict = peak(verify_run, run)
    assert most < 6 * MIB
    assert verdict.intact is record  # what is on record is not read at all
    most, error = peak(lambda: AuditedRun(run, CONFIG, resume=True, sync=False))
    assert most < 6 * MIB
    assert isinstance(error, AuditError | CheckpointError)


def test_arrays_come_back_and_nothing_else_does(tmp_path):
    held = {
        "0": np.arange(6, dtype=np.float32).reshape(2, 3),
        "1": np.array(3),
        "names": np.array(["w", "é"]),
        "3": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        "4": np.zeros((0, 5), np.int8),
    }
    np.savez(tmp_path / "a.npz", **held)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(held)
    for name, values in held.items():
        np.testing.assert_array_equal(found[name], values)
        assert (found[name].dtype, found[name].flags.writeable) == (values.dtype, True)
    one = npy((1,), bytes(4))
    for members in (
        [("0.npy", npy((1 << 62, 4), b""))],
        [("0.npy", npy((2,), bytes(4)))],
        [("0.npy", npy((-1, -1), bytes(4)))],
        [("../0.npy", one)],
        [("0.txt", one)],
        [("0.npy", one), ("0.npy", one)],
        [("0.npy", b"\x93NUMPY\x03\x00" + one[8:])],
    ):
        (tmp_path / "b.npz").write_bytes(packed(members))
        with pytest.raises(ValueError, match=r"array|member"):
            read_arrays(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="objects"):
        read_arrays(tmp_path / "c.npz")


def test_a_log_of_newlines_takes_little_memory(tmp_path):
    log = tmp_path / "log"
    head_file(log).write_text(json.dumps({"lines": 0, "head": "0" * 64}))
    log.write_bytes(b"\n" * 200_000)
    most, verdict = peak(verify, log)
    assert most < 3 * MIB
    assert len(verdict.findings) == module_log._MOST_FINDINGS
    assert "the examination ended" in verdict.remarks[-1]


def test_a_line_without_end_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module_log, "_LONGEST", MIB // 4)
    log = log_file(make(tmp_path / "run"))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], lines[3][:-1] + b" " * (8 * MIB) + b"\n", *lines[4:]]))
    most, verdict = peak(verify, log)
    assert most < 2 * MIB
    assert [(each.line, each.fault) for each in verdict.findings] == [(4, Fault.CHANGED)]
    assert len(read_log(log)) == len(lines) - 1


@pytest.mark.parametrize("place", ["audit.jsonl.head", "checkpoints/round-00000003/SHA256SUMS"])
def test_small_files_that_are_large_are_not_read(tmp_path, place):
    run = make(tmp_path / "run")
    with (run / place).open("r+b") as file:
        file.truncate(1 << 40)  # a file with a hole: a terabyte that takes no room
    most, verdict = peak(verify_run, run)
    assert most < 3 * MIB
    assert not verdict.intact


def test_a_checkpoint_s_size_is_compared_before_it_is_read(tmp_path):
    run = make(tmp_path / "run")
    with (run / "checkpoints/round-00000001/arrays.npz").open("r+b") as file:
        file.truncate(1 << 40)
    (finding,) = verify_run(run).findings
    assert "round-00000001 is not the one on record: its size is another one" in finding.sentence


# -- orders -----------------------------------------------------------------------------------------


def old_pending(run):
    """How orders were read: what was none was renamed, and nobody caught what this raises."""
    for path in sorted((run / "orders").glob("[0-9]*.json")):
        if path.is_symlink() or path.is_dir():
            path.rename(path.with_suffix(".refused"))
        else:
            yield path


def planted(run, order=None):
    """Put what is no order into a folder, where its new name is taken, a link, and perhaps an order."""
    (run / "orders/1-1.json").mkdir(parents=True)
    (run / "orders/1-1.refused/x").mkdir(parents=True)
    (run / "orders/4-1.json").symlink_to("/dev/zero")
    (run / "orders/5-1.json").write_bytes(b"\xff{")
    if order is not None:
        (run / "orders/6-1.json").write_text(json.dumps({"kind": order.kind, **order.to_fields()}))
    return run


def train(partition, model, config, context):
    return content({"w": model["w"] + np.float32(partition)}, 10, partition_id=partition)


def test_no_file_among_the_orders_ends_a_live_run_or_a_resumption(tmp_path, caplog):
    caplog.set_level("WARNING", logger="flwr")  # other tests make it quiet
    with pytest.raises(OSError, match="not empty"):
        list(old_pending(planted(tmp_path / "old")))

    def attack(partition, model, config, context):
        if partition == 0 and config["server-round"] == 2:
            planted(tmp_path / "run", Banned(0, FIRST + 2))
        return train(partition, model, config, context)

    def play(rounds, fn, resume):
        strategy = Median(audit=Audit(tmp_path / "run", sync=False, resume=resume), fraction_evaluate=0.0)
        drive(strategy, client_app(fn), {"w": np.zeros(2, np.float32)}, 4, rounds)
        return strategy

    for last, fn, resume in ((4, attack, False), (6, train, True)):
        caplog.clear()
        assert play(last, fn, resume).banned == (FIRST + 2,)
        assert sum("cannot be moved or deleted" in each.getMessage() for each in caplog.records) == 1
        assert read_log(log_file(tmp_path / "run"))[-1].event.kind == "run_ended"
    assert sorted(path.name for path in (tmp_path / "run/orders").iterdir()) == [
        "1-1.json",
        "1-1.refused",
        "5-1.refused",
    ]
    verdict = verify_run(tmp_path / "run")  # under its new name, the link would be a finding
    assert verdict.intact
    assert "1-1.json in the folder of orders is no order, and is not carried out" in verdict.remarks


def test_an_order_that_cannot_be_deleted_is_carried_out_once(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", logger="flwr")  # other tests make it quiet
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "6-1.json":
            raise PermissionError("read-only")
        unlink(path, missing_ok=missing_ok)

    def attack(partition, model, config, context):
        if partition == 0 and config["server-round"] == 1:
            planted(tmp_path / "run", Banned(0, FIRST + 2))
        return train(partition, model, config, context)

    monkeypatch.setattr(Path, "unlink", refuse)
    strategy = Median(audit=Audit(tmp_path / "run", sync=False), fraction_evaluate=0.0)
    drive(strategy, client_app(attack), {"w": np.zeros(2, np.float32)}, 4, 4)
    kinds = [record.event.kind for record in read_log(log_file(tmp_path / "run"))]
    assert (kinds.count("banned"), kinds[-1]) == (1, "run_ended")
    assert sum("6-1.json cannot be moved or deleted" in each.getMessage() for each in caplog.records) == 1


@pytest.mark.parametrize("verb", ["ban", "release", "erase"])
def test_a_command_carries_out_no_order_that_somebody_has_planted(tmp_path, verb):
    run = planted(make(tmp_path), UpdatesDeleted(0, reason=EVIL))
    (run / "orders/4-1.json").unlink()  # a link is a finding
    before = log_file(run).read_bytes()
    told = call("audit", "verify", run).stdout
    assert "an order waits, which the run or a resumption carries out: 6-1.json (updates_deleted" in told
    done = call(verb, run, "--client", NODES[0])
    assert done.exit_code == 2
    assert "other orders wait" in done.output
    assert "6-1.json (updates_deleted" in done.output
    assert harmless(done.output)
    assert log_file(run).read_bytes() == before
    done = call(verb, run, "--client", NODES[0], "--pending")
    assert done.exit_code == 0
    assert "carried out too: 6-1.json (updates_deleted" in done.output
    kinds = [record.event.kind for record in read_log(log_file(run))]
    assert kinds[-2:] == ["updates_deleted", {"ban": "banned", "release": "released", "erase": "updates_deleted"}[verb]]
    assert call("audit", "verify", run).exit_code == 0


# -- links and pipes --------------------------------------------------------------------------------

PLACES = (
    "audit.jsonl",
    "audit.jsonl.head",
    "checkpoints",
    "checkpoints/aside",
    "checkpoints/round-00000003",
    "checkpoints/round-00000003/arrays.npz",
    "checkpoints/.round-00000004.part",
    "updates",
)


@pytest.fixture
def linked(tmp_path, request):
    """A run in which one place is a link to a folder or file elsewhere."""
    run, elsewhere = make(tmp_path / "run", ended=False), tmp_path / "elsewhere"
    place = run / request.param
    if os.path.lexists(place):
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
        (elsewhere / "treasure").write_text("untouched")
    place.symlink_to(elsewhere)
    return run, elsewhere


@pytest.mark.parametrize("linked", PLACES, indirect=True)
def test_links_are_named_and_not_followed(linked):
    run, elsewhere = linked
    before = sorted(elsewhere.rglob("*")) if elsewhere.is_dir() else elsewhere.read_bytes()
    verdict = verify_run(run)
    assert [each.fault for each in verdict.findings] == [Fault.LINK]
    assert call("audit", "verify", run).exit_code == 1
    for use in (
        lambda: AuditedRun(run, CONFIG, resume=True, sync=False),
        lambda: rollback(run, 1, sync=False),
        lambda: make_card(run),
        lambda: read_log(log_file(run)),
    ):
        _, error = peak(use)
        assert not isinstance(error, Exception) or isinstance(error, AuditError)
    assert (sorted(elsewhere.rglob("*")) if elsewhere.is_dir() else elsewhere.read_bytes()) == before


def test_a_link_that_appears_while_a_run_goes_on_ends_it_with_a_sentence(tmp_path):
    with AuditedRun(tmp_path / "run", CONFIG, keep=1, sync=False) as run:
        rounds(run, 1, 1)
        for name in (".round-00000002.part", ".round-00000001.deleted"):
            link = tmp_path / "run/checkpoints" / name
            link.symlink_to(tmp_path)
            with pytest.raises(AuditError, match=r"is no folder that this run has made; remove it"):
                run.checkpoint(Snapshot(2, CONFIG, {"w": np.zeros(1)}))
            link.unlink()
    (tmp_path / "part").symlink_to(tmp_path)
    with pytest.raises(OSError, match="symbolic link"):  # what it was
        shutil.rmtree(tmp_path / "part")


@pytest.mark.parametrize("place", ["audit.jsonl", "audit.jsonl.head", "checkpoints/round-00000003/arrays.npz"])
def test_a_pipe_is_not_waited_for(tmp_path, place):
    run = make(tmp_path / "run")
    (run / place).unlink()
    os.mkfifo(run / place)
    if place == "audit.jsonl":
        with pytest.raises(AuditError, match="it is no regular file"):
            verify_run(run)
    else:
        assert not verify_run(run).intact
    assert call("audit", "verify", run).exit_code in (1, 2)


def test_deep_json_is_no_burden(tmp_path):
    run = make(tmp_path / "run")
    for place in ("audit.jsonl.head", "checkpoints/round-00000003/checkpoint.json"):
        (run / place).write_text("[" * 10_000_000)
    assert not verify_run(run).intact


# -- values -----------------------------------------------------------------------------------------

VALUES = {
    int: [-1, 0, 2**64, 10**4000],
    float: [-1e308, 1e308, float("inf")],
    str: ["", EVIL, "x" * 100_000],
    list: [[], [1, 1], [None, None], [2**63 + 101] * 5],
    dict: [{}, {EVIL: EVIL}, {"a": 1e308}],
    bool: [True, False],
    type(None): [-1, 1e308, 10**4000],
}


def chained(log, number, name, value):
    """Change a field, and write a chain that fits: what whoever sends the folder can."""
    previous, lines = "0" * 64, []
    for at, line in enumerate(log.read_bytes().splitlines()):
        fields = {**json.loads(line), "previous": previous, **({name: value} if at == number else {})}
        lines.append(json.dumps(fields, separators=(",", ":")).encode())
        previous = hashlib.sha256(lines[-1]).hexdigest()
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    head_file(log).write_text(json.dumps({"lines": len(lines), "head": previous}))


@pytest.mark.parametrize("seed", range(4))
def test_no_value_in_a_log_stops_those_who_read_it(tmp_path, seed):
    draw, run = random.Random(seed), make(tmp_path / "run")
    log = log_file(run)
    whole = log.read_bytes()
    for _ in range(20):
        log.write_bytes(whole)
        number = draw.randrange(len(whole.splitlines()))
        fields = json.loads(whole.splitlines()[number])
        name = draw.choice([each for each in fields if each not in ("schema", "sequence", "previous", "kind")])
        chained(log, number, name, draw.choice(VALUES[type(fields[name])]))
        with contextlib.suppress(AuditError, CheckpointError):
            verify_run(run)
            records = read_log(log)
            clients(records)
            summaries(records)
            render_card(make_card(run), "html")
    for command in (["audit", "verify"], ["audit", "show"], ["audit", "clients"], ["card"]):
        assert harmless(call(*command, run).output)


@pytest.mark.parametrize(
    "text", ["[" * 1_000_000, '{"schema": 1e999}', '{"schema": 1, "setting": {"declared_f": 1e999}}']
)
def test_no_value_in_a_red_team_s_file_stops_a_card(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(AuditError, match="holds no results of a red team"):
        make_card(make(tmp_path / "run"), red_team=tmp_path / "file.json")
