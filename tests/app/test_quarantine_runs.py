"""Quarantine, and the end after an infeasible round, in whole runs by the run config; and that results tell of both."""

import pytest

from flwr_robust.errors import ConfigurationError
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import unbatched
from flwr_robust.studies.runner import run_fast_cell
from flwr_robust.tasks import TARGETS
from tests.apps import run

LIARS = {"attack": "nan()", "attackers": 2, "knowledge": "nothing", "rounds": 5, "evaluate_every": 5}
STARVED = {"defence": "krum(f=3)", "attack": "nan()", "attackers": 2, "attack_start": 3, "rounds": 6}


def pairs(entries):
    return [(entry["round"], entry["partition"]) for entry in entries]


def test_who_is_refused_twice_is_asked_no_more(tmp_path):
    found, _ = run(tmp_path, **LIARS, quarantine_after=2)
    assert pairs(found["refused"]) == [(1, 8), (1, 9), (2, 8), (2, 9)]
    assert pairs(found["quarantined"]) == [(at, client) for at in (3, 4, 5) for client in (8, 9)]
    assert found["missing"] == []
    free, _ = run(tmp_path, **LIARS)
    assert len(free["refused"]) == 10
    assert free["quarantined"] == []


def test_without_offenders_quarantine_changes_nothing(tmp_path):
    assert run(tmp_path, rounds=4, quarantine_after=1)[0]["model_sha256"] == run(tmp_path, rounds=4)[0]["model_sha256"]


def test_a_run_ends_with_its_results_after_a_round_that_is_infeasible(tmp_path):
    stopped, model = run(tmp_path, **STARVED, on_infeasible="stop")
    assert stopped["stopped"].startswith("krum needs n >= 2f + 3; got n=8")
    assert stopped["outcomes"] == {**dict.fromkeys(stopped["outcomes"], 0), "OK": 2, "INFEASIBLE": 1}
    # The last model is evaluated although its round would not have been.
    assert [point["round"] for point in stopped["curve"]] == [0, 3]
    assert set(stopped["curve"][1]) == {"round", *TARGETS["class"].metrics}
    assert model
    kept, _ = run(tmp_path, **STARVED)
    assert (kept["stopped"], kept["outcomes"]["INFEASIBLE"]) == ("", 4)
    assert kept["model_sha256"] == stopped["model_sha256"]


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(tmp_path):
    folder = str(tmp_path / "run")
    run(tmp_path, **STARVED, message="delta", on_infeasible="stop", audit=folder)
    found, _ = run(tmp_path, **STARVED, message="delta", on_infeasible="stop", audit=folder, resume=True)
    assert found["outcomes"]["INFEASIBLE"] == 2  # one more round, in vain


def test_the_fast_engine_leaves_such_runs_to_flower(tmp_path):
    assert unbatched(RunConfig(rounds=2)) is None
    for keys in ({"quarantine_after": 1}, {"on_infeasible": "stop"}):
        assert "guard" in unbatched(RunConfig(rounds=2, **keys))
        document = run_fast_cell(RunConfig(rounds=2, **keys).to_mapping())
        assert (document["engine"], document["outcomes"]["OK"]) == ("in-process", 2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"quarantine-after": -1},
            "quarantine-after must be an integer >= 1, or 0: never; got quarantine-after=-1",
        ),
        ({"on-infeasible": "raise"}, "on-infeasible must be one of keep, stop; got on-infeasible='raise'"),
    ],
)
def test_wrong_values_are_refused(keys, words):
    with pytest.raises(ConfigurationError, match=words):
        RunConfig.from_mapping(keys)
