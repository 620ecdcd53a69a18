"""The access log on its way in: taken at once, stored in batches, refused when it comes faster than it is stored."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from typing import Final

import grpc

from netbird_host.sources import unmapped
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.fair_queue import FairQueue
from netbird_management.model.clock import now
from netbird_management.model.ids import GroupId, PeerId, UserId, new_id
from netbird_management.model.services import AccessLogEntry
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.access_log import (
    ACCOUNT,
    Row,
    Rows,
    add_access_log_rows,
    forget_entries_over_quota,
)
from netbird_management.store.engine import is_away
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import AccessLog

QUEUE_ENTRIES: Final = 10_000
QUOTA_ENTRIES: Final = 1_000_000
"""Entries that are stored of one account."""
QUEUE_BYTES: Final = 64 << 20
"""Entries that are not stored yet, of all accounts."""
ENTRY_BYTES: Final = 16 << 10
"""No entry counts as more: its texts are cut to less."""
METADATA_BYTES: Final = 4 << 10
"""Of names and values; the pairs that are too much are left out."""
GROUPS: Final = 100
"""Groups of a caller that an entry names."""
CLOCKS_DIFFER: Final = timedelta(days=1)
"""How far a moment may lie from now: one far in the future would never be forgotten."""
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
        capacity_bytes: int = QUEUE_BYTES,
        quota: int = QUOTA_ENTRIES,
        record: Callable[[Sequence[AccessLogEntry]], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._record = record
        self._waiting = FairQueue[Row](items=capacity, bytes=capacity_bytes)
        self._quota = quota
        self._stored: dict[str, int] = {}
        """Entries of each account that were stored since it was last held to its quota."""
        self._some = asyncio.Event()

    def take(self, logs: Sequence[AccessLog]) -> None:
        """All entries of an account or none. Raises `Refused` when none has room; the proxy sends them again later.

        Where entries of other accounts came with them, those of an account that has no room are lost: it fills more
        than its part of the queue. Entries of unknown accounts (exchanges for no known host have none) are dropped.
        """
        by_account: dict[str, tuple[_Account, list[tuple[Row, int]]] | None] = {}
        for log in logs:
            account_id = log.account_id
            if account_id not in by_account:
                snapshot = self._state.snapshots.get(account_id)
                by_account[account_id] = (_Account(snapshot), []) if snapshot is not None else None
            of_account = by_account[account_id]
            if of_account is not None:
                of_account[1].append((_row(log, of_account[0]), min(log.ByteSize(), ENTRY_BYTES)))
        parts = [(account_id, part[1]) for account_id, part in by_account.items() if part is not None]
        lost = self._waiting.lost
        refused = [rows for account_id, rows in parts if not self._waiting.put(account_id, rows)]
        if refused and len(refused) == len(parts):
            self._state.count("access_log_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the access log is full: try again later")
        for _ in range(self._waiting.lost - lost + sum(map(len, refused))):
            self._state.count("access_log_lost")
        if parts:
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
        while taken := self._waiting.get(BATCH_ENTRIES):
            # An account that was deleted meanwhile may be founded again under its id.
            batch = [row for account_id, row, _ in taken if self._state.snapshots.get(str(account_id)) is not None]
            try:
                await self._store(batch)
            except BaseException as error:
                self._waiting.put_back(taken)
                if not is_away(error):
                    raise
                _log.warning("access_log.waits", extra={"entries": len(self._waiting), "error": type(error).__name__})
                return False
            self._record(Rows(batch))
            await self._hold_to_quota(batch)
        return True

    async def _hold_to_quota(self, batch: Sequence[Row]) -> None:
        """Accounts that are new here, and then each that stored a twentieth of its quota: counting reads all it has."""
        for account_id, number in Counter(row[ACCOUNT] for row in batch).items():
            stored = self._stored.get(account_id)
            self._stored[account_id] = (stored or 0) + number
            if stored is not None and self._stored[account_id] < self._quota / 20:
                continue
            try:
                await forget_entries_over_quota(self._state, account_id, self._quota)
            except Exception as error:
                _log.warning("access_log.quota.failed", extra={"error": type(error).__name__})
                continue
            self._stored[account_id] = 0
            self._stored = {id_: n for id_, n in self._stored.items() if self._state.snapshots.get(id_) is not None}

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
        return list(islice((self._named[name] for name in dict.fromkeys(names) if name in self._named), GROUPS))

    def groups_of(self, user_id: str) -> list[str]:
        """The ids of the groups of a user or peer, as they are now."""
        found = self._of_user.get(user_id)
        if found is None:
            user = self._snapshot.users.get(UserId(user_id))
            groups = self._snapshot.groups_of(PeerId(user_id))
            found = [*(user.auto_groups if user is not None else (group.id for group in groups))][:GROUPS]
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
        _pairs(metadata) if metadata else {},
        account.named(groups) if groups else account.groups_of(log.user_id),
    )


def _moment(log: AccessLog) -> datetime:
    received = now()
    if not log.HasField("timestamp"):
        return received
    try:
        moment = _EPOCH + timedelta(seconds=log.timestamp.seconds, microseconds=log.timestamp.nanos // 1000)
    except (ValueError, OverflowError):
        return received
    return min(max(moment, received - CLOCKS_DIFFER), received + CLOCKS_DIFFER)


def _pairs(metadata: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    left = METADATA_BYTES
    for name in sorted(metadata):
        size = len(name.encode()) + len(metadata[name].encode())
        if size <= left:
            kept[_text(name)] = _text(metadata[name])
            left -= size
    return kept


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
    return str(unmapped(address))
