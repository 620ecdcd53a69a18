"""The state directory, which contains the database and the key to its secrets."""

from pathlib import Path

from netbird_management.model.store_errors import VaultError
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import DATABASE_FILE


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
