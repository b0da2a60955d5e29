"""Other libraries as oracles: equal where the definition is the same, and, where it is not, by how much and why.

ByzFL is no dependency of this project: its tests are skipped where it is not installed. Flower's built-in strategies
are always there.
"""

import importlib

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from flwr_robust import Rows, aggregate
from flwr_robust.flower import InProcessGrid
from flwr_robust.preaggregators import ARC, NNM, Clip
from tests.flower_helpers import content, record, values

SIZES = [(7, 1, 30), (10, 2, 500), (11, 3, 64), (20, 4, 257)]  # n, f, d; n even and odd


def rows(n, d, seed=0, faulty=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    x[:faulty] += 2
    return x


def value(x, rule, **options):
    return aggregate(x, rule, **options).value


def equal(ours, theirs):
    torch.testing.assert_close(ours.double(), torch.as_tensor(theirs).double(), rtol=1e-5, atol=1e-5)


def differ(ours, theirs):
    assert float((ours - torch.as_tensor(theirs)).abs().max()) > 1e-3


# -- ByzFL ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byzfl():
    pytest.importorskip("byzfl")
    return importlib.import_module("byzfl")


SAME = {
    "mean()": lambda b, f: b.Average(),
    "median()": lambda b, f: b.Median(),  # for even n the mean of the two middle values, as here
    "trimmed_mean(f={f})": lambda b, f: b.TrMean(f),
    "meamed(f={f})": lambda b, f: b.Meamed(f),
    "krum(f={f}, variant='byzfl')": lambda b, f: b.Krum(f),
    "multi_krum(f={f}, variant='byzfl')": lambda b, f: b.MultiKrum(f),
    "minimum_diameter(f={f})": lambda b, f: b.MDA(f),
    "centered_clipping(tau=2.0, steps=3)": lambda b, f: b.CenteredClipping(L=3, tau=2.0),
    "nnm(f={f}) | trimmed_mean(f={f})": lambda b, f: lambda x: b.TrMean(f)(b.NNM(f)(x)),
    "clip(c=5.0) | median()": lambda b, f: lambda x: b.Median()(b.Clipping(5.0)(x)),
    "arc(f={f}) | trimmed_mean(f={f})": lambda b, f: lambda x: b.TrMean(f)(b.ARC(f)(x)),
    "nnm(f={f}) | krum(f={f}, variant='byzfl')": lambda b, f: lambda x: b.Krum(f)(b.NNM(f)(x)),
}


@pytest.mark.parametrize(("n", "f", "d"), SIZES)
@pytest.mark.parametrize("rule", SAME)
def test_byzfl_agrees(byzfl, rule, n, f, d):
    x = rows(n, d, seed=n, faulty=f)
    # A copy: byzfl's pre-aggregators write into their input.
    equal(value(x, rule.format(f=f)), SAME[rule](byzfl, f)(x.clone()))


@pytest.mark.parametrize(("n", "f", "d"), SIZES)
def test_byzfl_mixes_rows_alike(byzfl, n, f, d):
    x = rows(n, d, seed=n, faulty=f)
    pairs = [(NNM(f=f), byzfl.NNM(f)), (ARC(f=f), byzfl.ARC(f)), (Clip(c=3.0), byzfl.Clipping(3.0))]
    for stage, theirs in pairs:
        matrix, _, _ = stage.matrix(Rows.from_tensor(x), {})
        equal(matrix @ x.double(), theirs(x.clone()))


@pytest.mark.parametrize(("n", "f", "d"), SIZES)
def test_byzfl_monna_trusts_a_row_of_its_own(byzfl, n, f, d):
    x = rows(n, d, seed=n, faulty=f)
    equal(value(x, f"monna(f={f})", trusted=x[n - 1]), byzfl.MoNNA(f, idx=n - 1)(x))


def test_byzfl_centered_clipping_keeps_its_centre_on_the_object(byzfl):
    theirs, state = byzfl.CenteredClipping(L=1, tau=1.5), None
    for seed in range(3):
        x = rows(9, 40, seed)
        ours, state = aggregate(x, "centered_clipping(tau=1.5)", state=state)
        equal(ours.value, theirs(x))


def test_byzfl_krum_looks_at_one_neighbour_more(byzfl):
    changed = 0
    for seed in range(40):
        x = rows(10, 5, seed)
        theirs = byzfl.Krum(2)(x)
        assert torch.equal(value(x, "krum(f=2, variant='byzfl')"), theirs)
        changed += not torch.equal(value(x, "krum(f=2)"), theirs)
    assert 0 < changed < 40


def test_byzfl_geometric_median_stops_early(byzfl):
    x = rows(11, 20, faulty=3) + 5
    ours = value(x, "geometric_median()")
    differ(ours, byzfl.GeometricMedian()(x))
    equal(ours, byzfl.GeometricMedian(nu=1e-6, T=500)(x))

    def objective(point):
        return float((x - point).norm(dim=1).sum())

    assert objective(ours) < objective(byzfl.GeometricMedian()(x))


def subset_eigenvalue(x, chosen):
    centred = (x[chosen] - x[chosen].mean(0)).double()
    return float(torch.linalg.eigvalsh(centred @ centred.T)[-1]) / len(chosen)


def test_byzfl_smea_and_caf_depend_on_a_random_start(byzfl):
    x = rows(8, 12, faulty=2)
    for theirs, rule in ((byzfl.SMEA(2), "smea(f=2)"), (byzfl.CAF(2), "caf(f=2)")):
        found = []
        for seed in range(10):
            torch.manual_seed(seed)
            found.append(theirs(x))
        assert len({tuple(answer.tolist()) for answer in found}) > 1
        assert torch.equal(value(x, rule), value(x, rule))
    ours = aggregate(x, "smea(f=2)").stats["kept"]
    subsets = list(torch.combinations(torch.arange(8), 6))
    least = subset_eigenvalue(x, torch.tensor(ours))
    assert least == pytest.approx(min(subset_eigenvalue(x, s) for s in subsets), rel=1e-9)


# -- Flower's built-ins ----------------------------------------------------------------------------------


def built_in(strategy, x, counts=None):
    """One round of a Flower strategy on reply Messages that carry the rows."""
    x = np.asarray(x)
    grid = InProcessGrid(ClientApp(), len(x))
    asked = strategy.configure_train(1, record({"w": np.zeros_like(x[0])}), ConfigRecord(), grid)
    counts = [1] * len(x) if counts is None else counts
    replies = [
        Message(content({"w": row}, num_examples=count), reply_to=message)
        for row, count, message in zip(x, counts, asked, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    return torch.from_numpy(values(arrays)["w"])


FLOWER = {
    "mean()": lambda n, f: flower.FedAvg(),
    "median()": lambda n, f: flower.FedMedian(),
    "trimmed_mean(f={f})": lambda n, f: flower.FedTrimmedAvg(beta=(f + 0.5) / n),
    "krum(f={f})": lambda n, f: flower.Krum(num_malicious_nodes=f),
    "multi_krum(f={f})": lambda n, f: flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f),
    "multi_krum(f={f}, m=3)": lambda n, f: flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=3),
}


@pytest.mark.parametrize(("n", "f", "d"), SIZES)
@pytest.mark.parametrize("rule", FLOWER)
def test_flower_agrees(rule, n, f, d):
    x = rows(n, d, seed=n, faulty=f)
    equal(value(x, rule.format(f=f)), built_in(FLOWER[rule](n, f), x))


def test_flower_trims_a_fraction_of_the_replies_not_of_the_clients():
    x = rows(8, 30, faulty=2)  # ten were asked, two did not answer
    theirs = built_in(flower.FedTrimmedAvg(beta=0.2), x)
    equal(value(x, "trimmed_mean(f=1)"), theirs)
    differ(value(x, "trimmed_mean(fraction=0.2)", asked=10), theirs)
    equal(value(x, "trimmed_mean(fraction=0.2)", asked=10), value(x, "trimmed_mean(f=2)"))


def test_flower_multi_krum_believes_num_examples():
    x = rows(10, 30)
    counts = [1, 100, 1, 1, 1, 1, 1, 1, 1, 1]
    theirs = built_in(flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=10), x, counts)
    equal(theirs, x[1] * (100 / 109) + (x.sum(0) - x[1]) / 109)
    differ(value(x, "multi_krum(f=2, m=10)", counts=counts), theirs)


def test_flower_krum_loses_small_updates_of_large_weights():
    wrong = 0
    for seed in range(20):
        x = 1 + 1e-4 * rows(10, 200, seed)
        exact = x.double()
        squared = (exact[:, None] - exact[None]).square().sum(2).fill_diagonal_(torch.inf)
        nearest = int(squared.sort(dim=1).values[:, :6].sum(1).argmin())
        assert torch.equal(value(x, "krum(f=2)"), x[nearest])
        wrong += not torch.equal(built_in(flower.Krum(num_malicious_nodes=2), x), x[nearest])
    assert wrong > 0


def test_flower_bulyan_scores_once(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # Flower's Bulyan calls it once per selected reply
    n, f = 11, 2
    same = other = 0
    for seed in range(40):
        x = rows(n, 6, seed)
        ours = aggregate(x, f"bulyan(f={f})")
        scores = torch.tensor(aggregate(x, f"krum(f={f})").stats["scores"])
        at_once = set(scores.argsort()[: n - 2 * f].tolist())
        theirs = built_in(flower.Bulyan(num_malicious_nodes=f), x)
        if set(ours.stats["selected"]) == at_once:
            equal(ours.value, theirs)
            same += 1
        else:
            other += 1
    assert same > 0
    assert other > 0
