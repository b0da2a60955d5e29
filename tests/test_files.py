"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flwr_robust.files import write_atomically


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
