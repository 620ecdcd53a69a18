"""The state directory, which contains the database and the key to its secrets."""

import os
import secrets
from pathlib import Path
from typing import Final

from netbird_management.model.store_errors import VaultError
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import DATABASE_FILE

RELAY_SECRET_FILE: Final = "relay.secret"  # noqa: S105 - the name of a file
_SHORTEST_SECRET: Final = 16


def prepare_directory(directory: Path) -> Vault:
    """The vault of the state directory. A missing directory is created, readable by this user only, with a new key.

    Raises `VaultError`, also for a database without its key, as a new key would open none of its secrets.
    """
    make_directory(directory)
    if (directory / KEY_FILE).exists():
        return Vault.load(directory)
    if (directory / DATABASE_FILE).exists():
        raise VaultError(f"{directory} contains a database but no {KEY_FILE}: restore it from your backup")
    return Vault.create(directory)


def make_directory(directory: Path) -> None:
    """Creates the directory, readable by this user only, if it is missing. Raises `VaultError` for a directory that
    other users can open, or that cannot be created."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except FileExistsError as error:
        raise VaultError(f"state_directory {directory} is not a directory") from error
    except OSError as error:
        raise VaultError(f"state_directory {directory} cannot be created: {error.strerror}") from error
    if mode & 0o077:
        raise VaultError(f"state_directory {directory} is accessible to other users: run chmod 700 on it")


def relay_secret(directory: Path, file: Path | None = None) -> str:
    """The secret that management shares with relays: the text of `file`, else of `relay.secret` in the state directory,
    which is created, readable by this user only, with a new secret if it is missing.

    Raises `VaultError` for a file that cannot be read, that other users can read, or with a secret of less than 16
    characters.
    """
    path = directory / RELAY_SECRET_FILE if file is None else file
    if file is None and not path.exists():
        return _new_secret(path)
    try:
        mode = path.stat().st_mode
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise VaultError(f"relay_secret: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if mode & 0o077:
        raise VaultError(f"relay_secret: {path} is accessible to other users: run chmod 600 on it")
    if len(secret) < _SHORTEST_SECRET:
        raise VaultError(f"relay_secret: {path} must contain at least {_SHORTEST_SECRET} characters")
    return secret


def _new_secret(path: Path) -> str:
    """Creates the file, whole or not at all: a crash must not leave an empty secret behind."""
    secret, unfinished = secrets.token_urlsafe(32), path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        raise VaultError(f"relay_secret: cannot create {path}: {error.strerror}") from error
    return secret
