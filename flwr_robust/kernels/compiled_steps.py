"""The numba side of `steps`; imported only where numba is.

No fast arithmetic here: every operation rounds by itself, as torch's do one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int64, uint32

from flwr_robust.kernels._compile import kernel

__all__ = ["draw", "gather", "momentum"]

_SIZE, _AHEAD = 624, 397  # the Mersenne twister's words, and how far ahead it mixes


@kernel()
def draw(seeds: Any, held: Any, first: Any, samples: Any, consecutive: bool, drawn: Any) -> None:
    """Write what each client draws of its samples; see `steps.draw_samples`."""
    state = np.empty(_SIZE, np.uint32)
    steps, clients, size = drawn.shape
    for client in range(clients):
        word = uint32(seeds[client])
        state[0] = word
        for j in range(1, _SIZE):
            word = uint32(uint32(1812433253) * (word ^ (word >> uint32(30))) + uint32(j))
            state[j] = word
        at = 0
        for step in range(steps):
            for k in range(1 if consecutive else size):
                beside = 0 if at + 1 == _SIZE else at + 1
                ahead = at + _AHEAD - _SIZE if at + _AHEAD >= _SIZE else at + _AHEAD
                mixed = (state[at] & uint32(0x80000000)) | (state[beside] & uint32(0x7FFFFFFF))
                word = state[ahead] ^ (mixed >> uint32(1))
                if mixed & uint32(1):
                    word ^= uint32(0x9908B0DF)
                state[at] = word
                at = beside
                word ^= word >> uint32(11)
                word ^= (word << uint32(7)) & uint32(0x9D2C5680)
                word ^= (word << uint32(15)) & uint32(0xEFC60000)
                word ^= word >> uint32(18)
                place = int64(word) % held[client]
                drawn[step, client, k] = samples[first[client] + place]
                if consecutive:
                    for following in range(1, size):
                        place = 0 if place + 1 == held[client] else place + 1
                        drawn[step, client, following] = samples[first[client] + place]


@kernel()
def gather(x: Any, y: Any, rows: Any, scaled: bool, scale: Any, shift: Any, inputs: Any, labels: Any) -> None:
    """Write the samples of some rows, scaled; see `steps.gather`."""
    width = x.shape[1]
    for i in range(rows.shape[0]):
        source, target = x[rows[i]], inputs[i]
        if scaled:
            for k in range(width):
                target[k] = float32(float32(source[k]) * scale) + shift
        else:
            for k in range(width):
                target[k] = float32(source[k])
        labels[i] = y[rows[i]]


@kernel()
def momentum(
    kept: Any,
    which: Any,
    fresh: Any,
    gradients: Any,
    models: Any,
    share: int,
    decay: Any,
    old: Any,
    new: Any,
    back: bool,
) -> None:
    """Step every client's momentum; see `steps.step_momenta`."""
    width = gradients.shape[1]
    for i in range(gradients.shape[0]):
        gradient, line, model = gradients[i], kept[which[i]], models[i // share]
        if decay != float32(0):
            for k in range(width):
                gradient[k] = gradient[k] + float32(decay * model[k])
        if fresh[i]:
            for k in range(width):
                line[k] = gradient[k]
        else:
            for k in range(width):
                line[k] = float32(line[k] * old) + float32(gradient[k] * new)
        if back:
            for k in range(width):
                gradient[k] = line[k]
