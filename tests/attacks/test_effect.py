"""The claim of Peng et al. (JMLR 2025) on real data: which side of it a rule falls on depends on the clients' data."""

import pytest

from flwr_robust.studies.runner import run_in_process_cell
from flwr_robust.studies.study import load_study

ROBUST = ["trimmed_mean(f=1)", "faba(f=1)", "centered_clipping(tau=0.3)", "lfighter()"]


def accuracy(partition, defence, **keys):
    """Final accuracy of one cell of the demo, in percent."""
    cells = load_study("demo", keys).cells
    wanted = {"defence": defence, "partition": partition, "seed": "0"}
    (cell,) = [cell for cell in cells if cell.labels == wanted]
    return 100 * run_in_process_cell(cell.config.to_mapping())["curve"][-1]["accuracy"]


@pytest.mark.slow
def test_with_one_class_per_client_the_mean_wins():
    mean = accuracy("by_label", "mean()")
    assert 80 < mean < 90  # the poisoned client alone holds the last class, so nothing can reach 100
    assert mean >= accuracy("by_label", "trimmed_mean(f=1)") + 8
    assert mean >= accuracy("by_label", "faba(f=1)") + 8
    assert 5 < accuracy("by_label", "krum(f=1)") < 30


@pytest.mark.slow
def test_with_iid_data_a_robust_rule_wins():
    mean = accuracy("iid", "mean()")
    best = max(accuracy("iid", rule) for rule in ROBUST)
    assert 90 < mean < best < 97


@pytest.mark.slow
def test_without_poison_the_mean_is_as_good_as_any():
    # The other side: what the robust rules win on iid data they win because of the attack.
    honest = accuracy("iid", "mean()", attack="none", attackers=0)
    assert honest > accuracy("iid", "mean()")
    assert honest >= accuracy("iid", "trimmed_mean(f=1)", attack="none", attackers=0) - 1
