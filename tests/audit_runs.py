"""A run on record with all that a run can have, for the tests of what reads it."""

from __future__ import annotations

import numpy as np

from flwr_robust.audit import (
    Aggregated,
    AuditedRun,
    Evaluated,
    Measured,
    Quarantined,
    RedTeamed,
    Released,
    ReplyAdmitted,
    ReplyRefused,
    RoundConfigured,
    Snapshot,
    model_sha256,
)

CONFIG = {"defence": "clip(c=2.0) | trimmed_mean(f=1)", "clients": 5, "fraction-train": 1.0, "seed": 0, "rounds": 3}
NODES = (2**63 + 101, 2**63 + 102, 2**63 + 103, 2**63 + 104, 2**63 + 105)
LIAR, SILENT = NODES[4], NODES[3]


def rounds(run, first, last):
    """Rounds in which one client is refused and one is silent."""
    for number in range(first, last + 1):
        model = {"w": np.full(3, number, np.float32)}
        before = model_sha256({"w": np.full(3, number - 1, np.float32)})
        run.record(RoundConfigured(number, "train", NODES, available=6, model=before))
        run.record(
            *(ReplyAdmitted(number, "train", node, index, 20) for index, node in enumerate(NODES[:3])),
            ReplyRefused(number, "train", LIAR, 4, "NOT_FINITE", "w \x1b[31m[bold]<b>`x`|"),
            Aggregated(
                number,
                "OK",
                "",
                before,
                model_sha256(model),
                NODES[:3],
                (0, 1, 2),
                (0.25, 0.25, 0.5),
                (1.0, 2.0, 1e-5),
                (10.0, 90.0, None),
                3.0,
            ),
            RoundConfigured(number, "evaluate", NODES[:2]),
            *(ReplyAdmitted(number, "evaluate", node, index) for index, node in enumerate(NODES[:2])),
            Evaluated(number, "clients", {"accuracy": 0.5 + number / 10, "<i>metric</i>": 1}),
        )
        run.checkpoint(Snapshot(number, run.config, model))


def make(folder, *, key=None, signing_key=None, config=CONFIG, rule=CONFIG["defence"], statements=None, ended=True):
    """Write the run and return the folder."""
    with AuditedRun(
        folder,
        config,
        rule=rule,
        strategy="TrimmedMean",
        statements=statements,
        keep=None,
        key=key,
        signing_key=signing_key,
        sync=False,
    ) as run:
        rounds(run, 1, 3)
        run.record(
            Quarantined(3, LIAR, 4, 3),
            Measured(3, "xi", 1.25, "gradients of 1,000 samples per client"),
            RedTeamed("ipm(epsilon=0.5)", 1, 5, "accuracy", 0.9, 0.85, "results/ipm.json"),
            Quarantined(3, SILENT, None, 2),
            Released(3, SILENT, None, "the operator"),
        )
        if ended:
            run.end(3, "finished", model=model_sha256({"w": np.full(3, 3, np.float32)}))
    return folder
