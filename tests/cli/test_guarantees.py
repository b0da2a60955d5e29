"""`flwr-robust certify` and `plan`: output, JSON, pictures, and what bad input gets."""

import json

import pytest
from typer.testing import CliRunner

from flwr_robust import certify, plan
from flwr_robust.aggregators import Krum
from flwr_robust.certificates import table
from flwr_robust.cli import app
from flwr_robust.core.guarantees import Bound


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_plan_is_printed_and_drawn(tmp_path):
    picture = tmp_path / "plan.png"
    done = invoke("plan", "--clients", 1000, "--compromised", 100, "--rounds", 200, "--rule", "krum", "--plot", picture)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    found = plan(1000, 100, rounds=200, rule="krum")
    assert found.sentence in text
    assert f"{found.least_sample} smallest sample that fits the condition and the risk" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_json_is_the_plan():
    done = invoke("plan", "--clients", 50, "--compromised", 5, "--sample", 20, "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(plan(50, 5, sample=20).to_dict()))
    documented = " ".join(invoke("plan", "--help").output.replace("│", " ").split()).split("JSON: ")[1].split(".")[0]
    assert set(documented.split(", ")) == set(plan(50, 5).to_dict())


def test_an_impossible_plan_is_a_finding():
    done = invoke("plan", "--clients", 20, "--compromised", 8, "--rule", "trimmed_mean")
    assert done.exit_code == 1
    assert "have at most 6 compromised clients" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--clients", 10, "--compromised", 11), "compromised must be at most the clients=10"),
        (("--clients", 10, "--compromised", 1, "--plot", "x.pdf"), "--plot must be a PNG file; got x.pdf"),
        (("--clients", 10, "--compromised", 1, "--plot", "none/x.png"), "the folder of --plot must exist"),
        (("--clients", 10, "--compromised", 1, "--rule", "nothing"), "unknown aggregator"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(arguments, sentence):
    done = invoke("plan", *arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_certificate_is_printed_written_and_drawn(tmp_path):
    picture, output = tmp_path / "krum.png", tmp_path / "krum.json"
    arguments = ("krum", "--n", 7, "--f", 2, "--evaluations", 120)
    done = invoke("certify", *arguments, "--plot", picture, "--output", output)
    assert done.exit_code == 0, done.output
    found = certify("krum", 7, 2, evaluations=120)
    assert found.sentence in " ".join(done.stdout.split())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(output.read_text()) == found.to_dict()
    assert json.loads(invoke("certify", *arguments, "--json").stdout) == found.to_dict()


def test_the_help_of_certify_names_the_keys_of_its_json():
    text = " ".join(invoke("certify", "--help").output.replace("│", " ").split())
    keys = text.split("JSON: ")[1].split(".")[0]
    assert set(keys.split(", ")) == set(certify("mean", 5, 1).to_dict())


def test_all_rules_are_certified(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "rules", lambda: [("trimmed_mean", "trimmed_mean"), ("bulyan", "bulyan")])
    monkeypatch.setattr(table, "STAGES", ("", "nnm"))
    output = tmp_path / "all.json"
    done = invoke(
        *("certify", "--all", "--n", 8, "--f", 2, "--evaluations", 150, "--workers", 1, "--seconds", 5),
        *("--output", output, "--plot", tmp_path / "all.png"),
    )
    assert done.exit_code == 0, done.output
    assert "trimmed_mean(f=2)" in done.stdout
    assert "= 0.5000" in done.stdout
    assert "bulyan needs n >= 4f + 3" in done.stdout
    assert len(json.loads(output.read_text())["rows"]) == 2 * len(table.STAGES)


def test_a_contradiction_is_a_finding(monkeypatch):
    monkeypatch.setattr(Krum, "bounds", lambda self, n, f: (Bound("kappa", 0.1, "a claim"),))
    done = invoke("certify", "krum", "--n", 7, "--f", 2, "--evaluations", 120)
    assert done.exit_code == 1
    assert "one of them is wrong" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("krum", "--n", 6, "--f", 2), "krum needs n >= 2f + 3; got n=6, f=2"),
        (("krum", "--n", 6, "--f", 2, "--measure", "x"), "measure must be one of kappa, lambda, rho"),
        ((), "give a rule or --all; got neither"),
        (("krum", "--all"), "give a rule or --all; got both"),
        (("--all", "--n", 8), "--all needs --f"),
        (("--all", "--n", 8, "--f", 4), "f must be below n / 2"),
        (("krum", "--n", 7, "--f", 2, "--output", "x.txt"), "--output must be a JSON file; got x.txt"),
        (("krum", "--n", 7, "--f", 2, "--output", "none/x.json"), "the folder of --output must exist"),
    ],
)
def test_wrong_input_of_certify_is_one_sentence_and_status_2(arguments, sentence):
    done = invoke("certify", *arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())
