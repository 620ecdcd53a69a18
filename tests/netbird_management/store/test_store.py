"""What a store promises: all of a change or none, the log apart, one process, migrations both ways with data."""

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, select, text

from netbird_management.model.ids import AccountId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.model.store_errors import InUseError, NewerStoreError, UnreachableError
from netbird_management.operations.access_log import FORGET_ENTRIES, access_log_page, forget_entries_of_nobody
from netbird_management.operations.account_settings import delete_account
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group
from netbird_management.operations.proxies import Registration
from netbird_management.secrets.vault import Vault
from netbird_management.store.engine import DATABASE_FILE, LOG_FILE, open_engine, open_engines
from netbird_management.store.holding import locked_store
from netbird_management.store.models import AccountRow, DomainRow, EventRow, ProxyRow, ServiceRow
from netbird_management.store.schema import migrate, versions
from netbird_management.store.state import State
from tests.netbird_management.conftest import Home, furnished
from tests.netbird_management.reports import add_access_log_entries
from tests.netbird_management.store_child import entry
from tests.postgresql import Server


def content(account: AccountSnapshot) -> dict[str, Any]:
    return {
        part.name: dict(value) if isinstance(value := getattr(account, part.name), Mapping) else value
        for part in fields(account)
        if not part.name.startswith("_") and part.name not in ("generation", "account", "index")
    }


async def _seen(directory: Path, database: str) -> tuple[dict[str, Any], int, int, list[str]]:
    """What a fresh process reads: the account, its serial, its change number, its events."""
    async with State.open(directory, Vault.load(directory), database) as state, state.read() as session:
        (account,) = state.snapshots.all()
        row = await session.get_one(AccountRow, account.account.id)
        events = (await session.scalars(select(EventRow.activity).order_by(EventRow.number, EventRow.id))).all()
        return content(account), row.serial, row.changes, list(events)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_the_log_has_a_file_of_its_own(home: Home, tmp_path: Path) -> None:
    """Whoever holds the log's write lock holds up no change."""
    async with home.state.write_log() as session:
        await session.execute(text("DELETE FROM access_log"))
        await asyncio.wait_for(create_group(home.state, home.account_id, name="meanwhile"), 5)
    await add_access_log_entries(home.state, [entry(home.account_id)])
    assert (tmp_path / LOG_FILE).exists()
    engine = open_engine(tmp_path / DATABASE_FILE)
    async with engine.connect() as connection:
        assert not await connection.run_sync(lambda sync: inspect(sync).has_table("access_log"))
    await engine.dispose()


async def test_entries_are_stored_once_and_whole(home: Home) -> None:
    """A batch may come again, with others in it; a character that the store knows no way to keep loses nothing else."""
    await add_access_log_entries(home.state, [entry(home.account_id)])
    await add_access_log_entries(home.state, [entry(home.account_id), entry(home.account_id, "2")])
    found, total = await access_log_page(home.state, home.account_id, page=1, page_size=10)
    assert (total, {entry.id for entry in found}) == (2, {"1", "2"})


async def test_a_store_is_one_processs(database: str, tmp_path: Path) -> None:
    """A second holder is refused until the first is gone; of a database, also one with a directory of its own."""
    other = tmp_path / "other"
    other.mkdir()
    for directory in (tmp_path, *([other] if database else [])):
        async with locked_store(tmp_path, database):
            with pytest.raises(InUseError):
                await locked_store(directory, database).__aenter__()
    async with locked_store(tmp_path, database):
        pass


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_hold_outlives_the_server(database: str, tmp_path: Path, postgresql: Server) -> None:
    """A lock that went with its connection is taken again; if somebody else had it meanwhile, the process must end."""
    name = database.partition("?")[0].rpartition("/")[2]
    other = tmp_path / "other"
    other.mkdir()
    async with locked_store(tmp_path, database) as hold, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(hold.watch(0.01))
        await postgresql.cut(name)
        async with asyncio.timeout(20):
            while await _holders(database) < 2:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        with pytest.raises(InUseError):
            await locked_store(other, database).__aenter__()
        watching.cancel()
    async with locked_store(tmp_path, database) as hold:
        await postgresql.cut(name)
        async with asyncio.timeout(20), locked_store(other, database):
            pass
        with pytest.raises(InUseError, match="another management"):
            await asyncio.wait_for(hold.watch(0.01), 20)


async def _holders(database: str) -> int:
    engine = open_engine(database)
    async with engine.connect() as connection:
        number = await connection.scalar(text("SELECT last_value FROM holders"))
    await engine.dispose()
    return int(number or 0)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_server_that_was_away_costs_no_call(database: str, home: Home, postgresql: Server) -> None:
    """Connections that went with it are noticed before they are used."""
    await postgresql.cut(database.partition("?")[0].rpartition("/")[2])
    await create_group(home.state, home.account_id, name="engineering")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://app@127.0.0.1:1/x", "Connect call failed"),
        ("mysql://app@127.0.0.1/x", "scheme is expected"),
        ("{server}/missing?host={directory}", "does not exist"),
        ("{server}/x?host=/nowhere", "No such file"),
    ],
)
async def test_a_database_that_is_not_there_is_told(url: str, said: str, tmp_path: Path, postgresql: Server) -> None:
    """In one line, which says what the server said, and no password."""
    given = url.format(server="postgresql://app:secret@", directory=postgresql.directory)
    with pytest.raises(UnreachableError, match=said) as caught:
        await open_engines(tmp_path, given).__aenter__()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_newer_store_is_left_alone(database: str, tmp_path: Path) -> None:
    """A version that this program does not know stops the start, with a sentence."""
    async with open_engines(tmp_path, database) as engines, engines.accounts.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerStoreError, match="9999"):
        await open_engines(tmp_path, database).__aenter__()


async def test_migrations_go_down_and_up_with_data(
    home: Home, proxy: Registration, tmp_path: Path, database: str
) -> None:
    """Down to the first version and up again loses what later versions brought, and nothing else."""
    await furnished(home)
    before = await _seen(tmp_path, database)
    engine = open_engine(database or tmp_path / DATABASE_FILE)
    assert (await versions(engine))[0] == (await versions(engine))[1] != ""
    await migrate(engine, revision="0001")
    assert (await versions(engine))[0] == "0001"
    await engine.dispose()
    found = await _seen(tmp_path, database)
    for part in ("users", "groups", "peers", "policies", "services"):
        assert found[0][part] == before[0][part], part
    assert found[1] == before[1]
    assert (found[2], found[3]) == (0, [])


@pytest.mark.usefixtures("written_elsewhere")
async def test_names_of_an_older_store_are_folded_and_stay_valid(
    home: Home, proxy: Registration, tmp_path: Path, database: str
) -> None:
    """Addresses have one spelling afterwards; a domain that was validated is, and is known to be so by its CNAME."""
    await furnished(home)
    engine = open_engine(database or tmp_path / DATABASE_FILE)
    await migrate(engine, revision="0009")
    async with engine.execution_options(writes=True).begin() as connection:
        for name, validated in (("yes.example", True), ("no.example", False)):
            added = text(
                "INSERT INTO domains (id, account_id, domain, target_cluster, validated) VALUES (:n, :a, :n, :t, :v)"
            )
            values = {"n": name, "a": home.account_id, "t": "PX.Test.", "v": validated}
            await connection.execute(added, values)
        for table, column in (("proxies", "cluster_address"), ("services", "proxy_cluster")):
            await connection.execute(text(f"UPDATE {table} SET {column} = 'PX.TEST'"))
    await migrate(engine)
    async with engine.connect() as connection:
        domains = select(DomainRow.domain, DomainRow.validated, DomainRow.by_alias, DomainRow.target_cluster)
        found = (await connection.execute(domains.order_by(DomainRow.domain))).all()
        assert [tuple(row) for row in found] == [
            ("no.example", False, False, "px.test"),
            ("yes.example", True, True, "px.test"),
        ]
        for column in (ProxyRow.cluster_address, ServiceRow.proxy_cluster):
            assert set((await connection.execute(select(column))).scalars()) == {"px.test"}
    await engine.dispose()


async def test_migrations_go_down_to_the_first(database: str, tmp_path: Path) -> None:
    """Each step back is there, for both parts, and the way up again."""
    async with open_engines(tmp_path, database) as engines:
        await migrate(engines.log, "log", revision="base")
        await migrate(engines.accounts, revision="0001")
    async with open_engines(tmp_path, database) as engines:
        assert len(set(await versions(engines.accounts, "accounts"))) == 1
        assert len(set(await versions(engines.log, "log"))) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_an_older_log_moves_out(home: Home, tmp_path: Path) -> None:
    """Entries that an earlier version kept among the accounts are in the log after the next start, once."""
    old = tmp_path / "old"
    old.mkdir(mode=0o700)
    vault = Vault.create(old)
    engine = open_engine(old / DATABASE_FILE)
    await migrate(engine, revision="0004")
    async with engine.execution_options(writes=True).begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO accounts (id, created_at, created_by, network, network_v6, dns_domain, serial, settings) "
                "VALUES ('a', '2026-01-01 00:00:00', 'u', '100.64.0.0/16', 'fd00::/64', 'd.test', 1, '{}')"
            )
        )
        await connection.execute(
            text(
                "INSERT INTO access_log_entries VALUES ('1', 'a', 's', '2026-01-01 00:00:00.000000', '192.0.2.1', "
                "'GET', 'h', '/', 1, 200, '', '', '', 0, 1, 'http', '{}', '[\"g\"]')"
            )
        )
    await engine.dispose()
    for _ in range(2):
        async with State.open(old, vault) as state:
            found, total = await access_log_page(state, AccountId("a"), page=1, page_size=10)
            assert (total, found[0].host, found[0].user_groups) == (1, "h", ("g",))


async def test_accounts_logs_keep_apart(home: Home) -> None:
    """Nobody reads another account's entries."""
    other, _ = await create_account(home.state, email="b@lab.test", name="B")
    await add_access_log_entries(home.state, [entry(other)])
    assert (await access_log_page(home.state, home.account_id, page=1, page_size=10))[1] == 0


async def test_an_account_that_is_gone_leaves_no_log(home: Home) -> None:
    """However many entries it has; those of others stay."""
    other, _ = await create_account(home.state, email="b@lab.test", name="B")
    third, _ = await create_account(home.state, email="c@lab.test", name="C")
    for account_id in (other, home.account_id, third):
        many = [entry(account_id, f"{account_id}-{number}") for number in range(2 * FORGET_ENTRIES // 3)]
        await add_access_log_entries(home.state, many)
        await add_access_log_entries(home.state, [entry(account_id, f"{one.id}+") for one in many])
    await delete_account(home.state, other)
    await forget_entries_of_nobody(home.state)
    assert (await access_log_page(home.state, other, page=1, page_size=1))[1] == 0
    assert (await access_log_page(home.state, home.account_id, page=1, page_size=1))[1] == 2 * len(many)
    assert (await access_log_page(home.state, third, page=1, page_size=1))[1] == 2 * len(many)
