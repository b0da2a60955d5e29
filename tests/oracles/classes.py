"""Slow oracle of Byz-DeSGD's server."""

from __future__ import annotations

import numpy as np


def server_oracle(x, rounds, classes, eta, gamma, beta):
    """Run the server's update, number by number; rounds: per round the aggregates by class, none if infeasible."""
    buffer = [[0.0] * len(x) for _ in range(classes)]
    x = [float(value) for value in x]
    for fresh in rounds:
        if fresh:
            for k in range(classes):
                buffer[k] = list(map(float, fresh[k])) if k in fresh else [beta * value for value in buffer[k]]
            for j in range(len(x)):
                m_hat = sum(float(fresh[k][j]) for k in fresh) / len(fresh)
                m_bar = sum(buffer[k][j] for k in range(classes)) / classes
                x[j] -= eta * ((1 - gamma) * m_hat + gamma * m_bar)
    return np.array(x)
