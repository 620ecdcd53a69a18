"""One connection to a relay on the loop: WebSocket, conversation, and a bounded buffer that never blocks the sender."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final, cast

from netbird_overlay.errors import OverlayError
from netbird_overlay.members import is_special, plain_address
from netbird_overlay.relay.session import Authenticated, Ended, Event, Session
from netbird_wire.fair_queue import FairQueue
from netbird_wire.relay import CLOSE_MESSAGE, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, TRANSPORT_PREFIX
from netbird_wire.relay_tokens import RelayToken
from netbird_wire.relay_url import PATH, RelayUrl
from netbird_wire.websocket import ClientWebSocket

DIAL_SECONDS: Final = 30.0
"""Maximum time until a relay has accepted us, over all of its addresses."""
ADDRESS_SECONDS: Final = 5.0
"""Part of it for each address: one that a peer named, or that does not answer, must leave time for the others."""
WRITE_BUFFER_BYTES: Final = 256 * 1024
"""Bytes that the socket's transport holds before datagrams wait in the queue."""
QUEUE_BYTES: Final = 1 << 20
"""Bytes of datagrams that wait for the relay; beyond a peer's share of them the newest are dropped."""
CLOSE_SECONDS: Final = 2.0
"""Time in which a closed connection may still send what it holds."""
MAX_UNREAD_BYTES: Final = 1 << 20
"""Bytes that wait at the socket's transport when a relay is left that asks but does not read."""


class RelayFailed(OverlayError):
    """A relay cannot be reached, refused us, or ended the connection."""


class LeadsElsewhere(RelayFailed):
    """A foreign relay's URL leads to the address of a relay that we have. `link` is that one's number."""

    def __init__(self, link: int) -> None:
        super().__init__("leads to the relay of another link")
        self.link = link


class RelayConnection(asyncio.Protocol):
    """One relay. `send` and the methods for subscriptions never block; all events go to one callback.

    Args:
        url: gives the request its Host and the certificate its name.
        on_events: called with the events of each read. It must not raise.
        on_dropped: called with a reason and a number of datagrams that were not sent.
        leads_to: called when the socket is connected; the number of the link that leads to the same address, if one
            does. Then nothing is sent: a relay keeps one connection of a peer, and would end the one that we have.
    """

    def __init__(
        self,
        url: RelayUrl,
        own_id: bytes,
        token: RelayToken,
        *,
        on_events: Callable[[RelayConnection, list[Event]], None],
        on_dropped: Callable[[str, int], None],
        leads_to: Callable[[RelayConnection], int | None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._websocket = ClientWebSocket(
            url.host, url.port, PATH, secure=url.secure, max_message_bytes=MAX_MESSAGE_BYTES
        )
        self._own_id, self._token = own_id, token
        self._on_events, self._on_dropped, self._leads_to = on_events, on_dropped, leads_to
        self._same: int | None = None
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._flushing: asyncio.Handle | None = None
        self._paused = False
        self._queue: FairQueue[bytes] = FairQueue(QUEUE_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._ended = ""
        self._end: asyncio.Future[str] = self._loop.create_future()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self.instance_url = ""
        self.address, self.port = b"", 0

    # Life ----------------------------------------------------------------------------------------------------------

    async def accepted(self) -> None:
        """Wait until the relay accepted us. Raises RelayFailed."""
        await asyncio.wait((self._accepted, self._end), return_when=asyncio.FIRST_COMPLETED)
        if self._same is not None:
            raise LeadsElsewhere(self._same)
        if self._ended:
            raise RelayFailed(self._ended)

    async def ended(self) -> str:
        """Wait for the end; return the reason."""
        return await asyncio.shield(self._end)

    def close(self, reason: str = "closed here") -> None:
        """End the connection. What waits to be sent is dropped. Idempotent."""
        if self._ended:
            return
        self._ended = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
        unsent = len(self._batch) + self._queue.clear()
        self._batch.clear()
        if unsent:
            self._on_dropped("link_lost", unsent)
        if self._transport is not None:
            farewell = self._websocket.frames([CLOSE_MESSAGE]) if self._websocket.opened else b""
            self._websocket.close()
            self._transport.write(farewell + self._websocket.to_send())
            self._transport.close()
            self._loop.call_later(CLOSE_SECONDS, self._transport.abort)  # a relay that does not read
        if not self._end.done():
            self._end.set_result(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's with TLS is no subclass
        if self._ended:
            transport.abort()
            return
        self.address, self.port = _packed(transport.get_extra_info("peername"))
        if self._leads_to is not None and (same := self._leads_to(self)) is not None:
            self._same = same
            self.close("leads to the relay of another link")
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, AttributeError):
                # Datagrams wait in our queue, where peers share fairly, rather than in the kernel's buffer.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        transport.write(self._websocket.to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"the connection was lost: {exc}" if exc is not None else "the relay closed the connection")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._drain()

    # Receiving -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._ended or self._transport is None:
            return
        messages = self._websocket.receive(data)
        if answers := self._websocket.to_send():
            self._transport.write(answers)
        if self._session is None and self._websocket.opened and not self._websocket.ended:
            self._session = Session(self._own_id, self._token, self._loop.time())
            self._control()
            self._watch()
        if messages and self._session is not None:
            self._dispatch(self._session.receive(messages, self._loop.time()))
            self._control()
        if self._websocket.ended:
            self.close(self._websocket.ended)
        elif self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.close("the relay does not read")

    def _dispatch(self, events: list[Event]) -> None:
        if not events:
            return
        for event in events:
            if isinstance(event, Authenticated):
                self.instance_url = event.instance_url
                self._watch()
        self._on_events(self, events)
        if not self._accepted.done() and self.instance_url:
            self._accepted.set_result(None)
        if isinstance(events[-1], Ended):
            self.close(events[-1].reason)

    def _watch(self) -> None:
        """Set the timer of the conversation's deadline, which moves with each health check; the timer follows it."""
        if self._session is None or self._ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._session.deadline, self._on_timer)

    def _on_timer(self) -> None:
        if self._session is not None:
            self._dispatch(self._session.advance(self._loop.time()))
            self._watch()

    # Sending -------------------------------------------------------------------------------------------------------

    def send(self, peer: bytes, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to the peer with this relay id, in order. What does not fit into its share is dropped."""
        prefix = TRANSPORT_PREFIX + peer
        dropped = 0
        for datagram in datagrams:
            if len(datagram) > MAX_PAYLOAD_BYTES or self._ended:
                dropped += 1
            elif self._paused:
                dropped += not self._queue.put(peer, prefix + datagram)
            else:
                self._batch.append(prefix + datagram)
                self._batch_bytes += len(datagram)
                if self._batch_bytes >= WRITE_BUFFER_BYTES:
                    self._flush()
        if dropped:
            self._on_dropped("queue_full" if not self._ended else "link_lost", dropped)
        if self._batch and self._flushing is None:
            self._flushing = self._loop.call_soon(self._flush)

    def subscribe(self, peers: Iterable[bytes]) -> None:
        if self._session is not None:
            self._session.subscribe(peers)
            self._control()

    def unsubscribe(self, peers: Iterable[bytes]) -> None:
        if self._session is not None:
            self._session.unsubscribe(peers)
            self._control()

    def _control(self) -> None:
        """Send what the conversation has to send, before datagrams that wait."""
        if self._session is None or self._transport is None or self._ended:
            return
        if messages := self._session.take():
            self._transport.write(self._websocket.frames(messages))

    def _flush(self) -> None:
        """Write the datagrams of this turn of the loop at once."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._batch and self._transport is not None and not self._ended:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._transport.write(self._websocket.frames(batch))

    def _drain(self) -> None:
        """Write what waited, until the transport is full again."""
        while not self._paused and not self._ended and self._transport is not None and len(self._queue):
            self._transport.write(self._websocket.frames(self._queue.take(WRITE_BUFFER_BYTES)))


async def dial(
    connection: Callable[[], RelayConnection],
    url: RelayUrl,
    address: str,
    tls: ssl.SSLContext | None,
    *,
    foreign: bool = False,
) -> RelayConnection:
    """Connect to a relay and authenticate, at `address` first if that is not "", then by the URL's name.

    A certificate must be valid for the URL's host in both cases. Raises RelayFailed.

    Args:
        foreign: a peer named the relay. Its name then leads to no special address, such as one of this host; `address`
            and a literal in the URL were judged by the caller.
    """
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            failure: Exception = RelayFailed(f"{url.text} has no address")
            async for host in _addresses(url, address, foreign=foreign):
                try:
                    async with asyncio.timeout(ADDRESS_SECONDS):
                        return await _dial_host(connection, url, host, tls)
                except LeadsElsewhere:
                    raise
                except (RelayFailed, OSError) as exc:  # TimeoutError is an OSError
                    failure = exc
            raise failure
    except TimeoutError as exc:
        raise RelayFailed(f"{url.text} did not accept us in time") from exc
    except (OSError, UnicodeError) as exc:  # certificates, and names that are none, too
        raise RelayFailed(f"{url.text} cannot be reached: {exc}") from exc


async def _addresses(url: RelayUrl, first: str, *, foreign: bool) -> AsyncIterator[str]:
    """The address that a peer named, then those of the URL's host, both families in turn, each once."""
    if first:
        yield first
    resolved = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    by_family: dict[int, list[str]] = {}
    by_name = foreign and plain_address(url.host) is None
    for family, _, _, _, where in resolved:
        if by_name and is_special(plain_address(str(where[0])) or "::"):
            continue
        by_family.setdefault(family, []).append(str(where[0]))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_family.values()))
    for host in dict.fromkeys(host for host in in_turn if host is not None and host != first):
        yield host


async def _dial_host(
    connection: Callable[[], RelayConnection], url: RelayUrl, host: str, tls: ssl.SSLContext | None
) -> RelayConnection:
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_connection(
        connection, host, url.port, ssl=tls if url.secure else None, server_hostname=url.host if url.secure else None
    )
    try:
        await made.accepted()
    except BaseException:
        made.close("not accepted")
        transport.abort()
        raise
    return made


def _packed(peername: object) -> tuple[bytes, int]:
    """The address of a socket's other end, 4 or 16 bytes, and its port; b"" and 0 if it has none."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return b"", 0
    try:
        address = ip_address(str(peername[0]).partition("%")[0])
    except ValueError:
        return b"", 0
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.packed, int(peername[1])
