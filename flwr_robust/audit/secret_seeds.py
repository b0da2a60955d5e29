"""The seeds of a run's rounds in its folder: commitments and revealed keys in the log, secrets in a file of their own.

    seeds.secret      the secrets by their commitments; readable by its owner alone

The file tells the draws of all rounds to come. So it stays on the server: leave it out when you pass the folder on. The
log is enough to repeat the rounds of a run that has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from flwr_robust.audit.commitments import Commitments
from flwr_robust.audit.contents import log_file
from flwr_robust.audit.log import Record, read_log
from flwr_robust.errors import AuditError, TamperedError
from flwr_robust.files import read_plain, write_atomically
from flwr_robust.round_seeds import LENGTH, SECRET, Chain, RoundSeeds, SecretSeed, round_seeds

__all__ = ["continued", "keep_secret", "secret_file", "seeds_of"]

_MOST = 1 << 20  # bytes of the file of secrets


def secret_file(folder: Path | str) -> Path:
    """Return the file of a run's secrets."""
    return Path(folder) / "seeds.secret"


def keep_secret(folder: Path | str, seeds: SecretSeed, *, sync: bool = True) -> None:
    """Add the secrets of all chains to the run's file; call it before the log names their commitments."""
    found = {**_read(folder), **{chain.commitment: chain.secret.hex() for _, chain in seeds.parts}}
    text = json.dumps(found, indent=1).encode() + b"\n"
    write_atomically(secret_file(folder), lambda file: file.write(text), sync=sync, mode=0o600)


def _read(folder: Path | str) -> dict[str, str]:
    path = secret_file(folder)
    try:
        found = json.loads(read_plain(path, _MOST))
        fits = isinstance(found, dict) and all(len(bytes.fromhex(secret)) == 32 for secret in found.values())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise AuditError(f"audit: {path} does not hold the secrets of a run; put back the file that the run wrote")
    return dict(found)


def _secret(folder: Path | str, chains: Iterable[tuple[int, str]]) -> SecretSeed | None:
    """Return the secret seeds of a run; None if a secret is missing."""
    held, parts = _read(folder), []
    for start, commitment in chains:
        if commitment not in held:
            return None
        chain = Chain(LENGTH, bytes.fromhex(held[commitment]))
        if chain.commitment != commitment:
            raise TamperedError(
                f"audit: a secret in {secret_file(folder)} is not the one to which the log committed; put back the "
                f"file that the run wrote"
            )
        parts.append((start, chain))
    return SecretSeed(tuple(parts))


def continued(
    folder: Path | str, records: Iterable[Record], server_round: int, fresh: SecretSeed, *, back: bool = False
) -> SecretSeed:
    """Return the secret seeds with which a run continues.

    Parameters
    ----------
    folder : Path
        The run's folder.
    records : iterable of Record
        The records of its log.
    server_round : int
        The last round that counts.
    fresh : SecretSeed
        A new secret, for a run that had none.
    back : bool
        Whether the run goes back to this round although it could continue from a later one.

    Returns
    -------
    SecretSeed
        The run's own seeds. If the run goes back, or the log has revealed the key of the next round, a new chain
        begins there: clients have seen what the old one drew.

    Raises
    ------
    AuditError
        If the file of secrets is missing or damaged.
    TamperedError
        If a secret does not fit its commitment.
    """
    commitments = Commitments.of(records)
    if not commitments.chains:
        return SecretSeed(((server_round, fresh.parts[-1][1]),))
    found = _secret(folder, commitments.chains)
    if found is None:
        raise AuditError(
            f"audit: {secret_file(folder)} is missing, or lacks a secret of this run; put back the file that the run "
            f"wrote, or start a new run from its model"
        )
    return found.restarted(server_round) if back or commitments.exposes(server_round + 1) else found


def seeds_of(folder: Path | str) -> RoundSeeds:
    """Return the seeds of the rounds of a run, to repeat them.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    RoundSeeds
        ``.of(round)`` is the seed of a round. The secrets come from the run's file, if it is there. Otherwise they
        come from the log, which reveals those of finished rounds at the end of a run.

    Raises
    ------
    AuditError
        If there is no log, or the seeds are neither in the file nor revealed.
    TamperedError
        If a secret does not fit its commitment.
    """
    commitments = Commitments.of(read_log(log_file(folder)))
    if not commitments.chains:
        if commitments.seed == SECRET:
            raise AuditError(
                f"audit: the log of {folder} names a secret seed, but no commitment; no round can be repeated"
            )
        return round_seeds(0 if commitments.seed is None else commitments.seed)
    if (found := _secret(folder, commitments.chains)) is not None:
        return found
    if commitments.revealed is not None:
        return commitments.revealed
    raise AuditError(
        f"audit: the seeds of the run in {folder} are secret: its log reveals them when the run ends; wait for that, "
        f"or put back {secret_file(folder).name}"
    )
