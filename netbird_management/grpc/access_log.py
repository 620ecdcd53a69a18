"""The access log on its way in: taken at once, stored in batches, refused when it comes faster than it is stored."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

import grpc

from netbird_management.grpc.errors import Refused
from netbird_management.model.clock import now
from netbird_management.model.ids import GroupId, PeerId, UserId, new_id
from netbird_management.model.services import AccessLogEntry
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import Row, Rows, add_access_log_rows
from netbird_management.store.engine import is_away
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import AccessLog

QUEUE_ENTRIES: Final = 10_000
BATCH_ENTRIES: Final = 1_000
GATHER_SECONDS: Final = 0.25
"""How long the first of a batch waits for others: proxies send few at a time, and each write costs the same."""
AWAY_SECONDS: Final = 1.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INT64: Final = (1 << 63) - 1
_log = logging.getLogger(__name__)


class AccessLogs:
    """Takes entries and writes them in `run`; `record` hears of each batch, and does not raise."""

    def __init__(
        self,
        state: State,
        *,
        capacity: int = QUEUE_ENTRIES,
        record: Callable[[Sequence[AccessLogEntry]], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._record = record
        self._capacity = capacity
        self._waiting: list[Row] = []
        self._some = asyncio.Event()

    def take(self, logs: Sequence[AccessLog]) -> None:
        """All of them or none. Raises `Refused` when there is no room; the proxy then sends them again later.

        Entries of accounts that are not here (exchanges for no known host have none) are let go.
        """
        if len(self._waiting) + len(logs) > self._capacity:
            self._state.count("access_log_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the access log is full: try again later")
        accounts: dict[str, _Account | None] = {}
        for log in logs:
            account_id = log.account_id
            if account_id not in accounts:
                found = self._state.snapshots.get(account_id)
                accounts[account_id] = _Account(found) if found is not None else None
            account = accounts[account_id]
            if account is not None:
                self._waiting.append(_row(log, account))
        self._some.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._some.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some.clear()
            if not await self.flush():
                self._some.set()
                await asyncio.sleep(AWAY_SECONDS)

    async def flush(self) -> bool:
        """Stores all that waits; false if the store is away, and they wait on: new ones are refused once it is full.

        A batch that cannot be stored is tried entry by entry: one bad one costs itself. Cancelled, what was under way
        waits again, and may be stored already: it is not stored twice.
        """
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_ENTRIES], self._waiting[BATCH_ENTRIES:]
            try:
                await self._store(batch)
            except BaseException as error:
                self._waiting = batch + self._waiting
                if not is_away(error):
                    raise
                _log.warning("access_log.waits", extra={"entries": len(self._waiting), "error": type(error).__name__})
                return False
            self._record(Rows(batch))
        return True

    async def _store(self, batch: list[Row]) -> None:
        try:
            await add_access_log_rows(self._state, batch)
        except Exception as failure:
            if is_away(failure):
                raise
            _log.exception("access_log.batch.failed", extra={"entries": len(batch)})
            for row in batch:
                try:
                    await add_access_log_rows(self._state, [row])
                except Exception as error:
                    if is_away(error):
                        raise
                    _log.error("access_log.entry.lost", extra={"entry_id": row[0], "error": type(error).__name__})


class _Account:
    """An account during one call: whose groups are which is looked up once a caller, as callers come again."""

    def __init__(self, snapshot: AccountSnapshot) -> None:
        self.id = snapshot.account.id
        self._snapshot = snapshot
        self._named: dict[str, GroupId] | None = None
        self._of_user: dict[str, list[str]] = {}

    def named(self, names: Sequence[str]) -> list[str]:
        """The ids of groups that the proxy names."""
        if self._named is None:
            self._named = {group.name: group.id for group in self._snapshot.groups.values()}
        return [self._named[name] for name in names if name in self._named]

    def groups_of(self, user_id: str) -> list[str]:
        """The ids of the groups of a user or peer, as they are now."""
        found = self._of_user.get(user_id)
        if found is None:
            user = self._snapshot.users.get(UserId(user_id))
            groups = self._snapshot.groups_of(PeerId(user_id))
            found = list(user.auto_groups) if user is not None else [group.id for group in groups]
            self._of_user[user_id] = found
        return found


def _row(log: AccessLog, account: _Account) -> Row:
    texts = (
        log.log_id,
        log.service_id,
        log.method,
        log.host,
        log.path,
        log.user_id,
        log.auth_mechanism,
        log.protocol,
    )
    if "\0" in "".join(texts):
        texts = tuple(map(_text, texts))  # type: ignore[assignment]  # as many as there were
    id_, service_id, method, host, path, user_id, auth_method, protocol = texts
    groups, metadata, status_code = log.user_groups, log.metadata, log.response_code
    reason = ""
    if protocol in ("", "http"):
        reason = "Authentication failed" if not log.auth_success else "Request failed" if status_code >= 400 else ""
    return (
        id_[:255] or new_id(),
        account.id,
        service_id[:255],
        _moment(log),
        _address(log.source_ip),
        method[:64],
        host[:255],
        path[:4096],
        _count(log.duration_ms),
        status_code,
        reason,
        user_id[:255],
        auth_method[:255],
        _count(log.bytes_upload),
        _count(log.bytes_download),
        protocol[:8],
        {_text(name): _text(value) for name, value in metadata.items()} if metadata else {},
        account.named(groups) if groups else account.groups_of(log.user_id),
    )


def _moment(log: AccessLog) -> datetime:
    if not log.HasField("timestamp"):
        return now()
    try:
        return _EPOCH + timedelta(seconds=log.timestamp.seconds, microseconds=log.timestamp.nanos // 1000)
    except (ValueError, OverflowError):
        return now()


def _text(value: str) -> str:
    """PostgreSQL keeps no NUL."""
    return value.replace("\0", "\ufffd")


def _count(value: int) -> int:
    return value if 0 <= value <= _MAX_INT64 else max(0, min(value, _MAX_INT64))


@lru_cache(maxsize=8192)  # callers come again, and reading an address costs as much as the rest of an entry
def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
