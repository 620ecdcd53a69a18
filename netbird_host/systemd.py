"""systemd's protocols: notices of readiness, the watchdog and socket activation. Without systemd they do nothing.

hand-made because the protocols are one text datagram and a few environment variables.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3
EXTENSION = 30.0
"""Seconds by which each request extends the start timeout."""


class Supervisor:
    """Sends notices to the supervisor that started this process. Notices that cannot be delivered are dropped."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = _watchdog(environment)
        """Maximum time in seconds between two signs of life; 0 without a watchdog."""

    def ready(self, status: str) -> None:
        """Report that all listeners are open."""
        self._send(f"READY=1\nSTATUS={status}")

    async def starting(self, status: str) -> None:
        """Extend the start timeout until cancelled, because a dependency may be away for longer than it."""
        while self._address:
            self._send(f"EXTEND_TIMEOUT_USEC={round(EXTENSION * 1_000_000)}\nSTATUS={status}")
            await asyncio.sleep(EXTENSION / 3)

    def stopping(self, status: str) -> None:
        """Report that the shutdown has begun."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    async def keep_alive(self) -> None:
        """Send signs of life until cancelled. The event loop sends them, so they stop when it hangs."""
        if not self.watchdog or not self._address:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(text.replace("\0", "").encode(), self._address)
            except OSError:
                return


def _watchdog(environment: MutableMapping[str, str]) -> float:
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # the variables are meant for our parent process
    return int(microseconds) / 1_000_000 if microseconds.isascii() and microseconds.isdigit() else 0.0


def inherited_sockets(environment: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process. A second call returns none.

    The variables are removed from the environment, because child processes do not inherit the sockets.

    Raises:
        ValueError: a descriptor is not a listening stream socket.
    """
    environment = os.environ if environment is None else environment
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count:
        return []
    if not count.isascii() or not count.isdigit() or int(count) > 1024:
        raise ValueError(f"LISTEN_FDS must be a number of sockets, not {count!r}")
    inherited: list[socket.socket] = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        try:
            sock = socket.socket(fileno=descriptor)
            os.set_inheritable(descriptor, False)
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError(f"inherited descriptor {descriptor} does not listen for streams")
        except OSError as error:
            raise ValueError(f"inherited descriptor {descriptor} is not a socket") from error
        sock.setblocking(False)
        inherited.append(sock)
    return inherited
