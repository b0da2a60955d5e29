"""The audit log: what it holds, and that no edit, insertion, deletion, reordering or truncation goes unseen."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_robust import Rows
from flwr_robust.audit import events as module
from flwr_robust.audit import log as module_log
from flwr_robust.audit.digest import config_sha256, model_sha256
from flwr_robust.audit.distances import distances_and_angles
from flwr_robust.audit.events import (
    Aggregated,
    Event,
    LogReopened,
    ReplyRefused,
    RoundConfigured,
    RunEnded,
    RunStarted,
    kinds,
)
from flwr_robust.audit.log import AuditLog, Fault, head_file, read_log, verify
from flwr_robust.errors import AuditError, TamperedError

KEY = b"a key of at least sixteen bytes"
FORK = multiprocessing.get_context("fork")


def event(index):
    return RoundConfigured(index, "train", (1, 2, 3))


def write(path, count, key=None):
    with AuditLog(path, key=key, sync=False) as log:
        return log.append(*map(event, range(count)))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    write(path, 8)
    return path


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def judged(path):
    """Return what judges bytes in the place of a log, without a file for each."""
    anchor = module_log._read_anchor(path, None, "")

    def found(data):
        lines = module_log._lines(io.BytesIO(data), len(data))
        return [(finding.line, finding.fault) for finding in module_log._examine(lines, anchor, None)[0].findings]

    return found


def faults(path, **options):
    return [(finding.line, finding.fault) for finding in verify(path, **options).findings]


# -- what is written --------------------------------------------------------------------------------


def test_lines_are_chained_as_the_documentation_says(log):
    previous = "0" * 64
    for sequence, line in enumerate(lines_of(log)):
        fields = json.loads(line)
        assert list(fields)[:5] == ["schema", "sequence", "previous", "time", "kind"]
        assert (fields["schema"], fields["sequence"], fields["previous"]) == (1, sequence, previous)
        assert fields["kind"] == "round_configured"
        assert fields["round"] == sequence
        assert line.isascii()
        previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert json.loads(head_file(log).read_bytes()) == {"lines": 8, "head": previous}
    verdict = verify(log)
    assert (verdict.intact, verdict.lines, verdict.head, verdict.remarks) == (True, 8, previous, ())


def test_an_empty_log_is_intact(tmp_path):
    write(tmp_path / "log", 0)
    assert verify(tmp_path / "log") == dataclasses.replace(verify(tmp_path / "log"), lines=0, head="0" * 64)
    assert verify(tmp_path / "log").intact


def test_a_log_is_continued(log):
    head = write(log, 3)
    verdict = verify(log)
    assert (verdict.intact, verdict.lines, verdict.head) == (True, 11, head)
    assert verdict.remarks == ()  # nothing had to be mended, so nothing is said
    assert [record.event for record in read_log(log)] == [event(index) for index in [*range(8), *range(3)]]


def test_many_events_in_one_append(tmp_path):
    with AuditLog(tmp_path / "log", sync=True) as log:
        head = log.append(*(event(index) for index in range(30)))
        assert log.append() == head == log.head
        assert log.lines == 30
    assert verify(tmp_path / "log", expect=[head]).intact


def example(kind):
    """An event of a kind with every field filled by its type."""
    samples = {
        "Any": [{"a": [None, 1.5]}],
        "int": 3,
        "str": 'text "quoted"\n\x1b[31m \u2028 \ud800',
        "float": 0.1,
        "bool": True,
        "Scalar": 0.1,
    }
    values = {}
    for field in dataclasses.fields(kind):
        declared = str(field.type)
        if declared.startswith("tuple"):
            inner = declared.removeprefix("tuple[").split(",")[0]
            values[field.name] = (samples[inner.split(" ")[0]],) * 2
        elif declared.startswith("Mapping"):
            values[field.name] = {"a key": samples[declared.removesuffix("]").split(", ")[-1].split(" ")[0]]}
        else:
            values[field.name] = samples[declared.split(" ")[0]]
    return kind(**values)


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.kind)
def test_every_kind_comes_back_as_it_was(tmp_path, kind):
    written = example(kind)
    with AuditLog(tmp_path / "log", sync=False) as log:
        log.append(written)
    assert [record.event for record in read_log(tmp_path / "log")] == [written]
    # Only a line about torn bytes must stand behind such, and a head must be signed if a key is named.
    assert verify(tmp_path / "log").intact is (kind not in (LogReopened, RunStarted))


def test_kinds_are_the_public_events():
    public = {name for name in module.__all__ if isinstance(getattr(module, name), type)} - {"Event"}
    assert {kind.__name__ for kind in kinds().values()} == public
    assert all(issubclass(kind, Event) for kind in kinds().values())


def test_the_documentation_names_every_kind_and_field():
    text = (Path(__file__).resolve().parents[2] / "docs" / "audit-log.md").read_text()
    for name, kind in kinds().items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert set(re.findall(r"`(\w+)`", row)) >= {field.name for field in dataclasses.fields(kind)}, name


def test_numbers_of_numpy_become_plain_and_those_not_finite_null(tmp_path):
    written = Aggregated(
        np.int64(1),
        "OK",
        "",
        "a",
        "b",
        nodes=(np.int64(2**62), 1),
        weights=(math.nan, np.float32(0.5)),
        angles=[math.inf],
    )
    with AuditLog(tmp_path / "log", sync=False) as log:
        log.append(written)
    read = read_log(tmp_path / "log")[0].event
    assert (read.nodes, read.weights, read.angles) == ((2**62, 1), (None, 0.5), (None,))


@pytest.mark.parametrize(
    "wrong",
    [
        RoundConfigured("1", "train", (1,)),
        RoundConfigured(True, "train", (1,)),
        RoundConfigured(1, "train", 1),
        RoundConfigured(1, "train", (1.5,)),
        ReplyRefused(1, "train", 2, None, None),
        RunStarted({"a": object()}, ""),
        RunStarted({"a": [1]}, ""),
        RunStarted({1: 2}, ""),
        Aggregated(1, "OK", "", "", "", weights=("heavy",)),
    ],
)
def test_a_field_of_another_type_is_refused_and_nothing_is_written(tmp_path, wrong):
    with AuditLog(tmp_path / "log", sync=False) as log:
        with pytest.raises(AuditError, match="must be of type"):
            log.append(event(0), wrong)
        assert (log.lines, log.path.read_bytes()) == (0, b"")
        log.append(event(0))
    assert verify(tmp_path / "log").intact


def test_a_line_of_a_later_schema_is_verified_but_not_read(log):
    text = log.read_bytes().replace(b"round_configured", b"telepathy_used")
    forged = log.with_name("later")
    previous, out = "0" * 64, []
    for line in text.splitlines():
        fields = {**json.loads(line), "schema": 2, "previous": previous}
        out.append(json.dumps(fields).encode())
        previous = hashlib.sha256(out[-1]).hexdigest()
    forged.write_bytes(b"\n".join(out) + b"\n")
    head_file(forged).write_text(json.dumps({"lines": 8, "head": previous}))
    assert verify(forged).intact
    with pytest.raises(AuditError, match="line 1: kind 'telepathy_used' is not known"):
        read_log(forged)


# -- tampering --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("field", ["schema", "sequence", "previous", "time", "kind", "round", "asked"])
def test_an_edited_field_is_found_at_its_line(log, number, field):
    lines = lines_of(log)
    fields = json.loads(lines[number - 1])
    fields[field] = {"schema": 2, "sequence": 77, "previous": "f" * 64, "asked": [1, 2]}.get(field, "x")
    lines[number - 1] = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    log.write_bytes(b"".join(lines))
    assert faults(log) == [(number, Fault.CHANGED)]
    with pytest.raises(AuditError, match=f"line {number}: .*keep it as evidence"):
        AuditLog(log)


@pytest.mark.parametrize("number", range(1, 9))
def test_every_flipped_byte_is_found_at_its_line(log, number):
    lines = lines_of(log)
    start = sum(map(len, lines[: number - 1]))
    data, judge = log.read_bytes(), judged(log)
    for at in range(start, start + len(lines[number - 1]) - 1):
        found = judge(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert found, at
        assert found[0][0] == number, at


@pytest.mark.parametrize("number", range(1, 9))
def test_a_missing_newline_between_lines_is_found(log, number):
    lines = lines_of(log)
    lines[number - 1] = lines[number - 1].rstrip(b"\n")
    log.write_bytes(b"".join(lines))
    assert faults(log)[0][0] == number


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_deleted_lines_are_found_where_they_are_missing(log, number, count):
    lines = lines_of(log)
    del lines[number - 1 : number - 1 + count]
    log.write_bytes(b"".join(lines))
    assert faults(log) == [(number, Fault.MISSING)]
    gone = min(count, 9 - number)
    words = ("1 line is missing", "one is missing") if gone == 1 else (f"{gone} lines are", f"{gone} are missing")
    assert any(word in verify(log).findings[0].sentence for word in words)


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("source", [0, 3, 7])
def test_a_copied_line_is_found_where_it_was_put(log, number, source):
    lines = lines_of(log)
    lines.insert(number - 1, lines[source])
    log.write_bytes(b"".join(lines))
    found = faults(log)
    # Of two equal lines side by side the second is the one too many.
    assert (number + (number - 1 == source), Fault.FOREIGN) in found or (number, Fault.MISSING) in found
    assert min(line for line, _ in found) in (number, number + 1)


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("junk", [b"\n", b"junk\n", b"{}\n", b"[1]\n", b"\x00\xff\n", b"[" * 100_000 + b"\n"])
def test_an_inserted_line_that_is_none_is_found(log, number, junk):
    lines = lines_of(log)
    lines.insert(number - 1, junk)
    log.write_bytes(b"".join(lines))
    assert faults(log) == [(number, Fault.FOREIGN)]


@pytest.mark.parametrize("number", range(1, 9))
def test_a_line_replaced_by_junk_is_found(log, number):
    lines = lines_of(log)
    lines[number - 1] = b"junk\n"
    log.write_bytes(b"".join(lines))
    assert faults(log) == [(number, Fault.CHANGED)]


@pytest.mark.parametrize("number", range(1, 10))
def test_a_forged_line_that_is_chained_well_is_found(log, number):
    lines = lines_of(log)
    previous = "0" * 64 if number == 1 else hashlib.sha256(lines[number - 2].rstrip()).hexdigest()
    fields = {**json.loads(lines[min(number, 8) - 1]), "sequence": number - 1, "previous": previous, "round": 66}
    forged = json.dumps(fields).encode() + b"\n"
    log.write_bytes(b"".join([*lines[: number - 1], forged, *lines[number - 1 :]]))
    verdict = verify(log)
    assert verdict.findings[0].line in (number, number + 1)
    if number == 9:  # behind the end: its absence from the head file tells
        assert [str(finding) for finding in verdict.findings] == [
            "line 9: the head file does not know the line: it does not belong there"
        ]
        with pytest.raises(TamperedError, match="line 9: the head file does not know the line"):
            AuditLog(log)


@pytest.mark.parametrize("first", range(8))
@pytest.mark.parametrize("second", range(8))
def test_swapped_lines_are_found_at_the_first(log, first, second):
    if first >= second:
        return
    lines = lines_of(log)
    lines[first], lines[second] = lines[second], lines[first]
    log.write_bytes(b"".join(lines))
    assert verify(log).findings[0].line == first + 1


@pytest.mark.parametrize("kept", range(8))
def test_truncation_at_a_line_is_found(log, kept):
    log.write_bytes(b"".join(lines_of(log)[:kept]))
    assert faults(log) == [(kept + 1, Fault.MISSING)]


def test_truncation_at_every_byte_is_found(log):
    data, judge = log.read_bytes(), judged(log)
    ends = [index for index, byte in enumerate(data) if byte == 10]
    for size in range(len(data)):
        number = sum(end < size for end in ends) + 1
        assert judge(data[:size]) == [(number, Fault.MISSING)], size


def test_a_log_that_is_gone_is_found_by_its_head_file(log):
    log.unlink()
    assert faults(log) == [(1, Fault.MISSING)]
    with pytest.raises(AuditError, match="is gone, but its head file is there"):
        AuditLog(log)
    head_file(log).unlink()
    with pytest.raises(AuditError, match="there is no file"):
        verify(log)
    with pytest.raises(AuditError, match="there is no file"):
        read_log(log)


@pytest.mark.parametrize(
    "text", [None, "", "{}", "[]", '{"lines": true, "head": ""}', '{"lines": -1, "head": ""}', "\xff"]
)
def test_a_head_file_that_says_nothing_is_a_finding(log, text):
    head = verify(log).head
    if text is None:
        head_file(log).unlink()
    else:
        head_file(log).write_text(text, encoding="latin1")
    assert faults(log) == [(9, Fault.HEAD)]
    assert verify(log, expect=[head]).intact
    assert faults(log, expect=[json.loads(lines_of(log)[5])["previous"]]) == [(9, Fault.HEAD)]  # an earlier one
    with pytest.raises(AuditError):
        AuditLog(log)


def test_heads_found_beside_the_log_do_not_stand_for_its_head_file(log):
    lines = lines_of(log)
    log.write_bytes(b"".join(lines[:5]))
    head_file(log).unlink()
    head = hashlib.sha256(lines[4].rstrip()).hexdigest()
    assert not verify(log, known=[head]).intact
    assert verify(log, expect=[head]).intact  # that one was noted elsewhere


def test_a_log_without_a_line_or_a_head_file_is_one_that_was_not_begun(tmp_path):
    path = tmp_path / "log"
    path.touch()
    verdict = verify(path)
    assert (verdict.intact, verdict.lines) == (True, 0)
    assert verdict.remarks == ("the log is empty: its writer was stopped before the first line",)
    assert not verify(path, known=["f" * 64]).intact
    write(path, 1)
    assert verify(path).lines == 1


def test_a_line_of_an_absurd_number_is_a_finding_and_no_burden(log):
    forged = {"schema": 1, "sequence": 10**15, "previous": "0" * 64, "time": "", "kind": "x"}
    log.write_bytes(log.read_bytes() + json.dumps(forged).encode() + b"\n")
    verdict = verify(log)
    assert not verdict.intact
    assert {finding.line for finding in verdict.findings} == {9}


def test_a_head_file_of_another_log_is_a_finding(log):
    head_file(log).write_text(json.dumps({"lines": 4, "head": "f" * 64}))
    assert faults(log) == [(9, Fault.HEAD)]
    head_file(log).write_text(json.dumps({"lines": 8, "head": "f" * 64}))
    assert faults(log) == [(8, Fault.CHANGED)]


def test_heads_noted_at_any_time_are_expected(log):
    heads = [verify(log).head]
    write(log, 2)
    heads.append(verify(log).head)
    assert verify(log, expect=heads).intact
    # Who can write both files cuts off the end, and makes a head file that fits; the noted head shows it.
    cut = log.with_name("cut")
    cut.write_bytes(b"".join(lines_of(log)[:5]))
    head_file(cut).write_text(json.dumps({"lines": 5, "head": hashlib.sha256(lines_of(cut)[-1].rstrip()).hexdigest()}))
    assert verify(cut).intact
    assert faults(cut, expect=heads[:1]) == [(6, Fault.MISSING)]


def rewritten(log, target, key=None):
    """The log with another round, all hashes computed anew, as one who can write everything would do it."""
    with AuditLog(target, key=key, sync=False) as forged:
        for record in read_log(log):
            forged.append(dataclasses.replace(record.event, round=record.event.round + 1))


def test_a_rewritten_log_is_found_by_a_noted_head_alone(log, tmp_path):
    rewritten(log, tmp_path / "forged")
    assert verify(tmp_path / "forged").intact
    assert not verify(tmp_path / "forged", expect=[verify(log).head]).intact


def test_a_rewritten_log_is_found_by_the_key(tmp_path):
    write(tmp_path / "log", 4, KEY)
    assert verify(tmp_path / "log", key=KEY).intact
    assert "only the key can check" in verify(tmp_path / "log").remarks[0]
    for forger in (None, b"another key of enough bytes"):
        forged = tmp_path / f"forged-{forger}"
        rewritten(tmp_path / "log", forged, forger)
        found = faults(forged, key=KEY)
        assert [line for line, fault in found if fault is Fault.UNSIGNED] == [1, 2, 3, 4]
        assert (5, Fault.HEAD) in found


@pytest.mark.parametrize("number", range(1, 5))
def test_with_the_key_an_edit_is_found_at_its_line(tmp_path, number):
    log = tmp_path / "log"
    write(log, 4, KEY)
    lines = lines_of(log)
    lines[number - 1] = lines[number - 1].replace(b"[1,2,3]", b"[1,2,4]")
    log.write_bytes(b"".join(lines))
    assert (number, Fault.UNSIGNED) in faults(log, key=KEY)


def test_a_log_has_one_key_or_none(tmp_path, log):
    with pytest.raises(AuditError, match="at least 16 bytes; got 5"):
        AuditLog(tmp_path / "short", key=b"short")
    with pytest.raises(AuditError, match="does not bear the key's mac"):
        AuditLog(log, key=KEY)
    write(tmp_path / "keyed", 2, KEY)
    with pytest.raises(AuditError, match="was written with a key; pass the same one"):
        AuditLog(tmp_path / "keyed")
    with pytest.raises(AuditError, match="does not bear the key's mac"):
        AuditLog(tmp_path / "keyed", key=KEY + b"2")
    write(tmp_path / "keyed", 2, KEY)
    assert verify(tmp_path / "keyed", key=KEY).lines == 4


# -- torn lines -------------------------------------------------------------------------------------


def torn(log, size=None):
    """Leave the log as a writer that was killed within its last line does: the head file announces that line."""
    lines = lines_of(log)
    head, announced = (hashlib.sha256(line.rstrip()).hexdigest() for line in lines[-2:])
    told = {"lines": len(read_log(log)) - 1, "head": head, "announced": [announced]}
    head_file(log).write_text(json.dumps(told))
    log.write_bytes(b"".join(lines[:-1]) + lines[-1][:size])
    return lines[-1][:size]


def test_a_torn_line_is_told_from_tampering_and_kept(log):
    data, size = log.read_bytes(), len(lines_of(log)[-1])
    for cut in [*range(1, size - 1, 9), size - 2]:
        log.write_bytes(data)
        fragment = torn(log, cut)
        verdict = verify(log)
        assert verdict.intact
        assert (verdict.lines, len(verdict.remarks)) == (7, 1)
        write(log, 2)
        records = read_log(log)
        assert records[7].event == LogReopened(cut, hashlib.sha256(fragment).hexdigest(), 0)
        assert lines_of(log)[7] == fragment + b"\n"
        assert [record.sequence for record in records] == list(range(10))
        verdict = verify(log)
        assert verdict.intact
        assert verdict.remarks == ("line 8 is incomplete, and line 9 has it on record",)


def test_a_line_that_lacks_nothing_but_its_newline_is_taken(log):
    torn(log, -1)
    assert verify(log).lines == 7
    write(log, 1)
    assert [record.event for record in read_log(log)] == [*map(event, range(8)), LogReopened(unsealed=1), event(0)]
    assert verify(log).remarks == ()


def test_a_newline_that_was_cut_off_later_is_not_mended(log):
    log.write_bytes(log.read_bytes()[:-1])
    with pytest.raises(TamperedError, match="line 8: 1 line is missing at the end"):
        AuditLog(log)
    assert not log.read_bytes().endswith(b"\n")


def test_lines_that_the_head_file_only_announces_are_put_on_record(log):
    torn(log)
    assert verify(log).intact
    assert "last 1 are announced in the head file" in verify(log).remarks[0]
    write(log, 0)
    assert read_log(log)[-1].event == LogReopened(unsealed=1)
    assert verify(log).remarks == ()


@pytest.mark.parametrize("key", [None, KEY])
def test_of_lines_announced_any_number_may_be_there_and_no_others(tmp_path, key):
    path = tmp_path / "log"
    write(path, 2, key)
    before = head_file(path).read_bytes()
    states = []
    with AuditLog(path, key=key) as log, pytest.MonkeyPatch.context() as patch:
        seal = log._seal
        patch.setattr(log, "_seal", lambda announced=(): (seal(announced), states.append(head_file(path).read_bytes())))
        log.append(event(2), event(3), event(4))
    announcing, sealed = states
    lines = lines_of(path)
    for there in (2, 3, 4, 5):
        path.write_bytes(b"".join(lines[:there]))
        head_file(path).write_bytes(announcing)
        assert verify(path, key=key).intact
        head_file(path).write_bytes(sealed)
        assert verify(path, key=key).intact == (there == 5)
        head_file(path).write_bytes(before)
        assert faults(path, key=key) == ([] if there == 2 else [(3, Fault.FOREIGN)])
    # Another line in the place of one that was announced; another announcement.
    fields = {**json.loads(lines[3]), "round": 66}
    forged = json.dumps(fields).encode() + b"\n"
    path.write_bytes(b"".join([*lines[:3], forged]))
    head_file(path).write_bytes(announcing)
    assert [finding.line for finding in verify(path, key=key).findings][-1] == 4
    told = json.loads(announcing)
    told["announced"][1] = hashlib.sha256(forged.rstrip()).hexdigest()
    head_file(path).write_text(json.dumps(told))
    assert verify(path, key=key).intact == (key is None)  # who can write both files needs the key


def test_torn_twice(log):
    first = torn(log, 30)
    log.write_bytes(log.read_bytes() + b"\n" + b'{"schema":1,"seq')
    assert verify(log).intact
    write(log, 1)
    gap = first + b"\n" + b'{"schema":1,"seq'
    assert read_log(log)[7].event == LogReopened(len(gap), hashlib.sha256(gap).hexdigest(), 0)
    assert verify(log).intact
    torn(log, 20)
    write(log, 1)
    assert verify(log).intact
    assert len(verify(log).remarks) == 2


def test_the_first_line_may_be_torn(tmp_path):
    path = tmp_path / "log"
    write(path, 0)
    path.write_bytes(b'{"sch')
    write(path, 1)
    assert [type(record.event) for record in read_log(path)] == [LogReopened, RoundConfigured]
    assert verify(path).intact


def test_a_torn_line_on_record_cannot_be_edited(log):
    torn(log, 40)
    write(log, 2)
    lines = lines_of(log)
    assert verify(log).intact
    for edited in (b"x" + lines[7][1:], b"", lines[7] + b"more\n"):
        log.write_bytes(b"".join([*lines[:7], edited, *lines[8:]]))
        assert not verify(log).intact, edited


def test_a_disk_that_is_full_takes_back_what_it_wrote(log, monkeypatch):
    data, real = log.read_bytes(), os.write
    with AuditLog(log, sync=False) as writer:

        def full(descriptor, left):
            real(descriptor, bytes(left)[:10])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left"):
                writer.append(event(8))
        assert log.read_bytes() == data
        writer.append(event(9))
    assert verify(log).intact
    assert verify(log).lines == 9


def test_a_write_may_take_several_calls(log, monkeypatch):
    real = os.write
    with AuditLog(log, sync=False) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, left: real(descriptor, bytes(left)[:7]))
        writer.append(event(8), event(9))
    assert verify(log).intact
    assert verify(log).lines == 10


# -- processes --------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_gone(log):
    with AuditLog(log) as first:
        with pytest.raises(AuditError, match="another writer has"):
            AuditLog(log)
        assert verify(log).intact  # readers need no lock
        first.append(event(8))
    first.close()
    write(log, 1)
    assert verify(log).lines == 10


def append_until_killed(path, killed_at, key):
    """Append, and be killed at the ``killed_at``-th call of the system that has to do with files."""
    calls = 0

    def counted(real):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == killed_at:
                if real is os.write:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return call

    for name in ("write", "fsync", "replace", "open", "chmod", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    with AuditLog(path, key=key) as log:
        for index in range(3):
            log.append(event(index), event(index))
    os._exit(0)


@pytest.mark.parametrize("key", [None, KEY])
def test_killed_at_every_call_of_the_system(tmp_path, key):
    path = tmp_path / "log"
    for killed_at in range(1, 200):
        before = verify(path, key=key).lines if path.exists() and head_file(path).exists() else 0
        process = FORK.Process(target=append_until_killed, args=(path, killed_at, key))
        process.start()
        process.join(30)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if head_file(path).exists():
            verdict = verify(path, key=key)
            assert verdict.intact, (killed_at, verdict)
            assert verdict.lines >= before
    else:
        pytest.fail("the process never came to its end")
    assert killed_at > 15
    assert verify(path, key=key).intact


def append_at_full_speed(path):
    with AuditLog(path, sync=False) as log:
        for index in range(1_000_000):
            log.append(event(index), event(index), event(index))


def test_killed_at_random_moments(tmp_path):
    path = tmp_path / "log"
    write(path, 0)
    rng, before = np.random.default_rng(0), 0
    for attempt in range(100):
        process = FORK.Process(target=append_at_full_speed, args=(path,))
        process.start()
        process.join(rng.uniform(0.005, 0.06) * (1 + attempt / 10))  # longer where the machine is busy
        process.kill()
        process.join()
        verdict = verify(path)
        assert verdict.intact, verdict
        assert verdict.lines >= before
        before = verdict.lines
        if attempt >= 12 and before > 1000:
            break
    else:
        pytest.fail("hardly a line was written")
    write(path, 1)
    assert verify(path).intact


# -- any tampering at all ---------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_the_file_goes_unseen(log, data):
    original = log.read_bytes()
    try:
        start = data.draw(st.integers(0, len(original)))
        stop = data.draw(st.integers(start, min(len(original), start + 400)))
        put = data.draw(st.one_of(st.binary(max_size=40), st.sampled_from(lines_of(log)), st.just(b"\n")))
        changed = original[:start] + put + original[stop:]
        log.write_bytes(changed)
        verdict = verify(log)
        if changed == original:
            assert verdict.intact
        elif verdict.intact:  # bytes behind the end, without newline, may be a line that was being written
            assert changed.startswith(original)
            assert not changed.endswith(b"\n")
            assert verdict.remarks
        else:
            first = original[:start].count(b"\n") + 1
            assert verdict.findings[0].line >= first - 1
    finally:
        log.write_bytes(original)


# -- hashes and distances ---------------------------------------------------------------------------


def test_a_configuration_is_known_by_its_content():
    assert config_sha256({"b": 1, "a": 2.0}) == config_sha256({"a": 2.0, "b": 1})
    assert config_sha256({"a": 1}) != config_sha256({"a": 1.0})
    assert config_sha256({}) == hashlib.sha256(b"{}").hexdigest()


def test_a_model_is_known_by_names_types_shapes_and_bytes():
    model = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, dtype=np.int64)}
    known = model_sha256(model)
    assert model_sha256({name: values.copy() for name, values in model.items()}) == known
    assert model_sha256({**model, "w": np.asfortranarray(model["w"])}) == known
    others = [
        {"v": model["w"], "n": model["n"]},
        {"n": model["n"], "w": model["w"]},
        {**model, "w": model["w"].astype(np.float64)},
        {**model, "w": model["w"].reshape(3, 2)},
        {**model, "w": -model["w"]},
        {**model, "n": model["n"].reshape(1)},
        {},
    ]
    assert len({known, *map(model_sha256, others)}) == 8


def test_the_hash_is_the_one_of_npy_files(tmp_path):
    model = {"w": np.ones((2, 3), np.float32), "empty": np.ones((0, 2)), "flag": np.array(True)}
    digest = hashlib.sha256()
    for name, values in model.items():
        np.save(tmp_path / "a.npy", values)
        digest.update(name.encode() + b"\0" + (tmp_path / "a.npy").read_bytes())
    assert model_sha256(model) == digest.hexdigest()


@pytest.mark.parametrize("d", [3, 40_000])
@pytest.mark.parametrize("mixed", [False, True])
def test_distances_and_angles_are_those_of_geometry(d, mixed):
    x = np.random.default_rng(0).standard_normal((6, d)) * 1e-4 + 1e-3
    x[2], x[4] = 1e30, 0
    value = x[[0, 1, 3]].mean(0)
    rows = Rows.from_tensor(torch.from_numpy(x))
    if mixed:  # such rows are read block by block
        rows = rows.mixed(torch.eye(6, dtype=torch.float64))
    distances, angles, length = distances_and_angles(rows, torch.from_numpy(value))
    assert length == pytest.approx(np.linalg.norm(value))
    np.testing.assert_allclose(distances, np.linalg.norm(x - value, axis=1), rtol=1e-10)
    with np.errstate(invalid="ignore"):
        cosine = x @ value / (np.linalg.norm(x, axis=1) * np.linalg.norm(value))
    expected = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    np.testing.assert_allclose(angles, expected, rtol=1e-6, atol=1e-5)
    assert math.isnan(angles[4])


def test_the_end_of_a_run_is_an_event_like_others(tmp_path):
    with AuditLog(tmp_path / "log", sync=False) as log:
        log.append(RunEnded(3, "stopped", "the operator said so"))
    assert read_log(tmp_path / "log")[0].event.sentence == "the operator said so"
