"""Sealed secrets of a store, and the key that seals them: a wrong key is detected at start, and keys can be changed."""

import contextlib
import os
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from netbird_management.model.store_errors import VaultError
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import open_engines
from netbird_management.store.models import SealRow, ServiceRow

# File with the new key during a change of keys. It replaces the key file after all secrets are sealed with it.
NEXT_KEY_FILE: Final = "store.key.next"


async def opening_vault(engine: AsyncEngine, directory: Path, vault: Vault) -> Vault:
    """The vault that opens this store: `vault`, or that of the new key if a change of keys was interrupted at its end.

    A store without a recorded key records that of `vault`. Raises `VaultError` if neither key is the store's.
    """
    async with engine.connect() as connection:
        sealed_by = await connection.scalar(select(SealRow.fingerprint))
    if sealed_by is None:
        async with engine.execution_options(writes=True).begin() as connection:
            sealed_by = await connection.run_sync(_first_seal, vault)
    if sealed_by == vault.fingerprint:
        return vault
    with contextlib.suppress(VaultError):
        following = Vault.load(directory, NEXT_KEY_FILE)
        if following.fingerprint == sealed_by:
            _take_over(directory)
            return following
    raise VaultError(
        f"{directory / KEY_FILE} is not the key that this store is sealed with: restore it from your backup"
    )


async def change_key(directory: Path, url: str) -> int:
    """Seals every secret with a new key, and returns their number. After an interruption, one of the two key files
    opens all secrets.

    Values derived from the old key become void: one-time tokens and unfinished logins. The caller must hold the store's
    lock. Raises `StoreError`.
    """
    async with open_engines(directory, url) as engines:
        old = await opening_vault(engines.accounts, directory, Vault.load(directory))
        (directory / NEXT_KEY_FILE).unlink(missing_ok=True)
        new = Vault.create(directory, name=NEXT_KEY_FILE)
        async with engines.accounts.execution_options(writes=True).begin() as connection:
            count = await connection.run_sync(_seal_anew, old, new)
        _take_over(directory)
    return count


def _first_seal(connection: Connection, vault: Vault) -> str:
    """Records the key of `vault` as the store's key. Raises `VaultError` if it does not open a stored secret."""
    recorded: str | None = connection.scalar(select(SealRow.fingerprint))
    if recorded is not None:
        return recorded
    sealed = connection.scalar(select(ServiceRow.session_private_key).limit(1))
    if sealed is not None:
        vault.open(sealed)
    connection.execute(insert(SealRow).values(fingerprint=vault.fingerprint))
    return vault.fingerprint


def _seal_anew(connection: Connection, old: Vault, new: Vault) -> int:
    secrets = connection.execute(select(ServiceRow.id, ServiceRow.session_private_key)).all()
    for id_, sealed in secrets:
        anew = new.seal(old.open(sealed))
        connection.execute(update(ServiceRow).where(ServiceRow.id == id_).values(session_private_key=anew))
    connection.execute(delete(SealRow))
    connection.execute(insert(SealRow).values(fingerprint=new.fingerprint))
    return len(secrets)


def _take_over(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process has already replaced it
        os.replace(directory / NEXT_KEY_FILE, directory / KEY_FILE)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
