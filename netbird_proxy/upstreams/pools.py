"""The pools in use. Routes that dial alike share a pool, which is retired some time after its last route is gone.

Two routes dial alike if they belong to one account, their upstreams have the same address and TLS settings, and their
dialers are equal. An edit that changes nothing of that (a path, headers, guards) keeps the idle connections. The rules
on addresses are part of a dialer's value (`JudgedDialer`), so routes under other rules never get a connection that was
judged by the old ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from netbird_host.containment import must_pass
from netbird_proxy.api.model import AccountId, Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.upstreams.protocols import Pool

GRACE = 30.0
"""Seconds that a pool without routes is kept, so that a service that is edited twice keeps its connections."""


class RetiringPool(Pool, Protocol):
    """A pool that can be retired: open exchanges finish, and late ones still dial."""

    def retire(self) -> None: ...


PoolFor = Callable[[Upstream, Dialer], RetiringPool]
_Key = tuple[AccountId, str, int]


def _way(upstream: Upstream) -> Upstream:
    """The part of an upstream that decides how its connections are opened."""
    return replace(upstream, path=b"/", custom_headers=(), disable_access_log=False, values={})


def _key(account: AccountId, upstream: Upstream, dialer: Dialer) -> _Key:
    """The key of a bucket of pools that may be equal.

    It includes the dialer, because thousands of services may lead to one address through different dialers. A dialer
    that cannot be hashed is compared with all dialers of its type.
    """
    try:
        mark = hash(dialer)
    except BaseException as failure:  # a plugin's code
        if must_pass(failure):
            raise
        mark = id(type(dialer))
    return account, str(upstream), mark


def _equal(left: Dialer, right: Dialer) -> bool:
    """True if both dial alike. Dialers whose comparison fails differ: each gets a pool of its own."""
    try:
        return left is right or bool(left == right)
    except BaseException as failure:  # a plugin's code
        if must_pass(failure):
            raise
        return False


@dataclass(slots=True, eq=False)
class _Kept:
    key: _Key
    upstream: Upstream
    dialer: Dialer
    pool: RetiringPool
    routes: int = 0
    retiring: asyncio.TimerHandle | None = None


class Pools:
    """All pools of this process. Accounts never share a pool."""

    def __init__(self, pool_for: PoolFor, *, grace: float = GRACE) -> None:
        self._pool_for = pool_for
        self._grace = grace
        self._kept: dict[_Key, list[_Kept]] = {}
        self._by_pool: dict[int, _Kept] = {}

    def take(self, account: AccountId, upstream: Upstream, dialer: Dialer) -> RetiringPool:
        """The pool for another route."""
        upstream = _way(upstream)
        key = _key(account, upstream, dialer)
        bucket = self._kept.setdefault(key, [])
        for kept in bucket:
            if kept.upstream == upstream and _equal(kept.dialer, dialer):
                break
        else:
            kept = _Kept(key, upstream, dialer, self._pool_for(upstream, dialer))
            bucket.append(kept)
            self._by_pool[id(kept.pool)] = kept
        kept.routes += 1
        if kept.retiring is not None:
            kept.retiring.cancel()
            kept.retiring = None
        return kept.pool

    def drop(self, pool: RetiringPool) -> None:
        """Release a route's use of its pool."""
        kept = self._by_pool[id(pool)]
        kept.routes -= 1
        if kept.routes == 0:
            kept.retiring = asyncio.get_running_loop().call_later(self._grace, self._retire, kept)

    def close(self) -> None:
        """Retire all pools now."""
        for kept in list(self._by_pool.values()):
            self._retire(kept)

    def __len__(self) -> int:
        return len(self._by_pool)

    def _retire(self, kept: _Kept) -> None:
        if kept.retiring is not None:
            kept.retiring.cancel()
            kept.retiring = None
        bucket = self._kept[kept.key]
        bucket.remove(kept)
        if not bucket:
            del self._kept[kept.key]
        del self._by_pool[id(kept.pool)]
        kept.pool.retire()
