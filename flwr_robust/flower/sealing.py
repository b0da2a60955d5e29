"""Sealing: encrypt a client's state with a key that the server never sees.

A sealed state is encrypted and authenticated with AES-256 in Galois/Counter Mode. Its key is derived from the client's
secret with HKDF-SHA256. The server can keep and return it, but neither read nor change it. Only the client that has
sealed it can open it. So the server may offer it to a node with a new id that claims to be this client.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.app import ConfigRecord, RecordDict

from flwr_robust.errors import ConfigurationError
from flwr_robust.flower._compat import packed, unpacked

__all__ = ["is_sealed", "seal", "unseal"]

_NAME, _BOX = "sealed", "box"
_PURPOSE = b"flwr-robust client state"
_NONCE = 12  # bytes
_LEAST = 16  # bytes of a secret


def _cipher(secret: bytes) -> AESGCM:
    if not isinstance(secret, bytes) or len(secret) < _LEAST:
        what = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
        raise ConfigurationError(
            f"serve: state_key must return at least {_LEAST} bytes, the client's secret; got {what}"
        )
    return AESGCM(HKDF(SHA256(), 32, None, _PURPOSE).derive(secret))


def seal(state: RecordDict, secret: bytes) -> RecordDict:
    """Return a state as one encrypted record.

    Parameters
    ----------
    state : RecordDict
        The state.
    secret : bytes
        The client's secret, at least 16 bytes that nobody can guess.

    Raises
    ------
    ConfigurationError
        If the secret is too short.

    Examples
    --------
    >>> state = RecordDict({"own": ConfigRecord({"step": 3})})
    >>> sealed = seal(state, b"a secret of the client's")
    >>> is_sealed(sealed), unseal(sealed, b"a secret of the client's")["own"]["step"]
    (True, 3)
    """
    nonce = secrets.token_bytes(_NONCE)
    box = nonce + _cipher(secret).encrypt(nonce, packed(state), _PURPOSE)
    return RecordDict({_NAME: ConfigRecord({_BOX: box})})


def is_sealed(state: RecordDict) -> bool:
    """Say whether records look like those that `seal` returns."""
    record = state.get(_NAME)
    return len(state) == 1 and isinstance(record, ConfigRecord) and isinstance(record.get(_BOX), bytes)


def unseal(state: RecordDict, secret: bytes) -> RecordDict:
    """Return the state in an encrypted record.

    Parameters
    ----------
    state : RecordDict
        What `seal` returned.
    secret : bytes
        The secret that it was sealed with.

    Raises
    ------
    ValueError
        If it is not sealed, was sealed with another secret, or was changed.
    """
    if not is_sealed(state):
        raise ValueError("the state is not sealed, although this client seals its own")
    box = state[_NAME][_BOX]
    assert isinstance(box, bytes)
    try:
        return unpacked(_cipher(secret).decrypt(box[:_NONCE], box[_NONCE:], _PURPOSE))
    except (InvalidTag, ValueError):
        raise ValueError("the state was sealed by another client, or changed") from None
