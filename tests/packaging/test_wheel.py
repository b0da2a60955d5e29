"""The wheel: what it holds, and that its commands run in an environment that has nothing of the clone."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("build", "hatchling", "hatch_fancy_pypi_readme")),
        reason="needs build, hatchling and hatch-fancy-pypi-readme",
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this tree with what is installed here."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel and the packages installed here, but not this project's own installation."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = folder / "lib" / version / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    # Folders that a .pth names come last, and their own .pth files, an editable installation's too, are not read.
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    return folder / "bin" / "python"


def call(python, folder, *arguments):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "FLWR_ROBUST_DATA")}
    command = [str(python), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=clean, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_metadata_is_of_a_version_that_indexes_read(wheel):
    # A build backend moves on before the indexes do: hatchling 1.33 writes 2.5 unless told, which twine 6 refuses.
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert message_from_bytes(archive.read(name))["Metadata-Version"] == "2.4"


def test_it_holds_the_package_alone_with_its_data(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in held} == {"flwr_robust", "flwr_robust-0.1.0.dist-info"}
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "flwr_robust").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.parent.name != "__pycache__"
    }
    shipped = {
        f"flwr_robust/studies/shipped/{path.relative_to(ROOT / 'experiments').as_posix()}"
        for name in ("studies", "papers", "recorded")
        for path in (ROOT / "experiments" / name).iterdir()
        if path.suffix in (".toml", ".json")
    }
    assert len(shipped) > 40
    packed = {name for name in held if name.startswith("flwr_robust/")}
    assert packed >= sources | shipped
    assert not {name for name in packed if "__pycache__" in name or name.endswith((".pyc", ".nbc", ".nbi"))}


def test_its_description_has_no_relative_link(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(name))
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert len(links) > 10
    assert all(link.startswith("https://") for link in links)
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert {line.split(", ")[0] for line in metadata.get_all("Project-URL")} == set(urls)


def test_it_aggregates(python, tmp_path):
    code = (
        "import torch, flwr_robust; from flwr_robust.flower import Krum; Krum(f=1)\n"
        "print(flwr_robust.__file__); print(flwr_robust.aggregate(torch.eye(3), 'median').value.tolist())\n"
    )
    where, value = call(python, tmp_path, "-c", code).splitlines()
    assert Path(where).is_relative_to(python.parents[1])
    assert value == "[0.0, 0.0, 0.0]"


def test_its_commands_run(python, tmp_path):
    command = ("-c", "import sys; from flwr_robust.cli import app; app(prog_name='flwr-robust')")
    assert "audit" in call(python, tmp_path, *command, "--help")
    code = "from flwr_robust.studies import paper, study; print(study.STUDIES, paper.PAPERS)"
    assert call(python, tmp_path, "-c", code).count("shipped") == 2


def test_it_reproduces_from_what_is_recorded(python, tmp_path):
    code = "from flwr_robust.cli import app; app(prog_name='flwr-robust')"
    arguments = ("reproduce", "rfa", "--recorded", "--results", str(tmp_path / "results"))
    call(python, tmp_path, "-c", code, *arguments)
    assert list((tmp_path / "results").rglob("*.md"))
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


def test_its_app_is_one_that_flower_packs(python, tmp_path):
    code = (
        "from pathlib import Path; from flwr_robust.studies.flower_run import write_app; write_app(Path('app'))\n"
        "from flwr.cli.config_utils import load_and_validate\n"
        "print(load_and_validate(Path('app/pyproject.toml'), check_module=False))\n"
    )
    call(python, tmp_path, "-c", code)
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    for component in app["components"].values():
        module, name = component.split(":")
        code = f"from {module} import {name}; print({module.split('.')[0]}.__file__)"
        call(python, tmp_path, "-c", f"import flwr_robust; {code}")


def test_a_study_of_ones_own_is_interrupted_resumed_and_reported(python, tmp_path):
    """Every part of docs/bring-your-own.md, outside the clone, by the installed package."""
    page = (ROOT / "docs" / "bring-your-own.md").read_text()
    for name, kind in (("mine.py", "python"), ("study.toml", "toml")):
        (tmp_path / name).write_text(re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1])
    study = ["study.toml", "--plugin", "mine.py", "--set", "rounds=2", "--set", "evaluate-every=1"]
    command = ["-m", "flwr_robust.cli", "run", *study, "--engine", "fast", "--workers", "2"]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "FLWR_ROBUST_DATA")}
    results = tmp_path / "results" / "study"
    with subprocess.Popen([str(python), *command], cwd=tmp_path, env=clean, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 240
        while run.poll() is None and time.monotonic() < deadline and len(list(results.glob("*.json"))) < 3:
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, said
    assert "the same command continues" in said
    finished = len(list(results.glob("*.json")))
    assert 3 <= finished < 96
    assert not list(results.glob("*.failed.json"))
    table = call(python, tmp_path, *command)
    assert re.search(rf"skipped *│ *{finished}\b", table)
    assert len(list(results.glob("*.json"))) == 96

    export = ["--export", "latex", "--export", "pdf", "--width", "column"]
    said = call(python, tmp_path, "-m", "flwr_robust.cli", "report", *study, *export)
    assert "central mean" in said
    assert "worst" in said
    tables = "".join(path.read_text() for path in tmp_path.rglob("tables.tex"))
    assert "keep = 0." in tables  # which candidate was chosen
    assert all(path.read_bytes().startswith(b"%PDF") for path in tmp_path.rglob("*.pdf"))
    assert len(list(tmp_path.rglob("*.pdf"))) >= 2

    for wrong in ("loss=mine.py:nothing", "validation=1.5", "rounds=many"):
        asked = [str(python), *command, "--set", wrong]
        failed = subprocess.run(asked, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert failed.returncode == 2
        assert "Traceback" not in failed.stderr
        assert wrong.partition("=")[0] in failed.stderr
