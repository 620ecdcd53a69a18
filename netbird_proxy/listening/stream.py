"""The interface of a client's connection to a request or an upgraded stream on it."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from netbird_proxy.listening.connections import Connections, ListenLimits


class ClientStream(Protocol):
    """The part of `Http1Protocol` that a request uses, and the raw stream that may follow it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: Connections
    limits: ListenLimits
    must_close: bool
    write_paused: bool

    async def writable(self) -> None:
        """Wait until the transport is below its high-water mark, or closed."""

    def ring_at(self, when: float) -> None:
        """Run the connection's timer at this time of the loop's clock, at the latest."""

    def regulate_reading(self) -> None:
        """Pause or resume reading, depending on how much data was not read by the application yet."""

    def response_done(self, request: Any) -> None:
        """The response of this request was written to its last byte."""

    def cut(self, request: Any) -> None:
        """End the connection without completing this request's response."""

    def start_raw(self, raw: Any, head: bytes) -> None:
        """Send the 101, and pass all further bytes to `raw`."""

    def close_raw(self, request: Any) -> None:
        """Close the connection once everything written was sent."""


class Answered(Protocol):
    """The part of a request that its raw stream uses."""

    done: bool
