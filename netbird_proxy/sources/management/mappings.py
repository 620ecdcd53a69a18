"""Applies management's mappings: decodes and routes them, requests tunnels for their accounts, reports statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import structlog

from netbird_proxy.api.errors import TunnelNotReady
from netbird_proxy.api.host import OpenExchanges
from netbird_proxy.api.model import AccountId, Address, PublicKey, ServiceId, ServiceMapping, UserId
from netbird_proxy.routing.apply import AppliedMapping, Report, Routing
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.management.statuses import Status, StatusReports
from netbird_proxy.sources.management.stream import Update
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_ERROR,
    PROXY_STATUS_TUNNEL_NOT_CREATED,
    UPDATE_TYPE_CREATED,
    UPDATE_TYPE_MODIFIED,
    UPDATE_TYPE_REMOVED,
    ProxyMapping,
)

log = structlog.get_logger("netbird_proxy.mappings")

SOURCE = "management"
AT_ONCE = 20
"""Mappings that are decoded or compiled, half a millisecond each, before requests are served again."""


class InboundPorts(Protocol):
    """The address and ports on which an account's peers reach this proxy. A port that is not served is None."""

    @property
    def address(self) -> str: ...

    @property
    def http_port(self) -> int | None: ...

    @property
    def https_port(self) -> int | None: ...


class AccountTunnel(Protocol):
    """The state of one account's tunnel. `tunnel` and `inbound` are None while it is not up."""

    @property
    def id(self) -> AccountId: ...

    @property
    def tunnel(self) -> object | None: ...

    @property
    def inbound(self) -> InboundPorts | None: ...

    @property
    def error(self) -> str: ...


class AccountTunnels(Protocol):
    """The tunnels that mappings need, and the generations of cached answers."""

    def want(self, accounts: frozenset[AccountId]) -> None:
        """Keep a tunnel for exactly these accounts."""

    def state(self, account: AccountId) -> AccountTunnel | None: ...

    def unreachable(self, account: AccountId, address: Address) -> str:
        """The reason why the account's tunnel cannot reach an address now; "" if it can, or cannot tell."""

    def raise_generation(self, account: AccountId) -> None: ...

    def raise_generations(self) -> None: ...


class RevocationStore(Protocol):
    """Records sessions that are revoked before they expire."""

    def add(self, account: AccountId, *, subject: str, token_hash: bytes, not_before: float) -> None: ...


class ManagementMappings:
    """Implements `stream.MappingSink`. Owns the mappings of the stream."""

    def __init__(
        self,
        codec: Codec,
        routing: Routing,
        accounts: AccountTunnels,
        tokens: OneTimeTokens,
        statuses: StatusReports,
        exchanges: OpenExchanges,
        revocations: RevocationStore,
        *,
        private: bool,
        has_certificate: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        private: give a tunnel to every account with a mapping, not only to those with upstreams behind one.
        has_certificate: true if HTTPS can be served for a folded host.
        """
        self._codec = codec
        self._routing = routing
        self._accounts = accounts
        self._tokens = tokens
        self._statuses = statuses
        self._exchanges = exchanges
        self._revocations = revocations
        self._private = private
        self._has_certificate = has_certificate
        self._clock = clock
        self._seen: set[ServiceId] | None = None
        self._reasons: dict[AccountId, dict[ServiceId, str]] = {}
        """The reported reason, or "", of each service with targets behind its account's tunnel."""

    def stream_opened(self) -> None:
        self._seen = set()

    def stream_lost(self) -> None:
        # Without its end, a snapshot does not show which mappings are gone.
        self._seen = None

    async def apply(self, update: Update) -> None:
        # Statuses wait until the update is in force; sending thousands of them meanwhile would slow the snapshot down.
        with self._statuses.paused():
            await self._apply(update)

    async def _apply(self, update: Update) -> None:
        # This comes first, so that no answer from before the update is used after it.
        self._distrust(update)
        changed, removed = await self._sorted(update.mapping)
        gone: set[ServiceId] = set()
        if self._seen is not None:
            self._seen.update(changed)
            self._seen.difference_update(removed)
            if update.initial_sync_complete:
                gone = {served.mapping.id for served in self._ours()} - self._seen
                self._seen = None
        accounts = {
            service: served.mapping.account
            for service in (*removed, *gone)
            if (served := self._routing.get(SOURCE, service)) is not None
        }
        reports: list[Report] = []
        together, rest = self._parted(changed)
        if together or removed or gone:
            reports += self._routing.update(SOURCE, together, {*removed, *gone})
        for start in range(0, len(rest), AT_ONCE):
            reports += self._routing.update(SOURCE, rest[start : start + AT_ONCE])
            await asyncio.sleep(0)
        if update.initial_sync_complete:
            self._routing.in_force(SOURCE)
        self._accounts.want(self._accounts_with_tunnels())
        for report in reports:
            self._report(report)
            if self._seen is not None and self._routing.get(SOURCE, report.service) is None:
                self._seen.discard(report.service)  # refused as one too many, so it is not kept
        for service, account in accounts.items():
            self._forget_reason(account, service)
            self._statuses.report(Status(service, account, PROXY_STATUS_TUNNEL_NOT_CREATED))
        if update.mapping or gone:
            refused = sum(not report.ok for report in reports)
            log.info(
                "mappings.applied",
                changed=len(changed),
                removed=len(accounts),
                refused=refused,
                total=len(self._routing),
            )
        self._revalidate(update)

    def _distrust(self, update: Update) -> None:
        """Drop cached answers about the callers that an update names, and record its revocations."""
        if update.initial_sync_complete:
            # Changes while no stream was open were not reported to this proxy.
            self._accounts.raise_generations()
        for asked in update.revalidations:
            if asked.account_id:
                self._accounts.raise_generation(AccountId(asked.account_id))
            else:
                self._accounts.raise_generations()
        for revoked in update.revocations:
            self._revocations.add(
                AccountId(revoked.account_id),
                subject=revoked.subject,
                token_hash=revoked.token_hash,
                not_before=revoked.not_before.seconds + revoked.not_before.nanos / 1e9,
            )

    def _revalidate(self, update: Update) -> None:
        """Revalidate open exchanges that an update, which is in force by now, may affect."""
        if update.initial_sync_complete:
            self._exchanges.revalidate()
            return
        for asked in update.revalidations:
            self._exchanges.revalidate(
                account=AccountId(asked.account_id) if asked.account_id else None,
                user=UserId(asked.user_id) if asked.user_id else None,
                peer=PublicKey(asked.peer_key) if asked.peer_key else None,
                service=ServiceId(asked.service_id) if asked.service_id else None,
            )
        for revoked in update.revocations:
            # A token's hash does not identify a user.
            user = UserId(revoked.subject) if revoked.subject else None
            self._exchanges.revalidate(account=AccountId(revoked.account_id), user=user)

    def on_account(self, state: AccountTunnel) -> None:
        """Report every service of an account whose tunnel came up or was lost."""
        for served in self._ours():
            if served.mapping.account == state.id:
                self._report(served.report(changed=False))

    def on_reachability(self, account: AccountId) -> None:
        """Report the services of an account whose targets became reachable, or no longer are."""
        for service, reported in list(self._reasons.get(account, {}).items()):
            served = self._routing.get(SOURCE, service)
            if served is None or served.mapping.account != account:
                self._forget_reason(account, service)
            elif self._unreachable(served) != reported:
                self._report(served.report(changed=False))

    def _unreachable(self, served: AppliedMapping) -> str:
        """The reason why a route of a mapping has no target that can be reached now, or ""."""
        account = served.mapping.account
        for addresses in served.compiled.tunneled if served.compiled is not None else ():
            reasons = [self._accounts.unreachable(account, address) for address in addresses]
            if all(reasons):
                return reasons[0]
        return ""

    def _forget_reason(self, account: AccountId, service: ServiceId) -> None:
        reasons = self._reasons.get(account, {})
        reasons.pop(service, None)
        if not reasons:
            self._reasons.pop(account, None)

    def _parted(self, changed: dict[ServiceId, ServiceMapping]) -> tuple[list[ServiceMapping], list[ServiceMapping]]:
        """Split mappings into those that one step must apply, because hosts move between them, and all others."""
        if len(changed) <= AT_ONCE:
            return list(changed.values()), []
        owners = {served.mapping.host: served.mapping.id for served in self._routing}
        together: list[ServiceMapping] = []
        rest: list[ServiceMapping] = []
        for mapping in changed.values():
            old = self._routing.get(SOURCE, mapping.id)
            stays = old is None or old.mapping.host == mapping.host
            (rest if stays and owners.get(mapping.host, mapping.id) == mapping.id else together).append(mapping)
        return together, rest

    async def _sorted(self, wires: Iterable[ProxyMapping]) -> tuple[dict[ServiceId, ServiceMapping], set[ServiceId]]:
        """The latest mapping of each service in a batch, and the ids of removed services."""
        changed: dict[ServiceId, ServiceMapping] = {}
        removed: set[ServiceId] = set()
        for number, wire in enumerate(wires):
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            service = ServiceId(wire.id)
            changed.pop(service, None)
            removed.discard(service)
            if wire.type == UPDATE_TYPE_REMOVED:
                removed.add(service)
                continue
            decoded = self._codec.decode(wire, source=SOURCE)
            mapping = decoded.mapping
            if decoded.ignored:
                log.info("mapping.ignored_fields", service_id=service, fields=list(decoded.ignored))
            if wire.type not in (UPDATE_TYPE_CREATED, UPDATE_TYPE_MODIFIED):
                mapping = replace(mapping, refused=f"update type {wire.type} is not supported by this proxy")
            if wire.auth_token:
                self._tokens.put(mapping.account, service, wire.auth_token, self._clock())
            changed[service] = replace(mapping, auth_token="")
        return changed, removed

    def _ours(self) -> list[AppliedMapping]:
        return [served for served in self._routing if served.mapping.source == SOURCE]

    def _accounts_with_tunnels(self) -> frozenset[AccountId]:
        return frozenset(
            served.mapping.account
            for served in self._routing
            if not served.refused and served.mapping.account and (self._private or served.mapping.tunneled)
        )

    def _report(self, report: Report) -> None:
        if report.refused:
            self._forget_reason(report.account, report.service)
            self._statuses.report(Status(report.service, report.account, PROXY_STATUS_ERROR, error=report.refused))
            return
        served = self._routing.get(SOURCE, report.service)
        if served is None:
            return
        mapping = served.mapping
        state = self._accounts.state(mapping.account)
        certificate = self._has_certificate(mapping.host)
        inbound: tuple[str, int, int] | None = None
        if state is not None:
            if state.tunnel is None:
                if state.error:
                    status = PROXY_STATUS_TUNNEL_NOT_CREATED
                    self._statuses.report(Status(report.service, report.account, status, error=state.error))
                return
            if state.inbound is not None:
                inbound = (state.inbound.address, state.inbound.http_port or 0, state.inbound.https_port or 0)
        reason = ""
        if served.compiled is not None and served.compiled.tunneled:
            reason = self._unreachable(served)
            self._reasons.setdefault(report.account, {})[report.service] = reason
        self._statuses.report(
            Status(
                report.service,
                report.account,
                PROXY_STATUS_TUNNEL_NOT_CREATED if reason else PROXY_STATUS_ACTIVE,
                error=f"{TunnelNotReady.code}: {reason}" if reason else "",
                certificate=certificate,
                inbound=inbound,
            )
        )
