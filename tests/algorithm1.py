"""Algorithm 1 of Peng, Li, Vlaski, Ling, JMLR 26 (2025), for softmax regression, in float64 numpy and nothing else."""

import numpy as np


def gradient(w, b, x, y, decay):
    scores = x @ w.T + b
    scores -= scores.max(1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y) + decay * w, p.mean(0) + decay * b


def mean(messages):
    return messages.mean(0)


def trimmed_mean(messages, f=1):
    return np.sort(messages, axis=0)[f : len(messages) - f].mean(0)


def faba(messages, f=1):
    left = list(messages)
    for _ in range(f):
        centre = np.mean(left, axis=0)
        left.pop(int(np.argmax([np.linalg.norm(m - centre) for m in left])))
    return np.mean(left, axis=0)


def train(w, b, batches, poisoned, classes, alpha, gamma, decay, rule):
    """``batches[t][k]`` is worker k's batch (x, y) of round t; workers in ``poisoned`` flip every label."""
    momenta = None
    for batch in batches:
        messages = []
        for worker, (x, y) in enumerate(batch):
            labels = classes - 1 - y if worker in poisoned else y
            messages.append(np.concatenate([g.ravel() for g in gradient(w, b, x, labels, decay)]))
        messages = np.array(messages)
        momenta = messages if momenta is None else (1 - alpha) * momenta + alpha * messages
        step = gamma * rule(momenta)
        w, b = w - step[: w.size].reshape(w.shape), b - step[w.size :]
    return w, b
