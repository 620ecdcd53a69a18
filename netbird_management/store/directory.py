"""The state directory: the database, beside it the key to its secrets, and who has it in use."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from netbird_management.store.engine import DATABASE_FILE
from netbird_management.store.vault import KEY_FILE, Vault, VaultError

LOCK_FILE: Final = "management.lock"


class DirectoryInUseError(Exception):
    """Another process answers from this directory; it would not hear of what this one changes."""


def prepare_directory(directory: Path) -> Vault:
    """The key of the state directory, which is made, for this user alone, where there is none. Raises `VaultError`.

    A database without its key is refused: a new key would open none of its secrets.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except FileExistsError as error:
        raise VaultError(f"state_directory {directory} is not a directory") from error
    except OSError as error:
        raise VaultError(f"state_directory {directory} cannot be made: {error.strerror}") from error
    if mode & 0o077:
        raise VaultError(f"state_directory {directory} is open to others: chmod 700 it")
    if (directory / KEY_FILE).exists():
        return Vault.load(directory)
    if (directory / DATABASE_FILE).exists():
        raise VaultError(f"{directory} has a database but no {KEY_FILE}: restore it from your backup")
    return Vault.create(directory)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keeps the directory for this process, which is going to change accounts. Raises `DirectoryInUseError`.

    The kernel lets go of it however the process ends.
    """
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DirectoryInUseError(f"{directory} is in use by a running management: stop it first") from error
        yield
    finally:
        os.close(descriptor)
