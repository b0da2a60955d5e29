"""Evidence and recovery: an audit log that shows tampering, checkpoints, rollback, and the robustness card of a run.

A strategy writes through `AuditedRun`; everything else reads what was written.
"""

from flwr_robust.audit.checkpoint import CheckpointStore, Snapshot
from flwr_robust.audit.contents import verify_run
from flwr_robust.audit.digest import config_sha256, fingerprint, model_sha256
from flwr_robust.audit.distances import distances_and_angles
from flwr_robust.audit.events import (
    Aggregated,
    Banned,
    CheckpointsDeleted,
    CheckpointWritten,
    ClientStatesKept,
    ClientStatesRestored,
    Evaluated,
    Event,
    IncidentReported,
    LogReopened,
    Measured,
    Quarantined,
    RedTeamed,
    Released,
    Replayed,
    ReplyAbstained,
    ReplyAdmitted,
    ReplyRefused,
    Resumed,
    RolledBack,
    RoundConfigured,
    RunEnded,
    RunStarted,
    Suspected,
    UpdateKept,
    UpdatesDeleted,
)
from flwr_robust.audit.log import AuditLog, Fault, Finding, Record, Verdict, read_log, verify
from flwr_robust.audit.run import AuditedRun, rollback

__all__ = [
    "Aggregated",
    "AuditLog",
    "AuditedRun",
    "Banned",
    "CheckpointStore",
    "CheckpointWritten",
    "CheckpointsDeleted",
    "ClientStatesKept",
    "ClientStatesRestored",
    "Evaluated",
    "Event",
    "Fault",
    "Finding",
    "IncidentReported",
    "LogReopened",
    "Measured",
    "Quarantined",
    "Record",
    "RedTeamed",
    "Released",
    "Replayed",
    "ReplyAbstained",
    "ReplyAdmitted",
    "ReplyRefused",
    "Resumed",
    "RolledBack",
    "RoundConfigured",
    "RunEnded",
    "RunStarted",
    "Snapshot",
    "Suspected",
    "UpdateKept",
    "UpdatesDeleted",
    "Verdict",
    "config_sha256",
    "distances_and_angles",
    "fingerprint",
    "model_sha256",
    "read_log",
    "rollback",
    "verify",
    "verify_run",
]
