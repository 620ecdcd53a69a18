"""Looks at what the kernel holds of a connection that the event loop has not come to."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Protocol

DRAIN_BYTES = 1 << 20
"""Bytes that are read of a connection that is lost already."""
_PIECE = 65536


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def is_readable(sock: _HasDescriptor) -> bool:
    """Whether bytes, an end or a failure of the other side wait to be read."""
    poll = select.poll()
    try:
        poll.register(sock.fileno(), select.POLLIN)
    except (OSError, ValueError):
        return True  # it is closed
    return bool(poll.poll(0))


def drain(transport: asyncio.BaseTransport, feed: Callable[[bytes], object]) -> None:
    """Read what arrived before a connection failed.

    Call it from `connection_lost`: event loops close the socket only after that. A write that fails ends a transport
    without a last read, but what came before the other side's reset is still in the kernel, and nothing comes after it.
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
