"""The grid that ByzFL's benchmark and ours share: equal cells, and a page that says what was measured."""

import io

import pytest
import torch
from rich.console import Console

from benchmarks import byzfl_grid
from flwr_robust.runs.config import RunConfig
from flwr_robust.runs.fast import unbatched

CELLS = list(byzfl_grid._cells())


def test_a_cell_says_the_same_to_both():
    assert len(CELLS) == 32
    for cell in CELLS:
        theirs = byzfl_grid._theirs(cell, 25, "data", "results")
        config = RunConfig.from_mapping(byzfl_grid._ours(cell, 25, "data"))
        bench, clients = theirs["benchmark_config"], theirs["honest_clients"]
        assert unbatched(config) is None  # or it would not be the fast engine that is timed
        assert config.clients - config.attackers == bench["nb_honest_clients"] == 10
        assert config.attackers == bench["f"]
        assert config.rule.declared(config.clients) == bench["f"]
        assert config.rounds == bench["nb_steps"] == theirs["evaluation_and_results"]["evaluation_delta"]
        assert config.alpha == pytest.approx(1 - clients["momentum"])
        assert config.weight_decay == clients["weight_decay"]
        assert config.batch_size == clients["batch_size"]
        assert config.server_learning_rate == theirs["model"]["learning_rate"]
        gamma = bench["data_distribution"][0]["distribution_parameter"]
        assert config.partition == f"gamma_similarity(gamma={gamma}, idle={bench['f']})"


def test_models_have_the_same_layers():
    theirs, x = byzfl_grid._SoftmaxMnist(), torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(theirs(x), torch.log_softmax(theirs.linear(x.flatten(1)), 1))
    assert sum(p.numel() for p in theirs.parameters()) == 7850  # as in our softmax


def test_the_first_images_are_read_as_mnist_is(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    raw = tmp_path / "whole" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 7000), ("t10k", 1500)):
        images = bytes(i % 251 for i in range(count)) * 784
        head = (2051).to_bytes(4, "big") + count.to_bytes(4, "big") + 2 * (28).to_bytes(4, "big")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images)
        labels = (2049).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    byzfl_grid._first_images(str(tmp_path / "whole"), tmp_path / "first")
    whole = torchvision.datasets.MNIST(tmp_path / "whole", train=True)
    first = torchvision.datasets.MNIST(tmp_path / "first", train=True)
    assert len(first) == 6000
    assert len(torchvision.datasets.MNIST(tmp_path / "first", train=False)) == 1000
    assert torch.equal(first.data, whole.data[:6000])
    assert torch.equal(first.targets, whole.targets[:6000])


def test_the_page_shows_the_least_accuracy_over_attacks_and_every_run():
    names = ("byzfl", "flwr-robust")
    cells = [
        {**cell, **{name: {"seconds": 2.0 - who, "accuracy": 0.5 + place / 100} for who, name in enumerate(names)}}
        for place, cell in enumerate(CELLS)
    ]
    said = {name: {"status": who, "lines": 1, "last": "a | b"} for who, name in enumerate(names)}
    document = {
        "what": "32 runs",
        "load": 1.0,
        "steps": 25,
        "byzfl": "0.0.11",
        "cells": cells,
        "seconds": {"byzfl": 64.0, "flwr-robust": 32.0},
        "ratio": {"median": 2.0, "min": 2.0, "max": 2.0},
        "says": {"a mistake": said},
        "differences": ["One."],
        "machine": {"cpus": 2},
    }
    page = byzfl_grid.markdown(document)
    assert "| TrMean | 2 | 0.66 | 50.0 | 50.0 |" in page
    assert "| GeometricMedian | 2 | 0.66 | 54.0 | 54.0 |" in page
    assert page.count("| SignFlipping |") == 8
    assert "| a mistake | flwr-robust | 1 | 1 | `a \\| b` |" in page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(byzfl_grid.table(document))
    assert "run by run a factor of 2.0" in " ".join(console.export_text().split())
