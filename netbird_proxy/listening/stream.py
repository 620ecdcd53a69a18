"""The client's connection as one request or one upgraded stream on it uses it."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from netbird_proxy.listening.connections import Connections, ListenLimits


class ClientStream(Protocol):
    """What `Http1Protocol` offers to the request that it serves and to the raw stream that may follow it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: Connections
    limits: ListenLimits
    must_close: bool
    write_paused: bool

    async def writable(self) -> None:
        """Wait until the transport is below its high-water mark, or gone."""

    def ring_at(self, when: float) -> None:
        """Wake the connection's timer at this time of the loop's clock, at the latest."""

    def regulate_reading(self) -> None:
        """Pause or resume reading, by how much nobody has taken yet."""

    def response_done(self, served: Any) -> None:
        """The response of this request is on the wire to its last byte."""

    def cut(self, served: Any) -> None:
        """End the connection without completing this request's response."""

    def start_raw(self, raw: Any, head: bytes) -> None:
        """Send the 101 and pass bytes to `raw` from here on."""

    def close_raw(self, served: Any) -> None:
        """Close, once everything that was written is out."""


class Answered(Protocol):
    """A request, as the raw stream behind it sees it."""

    done: bool
