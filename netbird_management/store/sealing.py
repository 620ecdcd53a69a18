"""What is sealed in a store, and by which key: the wrong one is told at the start, and another one can take over."""

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

NEXT_KEY_FILE: Final = "store.key.next"
"""Of a change of keys that is under way: it becomes the key when the secrets were sealed with it."""


async def opening_vault(engine: AsyncEngine, directory: Path, vault: Vault) -> Vault:
    """The vault that opens this store: the one given, or the next one if a change of keys was cut off at its end.

    Raises `VaultError` if it is neither. A store that knows no key yet takes the one given.
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
    """Seals every secret with a new key; how many there are. Whatever cuts this off, either key file opens all.

    What was derived from the old key is void: one-time tokens and logins under way. The caller holds the store. Raises
    `StoreError`.
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
    """Writes down by which key this store is sealed, if that is so. Raises `VaultError`."""
    known: str | None = connection.scalar(select(SealRow.fingerprint))
    if known is not None:
        return known
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
    with contextlib.suppress(FileNotFoundError):  # somebody else was as quick
        os.replace(directory / NEXT_KEY_FILE, directory / KEY_FILE)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
