"""Slow oracles of all rules, by name, for the conformance suite."""

import numpy as np

from tests.oracles import basic, selections, similarities

RULES = basic.RULES | selections.RULES | similarities.RULES
MIXERS = basic.MIXERS | similarities.MIXERS
NEEDS_COUNTS = basic.NEEDS_COUNTS | selections.NEEDS_COUNTS | similarities.NEEDS_COUNTS
NEEDS_LAYOUT = basic.NEEDS_LAYOUT


def aggregate(stages, x, *, counts=None, layout=()):
    """Value and weights of [(name, fields), ...], the last of which is the rule; weights in the rows of x."""
    mixing = np.eye(len(x))
    for name, fields in stages[:-1]:
        extra = {"counts": counts} if name in NEEDS_COUNTS else {}
        matrix = MIXERS[name](mixing @ x, **fields, **extra)
        mixing = matrix @ mixing
    name, fields = stages[-1]
    extra = {}
    if name in NEEDS_COUNTS:
        extra["counts"] = counts
    if name in NEEDS_LAYOUT:
        extra["layout"] = layout
    value, weights = RULES[name](mixing @ x, **fields, **extra)
    return value, None if weights is None else weights @ mixing
