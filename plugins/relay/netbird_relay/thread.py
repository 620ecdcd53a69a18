"""A relay in a thread of its own, with its own event loop: its load delays nothing of the process around it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
import uvloop

from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.server import RelayServer

RESTART_SECONDS: Final = 1.0
"""Wait before a relay that failed is started again."""

_log = structlog.get_logger(__name__)


class RelayThread:
    """Runs a relay beside another event loop. All methods may be called from any thread.

    A relay that fails is started again: its peers reconnect.
    """

    def __init__(self, identity: Identity, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._identity = identity
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: RelayServer | None = None
        self._stopping = threading.Event()
        self._ready = threading.Event()

    def set_instance_url(self, url: str) -> None:
        """Peers that authenticate from now on learn this URL."""
        with self._lock:
            self._identity = Identity(self._identity.secret, url)
            if self._server is not None:
                self._server.identity = self._identity

    def adopt(self, sock: socket.socket, address: str, head: bytes) -> None:
        """Serve a connected, non-blocking socket, from which `head` was read already. It is the relay's now."""
        with self._lock:
            if self._loop is None or self._server is None:
                sock.close()
                return
            self._loop.call_soon_threadsafe(self._adopt, self._server, sock, address, head)

    @staticmethod
    def _adopt(server: RelayServer, sock: socket.socket, address: str, head: bytes) -> None:
        server.adopt(sock, address, head=head)

    @asynccontextmanager
    async def running(
        self,
        listeners: Sequence[socket.socket] = (),
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        stun: Sequence[socket.socket] = (),
    ) -> AsyncIterator[None]:
        """Serve while the context is entered. The sockets stay the caller's."""
        thread = threading.Thread(target=self._run, args=(listeners, tls, stun), name="relay", daemon=True)
        thread.start()
        try:
            await asyncio.to_thread(self._ready.wait)
            yield
        finally:
            self._stopping.set()
            with self._lock:
                if self._loop is not None and self._server is not None:
                    self._loop.call_soon_threadsafe(self._server.stop)
            await asyncio.to_thread(thread.join)

    def _run(
        self,
        listeners: Sequence[socket.socket],
        tls: Callable[[], ssl.SSLContext] | None,
        stun: Sequence[socket.socket],
    ) -> None:
        while not self._stopping.is_set():
            try:
                uvloop.run(self._serve(listeners, tls, stun))
            except Exception:
                _log.exception("relay.failed")
            self._stopping.wait(RESTART_SECONDS)

    async def _serve(
        self,
        listeners: Sequence[socket.socket],
        tls: Callable[[], ssl.SSLContext] | None,
        stun: Sequence[socket.socket],
    ) -> None:
        with self._lock:
            server = RelayServer(self._identity, self._limits)
            self._loop, self._server = asyncio.get_running_loop(), server
        if self._stopping.is_set():
            server.stop()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.run(listeners, tls=tls, stun=stun))
                await server.serving.wait()
                self._ready.set()
        finally:
            with self._lock:
                self._loop = self._server = None
            self._ready.set()  # also if it failed: nobody waits for ever
            server.report()
