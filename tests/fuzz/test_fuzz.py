"""The fuzz target of the npy parser: that what it checks can fail, and, where atheris is installed, a short run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flwr_robust.flower import wire
from tests.flower_helpers import header, npy
from tests.fuzz import npy_header


def test_the_seeds_are_read():
    assert all(npy_header.check(seed[1:]) for seed in npy_header.seeds())
    assert not npy_header.check(npy_header.seeds()[0][1:-1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda array: np.frombuffer(array.data, ">f4", 2, len(array.data) - 8),  # the bytes in another order
        lambda array: np.frombuffer(array.data, "<f4", 1, len(array.data) - 8),  # not all of them
        lambda array: np.frombuffer(array.data, "<f4", 2, len(array.data) - 8).copy(),  # a copy
        lambda array: np.broadcast_to(np.float32(1), (1 << 20,)),  # more than came
    ],
)
def test_a_parser_that_reads_something_else_is_found(monkeypatch, wrong):
    data = npy(header(), b"\1\2\3\4\5\6\7\x08")
    assert npy_header.check(data)
    monkeypatch.setattr(wire, "decode", wrong)
    with pytest.raises(AssertionError):
        npy_header.check(data)


@pytest.mark.slow
def test_a_short_run_finds_nothing_and_gets_around(tmp_path):
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz.npy_header", str(tmp_path), "-runs=30000", "-seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.iterdir())) > len(npy_header.seeds())  # inputs that reached something new were kept
