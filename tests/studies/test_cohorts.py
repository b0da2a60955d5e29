"""How many attackers rounds ask, against cohorts drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_robust.diagnostics.planning import hoeffding_sample
from flwr_robust.errors import ConfigurationError
from flwr_robust.studies.cohorts import _least, cohorts
from flwr_robust.studies.sheets import Section, sheets
from flwr_robust.studies.study import load_study

STUDY = """
[config]
task = "digits"
clients = 40
fraction-train = {fraction}
rounds = 30
[axes]
defence = ["mean()", "median()"]
corruption = [
  {{ label = "none", attack = "none", attackers = 0 }},
  {{ label = "a quarter", attack = "sign_flip()", attackers = 10 }},
  {{ label = "three quarters", attack = "sign_flip()", attackers = 30 }},
]
seed = [0, 1]
[report]
columns = "corruption"
{cohorts}
"""


def study_of(tmp_path, fraction=0.25, cohorts="cohorts = 0.1"):
    path = tmp_path / "sampled.toml"
    path.write_text(STUDY.format(fraction=fraction, cohorts=cohorts))
    return load_study(str(path))


@pytest.mark.parametrize(("clients", "attackers"), [(100, 25), (100, 1), (40, 10)])
def test_the_exact_number_is_the_least_that_drawn_cohorts_bear(clients, attackers):
    draw = np.random.default_rng(0)

    def failing(cohort):
        runs = [
            any(2 * (draw.permutation(clients)[:cohort] < attackers).sum() >= cohort for _ in range(10))
            for _ in range(600)
        ]
        return sum(runs) / len(runs)

    exact = _least(clients, attackers, 10, 0.1)
    assert exact <= hoeffding_sample(attackers / clients, 0.5, 10, 0.1)
    assert failing(exact) < 0.15
    assert exact == 1 or failing(exact - 1) > 0.08


def test_no_cohort_is_enough_if_half_are_corrupted():
    assert _least(10, 5, 10, 0.05) is None


def test_the_table_counts_the_attackers_of_the_cohorts_of_the_runs(tmp_path):
    study = study_of(tmp_path)
    found = cohorts(study, {})
    quarter, most = found.rows
    bound, exact = hoeffding_sample(0.25, 0.5, 30, 0.1), _least(40, 10, 30, 0.1)
    assert quarter[:5] == ("a quarter", "0.25", f"{bound}, more than there are", str(exact), "10")
    assert most[:4] == ("three quarters", "0.75", "none", "none")
    counts = []
    for seed in (0, 1):
        config = next(c.config for c in study.cells if c.labels["seed"] == str(seed) and c.config.attackers == 10)
        from flwr_robust.runs.fast import _Run
        from flwr_robust.runs.world import World

        run = _Run(World(config))
        counts += [sum(client >= 30 for client in run.asked(at)) for at in range(1, 31)]
    assert quarter[6:] == (f"{max(counts)} of 10", f"{sum(count >= 5 for count in counts)} of 60")
    assert [sheet.kind for sheet in sheets(study, Section({}, {}))].count("cohort") == 1


def test_studies_that_ask_all_clients_or_do_not_ask_for_it_have_no_such_table(tmp_path):
    assert cohorts(study_of(tmp_path, fraction=1.0), {}) is None
    silent = study_of(tmp_path, cohorts="")
    assert not [sheet for sheet in sheets(silent, Section({}, {})) if sheet.kind == "cohort"]
    with pytest.raises(ConfigurationError, match=r"cohorts of \[report\] must be .*< 1; got"):
        study_of(tmp_path, cohorts="cohorts = 2")
