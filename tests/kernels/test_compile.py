"""Where compiled code is kept and whether there is any: on hosts that forbid it, every rule gives the same values."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from flwr_robust.kernels import _compile

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

# One rule for each kernel: columns, Gram and mix, points; printed with all digits.
PROGRAM = """
import json, logging, os, sys
logging.basicConfig(format="%(message)s")
{before}
import torch, flwr_robust
from flwr_robust.kernels import _compile
x = torch.linspace(-1, 1, 11 * 200, dtype=torch.float64).view(200, 11).T.contiguous().sin()
x[9:] += 5
rules = ("trimmed_mean(f=2)", "krum(f=2)", "nnm(f=2) | median()", "centered_clipping(tau=1.0)", "meamed(f=2)")
found = {{rule: flwr_robust.aggregate(x, rule).value.tolist() for rule in rules}}
folder = _compile.cache_folder()
told = {{"usable": _compile.usable(), "folder": folder and str(folder), "user": os.geteuid()}}
json.dump({{"found": found, **told}}, sys.stdout)
"""


def run(*, before="", unprivileged=False, **environment):
    """What rules give in a process of its own, and what it says on its error output."""
    command = [sys.executable, "-B", "-c", PROGRAM.format(before=before)]
    if unprivileged:
        if os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("only root can become another user, by setpriv")
        # The interpreter may lie in root's home: nobody may read all here, but writes only what others may.
        read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *read, *command]
    whole = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=whole, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def expected():
    """What this host gives, compiled."""
    found, said = run(HOME=os.environ.get("HOME", "/"))
    assert found["usable"]
    assert said == ""
    return found["found"]


def agree(found, expected):
    for rule, value in expected.items():
        np.testing.assert_allclose(found["found"][rule], value, rtol=1e-10, atol=1e-12, err_msg=rule)


@pytest.fixture
def locked():
    """A folder of root's that nobody else can write."""
    folder = Path(tempfile.mkdtemp(prefix="locked-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_nothing_can_be_written(expected, locked):
    found, said = run(unprivileged=True, HOME=str(locked), TMPDIR=str(locked), FLWR_ROBUST_CACHE=str(locked))
    assert found["user"] == NOBODY
    agree(found, expected)
    assert found["usable"]  # compiled anew, by this process
    assert found["folder"] is None
    assert said.count("\n") == said.count(f"FLWR_ROBUST_CACHE={locked}") + said.count("others can write") == 1
    assert list(locked.iterdir()) == []


@pytest.mark.slow
def test_a_folder_of_the_users_own_is_taken_and_serves_again(expected, locked):
    own = locked / "own"
    own.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(own, NOBODY, NOBODY)
    kept = []
    for _ in range(2):
        found, said = run(unprivileged=True, HOME="/nonexistent", FLWR_ROBUST_CACHE=str(own))
        agree(found, expected)
        assert (found["folder"], said) == (str(own), "")
        kept.append({path: path.stat().st_mtime_ns for path in own.rglob("*.nb?")})
    assert kept[0]
    assert kept[0] == kept[1]  # read, not written anew


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "environment", "warnings"),
    [
        ("", {"NUMBA_DISABLE_JIT": "1"}, []),
        ("sys.modules['numba'] = None", {}, ["numba is not installed; .* pip install 'flwr-robust\\[fast\\]'"]),
        (
            "import types; sys.modules['numba'] = types.ModuleType('numba')",
            {},
            ["numba does not compile here \\(AttributeError: .*NUMBA_DISABLE_JIT=1"],
        ),
    ],
    ids=["switched off", "absent", "broken"],
)
def test_torch_takes_over_where_nothing_compiles(expected, before, environment, warnings):
    found, said = run(before=before, HOME="/nonexistent", **environment)
    agree(found, expected)
    assert not found["usable"]
    lines = said.splitlines()
    assert len(lines) == len(warnings)
    assert all(re.match(pattern, line) for pattern, line in zip(warnings, lines, strict=True))


# -- whom to trust -----------------------------------------------------------------------------------


def test_a_private_folder_is_private(tmp_path):
    assert _compile.private(tmp_path)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not(tmp_path, mode):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    assert not _compile.private(folder)


def test_a_folder_that_others_can_replace_is_not(tmp_path):
    (tmp_path / "open" / "cache").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    assert not _compile.private(tmp_path / "open" / "cache")
    (tmp_path / "open").chmod(0o1777)  # as /tmp: nobody moves what is another's
    assert _compile.private(tmp_path / "open" / "cache")


def test_a_link_or_a_file_is_not(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    (tmp_path / "file").touch()
    assert not _compile.private(tmp_path / "link")
    assert not _compile.private(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_users_is_not(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    assert not _compile.private(folder)


def fresh(monkeypatch, temporary, named=None):
    """Look for the folder as a new process would."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("FLWR_ROBUST_CACHE", raising=False)
    if named:
        monkeypatch.setenv("FLWR_ROBUST_CACHE", str(named))
    return _compile.cache_folder.__wrapped__()


def test_our_own_folder_is_made_for_this_user_alone(tmp_path, monkeypatch):
    folder = fresh(monkeypatch, tmp_path)
    assert folder == tmp_path / f"flwr-robust-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert fresh(monkeypatch, tmp_path) == folder


def test_what_another_has_put_in_its_place_is_not_taken(tmp_path, monkeypatch, caplog):
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"flwr-robust-{os.geteuid()}").symlink_to(tmp_path / "theirs")
    assert fresh(monkeypatch, tmp_path) is None
    assert "others can write there" in caplog.text
    assert list((tmp_path / "theirs").iterdir()) == []


def test_the_named_folder_is_made_or_refused_aloud(tmp_path, monkeypatch, caplog):
    assert fresh(monkeypatch, tmp_path, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert caplog.text == ""
    (tmp_path / "file").touch()
    assert fresh(monkeypatch, tmp_path, tmp_path / "file" / "b") is None
    assert "FLWR_ROBUST_CACHE=" in caplog.text


# -- one place ---------------------------------------------------------------------------------------


def test_nothing_else_calls_njit():
    call = re.compile(r"\bn?jit\(|\bimport.*\bn?jit\b")
    assert {p.name for p in (ROOT / "flwr_robust").rglob("*.py") if call.search(p.read_text())} == {
        "_compile.py",
        "doctor.py",
    }  # which tries whether numba works at all


class Broken:
    """A cache on a full disk, with files that were cut off."""

    cache_path = "there"

    def load_overload(self, *arguments):
        raise EOFError

    def save_overload(self, *arguments):
        raise OSError(28, "no space left")


def test_a_broken_cache_costs_time_alone():
    held = _compile._Forgiving(Broken())
    assert held.load_overload("signature", None) is None
    held.save_overload("signature", None)
    assert held.cache_path == "there"
