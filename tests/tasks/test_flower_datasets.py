"""The partitioners of flwr-datasets: drawn from the run's seed, and refused in one sentence where they do not fit."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from flwr_robust import ConfigurationError, UnknownNameError
from flwr_robust.errors import MissingExtraError
from flwr_robust.runs.config import RunConfig
from flwr_robust.tasks import DataWarning
from flwr_robust.tasks.flower_datasets import _PARTITIONERS, FlwrDatasets
from flwr_robust.tasks.partition import Natural, partitions

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
OWNERS = np.random.default_rng(1).integers(0, 10, 600)
OPTIONS = {
    "ContinuousPartitioner": {"strictness": 0.5},
    "DirichletPartitioner": {"alpha": 0.5},
    "DistributionPartitioner": {
        "distribution_array": [[1.0, 3.0]] * 10,
        "num_unique_labels_per_partition": 2,
        "preassigned_num_samples_per_label": 2,
    },
    "GroupedNaturalIdPartitioner": {"group_size": 1},
    "InnerDirichletPartitioner": {"partition_sizes": [60] * 10, "alpha": 0.5},
    "PathologicalPartitioner": {"num_classes_per_partition": 2, "class_assignment_mode": "deterministic"},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "SizePartitioner": {"partition_sizes": [10, *[60] * 9]},
}


def text(partitioner, options=None):
    return f"flwr_datasets(partitioner={partitioner!r}" + (f", options={options!r})" if options else ")")


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_without_the_package_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs datasets: pip install 'flwr-robust\[datasets\]'"):
        FlwrDatasets("IidPartitioner")(LABELS, 10, seed=0)


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self):
        self.library = pytest.importorskip("flwr_datasets.partitioner")

    def test_all_partitioners_are_named_but_those_of_columns_and_functions(self):
        classes = {name for name, found in vars(self.library).items() if inspect.isclass(found)}
        columns = {"VerticalEvenPartitioner", "VerticalSizePartitioner"}
        assert classes - columns - {"Partitioner", "IdToSizeFncPartitioner"} == set(_PARTITIONERS)

    @pytest.mark.filterwarnings("ignore::flwr_robust.tasks.DataWarning")
    @pytest.mark.parametrize("partitioner", _PARTITIONERS)
    def test_each_splits_samples_by_the_seed_alone(self, partitioner, capfd):
        clients = 5 if partitioner in ("ExponentialPartitioner", "SquarePartitioner") else 10
        split = partitions.parse(text(partitioner, OPTIONS.get(partitioner)))
        assert partitions.parse(str(split)) == split
        parts = split(LABELS, clients, 1, OWNERS)
        held = np.concatenate(parts)
        assert len(parts) == clients
        assert len(set(held.tolist())) == len(held) == (550 if partitioner == "SizePartitioner" else 600)
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
        np.random.seed(3)  # noqa: NPY002
        assert same(parts, split(LABELS, clients, 1, OWNERS))
        assert same(parts, split(LABELS, clients, 2, OWNERS)) == (partitioner == "NaturalIdPartitioner")
        assert capfd.readouterr().err == ""  # no progress bars

    def test_options_reach_the_partitioner(self):
        held = [
            len(set(LABELS[part]))
            for part in FlwrDatasets("PathologicalPartitioner", OPTIONS["PathologicalPartitioner"])(LABELS, 10, 0)
        ]
        assert held == [2] * 10
        skewed, even = (
            FlwrDatasets("DirichletPartitioner", {"alpha": alpha, "min_partition_size": 1})(LABELS, 5, 0)
            for alpha in (0.05, 1000.0)
        )
        assert max(map(len, skewed)) > 2 * min(map(len, skewed))
        assert max(map(len, even)) < 1.2 * min(map(len, even))

    def test_owners_are_followed_as_natural_does(self):
        assert same(FlwrDatasets("NaturalIdPartitioner")(LABELS, 10, 0, OWNERS), Natural()(LABELS, 10, 0, OWNERS))
        by_owner = FlwrDatasets("PathologicalPartitioner", {"num_classes_per_partition": 2, "partition_by": "owner"})
        with pytest.warns(DataWarning, match="PathologicalPartitioner says: Classes: .* will NOT be used"):
            parts = by_owner(LABELS, 10, 0, OWNERS)
        assert [len(set(OWNERS[part])) for part in parts] == [2] * 10
        assert sum(map(len, parts)) < 600

    @pytest.mark.parametrize(
        ("partitioner", "options", "clients", "words"),
        [
            ("DirichletPartitioner", None, 10, r"needs alpha; write flwr_datasets\(.*options=\{'alpha': ...\}\)"),
            ("DirichletPartitioner", {"alpha": -1}, 10, r"refuses options=.*clients=10 \(ValueError: .*; correct them"),
            ("DirichletPartitioner", {"alpha": 1, "beta": 2}, 10, "unknown option of DirichletPartitioner 'beta'"),
            ("DirichletPartitioner", {"alpha": 1, "seed": 2}, 10, "unknown option of DirichletPartitioner 'seed'"),
            (
                "DirichletPartitioner",
                {"alpha": 1, "partition_by": "site"},
                10,
                "partition_by must be one of label, owner",
            ),
            ("SizePartitioner", {"partition_sizes": [300, 300]}, 10, "makes 2 parts .* got clients=10: set clients=2"),
            ("SquarePartitioner", None, 30, "refuses options=None with clients=30"),
            ("NaturalIdPartitioner", None, 10, "needs owners, and the task does not say"),
        ],
    )
    def test_what_does_not_fit_is_named(self, partitioner, options, clients, words):
        with pytest.raises(ConfigurationError, match=words):
            FlwrDatasets(partitioner, options)(LABELS, clients, 0)

    def test_an_empty_client_is_named(self):
        with pytest.raises(ConfigurationError, match=r"leaves clients \[\d.*\] without samples; take fewer clients"):
            FlwrDatasets("DirichletPartitioner", {"alpha": 0.01, "min_partition_size": 0})(LABELS % 2, 20, 0)

    def test_a_run_takes_one(self):
        config = RunConfig(
            clients=5, partition=text("PathologicalPartitioner", {"num_classes_per_partition": 2}), seed=1
        )
        labels = config.data_set.y_train.numpy()
        with pytest.warns(DataWarning):
            assert [len(set(labels[part])) for part in config.samples] == [2] * 5


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (text("DirichletPartitoner"), "partitioner must be one of ContinuousPartitioner, DirichletPartitioner, "),
        ("flwr_datasets()", "partitioner must be given"),
        (text("IidPartitioner", [1]), "options must be a dictionary of values by name; got"),
        ("flwr_datasets(partitioner='IidPartitioner', alpha=1)", "unknown field of flwr_datasets 'alpha'"),
    ],
)
def test_a_wrong_text_is_refused_when_it_is_read(written, words):
    with pytest.raises(ConfigurationError, match=words):
        partitions.parse(written)


def test_unknown_options_list_the_allowed_ones():
    pytest.importorskip("flwr_datasets")
    with pytest.raises(UnknownNameError, match="Did you mean 'num_classes_per_partition'"):
        FlwrDatasets("PathologicalPartitioner", {"num_classes": 2})(LABELS, 10, 0)


@pytest.mark.parametrize(
    ("partitioner", "options", "reads"),
    [
        ("IidPartitioner", None, False),
        ("SizePartitioner", None, False),
        ("NaturalIdPartitioner", None, False),
        ("DirichletPartitioner", {"alpha": 0.5}, True),
        ("DirichletPartitioner", {"alpha": 0.5, "partition_by": "owner"}, False),
        ("NaturalIdPartitioner", {"partition_by": "label"}, True),
    ],
)
def test_who_reads_classes(partitioner, options, reads):
    assert partitions.parse(text(partitioner, options)).reads_classes == reads
