"""The hooks of the plugin `forwarding`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict, IPvAnyNetwork

from netbird_proxy import (
    ExchangeView,
    OutgoingHead,
    PluginInfo,
    Proxy,
    RequestTransform,
    RouteSpec,
    TrustedProxies,
    hookimpl,
)

FORWARDED = b"forwarded"
FOR, HOST, PROTO, PORT = b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port"
REAL_IP = b"x-real-ip"


class ForwardingOptions(BaseModel):
    """`[forwarding]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Networks of proxies in front of this one, whose forwarding field names the client. Never applied in a tunnel."""
    field: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The field that those proxies write. Set it to that one: a client can forge the other."""
    proto: Literal["auto", "http", "https"] = "auto"
    """The scheme that upstreams are told. `auto` is the client's own, or the one that a trusted proxy reports."""
    forwarded: bool = False
    """Send `Forwarded` (RFC 7239) to upstreams too."""


class Forwarding:
    """Reports the client, the proxies on its way, and the host and scheme of its request to upstreams."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            summary="reports the client to upstreams, also behind trusted proxies", options=ForwardingOptions
        )

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None]:
        return self._running(proxy)

    @asynccontextmanager
    async def _running(self, proxy: Proxy) -> AsyncIterator[None]:
        options = proxy.options(ForwardingOptions)
        if options.trusted_proxies:
            proxy.trust(TrustedProxies(options.trusted_proxies, field=options.field))
        try:
            yield
        finally:
            proxy.trust(None)

    @hookimpl
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> RequestTransform | None:
        options = proxy.options(ForwardingOptions)
        if not options.trusted_proxies and not options.forwarded and options.proto == "auto":
            return None  # the core reports the socket's address, and faster
        owns = (FORWARDED, FOR, REAL_IP, HOST, PROTO, PORT)
        proto = "" if options.proto == "auto" else options.proto
        return RequestTransform(partial(_also_forwarded if options.forwarded else _set_fields, proto), owns=owns)


def _set_fields(fixed_proto: str, exchange: ExchangeView, outgoing: OutgoingHead) -> None:
    forwarded = exchange.forwarded
    peer = _peer(exchange)
    proto = fixed_proto or (forwarded.proto if forwarded is not None else "") or exchange.scheme
    host = (forwarded.host.encode("latin-1") if forwarded is not None else b"") or exchange.authority
    if peer:
        chain = (*forwarded.chain, peer) if forwarded is not None else (peer,)
        outgoing.set(FOR, ", ".join(chain).encode("latin-1"))
        outgoing.set(
            REAL_IP, ((forwarded.real_ip if forwarded is not None else "") or exchange.client_address).encode()
        )
    outgoing.set(HOST, host)
    outgoing.set(PROTO, proto.encode())
    outgoing.set(PORT, (forwarded.port.encode() if forwarded is not None else b"") or _port(exchange.authority, proto))


def _also_forwarded(fixed_proto: str, exchange: ExchangeView, outgoing: OutgoingHead) -> None:
    _set_fields(fixed_proto, exchange, outgoing)
    forwarded = exchange.forwarded
    proto = fixed_proto or (forwarded.proto if forwarded is not None else "") or exchange.scheme
    host = (forwarded.host if forwarded is not None else "") or exchange.authority.decode("latin-1")
    chain = forwarded.chain if forwarded is not None else ()
    # Other proxies reported the elements of the chain. Only the last one is from this proxy, with host and scheme.
    elements = [f"for={_node(address)}" for address in chain]
    elements.append(f'for={_node(_peer(exchange) or "unknown")};host="{host}";proto={proto}')
    outgoing.set(FORWARDED, ", ".join(elements).encode("latin-1"))


def _peer(exchange: ExchangeView) -> str:
    return exchange.origin.peer.host if exchange.origin is not None else exchange.client_address


def _port(authority: bytes, proto: str) -> bytes:
    _, colon, port = authority.rpartition(b":")
    return port if colon and port.isdigit() else b"443" if proto == "https" else b"80"


def _node(address: str) -> str:
    """RFC 7239 §6: an IPv6 address in brackets and quotes; a value that is not an address becomes `unknown`."""
    bare = address.strip("[]") if address.count("[") == 1 and address.endswith("]") else address
    if ":" in bare and all(char in "0123456789abcdefABCDEF:." for char in bare):
        return f'"[{bare}]"' if bare.count(":") > 1 else f'"{bare}"'
    return bare if bare and all(char in "0123456789." for char in bare) else "unknown"
