"""DNS queries through the tunnel, to the forwarder of a routing peer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import dns.exception
import dns.flags
from dns.message import Message, from_wire

from netbird_overlay.errors import ConnectError
from netbird_overlay.node import Node

RESEND, UDP_SHARE = 1.5, 0.5
"""Seconds after which a query is sent again, because its datagram may be lost; and the share of the time after which
TCP is tried instead."""


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the answer to one query. Datagrams that are not its answer are ignored."""

    def __init__(self, query: Message) -> None:
        self._query = query
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        with suppress(dns.exception.DNSException):
            message = from_wire(data, ignore_trailing=True)
            if self._query.is_response(message) and not self.answer.done():
                self.answer.set_result(message)

    def error_received(self, exc: Exception) -> None:
        self._fail(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or EOFError("the socket was closed"))

    def _fail(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)
            self.answer.exception()  # the caller may have left


class _Stream(asyncio.Protocol):
    """Collects one message with its length before it, as DNS has it over TCP."""

    def __init__(self) -> None:
        self._received = bytearray()
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self.whole.done():
            return
        self._received += data
        if len(self._received) >= 2:
            length = int.from_bytes(self._received[:2], "big")
            if len(self._received) >= 2 + length:
                self.whole.set_result(bytes(self._received[2 : 2 + length]))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_exception(exc or EOFError("the forwarder closed the connection"))
            self.whole.exception()  # the caller may have left


class TunnelExchange:
    """Exchanges DNS messages with servers inside the overlay: by UDP, and by TCP for an answer that was cut or is late.

    Called with a query, the server's overlay address and port, and a time limit in seconds.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, query: Message, address: str, port: int, timeout: float) -> Message:
        """Return the answer to a query. Raises OSError, EOFError, DNSException."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        with suppress(TimeoutError, OSError, EOFError):
            answer = await self._by_udp(query, address, port, timeout * UDP_SHARE)
            if not answer.flags & dns.flags.TC:
                return answer
        return await self._by_tcp(query, address, port, max(deadline - loop.time(), 0.001))

    async def _by_udp(self, query: Message, address: str, port: int, timeout: float) -> Message:
        wire = query.to_wire()
        try:
            async with asyncio.timeout(timeout):
                transport, protocol = await self._node.datagrams(
                    lambda: _Datagrams(query), address, port, timeout=timeout
                )
                assert isinstance(protocol, _Datagrams)  # noqa: S101 - the factory made it
                try:
                    while True:
                        transport.sendto(wire)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(RESEND):
                                return await asyncio.shield(protocol.answer)
                finally:
                    transport.close()
        except ConnectError as exc:
            raise ConnectionError(str(exc)) from exc

    async def _by_tcp(self, query: Message, address: str, port: int, timeout: float) -> Message:
        wire = query.to_wire()
        try:
            async with asyncio.timeout(timeout):
                transport, protocol = await self._node.dial(_Stream, address, port, timeout=timeout)
                assert isinstance(protocol, _Stream)  # noqa: S101 - the factory made it
                try:
                    transport.write(len(wire).to_bytes(2, "big") + wire)
                    return from_wire(await protocol.whole, ignore_trailing=True)
                finally:
                    transport.abort()
        except ConnectError as exc:
            raise ConnectionError(str(exc)) from exc
