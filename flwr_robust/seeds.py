"""Randomness as an argument: every draw comes from (seed, purpose, round, client, ...).

Nothing in flwr-robust seeds a global generator. Two draws with different keys are independent;
the same keys give the same draw on every engine, in any order of the clients.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable

import numpy as np
import torch

__all__ = ["derive", "derive_each", "numpy_generator", "torch_generator"]


def derive(seed: int, *keys: int | str) -> int:
    """Derive a 63-bit seed from a run's seed and the keys of one draw.

    Parameters
    ----------
    seed : int
        The run's seed.
    *keys : int or str
        The purpose of the draw, for example ``"batch", round, client``.

    Returns
    -------
    int
        A seed in [0, 2^63).

    Examples
    --------
    >>> derive(0, "batch", 1, 2) == derive(0, "batch", 1, 2)
    True
    >>> derive(0, "batch", 1, 2) == derive(0, "batch", 2, 1)
    False
    """
    plain = [key if isinstance(key, str) else operator.index(key) for key in (seed, *keys)]
    text = repr(tuple(plain)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def derive_each(seed: int, purpose: str, numbers: Iterable[int], last: int) -> list[int]:
    """Return ``derive(seed, purpose, number, last)`` for many numbers, in a third of the time.

    Examples
    --------
    >>> derive_each(0, "batch", [4], 2) == [derive(0, "batch", 4, 2)]
    True
    """
    before, after, digest, number_of = f"({seed}, {purpose!r}, ", f", {last})", hashlib.blake2b, int.from_bytes
    texts = (f"{before}{number}{after}".encode() for number in numbers)
    return [number_of(digest(text, digest_size=8).digest(), "big") >> 1 for text in texts]


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """Return a CPU torch generator for one draw; see `derive`."""
    return torch.Generator().manual_seed(derive(seed, *keys))


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a numpy generator for one draw; see `derive`."""
    return np.random.default_rng(derive(seed, *keys))
