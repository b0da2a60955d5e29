"""Signatures of a log's heads (RFC 8032, Ed25519): to check them, the public key is enough.

A head is the hash of the log's last line. Its signature covers the whole log, because every line holds the hash of the
line before. The signed bytes are ``flwr-robust head``, a zero byte, the number of lines, the head, and the hashes of
announced lines, separated by spaces.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from flwr_robust.errors import AuditError, ConfigurationError
from flwr_robust.files import read_plain

__all__ = ["PrivateKey", "Signer", "is_signature", "make_keys", "read_public_key"]

PrivateKey: TypeAlias = "Path | str | Ed25519PrivateKey"
"""A private key, or the PEM file of one without a password."""

_CONTEXT = b"flwr-robust head\0"
_HEX = re.compile(r"[0-9a-f]{64}")
_LONGEST = 1 << 14  # bytes of a PEM file


class Signer:
    """A private key that signs heads.

    Parameters
    ----------
    key : Ed25519PrivateKey or Path
        The key, or the PEM file of one without a password, as `make_keys` writes it.

    Attributes
    ----------
    public : str
        The public key: its 32 bytes in hexadecimal.

    Raises
    ------
    ConfigurationError
        If the file holds no such key.
    """

    def __init__(self, key: PrivateKey) -> None:
        self._key = key if isinstance(key, Ed25519PrivateKey) else _private(Path(key))
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, data: bytes) -> str:
        """Return the signature of the bytes that stand for a head, in hexadecimal."""
        return self._key.sign(_CONTEXT + data).hex()


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_plain(path, _LONGEST), password=None)
    except OSError as error:
        raise ConfigurationError(f"signing key: {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"signing key: {path} must hold an Ed25519 private key in PEM without a password; make one with "
            f"`flwr-robust audit keygen FILE`"
        )
    return key


def is_signature(signature: object, data: bytes, public: str) -> bool:
    """Say whether a text is the signature of a head.

    Parameters
    ----------
    signature : object
        The signature in hexadecimal; anything else is none.
    data : bytes
        The bytes that stand for the head.
    public : str
        The public key in hexadecimal.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(str(signature)), _CONTEXT + data)
    except (ValueError, InvalidSignature):
        return False
    return True


def read_public_key(path: Path | str) -> str:
    """Return a public key in hexadecimal, from a PEM file or from a file that holds its 64 hexadecimal digits.

    Raises
    ------
    ConfigurationError
        If the file holds no Ed25519 public key.
    """
    try:
        data = read_plain(Path(path), _LONGEST)
    except OSError as error:
        raise ConfigurationError(f"public key: {path} cannot be read: {error.strerror}") from None
    if _HEX.fullmatch(text := data.decode(errors="replace").strip()):
        return text
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(
            f"public key: {path} must hold an Ed25519 public key, in PEM or as 64 hexadecimal digits; "
            f"`flwr-robust audit keygen` writes one beside the private key"
        )
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def make_keys(path: Path | str) -> tuple[Path, Path]:
    """Make a pair of keys, and write them in PEM.

    Parameters
    ----------
    path : Path
        The file of the private key, which only its owner can read. The public key goes beside it, with ``.pub`` at the
        end of the name.

    Returns
    -------
    tuple of (Path, Path)
        The files of the private and of the public key.

    Raises
    ------
    AuditError
        If one of the files exists already, or cannot be written.
    """
    path = Path(path)
    public_path = path.with_name(f"{path.name}.pub")
    key = Ed25519PrivateKey.generate()
    written = {
        path: (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600),
        public_path: (key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644),
    }
    for each, (data, mode) in written.items():
        try:
            with os.fdopen(os.open(each, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        except OSError as error:
            raise AuditError(f"keygen: {each} cannot be written: {error.strerror}; name another file") from None
    return path, public_path
