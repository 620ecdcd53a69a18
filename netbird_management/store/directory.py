"""The state directory: the database, and beside it the key to its secrets."""

from pathlib import Path

from netbird_management.store.engine import DATABASE_FILE
from netbird_management.store.vault import KEY_FILE, Vault, VaultError


def prepare_directory(directory: Path) -> Vault:
    """The key of the state directory, which is made, for this user alone, where there is none. Raises `VaultError`.

    A database without its key is refused: a new key would open none of its secrets.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / KEY_FILE).exists():
        return Vault.load(directory)
    if (directory / DATABASE_FILE).exists():
        raise VaultError(f"{directory} has a database but no {KEY_FILE}: restore it from your backup")
    return Vault.create(directory)
