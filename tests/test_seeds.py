"""Draws from keys: the same keys the same draw, other keys another, no global generator."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from flwr_robust.seeds import derive, numpy_generator, torch_generator

KEYS = [(), ("batch",), ("batch", 1), ("batch", 1, 2), ("batch", 2, 1), ("batch", 12), ("batch", "1", 2), ("b", "atch")]


def test_the_same_keys_give_the_same_seed():
    assert all(derive(5, *keys) == derive(5, *keys) for keys in KEYS)


def test_other_keys_give_other_seeds():
    seeds = [derive(seed, *keys) for seed, keys in itertools.product((0, 1, 2, -1, 2**70), KEYS)]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_a_generator():
    seeds = [derive(seed, "x") for seed in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # All 63 bits are used.
    assert max(seeds) > 2**62
    assert min(seeds) < 2**55
    assert 0.4 < np.mean([seed % 2 for seed in seeds]) < 0.6


def test_another_process_derives_the_same():
    code = "from flwr_robust.seeds import derive; print(derive(7, 'batch', 3, 1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive(7, "batch", 3, 1)


def test_generators_in_pairs():
    def torch_draw(*keys):
        return torch.rand(4, generator=torch_generator(*keys)).tolist()

    def numpy_draw(*keys):
        return numpy_generator(*keys).random(4).tolist()

    for draw in (torch_draw, numpy_draw):
        assert draw(1, "a", 2) == draw(1, "a", 2)
        assert draw(1, "a", 2) != draw(1, "a", 3)
        assert draw(1, "a", 2) != draw(2, "a", 2)
        assert draw(1, "a", 2) != draw(1, "b", 2)


def test_the_global_generators_are_neither_read_nor_advanced():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = torch.rand(3, generator=torch_generator(1, "x")), numpy_generator(1, "x").random(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(torch.rand(3, generator=torch_generator(1, "x")), first[0])
    np.testing.assert_array_equal(numpy_generator(1, "x").random(3), first[1])


def test_draws_of_different_keys_are_not_correlated():
    draws = np.array([numpy_generator(0, "batch", t).standard_normal(500) for t in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 0.25
    assert 0.03 < correlations.std() < 0.06  # 1 / sqrt(500) = 0.045


def test_equal_keys_of_other_types_give_the_same_seed():
    assert derive(np.int64(3), "batch", np.int32(1)) == derive(3, "batch", 1)


def test_fractions_are_no_keys():
    with pytest.raises(TypeError):
        derive(0, "batch", 0.25)
