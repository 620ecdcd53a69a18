"""Backup and restore: the whole store, into either kind, or nothing."""

import gzip
from pathlib import Path

import pytest

from netbird_management.model.store_errors import ArchiveError
from netbird_management.operations.access_log import access_log_page
from netbird_management.operations.events import events_of
from netbird_management.operations.proxies import Registration
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.archive import read_archive, write_archive
from netbird_management.store.state import State
from tests.netbird_management.conftest import Home, furnished
from tests.netbird_management.reports import add_access_log_entries
from tests.netbird_management.store.test_store import content
from tests.netbird_management.store_child import entry


async def test_a_backup_is_the_whole_store(home: Home, proxy: Registration, tmp_path: Path, database: str) -> None:
    """Taken while the host runs, restored into files: the same account, log, events, and secrets that open."""
    await furnished(home)
    await add_access_log_entries(home.state, [entry(home.account_id)])
    told: list[tuple[str, int, int]] = []
    file = tmp_path / "backup.gz"
    rows = await write_archive(tmp_path, database, file, lambda *step: told.append(step))
    assert rows > 10
    assert ("services", 1, 1) in told
    assert file.stat().st_mode & 0o077 == 0
    other = tmp_path / "other"
    assert await read_archive(file, other, "") == rows
    async with State.open(other, Vault.load(other)) as restored:
        (account,) = restored.snapshots.all()
        assert content(account) == content(home.snapshot)
        assert account.account == home.snapshot.account
        assert (await access_log_page(restored, home.account_id, page=1, page_size=9))[1] == 1
        assert await events_of(restored, home.account_id) == await events_of(home.state, home.account_id)
    assert (other / KEY_FILE).read_bytes() == (tmp_path / KEY_FILE).read_bytes()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_backup_goes_into_the_other_kind(
    home: Home, proxy: Registration, tmp_path: Path, database: str, other_database: str
) -> None:
    """From PostgreSQL into files, and from there into PostgreSQL, it is the same account."""
    await furnished(home)
    await write_archive(tmp_path, database, tmp_path / "one.gz")
    files, other = tmp_path / "files", tmp_path / "other"
    await read_archive(tmp_path / "one.gz", files, "")
    await write_archive(files, "", tmp_path / "two.gz")
    await read_archive(tmp_path / "two.gz", other, other_database)
    async with State.open(other, Vault.load(other), other_database) as restored:
        (account,) = restored.snapshots.all()
        assert content(account) == content(home.snapshot)
    with pytest.raises(ArchiveError, match="already contains an account"):
        await read_archive(tmp_path / "two.gz", tmp_path / "third", other_database)


async def test_half_a_backup_restores_nothing(home: Home, tmp_path: Path, database: str, other_database: str) -> None:
    """A file that is cut short, damaged or none at all leaves no store that a start would take for one."""
    file = tmp_path / "backup.gz"
    await write_archive(tmp_path, database, file)
    packed = file.read_bytes()
    whole = gzip.decompress(packed).decode().splitlines(keepends=True)
    other = tmp_path / "other"
    texts = (whole[:-1], whole[: len(whole) // 2], [*whole[:1], *whole[2:]], ["{}\n"], ["[]\n"], ["junk\n"], [])
    spoilt = packed[:-20] + bytes(20)
    for damaged in (
        *(gzip.compress("".join(text).encode()) for text in texts),
        packed[:-9],
        packed[:100],
        spoilt,
        b"x",
    ):
        file.write_bytes(damaged)
        with pytest.raises(ArchiveError):
            await read_archive(file, other, other_database)
        assert not (other / KEY_FILE).exists()
    file.write_bytes(packed)
    await read_archive(file, other, other_database)


async def test_nothing_is_written_over(home: Home, tmp_path: Path, database: str) -> None:
    """Neither a file by a backup nor a store by a restore."""
    file = tmp_path / "backup.gz"
    await write_archive(tmp_path, database, file)
    with pytest.raises(ArchiveError, match="already exists"):
        await write_archive(tmp_path, database, file)
    with pytest.raises(ArchiveError, match="already contains a store"):
        await read_archive(file, tmp_path, "")
