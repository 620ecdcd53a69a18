"""One port for REST and gRPC: the first bytes of a connection decide which of them serves it.

A client of gRPC begins with HTTP/2's preface, and the REST API is HTTP/1.1. REST gets the connection itself. gRPC
accepts connections only from its own listeners, so the client is joined to it over a Unix socket. The joined socket has
a name of its own, by which gRPC learns the client's address. With TLS, a client that offers HTTP/1.1 gets it, so that
browsers and REST clients, which also offer HTTP/2, do not reach gRPC.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from netbird_host.sources import source_of
from netbird_host.splice import splice
from netbird_host.tasks import start_owned

ALPN: Final = ("http/1.1", "h2")
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every HTTP/2 connection (RFC 9113, section 3.4)."""
PEEK_SECONDS: Final = 10.0
"""Maximum time until the bytes that decide; on expiry the connection is closed."""
WAITING: Final = 1_024
"""Maximum number of connections that have not sent these bytes; a further one takes the place of the oldest."""
JOINED: Final = 20_000
"""Maximum number of connections to gRPC. A further one takes the place of the newest of the address (IPv6: a /64) with
most connections; it is closed itself if its own address has most."""

_log = logging.getLogger(__name__)


class Front:
    """The connections of one port. Belongs to one event loop.

    Args:
        grpc: path of the Unix socket on which gRPC listens. Only this process's user may have access to it.
        count: called with the name of each limit that a connection reached.
    """

    def __init__(
        self,
        grpc: Path,
        count: Callable[[str], object] = lambda _name: None,
        *,
        peek_seconds: float = PEEK_SECONDS,
        waiting: int = WAITING,
        joined: int = JOINED,
    ) -> None:
        self.path = grpc
        self._count = count
        self._peek_seconds = peek_seconds
        self._most_waiting = waiting
        self._most_joined = joined
        self._waiting: dict[_Peeking, None] = {}
        self._clients: dict[str, tuple[str, asyncio.Transport]] = {}
        self._by_source: dict[str, dict[str, asyncio.Transport]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefix = f"netbird-management-{secrets.token_hex(8)}"
        self._number = 0
        self.addresses: Mapping[str, str] = _Addresses(self._clients)
        """The client's address by gRPC's name of the peer."""

    def protocol(self, rest: Callable[..., asyncio.Protocol]) -> Callable[..., asyncio.Protocol]:
        """A protocol factory that takes the arguments of `rest`, the factory of REST's protocol."""

        def make(**arguments: Any) -> asyncio.Protocol:
            return _Peeking(self, lambda: rest(**arguments))

        return make

    def close(self) -> None:
        """Cuts every connection that REST does not own."""
        for peeking in list(self._waiting):
            peeking.abort()
        for _, transport in list(self._clients.values()):
            transport.abort()

    def wait(self, peeking: "_Peeking") -> asyncio.TimerHandle:
        if len(self._waiting) >= self._most_waiting:
            self._count("first_bytes_awaited")
            next(iter(self._waiting)).abort()
        self._waiting[peeking] = None
        return asyncio.get_running_loop().call_later(self._peek_seconds, self._late, peeking)

    def _late(self, peeking: "_Peeking") -> None:
        self._count("first_bytes_late")
        peeking.abort()

    def decided(self, peeking: "_Peeking") -> None:
        self._waiting.pop(peeking, None)

    def join(self, transport: asyncio.Transport, head: bytes) -> None:
        """Joins a client to gRPC."""
        peername = transport.get_extra_info("peername")
        address = str(peername[0]) if peername else ""
        if not self._has_place(source_of(address)):
            transport.abort()
            return
        transport.pause_reading()
        self._number += 1
        name = f"{self._prefix}-{self._number}"
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.setblocking(False)
            inner.bind(f"\0{name}")
            inner.connect(str(self.path))
        except OSError as error:  # gRPC does not listen yet or any more, or has no place for another
            _log.warning("front.grpc_unavailable", extra={"error": str(error)})
            inner.close()
            transport.abort()
            return
        key = f"unix-abstract:{name}"
        self._clients[key] = (address, transport)
        self._by_source.setdefault(source_of(address), {})[key] = transport
        # Not in a group: a connection that fails must not end the others. The set keeps the task until it is done.
        joining = start_owned(splice(transport, inner, head, on_end=lambda: self._left(key)))
        self._tasks.add(joining)
        joining.add_done_callback(self._joined)

    def _has_place(self, source: str) -> bool:
        """True if a connection of this source may be joined, for which one of the source with most may have to go."""
        if len(self._clients) < self._most_joined:
            return True
        self._count("grpc_connections_refused")
        largest = max(self._by_source, key=lambda each: len(self._by_source[each]))
        if len(self._by_source[largest]) <= len(self._by_source.get(source, ())) + 1:
            return False
        key, transport = next(reversed(self._by_source[largest].items()))
        self._left(key)
        transport.abort()
        return True

    def _left(self, key: str) -> None:
        if key not in self._clients:
            return  # it went to make room
        address, _ = self._clients.pop(key)
        source = source_of(address)
        del self._by_source[source][key]
        if not self._by_source[source]:
            del self._by_source[source]

    def _joined(self, joining: "asyncio.Task[None]") -> None:
        self._tasks.discard(joining)
        if not joining.cancelled() and (error := joining.exception()) is not None:
            _log.warning("front.grpc_unavailable", extra={"error": str(error)})


class _Addresses(Mapping[str, str]):
    def __init__(self, clients: Mapping[str, tuple[str, asyncio.Transport]]) -> None:
        self._clients = clients

    def __getitem__(self, name: str) -> str:
        return self._clients[name][0]

    def __iter__(self) -> Any:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


class _Peeking(asyncio.Protocol):
    """A connection until its first bytes decide who serves it."""

    def __init__(self, front: Front, rest: Callable[[], asyncio.Protocol]) -> None:
        self._front = front
        self._rest = rest
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's classes are no subclasses
        self._transport = transport
        self._late = self._front.wait(self)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._head.startswith(PREFACE):
            self._decide(self._front.join)
        elif not PREFACE.startswith(self._head):
            self._decide(self._serve_rest)

    def _serve_rest(self, transport: asyncio.Transport, head: bytes) -> None:
        protocol = self._rest()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if not transport.is_closing():
            protocol.data_received(head)

    def _decide(self, serve: Callable[[asyncio.Transport, bytes], None]) -> None:
        transport = self._transport
        self._forget()
        if transport is not None:
            serve(transport, self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def abort(self) -> None:
        transport = self._transport
        self._forget()
        if transport is not None:
            transport.abort()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._transport = None
        self._front.decided(self)
