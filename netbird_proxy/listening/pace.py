"""How slow a client may be: with its request's body, and in taking what waits for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from netbird_proxy.api.errors import DownstreamError, ReadTimeout, TooSlow

if TYPE_CHECKING:
    from netbird_proxy.listening.connections import ListenLimits

_BYTES_ACKED = struct.Struct("@120xQ")  # tcpi_bytes_acked in Linux's struct tcp_info


class BodyPatience:
    """The patience with one request's body. Made when the application first has to wait for it.

    Only waiting counts: a client is not to blame while it is the upstream that takes nothing. Waiting spends patience,
    `min_rate_grace` seconds of it at first, and each byte brings 1/min_rate seconds back; so whoever sends at that rate
    never runs out. What a fast start can save is bounded, or it would pay for hours of silence.

    Attributes:
        due: the loop's time at which this wait is too long; 0 while nobody waits.
        late: what the wait has ended in.
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
        """The application waits from now on; until when it may."""
        self._since = now
        patience = min(self._idle, self._credit) if self._rate else self._idle
        self.due = now + patience
        return self.due

    def came(self, now: float, size: int) -> None:
        """The wait, if there was one, has brought so many bytes."""
        if self.due:
            self.due = 0.0
            if self._rate:
                self._credit = min(self._most, self._credit - (now - self._since) + size / self._rate)

    def expire(self) -> None:
        """This wait was too long."""
        self.due = 0.0
        if self._rate and self._credit < self._idle:
            self.late = TooSlow(f"the request body came at less than {self._rate:g} bytes a second")
        else:
            self.late = ReadTimeout(f"nothing of the request body came for {self._idle:g} s")


class WriteProgress:
    """What a client has taken of what waits for it, between one look and the next."""

    __slots__ = ("_acknowledged", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._unsent = transport.get_write_buffer_size()
        self._acknowledged = _acknowledged(transport)

    def patience(self, limits: ListenLimits) -> float:
        """Seconds until the next look. Who has taken little so far gets little: a download under way may stall for
        `write_timeout`, a client that never reads has `min_rate_grace`.
        """
        if not limits.min_rate or self._acknowledged < 0:
            return limits.write_timeout
        return min(limits.write_timeout, limits.min_rate_grace + self._acknowledged / limits.min_rate)

    def since_last_look(self) -> int:
        """Bytes. What the kernel took off our hands counts, and so does what the client's kernel confirmed: with a
        large send buffer the one can stand still for minutes while the other goes on.
        """
        before = self._unsent, self._acknowledged
        self._unsent = self._transport.get_write_buffer_size()
        self._acknowledged = _acknowledged(self._transport)
        return max(before[0] - self._unsent, self._acknowledged - before[1], 0)


def _acknowledged(transport: asyncio.Transport) -> int:
    """Bytes of this connection that the client's kernel has confirmed; -1 where nobody knows."""
    handle = transport.get_extra_info("socket")
    if handle is None:
        return -1
    try:
        # Through a duplicate: event loops hand out stand-ins that have no getsockopt.
        with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
            return int(_BYTES_ACKED.unpack_from(twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192))[0])
    except (OSError, AttributeError, struct.error):
        return -1
