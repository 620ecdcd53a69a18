"""Acceptance of connections on this machine's own sockets: each is counted before its TLS handshake begins.

The servers of event loops call a protocol only after its TLS handshake, so that any number of handshakes escapes the
limits. Here the limits count a connection as soon as the kernel returns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from netbird_host.tasks import start_owned
from netbird_proxy.listening.connections import Capacity, Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.tls import SHUTDOWN_TIMEOUT, ServerTls

BURST = 64
"""Maximum number of connections accepted at once, before the loop does other work."""
PAUSE = 0.5
"""Pause of accepting in seconds, after the system had no descriptor or memory for another connection."""


class Accepted:
    """An accepted connection until its protocol takes over, which is after a TLS handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.capacity = Capacity.NO

    def stop(self) -> None:
        """No request was begun on this connection, so it ends at once."""
        self.abort()

    def abort(self) -> None:
        # The loop owns the transport, and closes it at the end of its input.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class Acceptor:
    """Accepts connections on a listening socket, which it owns, until it is closed."""

    def __init__(self, listening: socket.socket, connections: Connections, tls: ServerTls | None) -> None:
        """Args:
        listening: bound and listening.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._connections = connections
        # The loop's own TLS: under uvloop a request costs a fifth less than with asyncio's `SSLProtocol`.
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {
                "ssl": tls.context,
                "ssl_handshake_timeout": connections.limits.head_timeout,
                "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
            }
        self._opening: set[asyncio.Task[None]] = set()
        self._exhausted = False
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Stop accepting. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(BURST):
            try:
                sock, peer = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(error)
                return
            self._exhausted = False
            self._enter(sock, peer)

    def _rest(self, error: OSError) -> None:
        """Pause accepting: the socket stays readable, so the loop would spin without success."""
        self._connections.count("accept_paused")
        if not self._exhausted:
            self._exhausted = True
            self._connections.log.error(
                "listener.accept_paused", listener=self._connections.listener, reason=error.strerror or str(error)
            )
        self._loop.remove_reader(self._listening)
        self._pause = self._loop.call_later(PAUSE, self._resume)

    def _enter(self, sock: socket.socket, peer: Any) -> None:
        connections = self._connections
        place = Accepted(sock)
        place.capacity = capacity = connections.enter(place, peer)
        # A refusal is sent without TLS only: with TLS it would cost the handshake that the limit is to avoid.
        if capacity is Capacity.CROWDED or (self._tls and capacity is not Capacity.YES):
            connections.closed(place)
            sock.close()
            return
        sock.setblocking(False)
        # No group: an accepted connection that fails must not end the listener.
        task = start_owned(self._open(sock, place))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, place: Accepted) -> None:
        connections = self._connections
        try:
            await self._loop.connect_accepted_socket(
                lambda: Http1Protocol(connections, self._loop, place=place), sock, **self._tls
            )
        except OSError:
            # The client left, was too slow or did not speak TLS. Its connection is closed already.
            connections.count("handshakes_failed")
        except Exception as error:
            connections.log.error("listener.open_failed", listener=connections.listener, exc_info=error)
            sock.close()
        finally:
            connections.closed(place)
