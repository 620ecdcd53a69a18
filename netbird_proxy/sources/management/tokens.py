"""One-time tokens for `CreateProxyPeer`: each mapping brings one, and one is spent per tunnel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from netbird_host.tables import LatestTable
from netbird_proxy.api.model import AccountId, ServiceId

LIFETIME = 300.0
"""Seconds a token is good for after management made it (spec: proxy wire §5.4)."""
MARGIN = 20.0
"""Seconds before its end at which we stop trusting a token: it still has to travel."""
ACCOUNTS = 16_384
"""Accounts whose tokens are kept; the one that heard of none for longest goes first. It then asks for new ones."""
PER_ACCOUNT = 64
"""Unspent tokens kept an account; the oldest goes first. A tunnel needs one, so more is only for retries."""


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    service: ServiceId
    value: str = field(repr=False)
    arrived: float


class OneTimeTokens:
    """The unspent tokens by account, freshest last. Times are the caller's monotonic seconds."""

    def __init__(self, count: Callable[[str], object] = lambda _name: None) -> None:
        self.count = count
        self._by_account: LatestTable[AccountId, LatestTable[ServiceId, OneTimeToken]] = LatestTable(ACCOUNTS)
        self._arrival = asyncio.Event()

    def put(self, account: AccountId, service: ServiceId, value: str, now: float) -> None:
        """Keep a token that came with a mapping; it replaces the service's older one."""
        tokens = self._by_account.get(account)
        if tokens is None:
            tokens = LatestTable(PER_ACCOUNT)
        if tokens.keep(service, OneTimeToken(service, value, now)) is not None:
            self.count("one_time_tokens_dropped")
        if self._by_account.keep(account, tokens) is not None:
            self.count("one_time_tokens_dropped")
        self._arrival.set()
        self._arrival = asyncio.Event()

    def spend(self, account: AccountId, now: float) -> OneTimeToken | None:
        """Take the freshest token that is still good; stale ones are forgotten on the way."""
        tokens = self._by_account.get(account)
        while tokens:
            _, token = tokens.popitem(last=True)
            if now - token.arrived < LIFETIME - MARGIN:
                return token
            tokens.clear()
        return None

    async def arrival(self) -> None:
        """Wait until some token arrives, of whatever account."""
        await self._arrival.wait()

    def __repr__(self) -> str:
        return f"OneTimeTokens({ {account: len(tokens) for account, tokens in self._by_account.items()} })"
