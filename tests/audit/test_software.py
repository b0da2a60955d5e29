"""The software on record: versions, and the commit of the source."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata

import pytest

from flwr_robust import __version__
from flwr_robust.audit.software import commit, software


def test_versions_are_those_installed():
    found = software()
    assert found["flwr-robust"] == __version__
    assert set(found) == {"python", "flwr-robust", "flwr", "torch", "numpy"}


def test_the_commit_of_a_clone_is_gits(tmp_path):
    def git(*words):
        told = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert commit(tmp_path) == ""  # nothing is committed yet
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    assert commit(tmp_path) == git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("noted", "found"),
    [
        ({"url": "u", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}, "ab" * 20),
        ({"url": "file:///wheel", "archive_info": {}}, ""),
        (None, ""),
    ],
)
def test_the_commit_of_an_installed_package_is_the_one_pip_noted(noted, found, tmp_path, monkeypatch):
    class Installed:
        def read_text(self, name):
            return None if noted is None else json.dumps(noted)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert commit(tmp_path) == found
