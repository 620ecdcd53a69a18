"""Which key a store is sealed with: a wrong one is told at the start, and a new one can take over."""

import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, text

from netbird_management.model.store_errors import VaultError
from netbird_management.operations.proxies import Registration
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import open_engines
from netbird_management.store.models import ServiceRow
from netbird_management.store.sealing import NEXT_KEY_FILE, change_key
from netbird_management.store.state import State
from tests.netbird_management.conftest import Home, furnished


async def secret(directory: Path, database: str) -> bytes:
    """What is sealed in the store, opened as a start opens it. Raises `VaultError`."""
    async with State.open(directory, Vault.load(directory), database) as state, state.read() as session:
        sealed = (await session.scalars(select(ServiceRow.session_private_key))).one()
        return state.vault.open(sealed)


async def test_a_wrong_key_stops_the_start(home: Home, proxy: Registration, tmp_path: Path, database: str) -> None:
    """With a sentence, whether the store knows its key already or is of before it did; the right one goes on."""
    await furnished(home)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    with pytest.raises(VaultError, match="not the key"):
        await State.open(tmp_path, Vault.create(wrong), database).__aenter__()
    async with open_engines(tmp_path, database) as engines, engines.accounts.begin() as connection:
        await connection.execute(text("DELETE FROM seal"))
    with pytest.raises(VaultError):
        await State.open(tmp_path, Vault.load(wrong), database).__aenter__()
    assert len(await secret(tmp_path, database)) == 64
    with pytest.raises(VaultError, match="not the key"):
        await State.open(tmp_path, Vault.load(wrong), database).__aenter__()


@pytest.mark.usefixtures("written_elsewhere")
async def test_a_key_is_changed(home: Home, proxy: Registration, tmp_path: Path, database: str) -> None:
    """The same secrets open with the new one, and with the old one no more."""
    await furnished(home)
    before, old = await secret(tmp_path, database), (tmp_path / KEY_FILE).read_bytes()
    assert await change_key(tmp_path, database) == 1
    assert await secret(tmp_path, database) == before
    assert (tmp_path / KEY_FILE).read_bytes() != old
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    assert not (tmp_path / NEXT_KEY_FILE).exists()
    (tmp_path / KEY_FILE).write_bytes(old)
    with pytest.raises(VaultError, match="not the key"):
        await secret(tmp_path, database)


@pytest.mark.usefixtures("written_elsewhere")
async def test_a_change_of_keys_that_was_cut_off(
    home: Home, proxy: Registration, tmp_path: Path, database: str
) -> None:
    """Before its commit the old key is good, after it the next one is; and a later change goes through."""
    await furnished(home)
    before = await secret(tmp_path, database)
    Vault.create(tmp_path, name=NEXT_KEY_FILE)
    assert await secret(tmp_path, database) == before
    shutil.copy(tmp_path / KEY_FILE, tmp_path / "old")
    await change_key(tmp_path, database)
    (tmp_path / KEY_FILE).rename(tmp_path / NEXT_KEY_FILE)
    (tmp_path / "old").rename(tmp_path / KEY_FILE)
    assert await secret(tmp_path, database) == before
    assert not (tmp_path / NEXT_KEY_FILE).exists()
    assert await secret(tmp_path, database) == before
