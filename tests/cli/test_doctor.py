"""What doctor finds: faults where something does not work, and not merely what is there."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from flwr_robust.cli import doctor
from flwr_robust.cli.doctor import examine


def found(**options):
    return {finding.part: finding for finding in examine(**options)}


def test_all_is_well_here(tmp_path):
    parts = found(results=tmp_path / "not" / "made" / "yet")
    assert [part for part, finding in parts.items() if finding.status == "fault"] == []
    assert {"python", "torch", "flwr", "numba", "ray", "data sets", "results folder", "Flower's home", "disk"} <= {
        *parts
    }
    assert parts["torch"].status == "ok"
    assert "digits" in parts["data sets"].found.split(" found")[0].split(", ")
    assert not (tmp_path / "not").exists()


def test_a_rule_that_computes_wrongly_is_found(monkeypatch):
    import torch

    import flwr_robust

    real = flwr_robust.aggregate
    monkeypatch.setattr(flwr_robust, "aggregate", lambda x, rule: real(torch.as_tensor(x) + 1, rule))
    (finding, *_) = doctor._torch()
    assert finding.status == "fault"


@pytest.mark.parametrize(
    ("name", "error", "status"),
    [
        ("matplotlib", ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"), "missing"),
        ("matplotlib", ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver"), "fault"),
        ("ray", ImportError("libray.so: undefined symbol"), "fault"),
        ("numba", ModuleNotFoundError("No module named 'numba'", name="numba"), "missing"),
    ],
)
def test_what_is_missing_is_told_from_what_is_broken(monkeypatch, name, error, status):
    real = importlib.import_module

    def absent(module, *arguments):
        if module == name:
            raise error
        return real(module, *arguments)

    monkeypatch.setattr(doctor.importlib, "import_module", absent)
    finding = found()[name]
    assert finding.status == status
    assert "flwr-robust[" in finding.todo if status == "missing" else str(error) in finding.found


@pytest.mark.parametrize(
    ("version", "status"), [("1.31.0", "fault"), ("1.32.0", "ok"), ("1.40rc1", "ok"), ("1.99.1", "warning")]
)
def test_versions_of_flwr(monkeypatch, version, status):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: version)
    assert doctor._flwr().status == status


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "file" / "home"))
    assert doctor._home().status == "fault"
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    assert doctor._home().status == "ok"
    assert doctor._folder("results folder", tmp_path / "file" / "x", "name another").todo == "name another"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs folders without the right to write")
def test_little_room_is_said(monkeypatch, tmp_path):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage._replace(free=10))
    assert doctor._disk(tmp_path).status == "warning"


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts():
    command = [sys.executable, "-m", "flwr_robust.cli", "doctor", "--ray", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    parts = {part["part"]: part for part in json.loads(done.stdout)["parts"]}
    assert "starts and computes" in parts["ray"]["found"]
