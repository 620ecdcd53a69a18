"""The state of this process: the database, the key to its secrets, and the snapshots.

All access goes through `read`, `write` (rows that no snapshot contains: tokens, proxies, statuses), their counterparts
for the log, and `change` (one transaction on an account, then a new snapshot and a notice). Writes run one at a time,
as SQLite has one writer; snapshots are therefore replaced in the order of commits.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.errors import PreconditionFailed
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, ServiceId, UserId, new_id
from netbird_management.model.snapshot import AccountSnapshot, Snapshots, Touched
from netbird_management.model.store_errors import UnreachableError
from netbird_management.secrets.vault import Vault
from netbird_management.store import limits
from netbird_management.store.engine import Engines, open_engines
from netbird_management.store.models import (
    AccountRow,
    EventRow,
)
from netbird_management.store.reading import read_account
from netbird_management.store.sealing import opening_vault
from netbird_management.store.session_keys import SessionKeys

# Pause between attempts to read an account after a failed commit.
READ_AGAIN_SECONDS: Final = 1.0
# Maximum time that a write waits for its turn; on expiry `UnreachableError`. A commit with an unknown outcome keeps the
# turn until the store answers.
WRITER_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)
# Id of the user for whom this task works, recorded in events; "" if it works for no particular user.
acting: ContextVar[str] = ContextVar("acting", default="")


class Transaction:
    """A change of an account in progress: its database session, and the rows touched so far."""

    def __init__(self, session: AsyncSession, account_id: AccountId, before: AccountSnapshot | None) -> None:
        self.session = session
        self.account_id = account_id
        self.before = before
        """The account before the change; no other change of it can run until this one ends."""
        self.touched = Touched()
        self.events: list[EventRow] = []

    def record(self, activity: Activity, target_id: str, *, initiator: str | None = None, **details: Any) -> None:
        """Records an event about the change. It is stored together with the change, or not at all.

        `initiator` is the id of the user who made the change; by default the user for whom this task works (`acting`).
        """
        self.events.append(
            EventRow(
                id=new_id(),
                account_id=self.account_id,
                timestamp=now(),
                activity=activity.value,
                initiator_id=acting.get() if initiator is None else initiator,
                target_id=target_id,
                details={name: value for name, value in details.items() if value is not None},
            )
        )

    @property
    def account(self) -> AccountSnapshot:
        """`before` of an account that must exist. Raises `LookupError`."""
        if self.before is None:
            raise LookupError(f"account {self.account_id} does not exist")
        return self.before

    def touch(
        self,
        *,
        services: Iterable[ServiceId] = (),
        peers: Iterable[PeerId] = (),
        groups: Iterable[GroupId] = (),
        users: Iterable[UserId] = (),
        policies: Iterable[PolicyId] = (),
        account: bool = False,
        domains: bool = False,
        dns: bool = False,
        networks: bool = False,
        revocations: bool = False,
    ) -> None:
        """Names rows that were created, written or deleted. Only named rows are read again for the new snapshot."""
        self.touched |= Touched(
            services=frozenset(services),
            peers=frozenset(peers),
            groups=frozenset(groups),
            users=frozenset(users),
            policies=frozenset(policies),
            account=account,
            domains=domains,
            dns=dns,
            networks=networks,
            revocations=revocations,
        )

    async def raise_serial(self) -> None:
        """Increments the serial of the account's network."""
        row = await self.session.get_one(AccountRow, self.account_id)
        row.serial += 1
        self.touch(account=True)


async def _number(session: AsyncSession, transaction: Transaction) -> None:
    """Increments the account's number of changes, and stores the recorded events with that number."""
    counted = update(AccountRow).where(AccountRow.id == transaction.account_id)
    counted = counted.values(changes=AccountRow.changes + 1).returning(AccountRow.changes)
    number = await session.scalar(counted.execution_options(synchronize_session=False))
    if number is None:
        return  # the change deleted the account, and its events with it
    for event in transaction.events:
        event.number = number
        session.add(event)
    await session.flush()


class State:
    """The database and snapshots of this process, opened by `State.open`. Belongs to one event loop."""

    def __init__(self, engines: Engines, vault: Vault, tasks: asyncio.TaskGroup) -> None:
        self.vault = vault
        self.snapshots = Snapshots()
        self.session_keys = SessionKeys(self.read, vault)
        self.object_limits: Mapping[str, int] = limits.IN_SNAPSHOT
        self.counters: Counter[str] = Counter()
        """Number of refusals by each limit since the process started."""
        self._engine = engines.accounts
        self._writing = engines.accounts.execution_options(writes=True)
        self._log = engines.log
        self._log_writing = engines.log.execution_options(writes=True)
        self._log_writer = asyncio.Lock()
        self._tasks = tasks
        self._writer = asyncio.Lock()
        self.patience = WRITER_SECONDS
        """Maximum time in seconds that a write waits for its turn; on expiry `UnreachableError`."""
        self._generation = 0

    def count(self, name: str) -> None:
        self.counters[name] += 1

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, vault: Vault, database: str = "") -> AsyncIterator["State"]:
        """Migrates the database and reads every account; closes the database on exit.

        `database` is the URL of a PostgreSQL database, "" for files in `directory`. Raises `StoreError`, also for a
        vault that does not open the store's secrets.
        """
        async with open_engines(directory, database) as engines:
            vault = await opening_vault(engines.accounts, directory, vault)
            async with asyncio.TaskGroup() as tasks:
                state = cls(engines, vault, tasks)
                async with state.read() as session:
                    for account_id in (await session.scalars(select(AccountRow.id))).all():
                        snapshot = await state._read_account(session, AccountId(account_id), None, Touched())
                        state.snapshots.replace(AccountId(account_id), snapshot, Touched(account=True))
                yield state

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for queries; its writes are discarded."""
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction on rows that no snapshot contains: committed at the end, rolled back by any exception.

        Raises `UnreachableError` if its turn does not come in time.
        """
        await self._turn()
        try:
            async with AsyncSession(self._writing, expire_on_commit=False) as session:
                yield session
                await session.commit()
        finally:
            self._writer.release()

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await self._writer.acquire()
        except TimeoutError as error:
            self.count("writes_refused")
            raise UnreachableError("the store accepts no writes: it has not answered an earlier one yet") from error

    async def to_the_end(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs work that must not stop halfway. If the caller is cancelled, the work continues without it.

        Raises the work's exceptions, and logs them, as the caller may have been cancelled.
        """

        async def done() -> Exception | None:  # an exception here would cancel every task of the group
            try:
                await work
            except Exception as error:
                _log.warning("state.work.failed", extra={"error": f"{type(error).__name__}: {error}"})
                return error
            return None

        error = await asyncio.shield(self._tasks.create_task(done()))
        if error is not None:
            raise error

    @asynccontextmanager
    async def read_log(self) -> AsyncIterator[AsyncSession]:
        """Like `read`, on the log."""
        async with AsyncSession(self._log, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write_log(self) -> AsyncIterator[AsyncSession]:
        """Like `write`, on the log; no change waits for it."""
        async with self._log_writer, AsyncSession(self._log_writing, expire_on_commit=False) as session:
            yield session
            await session.commit()

    @asynccontextmanager
    async def change(self, account_id: AccountId) -> AsyncIterator[Transaction]:
        """One transaction on an account: committed at the end, rolled back by any exception.

        The new snapshot is read inside the transaction and replaces the old one right after the commit, so nothing can
        fail in between. If the caller is cancelled during the commit, the commit and the replacement still finish.
        Raises `UnreachableError` if its turn does not come in time, `PreconditionFailed` if the account is full.
        """
        await self._turn()
        handed_over = False
        session = AsyncSession(self._writing, expire_on_commit=False)
        try:
            transaction = Transaction(session, account_id, self.snapshots.get(account_id))
            yield transaction
            if transaction.before is not None and transaction.touched == Touched() and not transaction.events:
                return  # nothing changed, so no subscriber needs a notice
            await session.flush()
            await _number(session, transaction)
            session.expire_all()
            after = await self._read_account(session, account_id, transaction.before, transaction.touched)
            try:
                limits.check_objects(transaction.before, after, self.object_limits)
            except PreconditionFailed:
                self.count("account_full")
                raise
            finish = self._tasks.create_task(self._finish(session, transaction, after))
            handed_over = True
            error = await asyncio.shield(finish)
            if error is not None:
                raise error
        finally:
            if not handed_over:
                await asyncio.shield(self._tasks.create_task(self._abandon(session)))

    async def _finish(
        self, session: AsyncSession, transaction: Transaction, after: AccountSnapshot | None
    ) -> Exception | None:
        """Commits and replaces the snapshot. Returns an exception instead of raising it, as an exception in this task
        would cancel every task of the group."""
        try:
            async with session:
                await session.commit()
            self.snapshots.replace(transaction.account_id, after, transaction.touched)
        except Exception as error:
            self._tasks.create_task(self._read_again(transaction))
            return error
        self._writer.release()
        return None

    async def _abandon(self, session: AsyncSession) -> None:
        try:
            await session.close()
        except Exception as error:  # the connection ended, and with it the uncommitted transaction
            _log.warning("store.rollback.failed", extra={"error": type(error).__name__})
        finally:
            self._writer.release()

    async def _read_again(self, transaction: Transaction) -> None:
        """Reads the account after a failed commit, before any other write, as the commit may have succeeded."""
        try:
            while True:
                try:
                    async with self.read() as session:
                        stored = await self._read_account(
                            session, transaction.account_id, transaction.before, transaction.touched
                        )
                    break
                except Exception as error:
                    _log.warning("store.unread", extra={"error": type(error).__name__})
                    await asyncio.sleep(READ_AGAIN_SECONDS)
            self.snapshots.replace(transaction.account_id, stored, transaction.touched)
        finally:
            self._writer.release()

    async def _read_account(
        self, session: AsyncSession, account_id: AccountId, before: AccountSnapshot | None, touched: Touched
    ) -> AccountSnapshot | None:
        self._generation += 1
        return await read_account(session, account_id, before, touched, generation=self._generation)
