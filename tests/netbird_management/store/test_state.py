"""The database, its migrations, and the snapshots that follow each commit."""

import asyncio
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.orm import Session

from netbird_management.model.accounts import Role
from netbird_management.model.errors import Conflict
from netbird_management.model.ids import GroupId
from netbird_management.model.store_errors import VaultError
from netbird_management.operations.groups import create_group, delete_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.users import create_user, update_user
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.engine import DATABASE_FILE, open_engine
from netbird_management.store.models import GroupRow, LogRow, Row
from netbird_management.store.schema import Part, migrate
from netbird_management.store.state import State
from tests.netbird_management.conftest import Home


@pytest.mark.parametrize(("part", "metadata"), [("accounts", Row.metadata), ("log", LogRow.metadata)])
async def test_migrations_lead_to_the_models(tmp_path: Path, part: Part, metadata: MetaData) -> None:
    """Migrating an empty file gives exactly the tables that the models describe, and doing it twice changes nothing."""
    engine = open_engine(tmp_path / DATABASE_FILE)
    await migrate(engine, part)
    await migrate(engine, part)

    def differences(connection: Connection) -> list[object]:
        options = {"version_table": "log_version"} if part == "log" else {}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_sqlite_is_opened_as_a_server_needs_it(state: State) -> None:
    """Write-ahead log, enforced foreign keys, and patience with another process's lock."""
    async with state.read() as session:
        values = [await session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys")]
        assert [*values, await session.scalar(text("PRAGMA busy_timeout"))] == ["wal", 1, 5000]


async def test_a_new_account_has_its_defaults(home: Home) -> None:
    """A /16 in 100.64.0.0/10, a ULA /64, the group All, a policy that joins it to itself, and an owner."""
    snapshot = home.snapshot
    network = snapshot.account.network
    assert network.prefixlen == 16
    assert str(network.supernet(new_prefix=10)) == "100.64.0.0/10"
    assert snapshot.account.network_v6.prefixlen == 64
    assert str(snapshot.account.network_v6).startswith("fd")
    [policy] = snapshot.policies.values()
    [rule] = policy.rules
    assert (rule.sources, rule.destinations) == ((snapshot.group_all.id,), (snapshot.group_all.id,))
    assert (rule.protocol, rule.action, rule.bidirectional) == ("all", "accept", True)
    assert snapshot.users[home.owner.id].role is Role.OWNER


async def test_a_restart_reads_what_changes_made(tmp_path: Path, database: str, home: Home) -> None:
    """The snapshot kept up by single changes equals the one that a fresh process reads."""
    group = await create_group(home.state, home.account_id, name="engineering")
    user = await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")
    await create_stock_peer(home.state, home.account_id, name="phone", user_id=user.id)
    await update_user(home.state, home.account_id, user.id, role=Role.USER, auto_groups=[group.id], blocked=False)
    kept = home.snapshot
    async with State.open(tmp_path, Vault.load(tmp_path), database) as fresh:
        read = fresh.snapshots.get(home.account_id)
        assert read is not None
        for part in ("account", "users", "groups", "peers", "services", "policies", "custom_domains"):
            assert getattr(read, part) == getattr(kept, part), part


async def test_subscribers_hear_of_commits_and_of_nothing_else(home: Home) -> None:
    """A change brings before, after and what was touched; a change that fails brings no notice and no new snapshot."""
    with home.state.snapshots.subscribe() as changes:
        before = home.snapshot
        with pytest.raises(ZeroDivisionError):
            await _add_group_and_fail(home)
        assert home.snapshot is before
        group = await create_group(home.state, home.account_id, name="engineering")
        change = await asyncio.wait_for(anext(changes), 5)
    assert change.before is before
    assert change.after is home.snapshot
    assert change.touched.groups == {group.id}
    assert "lost" not in home.snapshot.groups


async def _add_group_and_fail(home: Home) -> None:
    async with home.state.change(home.account_id) as transaction:
        transaction.session.add(GroupRow(id="lost", account_id=home.account_id, name="lost"))
        transaction.touch(groups=[GroupId("lost")])
        raise ZeroDivisionError


async def test_changes_that_wait_are_merged(home: Home) -> None:
    """A slow subscriber gets one notice of several: the oldest before, the newest after, all that was touched."""
    with home.state.snapshots.subscribe() as changes:
        before = home.snapshot
        one = await create_group(home.state, home.account_id, name="one")
        two = await create_group(home.state, home.account_id, name="two")
        await delete_group(home.state, home.account_id, one.id)
        change = await asyncio.wait_for(anext(changes), 5)
    assert (change.before, change.after) == (before, home.snapshot)
    assert change.touched.groups == {one.id, two.id}


async def test_a_database_that_refuses_leaves_the_snapshot(home: Home) -> None:
    """A row that breaks a constraint fails the change, and readers go on with what is really stored."""
    await create_group(home.state, home.account_id, name="engineering")
    before = home.snapshot
    with pytest.raises(Conflict):
        await create_group(home.state, home.account_id, name="engineering")
    assert home.snapshot is before
    await create_group(home.state, home.account_id, name="other")


async def test_a_caller_cancelled_while_waiting_changes_nothing(home: Home) -> None:
    """A change that never got its turn leaves no trace, and does not keep the turn."""
    async with home.state.change(home.account_id):
        waiting = asyncio.timeout(0.01)
        with pytest.raises(TimeoutError):
            async with waiting:
                await create_group(home.state, home.account_id, name="late")
    await create_group(home.state, home.account_id, name="next")
    assert {group.name for group in home.snapshot.groups.values()} == {"All", "next"}


async def test_a_caller_cancelled_twice_keeps_no_turn(home: Home) -> None:
    """In its work, and again while what it did is undone."""
    entered = asyncio.Event()

    async def work() -> None:
        async with home.state.change(home.account_id) as transaction:
            transaction.session.add(GroupRow(id="lost", account_id=home.account_id, name="lost"))
            await transaction.session.flush()
            entered.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work())
        await entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    await asyncio.wait_for(create_group(home.state, home.account_id, name="next"), 5)
    assert {group.name for group in home.snapshot.groups.values()} == {"All", "next"}


async def test_a_commit_whose_answer_was_lost_is_looked_up(home: Home) -> None:
    """The caller hears that it failed; what is answered from is what is stored, before anybody writes again."""

    def lost(_: Session) -> None:
        raise ConnectionResetError("after the commit")

    event.listen(Session, "after_commit", lost, once=True)
    with pytest.raises(ConnectionResetError):
        await create_group(home.state, home.account_id, name="engineering")
    await asyncio.wait_for(create_group(home.state, home.account_id, name="next"), 5)
    assert {group.name for group in home.snapshot.groups.values()} == {"All", "engineering", "next"}


async def test_secrets_need_the_key_they_were_sealed_with(tmp_path: Path) -> None:
    """The key file is ours alone; another key opens nothing; a file that others can read is refused."""
    vault = Vault.create(tmp_path)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    sealed = vault.seal(b"secret")
    assert Vault.load(tmp_path).open(sealed) == b"secret"
    with pytest.raises(VaultError):
        Vault(bytes(32)).open(sealed)
    with pytest.raises(FileExistsError):
        Vault.create(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(VaultError, match="chmod"):
        Vault.load(tmp_path)
