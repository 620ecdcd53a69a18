"""Minimum transfer rates: of a client's request body, and of its reading of responses."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from netbird_proxy.api.errors import DownstreamError, ReadTimeout, TooSlow

if TYPE_CHECKING:
    from netbird_proxy.listening.connections import ListenLimits

_BYTES_ACKED = struct.Struct("@120xQ")  # the member tcpi_bytes_acked of Linux's struct tcp_info


class BodyPatience:
    """The time that the application may still wait for a request's body. Made when it first has to wait.

    Only waiting counts, because a slow upstream is not the client's fault. The client starts with a credit of
    `min_rate_grace` seconds. Waiting uses up the credit, and each received byte adds 1/min_rate seconds, so a client
    that sends at `min_rate` never runs out. The credit has an upper bound: otherwise a fast start would pay for hours
    of silence.

    Attributes:
        due: the loop's time at which the present wait becomes too long; 0 while the application does not wait.
        late: the failure, once a wait was too long.
    """

    __slots__ = ("_credit", "_idle", "_most", "_rate", "_since", "due", "late")

    def __init__(self, limits: ListenLimits) -> None:
        self._idle = limits.body_idle
        self._rate = limits.min_rate
        self._credit = limits.min_rate_grace
        self._most = limits.min_rate_grace + limits.body_idle
        self._since = 0.0
        self.due = 0.0
        self.late: DownstreamError | None = None

    def wait(self, now: float) -> float:
        """The application starts to wait. Returns the loop's time at which the wait becomes too long."""
        self._since = now
        patience = min(self._idle, self._credit) if self._rate else self._idle
        self.due = now + patience
        return self.due

    def came(self, now: float, size: int) -> None:
        """A wait, if there was one, has ended with `size` bytes."""
        if self.due:
            self.due = 0.0
            if self._rate:
                self._credit = min(self._most, self._credit - (now - self._since) + size / self._rate)

    def expire(self) -> None:
        """The present wait was too long."""
        self.due = 0.0
        if self._rate and self._credit < self._idle:
            self.late = TooSlow(f"the request body arrived at less than {self._rate:g} bytes a second")
        else:
            self.late = ReadTimeout(f"no part of the request body arrived for {self._idle:g} s")


class WriteProgress:
    """Progress of a client in reading its response, from check to check."""

    __slots__ = ("_acknowledged", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._unsent = transport.get_write_buffer_size()
        self._acknowledged = _acknowledged(transport)

    def patience(self, limits: ListenLimits) -> float:
        """Seconds until the next check, by what the client has read so far: a download in progress may stall for
        `write_timeout`, but a client that has never read gets `min_rate_grace` only.
        """
        if not limits.min_rate or self._acknowledged < 0:
            return limits.write_timeout
        return min(limits.write_timeout, limits.min_rate_grace + self._acknowledged / limits.min_rate)

    def since_last_check(self) -> int:
        """Bytes of progress since the last check: those that our kernel took over, or that the client's kernel
        acknowledged, whichever is more. With a large send buffer either can stall for minutes while the other goes on.
        """
        before = self._unsent, self._acknowledged
        self._unsent = self._transport.get_write_buffer_size()
        self._acknowledged = _acknowledged(self._transport)
        return max(before[0] - self._unsent, self._acknowledged - before[1], 0)


def _acknowledged(transport: asyncio.Transport) -> int:
    """Bytes of this connection that the client's kernel has acknowledged; -1 where the system does not report it."""
    handle = transport.get_extra_info("socket")
    if handle is None:
        return -1
    try:
        # Through a duplicate: the socket objects of event loops have no getsockopt.
        with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
            return int(_BYTES_ACKED.unpack_from(twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192))[0])
    except (OSError, AttributeError, struct.error):
        return -1
