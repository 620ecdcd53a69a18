"""The proxy's half: dial flagged targets from this machine, where its operator allows the address.

Literals are judged when the mapping is applied, names each time they are dialed; and the address that was judged is the
one that is dialed, so that a name cannot answer twice.
"""

from __future__ import annotations

import asyncio
import socket
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from netbird_direct_upstream.addresses import Allowed, judged, refusal
from netbird_direct_upstream.settings import FIELD, DirectUpstreamSettings
from netbird_proxy import (
    AccountId,
    Address,
    AddressRefused,
    Claim,
    Dialer,
    DialFailed,
    DialTimeout,
    PluginInfo,
    ProtocolFactory,
    Proxy,
    RouteRefused,
    RouteSpec,
    Upstream,
    UpstreamError,
    hookimpl,
)


class AllowEntry(BaseModel):
    """`[[direct_upstream.allow]]`: networks that the proxy's operator opens to accounts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accounts: tuple[str, ...] = Field(min_length=1)
    """Account ids, or `"*"` for all."""
    networks: tuple[IPvAnyNetwork, ...] = Field(min_length=1)
    """Networks that they may reach although they are closed by rule, such as `127.0.0.1/32`."""
    ports: tuple[int, ...] = ()
    """Only these; none for all."""


class DirectUpstreamOptions(BaseModel):
    """`[direct_upstream]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[AllowEntry, ...] = ()

    def entries(self) -> tuple[Allowed, ...]:
        return tuple(Allowed(entry.accounts, entry.networks, entry.ports) for entry in self.allow)


class DirectUpstream:
    """Takes the targets that are flagged `direct_upstream`, and no others."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-direct-upstream"),
            summary="targets dialed from the proxy's own network, where its operator allows the address",
            claims=(Claim(FIELD),),
            options=DirectUpstreamOptions,
            target_settings=(DirectUpstreamSettings,),
        )

    @hookimpl
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer | None:
        if not upstream.settings(DirectUpstreamSettings).direct:
            return None
        rule = DirectDialer(route.account, proxy)
        if why := rule.refused_literal(upstream.address):
            raise RouteRefused(f"direct upstream {upstream}: {why}")
        return rule


class DirectDialer:
    """Dials from this machine, after judging what it is about to dial."""

    def __init__(self, account: AccountId, proxy: Proxy) -> None:
        self._account = account
        self._proxy = proxy
        self._allowed = proxy.options(DirectUpstreamOptions).entries()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DirectDialer) and (self._account, self._proxy) == (other._account, other._proxy)

    def __hash__(self) -> int:
        return hash((DirectDialer, self._account))

    def refused_literal(self, address: Address) -> str:
        """Why a literal may not be dialed; "" if it may, or if it is a name and can only be judged at the dial."""
        try:
            judged(address.host)
        except ValueError:
            return ""
        return self._refusal(address.host, address.port)

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        candidates = await self._resolve(address, timeout)
        host = self._proxy.host_dialer()
        failure: UpstreamError | None = None
        refusals: list[str] = []
        for literal in candidates:
            if why := self._refusal(literal, address.port):
                refusals.append(why)
                continue
            left = deadline - loop.time()
            if left <= 0:
                raise failure or DialTimeout(f"dial {address} directly: timed out after {timeout:g} s")
            try:
                return await host.dial(protocol_factory, Address(literal, address.port), timeout=left)
            except UpstreamError as exc:
                failure = exc
        if failure is not None:
            raise failure
        raise AddressRefused(f"dial {address} directly: {'; '.join(refusals) or 'no address'}")

    def _refusal(self, literal: str, port: int) -> str:
        own = frozenset((listening.host, listening.port) for listening in self._proxy.listening_addresses())
        if any(own_port == port for _, own_port in own) and _is_ours(literal):
            own |= {(literal, port)}
        return refusal(literal, port, self._account, self._allowed, own)

    async def _resolve(self, address: Address, timeout: float) -> list[str]:
        try:
            judged(address.host)
        except ValueError:
            pass
        else:
            return [address.host]
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(
                    address.host, address.port, type=socket.SOCK_STREAM
                )
        except TimeoutError as exc:
            raise DialTimeout(f"resolve {address.host}: timed out after {timeout:g} s") from exc
        except (OSError, UnicodeError) as exc:  # a label that is none never gets to a resolver
            raise DialFailed(f"resolve {address.host}: {exc}") from exc
        return list(dict.fromkeys(str(info[4][0]) for info in found))


def _is_ours(literal: str) -> bool:
    """Whether an address is one of this machine's: only such an address can be bound. Nothing is sent."""
    address = judged(literal)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
