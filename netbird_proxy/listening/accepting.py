"""Accepting on this machine's own sockets: a connection is counted first, and only then given TLS and HTTP.

Event loops call a protocol once its TLS handshake is done, so a server of theirs holds any number of handshakes that no
limit knows of. Here the limits see a connection as soon as the kernel hands it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from netbird_proxy.listening.connections import Capacity, Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.tls import SHUTDOWN_TIMEOUT, ServerTls

BURST = 64
"""Connections accepted before the loop gets to do other work."""
PAUSE = 0.5
"""Seconds without accepting after the system had no descriptor (or no memory) left for one more connection."""


class Accepted:
    """A connection from its acceptance until its protocol takes its place: for the time of a TLS handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.capacity = Capacity.NO

    def stop(self) -> None:
        """No request was begun on it, so it ends at once."""
        self.abort()

    def abort(self) -> None:
        # Its transport belongs to the loop, which ends it at the end of its input.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class Acceptor:
    """Accepts from one listening socket, which it owns, until it is closed."""

    def __init__(self, listening: socket.socket, connections: Connections, tls: ServerTls | None) -> None:
        """Args:
        listening: bound and listening.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._connections = connections
        # The loop's own TLS, where there is a socket: under uvloop it costs a fifth less a request than asyncio's.
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
        """Accept no more. Idempotent."""
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
        """Pause: the socket stays readable, so the loop would do nothing but ask for a connection in vain."""
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
        # A refusal can be sent without TLS only: with it, the answer would cost the handshake that is to be avoided.
        if capacity is Capacity.CROWDED or (self._tls and capacity is not Capacity.YES):
            connections.closed(place)
            sock.close()
            return
        sock.setblocking(False)
        task = self._loop.create_task(self._open(sock, place))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, place: Accepted) -> None:
        connections = self._connections
        try:
            await self._loop.connect_accepted_socket(
                lambda: Http1Protocol(connections, self._loop, place=place), sock, **self._tls
            )
        except OSError:
            # The client left, took too long, or spoke no TLS: its connection is closed.
            connections.count("handshakes_failed")
        except Exception as error:
            connections.log.error("listener.open_failed", listener=connections.listener, exc_info=error)
            sock.close()
        finally:
            connections.closed(place)
