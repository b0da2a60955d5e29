"""The choice among candidates: on validation alone, by the mean or the worst case, and with what is missing told."""

import json
import math
import random
import re

import pytest
from typer.testing import CliRunner

from flwr_robust.cli import app
from flwr_robust.errors import ConfigurationError
from flwr_robust.studies import report
from flwr_robust.studies.choose import choose
from flwr_robust.studies.study import load_study
from tests.studies.test_select import OWN, SHARED

# By candidate and attack; of two seeds one is 0.02 above, one as much below.
VALUES = {
    ("tau = 0.1", "none"): 0.9,
    ("tau = 0.1", "flip"): 0.5,
    ("tau = 1", "none"): 0.75,
    ("tau = 1", "flip"): 0.6,
    ("-", "none"): 0.8,
    ("-", "flip"): 0.7,
}


def documents_of(study, validation, test=lambda labels, at: 0.3):
    """Results with values on validation and test samples from functions of the labels and the round."""
    found = []
    for cell in study.cells:
        curve = [
            {"round": at, "accuracy": test(cell.labels, at), study.select.metric: validation(cell.labels, at)}
            for at in (1, 2)
        ]
        found.append({"labels": dict(cell.labels), "curve": curve, "final": curve[-1]})
    return found


def of_table(labels, at):
    noise = {"0": 0.02, "1": -0.02}[labels["seed"]]
    return VALUES[labels["candidate"], labels["attack"]] + noise if at == 2 else 0.1


@pytest.fixture
def study(tmp_path):
    return load(tmp_path, OWN)


def load(folder, text):
    path = folder / "own.toml"
    path.write_text(text)
    return load_study(str(path))


def chosen_of(chosen):
    return {choice.title: choice.chosen and str(choice.chosen) for choice in chosen.choices}


def test_the_worst_case_and_the_mean_choose_each_their_own(study, tmp_path):
    worst = choose(study, documents_of(study, of_table))
    assert chosen_of(worst) == {"clipping": "tau = 1", "median": "-"}
    first, second = worst.choices
    assert (first.chosen.value, first.chosen.at) == (pytest.approx(0.6), "flip")
    assert (str(first.runner_up), first.runner_up.value) == ("tau = 0.1", pytest.approx(0.5))
    assert second.runner_up is None
    other = load(tmp_path, OWN.replace("[select]", '[select]\nby = "mean"'))
    mean = choose(other, documents_of(other, of_table))
    assert chosen_of(mean) == {"clipping": "tau = 0.1", "median": "-"}
    assert (mean.choices[0].chosen.value, mean.choices[0].chosen.at) == (pytest.approx(0.7), "")
    assert worst.sentence == (
        "For each defence the candidate is shown whose worst case over attack of the validation accuracy is highest "
        "(means over seeds). 3 candidates were looked at on validation samples; no test value was read."
    )
    assert "whose mean over attack of the validation accuracy is highest" in mean.sentence


def test_the_report_knows_the_chosen_alone(study):
    documents = documents_of(study, of_table, lambda labels, at: {"tau = 1": 0.4}.get(labels["candidate"], 0.2))
    chosen = choose(study, documents)
    assert chosen.study.axes == {"defence": ("clipping", "median"), "attack": ("none", "flip"), "seed": ("0", "1")}
    labels = [dict(cell.labels) for cell in chosen.study.cells]
    assert labels == [document["labels"] for document in chosen.documents]
    assert len(labels) == 8
    assert all("candidate" not in each for each in labels)
    assert {d["final"]["accuracy"] for d in chosen.documents if d["labels"]["defence"] == "clipping"} == {0.4}
    assert {c.config.defence for c in chosen.study.cells} == {"centered_clipping(tau=1.0)", "median()"}
    assert documents[0]["labels"]["candidate"] == "tau = 0.1"  # the results themselves stay


def test_test_values_do_not_enter_the_choice(study):
    """Test values are dealt anew among the cells, ten times; the choices and what is said of them stay."""
    draw = random.Random(0)
    first = choose(study, documents_of(study, of_table))
    dealt = [draw.random() for _ in study.cells]
    shown = set()
    for _ in range(10):
        draw.shuffle(dealt)
        values = dict(zip((frozenset(cell.labels.items()) for cell in study.cells), dealt, strict=True))
        again = choose(study, documents_of(study, of_table, lambda labels, at, v=values: v[frozenset(labels.items())]))
        assert again.choices == first.choices
        assert again.sentence == first.sentence
        shown.add(tuple(document["final"]["accuracy"] for document in again.documents))
    assert len(shown) > 1


def test_a_mean_over_seeds_comes_first(study):
    """The worst seed of a candidate is below the other's, and the worst mean over seeds is not."""

    def value(labels, at):
        if labels["candidate"] == "tau = 1":
            return {"0": 0.2, "1": 0.9}[labels["seed"]]
        return 0.5

    assert chosen_of(choose(study, documents_of(study, value)))["clipping"] == "tau = 1"


def test_of_equal_candidates_the_first_is_chosen(study):
    assert chosen_of(choose(study, documents_of(study, lambda labels, at: 0.5)))["clipping"] == "tau = 0.1"


def test_lower_is_better_where_the_metric_says_so(tmp_path):
    study = load(tmp_path, SHARED + 'metric = "validation_loss"\n')
    losses = {"small": {"none": 1.0, "flip": 2.0}, "large": {"none": 0.1, "flip": 3.0}}
    chosen = choose(study, documents_of(study, lambda labels, at: losses[labels["rate"]][labels["attack"]]))
    assert chosen_of(chosen) == {"mean()": "small", "median()": "small"}
    assert chosen.choices[0].chosen.value == 2.0
    assert "the validation loss is lowest" in chosen.sentence
    assert "worst case over partition and attack" in chosen.sentence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_a_model_that_diverged_is_the_worst(tmp_path, metric, value):
    study = load(tmp_path, SHARED + f'metric = "{metric}"\n')

    def of(labels, at):
        if labels["rate"] == "large" and labels["attack"] == "flip":
            return value
        return 0.5 if labels["rate"] == "small" else {"validation_loss": 0.1, "validation_accuracy": 0.9}[metric]

    assert chosen_of(choose(study, documents_of(study, of)))["mean()"] == "small"


def test_the_best_round_of_a_run_counts_where_the_report_takes_it(tmp_path):
    study = load(tmp_path, OWN.replace("[report]", '[report]\ntake = "best"'))
    rounds = {"tau = 0.1": (0.9, 0.1), "tau = 1": (0.5, 0.5), "-": (0.1, 0.1)}
    chosen = choose(study, documents_of(study, lambda labels, at: rounds[labels["candidate"]][at - 1]))
    assert chosen_of(chosen)["clipping"] == "tau = 0.1"
    assert "of each run in the best of its 2 rounds" in chosen.sentence
    final = load(tmp_path, OWN)
    chosen = choose(final, documents_of(final, lambda labels, at: rounds[labels["candidate"]][at - 1]))
    assert chosen_of(chosen)["clipping"] == "tau = 1"


def test_a_candidate_that_lacks_results_is_told_and_not_chosen(study):
    documents = documents_of(study, of_table)
    lacking = [cell for cell in study.cells if cell.labels["candidate"] == "tau = 1"][1:3]
    left = [d for d in documents if d["labels"] not in [dict(cell.labels) for cell in lacking]]
    chosen = choose(study, left, {tuple(lacking[0].labels.values()): "it diverged"})
    assert chosen_of(chosen) == {"clipping": "tau = 0.1", "median": "-"}
    assert [other.lacking for other in chosen.choices[0].others] == ["tau = 1 (1 missing and 1 failed of 4)"]
    assert chosen.choices[0].runner_up is None
    assert "2 candidates were looked at" in chosen.sentence


def test_a_place_without_a_choice_is_empty_and_nothing_at_all_is_an_error(study):
    documents = documents_of(study, of_table)
    left = [d for d in documents if d["labels"]["defence"] == "median" or d["labels"]["seed"] == "0"]
    chosen = choose(study, left)
    assert chosen_of(chosen) == {"clipping": None, "median": "-"}
    assert {d["labels"]["defence"] for d in chosen.documents} == {"median"}
    with pytest.raises(ConfigurationError, match=r"nothing can be chosen \(clipping: tau = 0.1 \(2 missing of 4\)"):
        choose(study, [d for d in documents if d["labels"]["seed"] == "0"])


def test_a_metric_that_no_result_has_is_an_error(study):
    documents = [{**d, "curve": [{"round": 1, "accuracy": 0.5}]} for d in documents_of(study, of_table)]
    with pytest.raises(ConfigurationError, match=r"no result has validation_accuracy; take another"):
        choose(study, documents)


def test_without_select_everything_is_shown(tmp_path):
    study = load(tmp_path, SHARED.partition("[select]")[0])
    documents = [{"labels": {}}]
    chosen = choose(study, documents, {("a",): "failed"})
    assert (chosen.study, chosen.documents, chosen.choices, chosen.sentence) == (study, documents, (), "")
    assert chosen.failures == {("a",): "failed"}


# -- the report ---------------------------------------------------------------------------------------


def full(study, documents):
    """Add to results what a report reads beside the curve."""
    digests = {tuple(cell.labels.items()): cell for cell in study.cells}
    for document in documents:
        cell = digests[tuple(document["labels"].items())]
        yield {
            **document,
            "config": cell.config.to_mapping(),
            "config_digest": cell.digest,
            "declared_f": None,
            "real_f": cell.config.attackers,
            "engine": "fast",
            "attackers_weight": 0.0,
            "seconds": 1.0,
            "finished": "2026-01-01",
            "machine": {"cpus": 2, "system": "Linux", "python": "3.11"},
            "versions": {"flwr": "1.41"},
        }


def test_the_report_shows_the_choice_and_what_it_looked_at(study, tmp_path):
    documents = [*full(study, documents_of(study, of_table))]
    rendered = report.render(study, documents[:-1], tmp_path)  # the last is one of the median
    assert rendered.choice.columns == (
        "defence",
        "chosen",
        "validation accuracy, %, worst",
        "under",
        "candidates",
        "runner-up",
        "its value",
        "not judged",
    )
    assert rendered.choice.rows == (
        ("clipping", "tau = 1", "60.0", "flip", "2", "tau = 0.1", "50.0", "-"),
        ("median", "none", "-", "-", "1", "-", "-", "- (1 missing of 4)"),
    )
    page = report.write_report(rendered, "flwr-robust run own").read_text()
    assert "Chosen hyper-parameters. For each defence the candidate is shown whose worst case over attack" in page
    assert "11 of 12 cells" in page
    assert page.count("tau = 1") == 1
    assert report.render(load(tmp_path, SHARED.partition("[select]")[0]), [], tmp_path).choice is None


def test_the_command_tells_the_choice(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    results = tmp_path / "results"
    run = ["run", str(path), "--results", str(results), "--engine", "fast", "--workers", "1"]
    assert CliRunner().invoke(app, run).exit_code == 0
    done = CliRunner().invoke(app, ["report", str(path), "--results", str(results)])
    assert done.exit_code == 0, done.output
    assert "chosen hyper-parameters" in done.output
    assert "3 candidates were looked at on validation samples" in re.sub(r"\s+", " ", done.output)
    told = json.loads(CliRunner().invoke(app, ["report", str(path), "--results", str(results), "--json"]).stdout)
    assert (told["cells"], told["finished"]) == (12, 12)
    clipping, median = told["chosen"]
    assert clipping["labels"] == {"defence": "clipping"}
    assert [each["chosen"] for each in clipping["candidates"]] == [True, False]
    assert {each["labels"]["candidate"] for each in clipping["candidates"]} == {"tau = 0.1", "tau = 1"}
    assert clipping["candidates"][0]["value"] >= clipping["candidates"][1]["value"]
    assert [each["labels"] for each in median["candidates"]] == [{"candidate": "-"}]
    assert len(told["places"]) == 4
    # With a candidate's result missing, the other is chosen, and the rest is told.
    lost = clipping["candidates"][0]["labels"]["candidate"].replace(" ", "_").replace("=", "_")
    next(results.glob(f"own/clipping-{re.sub('_+', '_', lost)}-*.json")).unlink()
    done = CliRunner().invoke(app, ["report", str(path), "--results", str(results), "--json"])
    (first, second) = json.loads(done.stdout)["chosen"][0]["candidates"]
    assert (first["chosen"], first["missing"], second["chosen"], second["missing"]) == (True, 0, False, 1)
    assert second["value"] is None
