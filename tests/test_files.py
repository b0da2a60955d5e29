"""Files that are either whole or not there, and that one process writes at a time."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from flwr_robust import files
from flwr_robust.audit import AuditLog, RunEnded, verify
from flwr_robust.errors import AuditError
from flwr_robust.files import (
    file_size,
    links_in,
    lock,
    make_folder,
    open_plain,
    open_to_append,
    read_plain,
    write_atomically,
)


def test_a_new_file(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"an older and longer one")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_fails_leaves_things_as_they_were(tmp_path, error, old):
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)

    def fail(file):
        file.write(b"half of")
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write_atomically(path, fail)
    assert list(tmp_path.iterdir()) == ([] if old is None else [path])
    assert old is None or path.read_bytes() == old


def test_a_rename_that_fails_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(self, target):
        raise OSError("read only")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="read only"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_sees_a_file_that_is_not_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def look(file):
        file.write(b"n")
        file.flush()
        assert path.read_bytes() == b"old"
        parts = [p.name for p in tmp_path.iterdir() if p != path]
        assert len(parts) == 1
        assert parts[0].startswith(".a.bin.")
        assert parts[0].endswith(".part")
        file.write(b"ew")

    write_atomically(path, look)
    assert path.read_bytes() == b"new"


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically(Path("b.txt"), lambda file: file.write(b"here"))
    assert os.listdir(tmp_path) == ["b.txt"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.bin", lambda file: file.write(b""))
    assert not (tmp_path / "none").exists()


# -- one writer --------------------------------------------------------------------------------------


class FakeWindows:
    """What msvcrt does: locks bytes from where the descriptor stands, for one open file."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = {}  # (file, byte) -> descriptor

    def locking(self, descriptor, mode, count):
        assert (mode, count) == (self.LK_NBLCK, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if self.held.setdefault(place, descriptor) != descriptor:
            raise OSError(36, "Resource deadlock avoided")


@pytest.fixture(params=["fcntl", "msvcrt"])
def system(request, monkeypatch):
    if request.param == "fcntl":
        pytest.importorskip("fcntl")
        return None
    fake = FakeWindows()
    monkeypatch.setattr(files, "_SYSTEM_LOCK", "msvcrt")
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    return fake


def test_one_descriptor_at_a_time_holds_a_file(tmp_path, system):
    one, other, elsewhere = (open_to_append(tmp_path / name) for name in ("a", "a", "b"))
    try:
        os.write(one, b"line\n")
        at = os.lseek(one, 0, os.SEEK_CUR)
        lock(one)
        assert os.lseek(one, 0, os.SEEK_CUR) == at
        lock(elsewhere)
        with pytest.raises(OSError):
            lock(other)
        assert (tmp_path / "a").read_bytes() == b"line\n"  # it can still be read, and has not grown
        if system is not None:
            assert all(byte > 2**30 for _, byte in system.held)
    finally:
        for descriptor in (one, other, elsewhere):
            os.close(descriptor)


def test_a_log_has_one_writer_on_either_system(tmp_path, system):
    with AuditLog(tmp_path / "log", sync=False) as log:
        log.append(RunEnded(1, "finished"))
        with pytest.raises(AuditError, match="another writer has"):
            AuditLog(tmp_path / "log", sync=False)
    assert verify(tmp_path / "log").intact


def test_the_package_names_no_module_of_one_system_alone():
    # Whatever imports these on top fails on the other system.
    root = Path(files.__file__).parent
    found = [
        p.name for p in root.rglob("*.py") if re.search(r"^\s*(import|from) (fcntl|msvcrt)\b", p.read_text(), re.M)
    ]
    assert found == []


def test_only_regular_files_are_read(tmp_path):
    path, link, pipe = (tmp_path / name for name in ("a", "link", "pipe"))
    path.write_bytes(b"12345")
    link.symlink_to(path)
    os.mkfifo(pipe)
    assert (read_plain(path, 5), file_size(path)) == (b"12345", 5)
    with pytest.raises(OSError, match="it is longer than 4 bytes"):
        read_plain(path, 4)
    for odd, why in ((link, "symbolic link"), (pipe, "no regular file"), (tmp_path, "no regular file")):
        with pytest.raises(OSError, match=why):
            open_plain(odd)
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(link)


def test_links_are_found_at_any_depth_and_no_folder_is_made_behind_one(tmp_path):
    deep = tmp_path / "root" / "/".join("ab" * 100)
    deep.mkdir(parents=True)
    (deep / "to").symlink_to(tmp_path)
    (tmp_path / "root/gone").symlink_to(tmp_path / "nowhere")
    assert list(links_in(tmp_path / "root")) == [deep / "to", tmp_path / "root/gone"]
    make_folder(tmp_path / "root/new/er", tmp_path / "root")
    make_folder(tmp_path / "root/new/er", tmp_path / "root")
    for place in ("gone", "gone/new"):
        with pytest.raises(OSError, match="symbolic link"):
            make_folder(tmp_path / "root" / place, tmp_path / "root")
    assert not (tmp_path / "nowhere").exists()
