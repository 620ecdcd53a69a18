"""The state directory: the database, and beside it the key to its secrets."""

from pathlib import Path

from netbird_management.model.store_errors import VaultError
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import DATABASE_FILE


def prepare_directory(directory: Path) -> Vault:
    """The key of the state directory, which is made, for this user alone, where there is none. Raises `VaultError`.

    A database without its key is refused: a new key would open none of its secrets.
    """
    make_directory(directory)
    if (directory / KEY_FILE).exists():
        return Vault.load(directory)
    if (directory / DATABASE_FILE).exists():
        raise VaultError(f"{directory} has a database but no {KEY_FILE}: restore it from your backup")
    return Vault.create(directory)


def make_directory(directory: Path) -> None:
    """For this user alone. Raises `VaultError` for one that is open to others, or cannot be made."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except FileExistsError as error:
        raise VaultError(f"state_directory {directory} is not a directory") from error
    except OSError as error:
        raise VaultError(f"state_directory {directory} cannot be made: {error.strerror}") from error
    if mode & 0o077:
        raise VaultError(f"state_directory {directory} is open to others: chmod 700 it")
