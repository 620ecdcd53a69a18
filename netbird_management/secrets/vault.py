"""Secrets at rest, sealed with a key that is stored beside the database, never in it."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from netbird_management.model.store_errors import VaultError

KEY_FILE: Final = "store.key"


class Vault:
    """Seals and opens secrets, and derives keys for single purposes."""

    def __init__(self, key: bytes) -> None:
        """`key` is 32 bytes."""
        self._box = SecretBox(key)
        self._key = key

    def __repr__(self) -> str:
        return "Vault(***)"

    def seal(self, secret: bytes) -> bytes:
        return bytes(self._box.encrypt(secret))

    def open(self, sealed: bytes) -> bytes:
        """Raises `VaultError` if the secret was sealed with another key or was changed."""
        try:
            return self._box.decrypt(sealed)
        except CryptoError as error:
            raise VaultError("the key does not open a stored secret") from error

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes, always equal for the same installation and purpose; it does not reveal the vault's key."""
        return hmac.digest(self._key, b"netbird-management/" + purpose.encode(), hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """Identifies the key without revealing it; hexadecimal."""
        return self.derive("fingerprint").hex()

    @classmethod
    def create(cls, directory: Path, key: bytes = b"", *, name: str = KEY_FILE) -> "Vault":
        """Creates the key file, readable by this user only; without `key`, generates one.

        Raises `FileExistsError` if the file exists.
        """
        key = key or os.urandom(SecretBox.KEY_SIZE)
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    @classmethod
    def load(cls, directory: Path, name: str = KEY_FILE) -> "Vault":
        """Reads the key file. Raises `VaultError`."""
        path = directory / name
        try:
            mode = path.stat().st_mode
            key = path.read_bytes()
        except OSError as error:
            raise VaultError(f"cannot read {path}: {error.strerror}") from error
        if mode & 0o077:
            raise VaultError(f"{path} is readable by other users: run chmod 600 on it")
        if len(key) != SecretBox.KEY_SIZE:
            raise VaultError(f"{path} is not a key file: it must be {SecretBox.KEY_SIZE} bytes long")
        return cls(key)
