"""Intake of the access log: entries are queued at once and stored in batches; a full queue refuses more."""

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
"""Maximum number of stored entries of an account; beyond it the oldest are deleted."""
QUEUE_BYTES: Final = 64 << 20
"""Maximum size of the entries of all accounts that are not stored yet."""
ENTRY_BYTES: Final = 16 << 10
"""Maximum size that an entry counts as: its strings are cut to less."""
METADATA_BYTES: Final = 4 << 10
"""Maximum size of an entry's metadata, names and values; pairs beyond it are omitted."""
GROUPS: Final = 100
"""Maximum number of groups in an entry; further ones are omitted."""
CLOCKS_DIFFER: Final = timedelta(days=1)
"""Maximum distance of an entry's time from now; it is clamped, as an entry far in the future would never expire."""
BATCH_ENTRIES: Final = 1_000
GATHER_SECONDS: Final = 0.25
"""Time that the first entry of a batch waits for others: proxies send few at once, and every write costs the same."""
AWAY_SECONDS: Final = 1.0
"""Time until another attempt to write while the store is unavailable."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INT64: Final = (1 << 63) - 1
_log = logging.getLogger(__name__)


class AccessLogs:
    """Queues entries and writes them in `run`; `record` is called with each stored batch, and must not raise."""

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
        # Entries of each account that were stored since its quota was last enforced.
        self._stored: dict[str, int] = {}
        self._arrived = asyncio.Event()

    def take(self, logs: Sequence[AccessLog]) -> None:
        """Queues either all or none of an account's entries.

        If the queue has room for some accounts only, the entries of the others are lost: these accounts fill more than
        their share. Entries of unknown accounts are dropped; exchanges for an unknown host have no account.

        Raises `Refused` if no entry fits; the proxy sends them again later.
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
            self._arrived.set()

    async def run(self) -> None:
        """Stores queued entries until it is cancelled."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._arrived.clear()
            if not await self.flush():
                self._arrived.set()
                await asyncio.sleep(AWAY_SECONDS)

    async def flush(self) -> bool:
        """Stores all queued entries. False if the store is unavailable; then they stay queued.

        If a batch fails, its entries are stored one by one, so that an invalid entry loses only itself. On cancellation
        the current batch returns to the queue, though it may be stored already: storing an entry twice has no effect.
        """
        while taken := self._waiting.get(BATCH_ENTRIES):
            # Another account with the id of a deleted one may be created later; it must not get these entries.
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
            await self._enforce_quotas(batch)
        return True

    async def _enforce_quotas(self, batch: Sequence[Row]) -> None:
        """Enforces the quotas of accounts that occur for the first time, and then of each account that has stored
        another twentieth of its quota: counting reads all entries of the account."""
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
    """An account during one call, with a cache of its users' groups: the same users occur in many entries."""

    def __init__(self, snapshot: AccountSnapshot) -> None:
        self.id = snapshot.account.id
        self._snapshot = snapshot
        self._named: dict[str, GroupId] | None = None
        self._of_user: dict[str, list[str]] = {}

    def named(self, names: Sequence[str]) -> list[str]:
        """The ids of the groups with these names; unknown names are omitted."""
        if self._named is None:
            self._named = {group.name: group.id for group in self._snapshot.groups.values()}
        return list(islice((self._named[name] for name in dict.fromkeys(names) if name in self._named), GROUPS))

    def groups_of(self, user_id: str) -> list[str]:
        """The ids of the current groups of a user or peer."""
        group_ids = self._of_user.get(user_id)
        if group_ids is None:
            user = self._snapshot.users.get(UserId(user_id))
            groups = self._snapshot.groups_of(PeerId(user_id))
            group_ids = [*(user.auto_groups if user is not None else (group.id for group in groups))][:GROUPS]
            self._of_user[user_id] = group_ids
        return group_ids


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
        texts = tuple(map(_text, texts))  # type: ignore[assignment]  # the same number of strings
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
        _address(log.source_ip[:64]),  # no address is longer, and the cache keeps the text
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
    """The text with U+FFFD for NUL, which PostgreSQL cannot store."""
    return value.replace("\0", "\ufffd")


def _count(value: int) -> int:
    return value if 0 <= value <= _MAX_INT64 else max(0, min(value, _MAX_INT64))


@lru_cache(maxsize=8192)  # addresses repeat, and parsing one costs as much as the rest of an entry
def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    return str(unmapped(address))
