"""An append-only log in which every line holds the hash of the line before.

A line is one JSON object in ASCII and a newline: ``schema``, ``sequence`` (from 0), ``previous``, ``time`` (UTC),
``kind``, the fields of the event, and with a key ``mac``.

    hash of a line   SHA-256 of its bytes, without the newline
    previous         the hash of the line before; 64 zeros in the first
    head             the hash of the last line
    mac              HMAC-SHA-256, by the key, of the line without its mac

The chain of hashes alone cannot show that lines are missing at the end, or were added there. So a small file beside the
log, the head file, names the head and the number of lines. While lines are appended, it also names their hashes: it is
replaced before and after every append. The head may also be noted elsewhere, and every checkpoint holds one.

Anyone who can write both files can compute another valid chain. Three things protect against such a person: heads noted
out of their reach, a secret key for the macs, and a private key that signs every head in the head file. Macs are
checked with the same secret key, signatures with the public key. A key on a machine that they control does not protect.
Keys also cannot show that both files were replaced by earlier versions; noted heads do.

A writer that is killed may leave an incomplete last line, without newline. This does not count as tampering, and the
line is kept. When the log is opened again, a `LogReopened` line after it states its length and hash.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from flwr_robust.audit.events import SCHEMA, Event, LogReopened, RunStarted, kinds
from flwr_robust.audit.signing import PrivateKey, Signer, is_signature
from flwr_robust.errors import AuditError, LogInUseError, TamperedError
from flwr_robust.files import lock, open_plain, open_to_append, read_plain, sync_folder, write_atomically

__all__ = [
    "LEAST_KEY",
    "SELF_SIGNED",
    "UNCHECKED",
    "AuditLog",
    "Fault",
    "Finding",
    "Record",
    "Verdict",
    "head_file",
    "head_of",
    "read_heads",
    "read_log",
    "verify",
]

_ABSENT = "audit log: there is no file {}; name a run's folder, or the audit.jsonl in it"
_GENESIS = "0" * 64
_READS = 1000  # reads of log and head file, until both belong to the same moment
_LONGEST = 1 << 24  # bytes of a line, and of the head file
_MOST_FINDINGS = 1000  # after so many, the rest of a log is not examined
LEAST_KEY = 16
"""The smallest length of a key, in bytes."""
SELF_SIGNED = "its heads are signed, and were checked with the key that the log itself names"
"""The remark on a log with signed heads that was read without a public key from elsewhere."""
UNCHECKED = "its lines bear macs, which only the key can check"
"""The remark on a log that was written with a key and read without it."""


class Fault(Enum):
    """What is wrong with a line; the value is the phrase that users read."""

    CHANGED = "was changed"
    FOREIGN = "does not belong there"
    MISSING = "lines are missing"
    UNSIGNED = "does not bear the key's mac"
    SIGNER = "names another public key"
    HEAD = "the head file does not fit"
    CHECKPOINT = "is not the one on record"
    GONE = "is gone"
    LINK = "is a symbolic link"
    UPDATE = "is not as it was kept"
    MODEL = "began with another model"
    SEED = "they do not fit the commitment"


@dataclass(frozen=True)
class Finding:
    """A place where the log differs from what was written.

    Attributes
    ----------
    line : int
        Number of the line, from 1. If lines are missing at the end, it is the number after the last line. 0 if the
        finding belongs to no line.
    fault : Fault
        What is wrong.
    sentence : str
        The finding in words.
    """

    line: int
    fault: Fault
    sentence: str

    def __str__(self) -> str:
        """Return the sentence with the number of the line."""
        return f"line {self.line}: {self.sentence}" if self.line else self.sentence


@dataclass(frozen=True)
class Verdict:
    """The result of `verify`.

    Attributes
    ----------
    lines : int
        How many events the log holds.
    head : str
        Hash of the last line.
    findings : tuple of Finding
        The places where the log differs from what was written.
    remarks : tuple of str
        Remarks that are no sign of tampering.
    """

    lines: int
    head: str
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Say whether there are no findings."""
        return not self.findings


@dataclass(frozen=True)
class Record:
    """An event with its line in the log.

    Attributes
    ----------
    line, sequence : int
        Number of the line in the file, from 1, and of the event, from 0.
    previous : str
        Hash of the line before.
    time : str
        The time of writing, in UTC.
    event : Event
        What happened.
    """

    line: int
    sequence: int
    previous: str
    time: str
    event: Event


class _Anchor(NamedTuple):
    """The content of the head file: the number of lines, the hash of the last, and those of announced lines."""

    lines: int
    head: str
    announced: tuple[str, ...] = ()

    def signed(self) -> bytes:
        """Return the bytes that mac and signature sign."""
        return " ".join([str(self.lines), self.head, *self.announced]).encode()


def head_file(path: Path) -> Path:
    """Return the head file of a log."""
    return path.with_name(f"{path.name}.head")


class AuditLog:
    """The writer of a log; there is only one at a time.

    With ``sync``, `append` returns when its lines are on the disk, so they survive a power failure. Without it, they
    survive the end of this process, but not a failure of the machine. Many events in one `append` take hardly longer
    than one, so pass simultaneous events together.

    Parameters
    ----------
    path : Path
        The file of the log. It is created if it does not exist, and otherwise verified and continued.
    key : bytes, optional
        A key of at least 16 bytes, which signs every line with a mac. A log uses one key from its start, or none.
    signing_key : Ed25519PrivateKey or Path, optional
        Signs every head; see `Signer`. A log uses one key from its start, or none; its first line must name the public
        key.
    sync : bool
        Whether to wait for the disk.

    Attributes
    ----------
    head : str
        Hash of the last line. Note it elsewhere to prove later that no line is missing.
    lines : int
        How many events the log holds.
    public_key : str
        The public key of the signatures, in hexadecimal; empty if heads are not signed.

    Raises
    ------
    AuditError
        If another writer has the log open (`LogInUseError`), or it was written with a key and none is given.
    TamperedError
        If the log is not intact.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        key: bytes | None = None,
        signing_key: PrivateKey | None = None,
        sync: bool = True,
    ) -> None:
        self.path = Path(path)
        self._signer = None if signing_key is None else Signer(signing_key)
        self.public_key = "" if self._signer is None else self._signer.public
        self._key, self._sync = key, sync
        if key is not None and len(key) < LEAST_KEY:
            raise AuditError(f"audit log: the key must have at least {LEAST_KEY} bytes; got {len(key)}")
        if head_file(self.path).is_file() and not self.path.is_file():
            raise TamperedError(f"audit log: {self.path} is gone, but its head file is there; name another folder")
        try:
            self._file = open_to_append(self.path)
        except OSError as error:
            raise AuditError(f"audit log: {self.path} cannot be opened: {error.strerror}") from None
        try:
            try:
                lock(self._file)
            except OSError:
                sentence = f"audit log: another writer has {self.path} open; wait until its run ends"
                raise LogInUseError(sentence) from None
            self._open()
        except BaseException:
            os.close(self._file)
            raise

    def _open(self) -> None:
        size = os.fstat(self._file).st_size
        if not size and not head_file(self.path).exists():
            self.lines, self.head = 0, _GENESIS
            self._seal()  # from now on, a log without head file has lost it
            return
        with open_plain(self.path) as file:
            first = _first(file, size)
            if self._key is None and "mac" in first:
                raise AuditError(f"audit log: {self.path} was written with a key; pass the same one")
            if first and (named := _public_key(first)) != self.public_key:
                how = f"names the public key {named}: pass its private key" if named else "is not signed: pass none"
                raise AuditError(f"audit log: the signing key is not the one of this log: {self.path} {how}")
            anchor = self._anchor()
            verdict, torn = _examine(_lines(file, size), anchor, self._key)
            if torn.readable and verdict.intact:
                mended, whole = _examine(_lines(file, size, mended=True), anchor, self._key)
                if mended.intact:  # only the newline is missing
                    os.write(self._file, b"\n")
                    verdict, torn = mended, whole
        if not verdict.intact:
            raise TamperedError(
                f"audit log: {self.path}, line {verdict.findings[0].line}: {verdict.findings[0].sentence}; keep it as "
                f"evidence, and start a new run in another folder"
            )
        self.lines, self.head = verdict.lines, verdict.head
        unsealed = self.lines - anchor.lines
        if torn.size:
            self._write([LogReopened(torn.size, torn.sha256, unsealed)], b"\n")
        elif unsealed:
            self._write([LogReopened(unsealed=unsealed)])

    def _anchor(self) -> _Anchor:
        anchor = _read_anchor(self.path, self._key, self.public_key)
        if isinstance(anchor, str):
            raise TamperedError(f"audit log: {anchor}")
        return anchor

    def append(self, *events: Event) -> str:
        """Write events, in order.

        Returns
        -------
        str
            The new head.

        Raises
        ------
        AuditError
            If a field is not of its declared type; then nothing is written.
        OSError
            If the disk is full, for example; then the lines that were written are removed again.
        """
        if events:
            self._write(events)
        return self.head

    def _write(self, events: Collection[Event], before: bytes = b"") -> None:
        parts, hashes = [before], [self.head]
        for sequence, event in enumerate(events, self.lines):
            line = self._line(sequence, hashes[-1], event)
            hashes.append(hashlib.sha256(line).hexdigest())
            parts += [line, b"\n"]
        self._seal(hashes[1:])
        size = os.fstat(self._file).st_size
        left = memoryview(b"".join(parts))
        try:
            while left:
                left = left[os.write(self._file, left) :]
            if self._sync:
                os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, size)
            raise
        self.lines, self.head = self.lines + len(events), hashes[-1]
        self._seal()

    def _line(self, sequence: int, previous: str, event: Event) -> bytes:
        line = {
            "schema": SCHEMA,
            "sequence": sequence,
            "previous": previous,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": event.kind,
            **event.to_fields(),
        }
        text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > _LONGEST // 2:
            raise AuditError(f"audit log: a line must have at most {_LONGEST // 2} bytes; {event.kind} has {len(text)}")
        return text if self._key is None else text[:-1] + _mac_part(self._key, text)

    def _seal(self, announced: Collection[str] = ()) -> None:
        """Replace the head file; only the announced lines may follow."""
        anchor = _Anchor(self.lines, self.head, tuple(announced))
        told: dict[str, Any] = {"lines": anchor.lines, "head": anchor.head}
        if announced:
            told["announced"] = anchor.announced
        if self._key is not None:
            told["mac"] = _mac(self._key, anchor.signed())
        if self._signer is not None:
            told |= {"public_key": self.public_key, "signature": self._signer.sign(anchor.signed())}
        text = json.dumps(told).encode() + b"\n"
        write_atomically(head_file(self.path), lambda file: file.write(text), sync=self._sync)
        if self._sync:  # otherwise the lines could reach the disk before their announcement
            sync_folder(self.path.absolute().parent)

    def close(self) -> None:
        """Close the log; closing it twice has no effect."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """Return this log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()


def verify(
    path: Path | str,
    *,
    expect: Collection[str] = (),
    known: Collection[str] = (),
    key: bytes | None = None,
    public_key: str | None = None,
) -> Verdict:
    """Find every edit, insertion, deletion, reordering and truncation of a log.

    Parameters
    ----------
    path : Path
        The file of the log; the head file is beside it.
    expect : collection of str
        Heads that were noted elsewhere at any time. The log must hold a line with each of these hashes. If the head
        file is missing, a noted head that matches the last line replaces it.
    known : collection of str
        Heads found beside the log, in checkpoints. The log must hold them as well, but they do not replace a missing
        head file.
    key : bytes, optional
        The key with which the log was written.
    public_key : str, optional
        The public key that must have signed the head, in hexadecimal. When not given, it is the one that the first line
        names, if it names one.

    Raises
    ------
    AuditError
        If there is neither log nor head file, or the log cannot be read.
    """
    path = Path(path)
    if not path.is_file() and not head_file(path).is_file():
        raise AuditError(_ABSENT.format(path))
    size = _size(path)
    with io.BytesIO() if size is None else open_plain(path) as file:
        named = _public_key(_first(file, size or 0))
    for _ in range(_READS):  # a writer may append to the log meanwhile
        anchor = _read_anchor(path, key, public_key or named)
        size = _size(path)
        if anchor == _read_anchor(path, key, public_key or named):
            break
    if size == 0 and not head_file(path).exists():  # the state just after a writer has opened it
        found, _ = _examine(iter(()), _Anchor(0, _GENESIS), key, expect, known)
        return replace(
            found, remarks=(*found.remarks, "the log is empty: its writer was stopped before the first line")
        )
    with io.BytesIO() if size is None else open_plain(path) as file:
        verdict, _ = _examine(_lines(file, size or 0), anchor, key, expect, known)
    if named and public_key is None:
        return replace(verdict, remarks=(*verdict.remarks, SELF_SIGNED))
    if named and named != public_key:
        other = Finding(1, Fault.SIGNER, f"the line {Fault.SIGNER.value} than the given one: {named}")
        return replace(verdict, findings=(other, *verdict.findings))
    return verdict


def head_of(path: Path | str) -> dict[str, Any]:
    """Return the content of a log's head file, to note it elsewhere; `read_heads` reads it.

    Raises
    ------
    AuditError
        If it cannot be read.
    """
    anchor = _read_anchor(Path(path), None, "")
    if isinstance(anchor, str):
        raise AuditError(f"audit log: {anchor}")
    told: dict[str, Any] = json.loads(read_plain(head_file(Path(path)), _LONGEST))
    return told


def read_heads(path: Path | str, public_key: str | None = None) -> list[str]:
    """Return the heads in a file that has one JSON object per line, as `head_of` returns them.

    Parameters
    ----------
    path : Path
        The file.
    public_key : str, optional
        The public key that must have signed every head, in hexadecimal.

    Raises
    ------
    AuditError
        If the file cannot be read, or a head in it is not signed with that key.
    """
    try:
        *lines, torn = read_plain(Path(path), _LONGEST).split(b"\n")
    except OSError as error:
        raise AuditError(f"heads: {path} cannot be read: {error.strerror}") from None
    if torn and not lines:
        raise AuditError(f"heads: {path} holds no whole line")
    found = []
    for number, line in enumerate(lines, 1):  # without a last line that its writer could not finish
        if not line:
            continue
        anchor = _anchor_in(line, f"heads: line {number} of {path}", None, public_key or "")
        if isinstance(anchor, str):
            raise AuditError(anchor)
        found.append(anchor.head)
    return found


def read_log(path: Path | str) -> list[Record]:
    """Return the events of a log in order, without verifying it; incomplete lines are skipped.

    Raises
    ------
    AuditError
        If there is no such file, or a line is not of this schema.
    """
    path = Path(path)
    if not path.is_file():
        raise AuditError(_ABSENT.format(path))
    size = _size(path) or 0
    with open_plain(path) as file:
        return list(_records(_lines(file, size), path))


def _records(lines: Iterator[_Line], path: Path) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if (read := _envelope(line.text)) is None:
            continue
        fields = {key: value for key, value in read.items() if key not in ("schema", "mac")}
        sequence, previous, time, kind = (fields.pop(key) for key in ("sequence", "previous", "time", "kind"))
        if kind not in kinds():
            raise AuditError(
                f"audit log: {path}, line {number}: kind '{kind}' is not known in schema {SCHEMA}; "
                f"see flwr-robust audit verify"
            )
        try:
            yield Record(number, sequence, previous, time, kinds()[kind].from_fields(fields))
        except AuditError as error:
            raise AuditError(f"audit log: {path}, line {number}: {error}") from None


def _mac(key: bytes, text: bytes) -> str:
    return hmac.digest(key, text, "sha256").hex()


def _mac_part(key: bytes, text: bytes) -> bytes:
    """Return the text that replaces the last brace of a line without mac."""
    return b',"mac":"' + _mac(key, text).encode() + b'"}'


def _signed(key: bytes, line: bytes) -> bool:
    """Say whether a line ends with the right mac."""
    length = len(_mac_part(key, b""))
    return hmac.compare_digest(line[-length:], _mac_part(key, line[:-length] + b"}"))


def _envelope(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if it is not a line of a log."""
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    types = {"schema": int, "sequence": int, "previous": str, "time": str, "kind": str}
    if not isinstance(read, dict) or any(type(read.get(key)) is not wanted for key, wanted in types.items()):
        return None
    return read


class _Line(NamedTuple):
    """A line, without its newline; one that is too long is empty, so that it cannot be read."""

    text: bytes
    whole: bool = True  # whether its newline is there


def _lines(file: BinaryIO, size: int, *, mended: bool = False) -> Iterator[_Line]:
    """Yield the lines in the first ``size`` bytes of a log; with ``mended``, the last one counts as whole."""
    file.seek(0)
    while size > 0 and (text := file.readline(min(size, _LONGEST))):
        size -= len(text)
        while len(text) == _LONGEST and not text.endswith(b"\n") and size > 0:  # too long: skip the rest of it
            more = file.readline(min(size, _LONGEST))
            size -= len(more)
            text = more[-1:] if len(more) < _LONGEST or more.endswith(b"\n") else more
        yield _Line(text.removesuffix(b"\n"), mended or text.endswith(b"\n"))


def _size(path: Path) -> int | None:
    """Return the size of a log in bytes; None if there is none.

    Raises
    ------
    AuditError
        If it cannot be opened.
    """
    try:
        with open_plain(path) as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"audit log: {path} cannot be read: {error.strerror}") from None


def _is_hash(value: object) -> bool:
    return type(value) is str and len(value) == len(_GENESIS) and value.isascii()


def _first(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the first line's JSON object; empty if there is no such line."""
    first = next(_lines(file, size), None)
    return (_envelope(first.text) if first and first.whole else None) or {}


def _public_key(first: Mapping[str, Any]) -> str:
    """Return the public key that a log's first line names; empty if it names none."""
    return str(first.get("public_key", "")) if first.get("kind") == RunStarted.kind else ""


def _read_anchor(path: Path, key: bytes | None, public_key: str) -> _Anchor | str:
    """Return the content of the head file, or a sentence that says why there is none."""
    where = head_file(path)
    try:
        return _anchor_in(read_plain(where, _LONGEST), f"the head file {where}", key, public_key)
    except FileNotFoundError:
        return f"there is no head file {where}: nothing says whether lines are missing at the end"
    except OSError:
        return f"the head file {where} cannot be read"


def _anchor_in(data: bytes, where: str, key: bytes | None, public_key: str) -> _Anchor | str:
    """Return the head in a JSON object, or a sentence that says why it is none or not signed."""
    try:
        anchor = json.loads(data)
        found = _Anchor(anchor["lines"], anchor["head"], tuple(anchor.get("announced", ())))
        fits = type(found.lines) is int and found.lines >= 0 and all(map(_is_hash, [found.head, *found.announced]))
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        return f"{where} cannot be read"
    mac = str(anchor.get("mac")).encode(errors="replace")
    if key is not None and not hmac.compare_digest(mac, _mac(key, found.signed()).encode()):
        return f"{where} does not bear the key's mac"
    if public_key and not is_signature(anchor.get("signature"), found.signed(), public_key):
        return f"{where} does not bear a signature by the public key {public_key}"
    return found


class _Torn(NamedTuple):
    """The incomplete lines at the end of a log: since the last complete one, writers may have been stopped twice."""

    size: int = 0
    sha256: str = ""
    readable: bool = False  # whether nothing but the last newline is missing


def _examine(
    lines: Iterator[_Line],
    anchor: _Anchor | str,
    key: bytes | None,
    expect: Collection[str] = (),
    known: Collection[str] = (),
) -> tuple[Verdict, _Torn]:
    chain, torn = _Chain(), _Torn()
    macs = number = 0
    for number, (line, whole) in enumerate(lines, 1):
        record = _envelope(line)
        if not whole:
            gap = chain.gap.joined(number, line)
            torn = _Torn(gap.size, gap.sha256, record is not None)
            chain.remarks.append(
                f"line {number} is incomplete ({gap.size} bytes): its writer was stopped, or the end cut off"
            )
            number -= 1
            break
        if record is None:
            chain.gap = chain.gap.joined(number, line)
            continue
        macs += "mac" in record
        if key is not None and not _signed(key, line):
            chain.find(number, Fault.UNSIGNED, f"the line {Fault.UNSIGNED.value}")
        chain.take(number, record, hashlib.sha256(line).hexdigest())
        if chain.full:
            break
    number += 1
    if not torn.size and chain.gap.lines:
        chain.close_gap(*((chain.expected, chain.head) if isinstance(anchor, str) else anchor[:2]))
    if chain.full:
        chain.remarks.append(f"the examination ended before line {number}, after {_MOST_FINDINGS} findings")
    elif isinstance(anchor, str):
        if chain.head in expect:  # a noted head shows where the end is
            chain.remarks.append(anchor)
        else:
            chain.find(number, Fault.HEAD, anchor)
    else:
        chain.end(number, anchor)
    there = set(chain.hashes.values())
    for head in [*expect, *known]:
        if head not in there:
            chain.find(number, Fault.MISSING, f"no line has the expected hash {head}: lines are missing, or others")
    if chain.early:
        chain.remarks.append(
            f"{len(chain.early)} lines have a time before that of an earlier line, the first in line {chain.early[0]}: "
            f"the clock was set back, or the times are invented"
        )
    if key is None and macs:
        chain.remarks.append(UNCHECKED)
    findings = sorted(chain.findings, key=lambda finding: finding.line)
    return Verdict(len(chain.hashes), chain.head or _GENESIS, tuple(findings), tuple(chain.remarks)), torn


@dataclass(frozen=True)
class _Gap:
    """Consecutive lines that cannot be read; only their number, length and hash are kept, because they may be many."""

    first: int = 0
    lines: int = 0
    size: int = 0  # of the lines joined by newlines
    sha256: str = ""
    digest: Any = None

    def joined(self, number: int, line: bytes) -> _Gap:
        """Return the gap with another line."""
        digest = self.digest.copy() if self.lines else hashlib.sha256()
        digest.update(b"\n" + line if self.lines else line)
        size = self.size + len(line) + bool(self.lines)
        return _Gap(self.first or number, self.lines + 1, size, digest.hexdigest(), digest)


class _Chain:
    """The verification of a log line by line: what the next line must be, and the findings so far."""

    def __init__(self) -> None:
        self.expected = 0  # sequence of the next line
        self.head: str | None = _GENESIS  # hash of the last line in sequence; None if it is unreadable
        self.at = 0  # number of that line
        self.broken = 0  # number of the last line that does not fit the line before
        self.hashes: dict[int, str] = {}
        self.gap = _Gap()
        self.findings: list[Finding] = []
        self.remarks: list[str] = []
        self.latest: datetime | None = None  # of the times so far
        self.early: list[int] = []  # numbers of the lines with a time before that of an earlier line

    @property
    def full(self) -> bool:
        """Whether there are so many findings that the rest does not matter."""
        return len(self.findings) >= _MOST_FINDINGS

    def find(self, line: int, fault: Fault, sentence: str) -> None:
        self.findings.append(Finding(line, fault, sentence))

    def take(self, number: int, record: dict[str, Any], digest: str) -> None:
        """Check the next readable line."""
        sequence, previous = record["sequence"], record["previous"]
        self.time(number, record["time"])
        recorded = record.get("torn_sha256") if record["kind"] == LogReopened.kind else ""
        if self.gap.lines and recorded == self.gap.sha256:
            self.remarks.append(f"line {self.gap.first} is incomplete, and line {number} has it on record")
            self.gap = _Gap()
        elif self.gap.lines:
            self.close_gap(sequence, previous)
        elif recorded:
            self.find(number, Fault.MISSING, "the incomplete line that this one has on record is missing before it")
        if previous == self.head or (self.head is None and sequence == self.expected):
            if sequence != self.expected:
                self.find(number, Fault.CHANGED, f"the line says sequence {sequence} where {self.expected} belongs")
                sequence = self.expected
        elif sequence == self.expected:
            self.break_link(number)
        elif sequence > self.expected:
            missing = sequence - self.expected
            self.find(
                number,
                Fault.MISSING,
                f"before this line one is missing, that of sequence {self.expected}"
                if missing == 1
                else f"before this line {missing} are missing, of the sequence from {self.expected} to {sequence - 1}",
            )
        else:
            self.find(number, Fault.FOREIGN, f"the line (sequence {sequence}) {Fault.FOREIGN.value}")
            return
        self.hashes[sequence] = digest
        self.expected, self.head, self.at = sequence + 1, digest, number

    def time(self, number: int, text: str) -> None:
        """Note a line whose time is before that of an earlier line, or is none."""
        try:
            time = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            self.early.append(number)
            return
        if self.latest is not None and time < self.latest:
            self.early.append(number)
        else:
            self.latest = time

    def close_gap(self, sequence: int, previous: str | None) -> None:
        """Judge unreadable lines by the line after them: they were inserted, or are changed lines."""
        inserted = previous == self.head
        for number in range(self.gap.first, self.gap.first + self.gap.lines):
            if self.full:
                break
            if inserted:
                self.find(number, Fault.FOREIGN, f"the line cannot be read, and {Fault.FOREIGN.value}")
            else:
                self.find(number, Fault.CHANGED, f"the line cannot be read: it {Fault.CHANGED.value}")
        if not inserted:
            self.expected = min(self.expected + self.gap.lines, max(sequence, self.expected))
            self.head, self.at = None, self.gap.first + self.gap.lines - 1
        self.gap = _Gap()

    def break_link(self, number: int) -> None:
        """Report the line whose hash differs from the one in line ``number`` or in the head file.

        If the link before that line is broken too, this line was certainly changed, including its ``previous``.
        """
        if not self.at:
            self.find(number, Fault.CHANGED, f"the first line {Fault.CHANGED.value}, or those before it are missing")
        elif self.findings and self.findings[-1].line == self.at:
            pass
        elif self.findings and self.broken == self.at:
            self.findings[-1] = Finding(
                self.at, Fault.CHANGED, f"the line {Fault.CHANGED.value} (the line before may have been, too)"
            )
        else:
            self.find(self.at, Fault.CHANGED, f"the line {Fault.CHANGED.value} after the next was written")
        self.broken = number

    def end(self, number: int, anchor: _Anchor) -> None:
        """Compare the end of the log with the head file."""
        if anchor.lines > self.expected:
            missing = anchor.lines - self.expected
            words = "1 line is" if missing == 1 else f"{missing} lines are"
            self.find(number, Fault.MISSING, f"{words} missing at the end: the head file knows {anchor.lines}")
        elif anchor.lines == self.expected:
            if anchor.head != (self.head or anchor.head):
                self.break_link(number)
        elif anchor.lines and self.hashes.get(anchor.lines - 1) != anchor.head:
            self.find(number, Fault.HEAD, f"the head file names line {anchor.lines} as another one than it is")
        else:
            later = [digest for sequence, digest in self.hashes.items() if sequence >= anchor.lines]
            odd = next((at for at, digest in enumerate(later) if (digest,) != anchor.announced[at : at + 1]), None)
            if odd is None:
                self.remarks.append(
                    f"the last {len(later)} are announced in the head file: the log is being written, or its writer "
                    f"was killed"
                )
            else:
                at = number - len(later) + odd
                self.find(at, Fault.FOREIGN, f"the head file does not know the line: it {Fault.FOREIGN.value}")
