"""What this process holds: the database, the key to its secrets, and the snapshots answered from.

Three ways in, no other: `read`, `write` (what no snapshot holds: tokens, proxies, statuses, logs) and `change` (an
account: one transaction, then a new snapshot and a notice). Writes are one at a time: SQLite has one writer, and so
snapshots are replaced in the order of commits.
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

READ_AGAIN_SECONDS: Final = 1.0
WRITER_SECONDS: Final = 10.0
"""How long a write may wait for its turn: a commit whose outcome is unknown keeps the turn until the store answers."""
_log = logging.getLogger(__name__)
acting: ContextVar[str] = ContextVar("acting", default="")
"""The id of the user this task works for, "" for nobody in particular: who is named in events."""


class Transaction:
    """One change of an account under way: its session, and what it touched so far."""

    def __init__(self, session: AsyncSession, account_id: AccountId, before: AccountSnapshot | None) -> None:
        self.session = session
        self.account_id = account_id
        self.before = before
        """The account as it is; nobody else can change it until this is over."""
        self.touched = Touched()
        self.events: list[EventRow] = []

    def record(self, activity: Activity, target_id: str, *, initiator: str | None = None, **details: Any) -> None:
        """Note what is changed, for people to read. It is written with the change, or not at all.

        `initiator` is who did it, if it is not whoever this process acts for (`acting`).
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
            raise LookupError(f"account {self.account_id} is not here")
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
        """Name the rows written, made or deleted. What is not named is not read again."""
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
        """Count one more change of the account's network."""
        row = await self.session.get_one(AccountRow, self.account_id)
        row.serial += 1
        self.touch(account=True)


async def _number(session: AsyncSession, transaction: Transaction) -> None:
    """Counts one more change of the account, and writes down what was recorded of it."""
    counted = update(AccountRow).where(AccountRow.id == transaction.account_id)
    counted = counted.values(changes=AccountRow.changes + 1).returning(AccountRow.changes)
    number = await session.scalar(counted.execution_options(synchronize_session=False))
    if number is None:
        return  # the account went, and its events with it
    for event in transaction.events:
        event.number = number
        session.add(event)
    await session.flush()


class State:
    """Made by `State.open`; belongs to one event loop."""

    def __init__(self, engines: Engines, vault: Vault, tasks: asyncio.TaskGroup) -> None:
        self.vault = vault
        self.snapshots = Snapshots()
        self.session_keys = SessionKeys(self.read, vault)
        self.room: Mapping[str, int] = limits.HELD
        self.counters: Counter[str] = Counter()
        """How often what is bounded was full, since the process began."""
        self._engine = engines.accounts
        self._writing = engines.accounts.execution_options(writes=True)
        self._log = engines.log
        self._log_writing = engines.log.execution_options(writes=True)
        self._log_writer = asyncio.Lock()
        self._tasks = tasks
        self._writer = asyncio.Lock()
        self.patience = WRITER_SECONDS
        """How long a write waits for its turn, in seconds."""
        self._generation = 0

    def count(self, name: str) -> None:
        self.counters[name] += 1

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, vault: Vault, database: str = "") -> AsyncIterator["State"]:
        """Migrates the database, reads every account, and closes it all at the end.

        `database` is the URL of a PostgreSQL database, "" for files in `directory`. Raises `StoreError`, as for a vault
        that does not open what is sealed there.
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
        """A session for questions; what it writes is thrown away."""
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction on rows that no snapshot has: committed at the end, rolled back by any exception.

        Raises `UnreachableError` where its turn does not come in time.
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
            raise UnreachableError("the store does not take writes: an earlier one has no answer yet") from error

    async def to_the_end(self, work: Coroutine[Any, Any, object]) -> None:
        """Do what may not be left half done. A caller that is cancelled leaves, and the work goes on without it.

        Raises what the work raises, and logs it, as nobody may be waiting any more.
        """

        async def done() -> Exception | None:  # raising here would end everybody's work
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
        """As `read`, on the log."""
        async with AsyncSession(self._log, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write_log(self) -> AsyncIterator[AsyncSession]:
        """As `write`, on the log, which no change waits for."""
        async with self._log_writer, AsyncSession(self._log_writing, expire_on_commit=False) as session:
            yield session
            await session.commit()

    @asynccontextmanager
    async def change(self, account_id: AccountId) -> AsyncIterator[Transaction]:
        """One transaction on an account: committed at the end, rolled back by any exception.

        The new snapshot is read inside the transaction and put in place right after the commit, so nothing can fail in
        between. A caller cancelled during the commit leaves; the commit and the replacement still finish together.
        Raises `UnreachableError` where its turn does not come in time.
        """
        await self._turn()
        handed_over = False
        session = AsyncSession(self._writing, expire_on_commit=False)
        try:
            transaction = Transaction(session, account_id, self.snapshots.get(account_id))
            yield transaction
            if transaction.before is not None and transaction.touched == Touched() and not transaction.events:
                return  # nothing was changed, so there is nothing to tell
            await session.flush()
            await _number(session, transaction)
            session.expire_all()
            after = await self._read_account(session, account_id, transaction.before, transaction.touched)
            try:
                limits.check_room(transaction.before, after, self.room)
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
        """Commits and replaces; returns what went wrong, as raising here would end everybody's work."""
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
        except Exception as error:  # the connection is gone, and what was not committed with it
            _log.warning("store.rollback.failed", extra={"error": type(error).__name__})
        finally:
            self._writer.release()

    async def _read_again(self, transaction: Transaction) -> None:
        """A commit that failed may have been done all the same: what is stored is read before anybody writes again."""
        try:
            while True:
                try:
                    async with self.read() as session:
                        found = await self._read_account(
                            session, transaction.account_id, transaction.before, transaction.touched
                        )
                    break
                except Exception as error:
                    _log.warning("store.unread", extra={"error": type(error).__name__})
                    await asyncio.sleep(READ_AGAIN_SECONDS)
            self.snapshots.replace(transaction.account_id, found, transaction.touched)
        finally:
            self._writer.release()

    async def _read_account(
        self, session: AsyncSession, account_id: AccountId, before: AccountSnapshot | None, touched: Touched
    ) -> AccountSnapshot | None:
        self._generation += 1
        return await read_account(session, account_id, before, touched, generation=self._generation)
