"""Access to received data in the kernel that the event loop has not read yet."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Protocol

DRAIN_BYTES = 1 << 20
"""Maximum number of bytes to read from a connection that was already lost."""
_PIECE = 65536


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def is_readable(sock: _HasDescriptor) -> bool:
    """True if bytes, an end or an error from the other side wait to be read."""
    poll = select.poll()
    try:
        poll.register(sock.fileno(), select.POLLIN)
    except (OSError, ValueError):
        return True  # the socket is closed
    return bool(poll.poll(0))


def drain(transport: asyncio.BaseTransport, feed: Callable[[bytes], object]) -> None:
    """Read what arrived before a connection failed.

    To be called from `connection_lost`: event loops close the socket only after that. A failed write ends a transport
    without a last read, but bytes that arrived before the other side's reset are still in the kernel.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    left = DRAIN_BYTES
    while left > 0:
        try:
            data = os.read(sock.fileno(), _PIECE)
        except OSError:
            return
        if not data:
            return
        left -= len(data)
        feed(data)
