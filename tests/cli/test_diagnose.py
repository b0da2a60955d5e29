"""`flwr-robust diagnose`: measurements, tables, and advice that turns with the partition."""

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.studies.diagnose import diagnose, diagnosis_notes, diagnosis_tables


def invoke(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


def config(**keys):
    return RunConfig(
        **{"attack": "label_flip()", "attackers": 1, "rounds": 40, "evaluate_every": 20, "diagnose": 500, **keys}
    )


def test_the_advice_turns_with_the_partition():
    apart, alike = diagnose(config(partition="by_label")), diagnose(config(partition="iid", rounds=300))
    assert apart.advice.expected == "mean"
    assert alike.at_last.expected == "robust"
    assert alike.at_last.rules[0] == "faba"
    assert apart.noise == 0  # all samples were taken
    curve = apart.document["curve"]
    assert apart.advice.xi == max(point["xi"] for point in curve)
    assert apart.advice.disturbance == max(point["A"] for point in curve)
    assert apart.at_last.xi == curve[-1]["xi"] == pytest.approx(apart.unit)
    # by label the mean is nearer to the honest mean than any robust rule; with like clients robust rules are
    for found in (apart, alike):
        del found.rhos["lfighter()"]  # its start is drawn
    assert min(apart.rhos, key=apart.rhos.get) == "mean()"
    assert max(alike.rhos, key=alike.rhos.get) == "mean()"
    assert apart.rhos["mean()"] <= 0.1 * curve[-1]["A"] / curve[-1]["xi"] + 1e-9
    for found in (apart, alike):
        assert all(found.rhos[text] <= bound for text, bound in found.bounds.items())
        assert found.ceiling > found.advice.disturbance


def test_the_mean_is_off_by_what_the_poison_adds():
    """One of ten is poisoned: the mean of all is delta A away from the honest mean, to rounding."""
    found = diagnose(config(partition="dirichlet(beta=1.0)"), ["mean()"])
    last = found.document["curve"][-1]
    assert found.rhos["mean()"] * found.unit == pytest.approx(0.1 * last["A"], rel=1e-6)
    assert list(found.rhos) == ["mean()"]


def test_what_is_printed(tmp_path):
    result = invoke("--rounds", 20, "--partition", "iid", "--samples", 40, "--plot", tmp_path / "new" / "xi.png")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for words in (
        "at the global model of a run of the plain mean",
        "trimmed_mean(f=1)",
        "proven rho",
        "on at most 40 samples of each client",
        "no flip of labels has an A above",
        "constants left out",
    ):
        assert words in text
    assert (tmp_path / "new" / "xi.png").read_bytes().startswith(b"\x89PNG")
    mlp = invoke("--rounds", 5, "--model", "mlp", "--partition", "iid", "--set", "alpha=1.0", "--defence", "krum(f=1)")
    assert mlp.exit_code == 0, mlp.output
    text = " ".join(mlp.output.split())
    assert "krum(f=1)" in text
    assert "faba(f=1)" not in text
    assert "no flip of labels" not in text  # nothing is known of other models
    assert "samples of each client, which" not in text  # digits hold fewer than a thousand each


def test_notes_say_where_the_last_model_differs():
    found = diagnose(config(partition="dirichlet(beta=1.0)", rounds=300))
    notes = diagnosis_notes(found)
    assert (found.advice.expected, found.at_last.expected) == ("mean", "open")
    assert "the answer is: open" in notes[-2]
    assert notes[-1] == found.advice.sentence
    same = diagnose(config(partition="by_label"))
    assert not any("the answer is" in note for note in diagnosis_notes(same))
    assert [table.row_count for table in diagnosis_tables(same)] == [3, 5]


@pytest.mark.parametrize(
    ("keys", "defences", "words"),
    [
        ({"attack": "alie(z=1.0)"}, (), "attack must be one on data"),
        ({"attack": "none", "attackers": 0}, (), "attack must be one on data.*got attack='none'"),
        ({"diagnose": 0}, (), "samples must be at least 2; got 0"),
        ({"attack_start": 3}, (), "from the first round to the last; got attack-start=3"),
        ({"attack_stop": 3}, (), "got attack-start=1, attack-stop=3"),
        ({"attackers": 5}, (), "fewer than half of clients=10; got attackers=5"),
        ({}, ("krum(f=4)",), "krum needs n >= 2f"),
        ({}, ("fltrust()",), "compares with an update of the server's own"),
    ],
)
def test_wrong_input_is_one_sentence_before_anything_runs(keys, defences, words, monkeypatch):
    monkeypatch.setattr("flwr_robust.studies.diagnose.run_fast_cell", None)
    with pytest.raises(ConfigurationError, match=words):
        diagnose(config(**keys), defences)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_run_that_diverges_is_said():
    with pytest.raises(ConfigurationError, match="smaller server-learning-rate than 1e\\+38"):
        diagnose(config(server_learning_rate=1e38))


def test_the_command_reports_errors():
    for arguments in (["--task", "digit"], ["--set", "nonsense"], ["--set", "colour=1"], ["--attack", "alie(z=1.0)"]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "error: " in result.output
