"""The channel between the parent and a worker: whole JSON messages in their order, on a pair of Unix sockets.

The kernel reports the end of either process at once, also after SIGKILL, because no other process has the socket.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LONGEST = 1 << 20
"""Bytes of a message. The kernel's own limit is lower by default; a message above it is not sent."""

Message = dict[str, Any]


class Channel:
    """An end of the channel, which this process owns."""

    def __init__(self, sock: socket.socket) -> None:
        """Args:
        sock: a socket of `channel_pair`.
        """
        sock.setblocking(False)
        self._sock = sock
        self._loop: asyncio.AbstractEventLoop | None = None

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> bool:
        """Send a message. False if the other process has ended, or has not read many messages; then none is sent."""
        try:
            self._sock.send(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def listen(self, received: Callable[[Message], object], ended: Callable[[], object]) -> None:
        """Call `received` for each message, on the running loop, and `ended` once the other process has ended."""
        self._loop = loop = asyncio.get_running_loop()
        loop.add_reader(self._sock, self._read, received, ended)

    def read_rest(self, received: Callable[[Message], object]) -> None:
        """Call `received` for messages that arrived already."""
        with suppress(OSError):
            while data := self._sock.recv(LONGEST):
                _deliver(data, received)

    def close(self) -> None:
        """Close this end. Idempotent."""
        if self._sock.fileno() >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._sock)
            self._sock.close()

    def _read(self, received: Callable[[Message], object], ended: Callable[[], object]) -> None:
        try:
            data = self._sock.recv(LONGEST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            _deliver(data, received)
            return
        if self._loop is not None:
            self._loop.remove_reader(self._sock)  # the end stays readable, so that the loop would spin
        ended()


def channel_pair() -> tuple[Channel, socket.socket]:
    """The parent's end, and the socket of the worker's end, which the parent closes once the worker has it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs


def _deliver(data: bytes, received: Callable[[Message], object]) -> None:
    """Deliver a message; anything else is dropped, because neither process may end by what the other one sends."""
    with suppress(ValueError):
        message = json.loads(data)
        if isinstance(message, dict):
            received(message)
