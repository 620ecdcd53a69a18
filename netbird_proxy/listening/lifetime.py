"""The part of a client's connection that needs no request: its timer, its end, and its reading of answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.pace import WriteProgress


class Lifetime(asyncio.Protocol):
    """A connection with one timer, which closes so that its last answer arrives.

    Its transport may be a socket's, a tunnel's, or TLS over either: any `asyncio.Transport` works.
    """

    __slots__ = (
        "_deadline", "_discarded", "_discarding", "_drained", "_eof", "_lingering", "_patience", "_timer", "_timer_at",
        "_write_progress", "connections", "limits", "loop", "transport", "write_paused",
    )  # fmt: skip

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self.connections = connections
        self.limits = connections.limits
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._patience = 0.0  # seconds that the client had since the last check of its progress
        self._write_progress: WriteProgress | None = None  # while written data waits for the client
        self._eof = False
        self._discarding = False  # received bytes are dropped
        self._discarded = 0
        self._lingering = False  # our side has ended; the client's last bytes are dropped
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0  # 0: no deadline

    def regulate_reading(self) -> None:
        """Pause or resume reading, by what waits to be read."""
        raise NotImplementedError

    def _on_timer(self) -> None:
        raise NotImplementedError

    # The timer: one handle per connection, moved lazily; a request that arrives whole needs none ----------------------

    def _arm(self, seconds: float) -> None:
        self._deadline = when = self.loop.time() + seconds
        self.ring_at(when)

    def ring_at(self, when: float) -> None:
        """Run the timer at this time of the loop's clock, at the latest."""
        if self._timer is None or self._timer_at > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.loop.call_at(when, self._on_timer)

    def _end_waiting(self) -> None:
        """The connection is lost: nothing waits for it any more."""
        self._deadline = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.write_paused = False
        self._wake_writers()

    # The end ----------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _close(self) -> None:
        """Close once all written data was sent, within the linger timeout."""
        self._discarding = True
        self._lingering = True
        self._arm_linger()
        self.transport.close()

    def _arm_linger(self) -> None:
        """Set the deadline of a closing connection. A client that reads at its rate gets the end of its answer."""
        if self.transport.get_write_buffer_size():
            self._write_progress = WriteProgress(self.transport)
            self._arm(self._wait_for_progress(self._write_progress))
        else:
            self._write_progress = None
            self._arm(self.limits.linger_timeout)

    def _linger(self) -> None:
        """End our sending side, and drop everything that the client still sends.

        Closing a socket with unread bytes resets it, and the reset can overtake the answer that was just written.
        """
        if self._lingering:
            return
        self._discarding = True
        self._lingering = True
        self._discarded = 0
        if self._eof:
            self._close()
            return
        self._arm_linger()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.regulate_reading()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self.limits.drain_bytes:
            if self._lingering:
                self.transport.abort()
            else:
                self.regulate_reading()

    # Written data -----------------------------------------------------------------------------------------------------

    def _wait_for_progress(self, progress: WriteProgress) -> float:
        self._patience = progress.patience(self.limits)
        return self._patience

    def _reads_enough(self) -> bool:
        """True if the client has read enough of the waiting data since the last check. Extends the deadline then."""
        if self._write_progress is None:
            return False
        if self._write_progress.since_last_check() < max(1.0, self.limits.min_rate * self._patience):
            self.connections.count("write_too_slow")
            return False
        self._arm(self._wait_for_progress(self._write_progress))
        return True

    def _is_there(self) -> bool:
        """True if a client that has ended its sending side has read anything since the last check."""
        if self._write_progress is None or not self._write_progress.since_last_check():
            return False
        self._arm(self.limits.half_close_timeout)
        return True

    async def writable(self) -> None:
        """Wait until the transport accepts more data, or is closed."""
        while self.write_paused:
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    def _wake_writers(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


def reset_on_close(transport: asyncio.Transport) -> None:
    handle = transport.get_extra_info("socket")
    if handle is not None:
        try:
            # Through a duplicate: the socket objects of event loops have no setsockopt.
            with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return
