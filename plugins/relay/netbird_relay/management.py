"""The relay as a plugin of management: on the REST port, and on ports of its own where the operator wants them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from netbird_management import Management, PeerServers, PluginInfo, TakeSocket, hookimpl
from netbird_relay import opening
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.thread import RelayThread
from netbird_wire.relay_url import PATH

DEFAULTS: Final = Limits()
_SCHEMES: Final = {"http": "rel", "https": "rels"}


class Options(BaseModel):
    """The section `[relay]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = ""
    """`host:port` of a listener of the relay's own, beside the REST port; none by default. The REST port passes its
    relay connections on at no cost if it has no TLS; with TLS management decrypts them."""
    certificate: Path | None = None
    """PEM file with the certificate chain of that listener; without it the listener is plain."""
    key: Path | None = None
    """PEM file with the certificate's key."""
    exposed_url: str = ""
    """URL at which all peers reach this relay, `rels://host:port` or `rel://host:port`; by default the REST port's."""
    stun: str = ""
    """`host:port` of a STUN server over UDP; none by default."""
    connections: int = Field(default=DEFAULTS.connections, ge=1)
    """Maximum number of connections; further ones are closed."""
    connections_per_address: int = Field(default=DEFAULTS.connections_per_address, ge=1)
    """Maximum number of connections from one IPv4 address or one IPv6 /64; further ones are closed."""
    subscriptions: int = Field(default=DEFAULTS.subscriptions, ge=1)
    """Maximum number of subscriptions of all peers together, each of about 300 bytes; further ones are ignored. Every
    pair of peers that use this relay needs two."""
    bytes_per_second: int = Field(default=DEFAULTS.bytes_per_second, ge=0)
    """Maximum rate at which one peer may send; the relay reads more slowly from a faster one. 0 means no limit."""

    @field_validator("listen", "stun")
    @classmethod
    def _address(cls, text: str) -> str:
        if text:
            opening.host_and_port(text)
        return text

    @field_validator("exposed_url")
    @classmethod
    def _url(cls, text: str) -> str:
        return opening.own_url(text).text if text else text

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        if self.listen and not self.exposed_url:
            raise ValueError("listen needs exposed_url, which peers dial")
        if self.certificate is not None and not self.listen:
            raise ValueError("a certificate needs listen; the REST port has its own")
        return self

    @property
    def limits(self) -> Limits:
        return Limits(
            connections=self.connections,
            connections_per_address=self.connections_per_address,
            unauthenticated_per_address=min(DEFAULTS.unauthenticated_per_address, self.connections_per_address),
            subscriptions=self.subscriptions,
            bytes_per_second=self.bytes_per_second,
        )


class Relay:
    """Serves the relay in a thread of its own, and gives management its address to announce."""

    def __init__(self) -> None:
        self._thread: RelayThread | None = None
        self._stun_port = 0

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-relay"),
            summary="a relay for peers without a direct path, on the REST port, and a STUN server",
            options=Options,
        )

    @hookimpl
    def lifespan(self, management: Management) -> AbstractAsyncContextManager[None]:
        return self._serving(management.options(Options), management.relay_secret)

    @hookimpl
    def upgrades(self, management: Management) -> Mapping[str, TakeSocket]:
        return {PATH: self._take}

    @hookimpl
    def peer_servers(self, management: Management) -> PeerServers:
        options = management.options(Options)
        scheme, _, rest = management.rest_url.partition("://")
        url = options.exposed_url or f"{_SCHEMES.get(scheme, 'rel')}://{rest}"
        if self._thread is not None:
            self._thread.set_instance_url(url)
        host = opening.own_url(url).host
        stuns = (f"stun:[{host}]:{self._stun_port}" if ":" in host else f"stun:{host}:{self._stun_port}",)
        return PeerServers(relays=(url,), stuns=stuns if self._stun_port else ())

    def _take(self, *, connection: socket.socket, head: bytes, address: str) -> None:
        if self._thread is None:
            connection.close()
        else:
            self._thread.adopt(connection, address, head)

    @asynccontextmanager
    async def _serving(self, options: Options, secret: str) -> AsyncIterator[None]:
        """Raises CannotServe if an address or a certificate cannot be used."""
        with ExitStack() as sockets:
            chain = opening.certificate(options.certificate, options.key)
            listeners = _bound(sockets, options.listen, socket.SOCK_STREAM)
            stuns = _bound(sockets, options.stun, socket.SOCK_DGRAM)
            self._stun_port = stuns[0].getsockname()[1] if stuns else 0
            thread = RelayThread(Identity(secret, options.exposed_url or "rel://unknown"), options.limits)
            async with thread.running(listeners, tls=chain.context if chain is not None else None, stun=stuns):
                self._thread = thread
                try:
                    yield
                finally:
                    self._thread = None


def _bound(stack: ExitStack, address: str, kind: socket.SocketKind) -> list[socket.socket]:
    return [stack.enter_context(opening.bind(address, kind))] if address else []
