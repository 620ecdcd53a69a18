"""Writing to the transports of every supported Python."""

from __future__ import annotations

import asyncio
import socket

from netbird_host.transports import write_pieces


class Sender(asyncio.Protocol):
    """Counts how often its transport asks it to pause."""

    def __init__(self) -> None:
        self.pauses = 0

    def pause_writing(self) -> None:
        self.pauses += 1


async def test_a_reader_that_takes_nothing_pauses_the_writer() -> None:
    """The transport asks its protocol to pause while pieces cannot be sent, on every supported Python."""
    ours, theirs = socket.socketpair()
    with theirs:
        loop = asyncio.get_running_loop()
        transport, sender = await loop.create_connection(Sender, sock=ours)
        for _ in range(64):
            write_pieces(transport, (b"x" * 65_536, b"y" * 65_536))

        assert sender.pauses == 1
        transport.abort()


async def test_pieces_arrive_in_order() -> None:
    """The reader receives the pieces in order."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(Sender, sock=ours)
        write_pieces(transport, (b"head ", b"", b"body"))

        assert await loop.sock_recv(theirs, 64) == b"head body"
        transport.abort()
