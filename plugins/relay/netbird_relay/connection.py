"""One peer's connection on the relay's loop: WebSocket, bounded queue towards the peer, and paced reading from it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final, Protocol, cast

from websockets.http11 import Request, Response

from netbird_host.buckets import Bucket
from netbird_host.sources import Network, nearest_client, source_of
from netbird_relay.admission import Admission
from netbird_relay.conversation import Conversation, Identity
from netbird_relay.hub import Hub
from netbird_relay.limits import CONTROL_IDS_A_SECOND, CONTROL_IDS_AT_ONCE, MAX_UNREAD_BYTES
from netbird_wire.fair_queue import FairQueue
from netbird_wire.relay import (
    CLOSE_MESSAGE,
    MAX_MESSAGE_BYTES,
    PEERS_ONLINE,
    SERVER_AUTH_TIMEOUT,
    PeersOffline,
    PeersOnline,
    chunks,
    encode,
)
from netbird_wire.relay_url import PATH
from netbird_wire.websocket import ServerWebSocket, frame_head, refusal

WRITE_BUFFER_BYTES: Final = 128 * 1024
"""Bytes that the socket's transport holds before datagrams wait in the queue."""
CLOSE_SECONDS: Final = 2.0
"""Time in which a closed connection may still send what it holds."""


class Host(Protocol):
    """The part of the relay that a connection uses."""

    hub: Hub
    identity: Identity
    admission: Admission
    connections: set[RelayConnection]
    trusted: Sequence[Network]

    def gone(self, connection: RelayConnection) -> None:
        """The connection's socket is closed."""


class RelayConnection(asyncio.Protocol):
    """A connection from `address`, which was admitted. It is in the host's `connections` until its socket is closed.

    The client has SERVER_AUTH_TIMEOUT seconds for TLS, the WebSocket's handshake and Auth together.
    """

    def __init__(self, host: Host, address: str, head: bytes = b"") -> None:
        """`head` are bytes that were read from the client already."""
        self._head = head
        self._host, self._hub = host, host.hub
        self._address, self._group = address, source_of(address)
        self._loop = asyncio.get_running_loop()
        self._websocket = ServerWebSocket(MAX_MESSAGE_BYTES, self._judge)
        self._conversation = Conversation(host.hub, host.identity, self, self._loop.time(), self._group)
        self._transport: asyncio.Transport | None = None
        self._queue: FairQueue[bytes] = FairQueue(host.hub.limits.queue_bytes)
        self._notices: list[tuple[int, bytes]] = []
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._flushing: asyncio.Handle | None = None
        self._paused = False
        self._admitted = True
        self._ended = False
        self._resume: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_later(SERVER_AUTH_TIMEOUT, self._on_timer)
        now = self._loop.time()
        self._ids = Bucket(CONTROL_IDS_A_SECOND, CONTROL_IDS_AT_ONCE, now)
        rate = host.hub.limits.bytes_per_second
        self._bytes = Bucket(rate, rate, now) if rate else None
        host.connections.add(self)

    # The connection's life -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's with TLS is no subclass
        if self._ended:
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, AttributeError):
                # Datagrams wait in our queue, where senders share fairly, rather than in the kernel's buffer.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if self._head:  # here, before the loop reads what follows it
            head, self._head = self._head, b""
            self.data_received(head)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abandon()

    def abandon(self) -> None:
        """The socket is closed, or the connection was never made."""
        self._finish()
        self._host.gone(self)

    def end(self, reason: str, *, code: str = "") -> None:
        """Close, and say goodbye to a peer that had authenticated. `code` is the counter of the reason."""
        if self._ended:
            return
        if code:
            self._hub.counters[code] += 1
        transport, websocket = self._transport, self._websocket
        if transport is None:
            self._finish()
            return
        has_peer = self._conversation.peer is not None
        farewell = websocket.frames([CLOSE_MESSAGE]) if has_peer and not websocket.ended else b""
        websocket.close(reason=reason)
        transport.write(farewell + websocket.to_send())
        transport.close()
        self._loop.call_later(CLOSE_SECONDS, transport.abort)
        self._finish()

    def _finish(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._hub.counters["ended"] += 1
        self._timer.cancel()
        for handle in (self._resume, self._flushing):
            if handle is not None:
                handle.cancel()
        self._hub.queued_bytes -= len(self._queue)
        self._queue.clear()
        self._batch.clear()
        self._notices.clear()
        self._host.admission.leave(self._group, authenticated=not self._admitted)
        self._conversation.leave()

    def _on_timer(self) -> None:
        self._conversation.advance(self._loop.time())
        self._after()
        if not self._ended:
            self._timer = self._loop.call_at(self._conversation.deadline, self._on_timer)

    # From the peer -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if self._ended or transport is None:
            return
        messages = self._websocket.receive(data)
        if answers := self._websocket.to_send():
            transport.write(answers)
            self._check_unread(transport)
        if messages:
            self._conversation.receive(messages, self._loop.time(), time.time())
            self._after()
        if self._ended:
            return
        if self._websocket.ended:
            self.end("", code="malformed" if self._websocket.opened else "bad_handshake")
        else:
            self._pace(len(data), transport)

    def _after(self) -> None:
        """Act on what the conversation decided."""
        conversation = self._conversation
        if self._admitted and conversation.peer is not None:
            self._admitted = False
            self._host.admission.authenticated(self._group)
            self._timer.cancel()
            self._timer = self._loop.call_at(conversation.deadline, self._on_timer)
        if conversation.ended and not self._ended:
            self.end(conversation.ended.replace("_", " "), code=conversation.ended)

    def _pace(self, size: int, transport: asyncio.Transport) -> None:
        """Read more slowly from a peer that sends more than it may. TCP then slows it down; nothing is dropped."""
        now = self._loop.time()
        wait = self._bytes.overdraw(size, now) if self._bytes is not None else 0.0
        if self._conversation.ids:
            wait = max(wait, self._ids.overdraw(self._conversation.ids, now))
            self._conversation.ids = 0
        if wait > 0.0 and self._resume is None:
            self._hub.counters["paced"] += 1
            transport.pause_reading()
            self._resume = self._loop.call_later(wait, self._resume_reading)

    def _resume_reading(self) -> None:
        self._resume = None
        if self._transport is not None and not self._ended:
            self._transport.resume_reading()

    def _judge(self, request: Request) -> Response | None:
        """Accept the relay's path. A connection of a trusted proxy counts for the proxy's client from here on."""
        if request.path.partition("?")[0] != PATH:
            text = "This is a relay of a NetBird network. It serves WebSockets at /relay only.\n"
            return refusal(404, "Not Found", text)
        client = nearest_client(self._address, request.headers.get_all("X-Forwarded-For"), self._host.trusted)
        if client == self._address:
            return None
        group = source_of(client)
        if limit := self._host.admission.move(self._group, group, self._loop.time()):
            self._hub.counters[limit] += 1
            return refusal(503, "Service Unavailable", "Too many connections of this address.\n")
        self._address, self._group, self._conversation.source = client, group, group
        return None

    # To the peer ---------------------------------------------------------------------------------------------------

    def forward(self, source: bytes, prefix: bytes, payload: bytes) -> None:
        hub, size = self._hub, len(prefix) + len(payload)
        if self._paused:
            before = len(self._queue)
            room = before + size < hub.limits.all_queues_bytes - hub.queued_bytes
            if not room or not self._queue.put(source, frame_head(size) + prefix + payload):
                hub.counters["queue_full"] += 1
                return
            hub.queued_bytes += len(self._queue) - before
        else:
            self._batch += frame_head(size), prefix, payload
            self._batch_bytes += size
            if self._batch_bytes >= WRITE_BUFFER_BYTES:
                self._flush()
            elif self._flushing is None:
                self._flushing = self._loop.call_soon(self._flush)
        hub.counters["relayed"] += 1
        hub.counters["relayed_bytes"] += len(payload)

    def control(self, message: bytes) -> None:
        if self._transport is None or self._ended:
            return
        self._transport.write(self._websocket.frames([message]))
        self._check_unread(self._transport)

    def notify(self, kind: int, ids: Sequence[bytes]) -> None:
        """Notices of one turn of the loop share messages: after a restart, each of thousands of peers is told of all
        others within a second."""
        for id_ in ids:
            self._notices.append((kind, id_))
        if self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def _check_unread(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            # Later, because the hub sends while it walks over its peers.
            self._loop.call_soon(self._unread)

    def _unread(self) -> None:
        if self._transport is not None and not self._ended:
            self._hub.counters["unread"] += 1
            self._transport.abort()
            self._finish()

    def _flush(self) -> None:
        """Write the notices of this turn of the loop at once, and then its datagrams."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._transport is None or self._ended:
            return
        if self._notices:
            notices, self._notices = self._notices, []
            self._transport.write(self._websocket.frames(_presence(notices)))
            self._check_unread(self._transport)
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._transport.write(b"".join(batch))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        while not self._paused and not self._ended and self._transport is not None and len(self._queue):
            before = len(self._queue)
            frames = self._queue.take(WRITE_BUFFER_BYTES)
            self._hub.queued_bytes += len(self._queue) - before
            self._transport.write(b"".join(frames))


def _presence(notices: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """Messages for notices, which keep their order; equal kinds that follow each other share one."""
    for kind, group in itertools.groupby(notices, itemgetter(0)):
        for piece in chunks([id_ for _, id_ in group]):
            yield encode(PeersOnline(piece) if kind == PEERS_ONLINE else PeersOffline(piece))
