"""One-time tokens for `CreateProxyPeer`. Each mapping brings one; each tunnel spends one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from netbird_host.tables import LatestTable
from netbird_proxy.api.model import AccountId, ServiceId

LIFETIME = 300.0
"""Lifetime of a token in seconds, from when management issued it."""
MARGIN = 20.0
"""Seconds before its end from which a token is not used, because the call takes time."""
ACCOUNTS = 16_384
"""Maximum number of accounts with tokens; above it the one with the oldest token loses all. It requests new ones."""
PER_ACCOUNT = 64
"""Maximum number of unspent tokens an account; above it the oldest is dropped. Only retries need more than one."""


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    service: ServiceId
    value: str = field(repr=False)
    arrived: float


class OneTimeTokens:
    """The unspent tokens by account, latest last. Times are the caller's monotonic seconds."""

    def __init__(self, count: Callable[[str], object] = lambda _name: None) -> None:
        self.count = count
        self._by_account: LatestTable[AccountId, LatestTable[ServiceId, OneTimeToken]] = LatestTable(ACCOUNTS)
        self._arrival = asyncio.Event()

    def put(self, account: AccountId, service: ServiceId, value: str, now: float) -> None:
        """Keep a token that arrived with a mapping; it replaces the service's older one."""
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
        """Remove and return the latest valid token; expired ones are dropped."""
        tokens = self._by_account.get(account)
        while tokens:
            _, token = tokens.popitem(last=True)
            if now - token.arrived < LIFETIME - MARGIN:
                return token
            tokens.clear()
        return None

    async def arrival(self) -> None:
        """Wait until a token of any account arrives."""
        await self._arrival.wait()

    def __repr__(self) -> str:
        return f"OneTimeTokens({ {account: len(tokens) for account, tokens in self._by_account.items()} })"
