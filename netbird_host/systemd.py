"""What a supervisor wants to hear and hands over: systemd's notices, its watchdog, its listening sockets.

The protocols are a datagram of text and three variables, so there is no library. Without a supervisor nothing happens.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3
EXTENSION = 30.0
"""Seconds of a start that are asked for at a time."""


class Supervisor:
    """Tells whoever started us how we are. A notice that cannot be delivered is no reason to stop."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = _watchdog(environment)
        """Seconds within which a sign of life must come; 0 where nobody waits for one."""

    def ready(self, status: str) -> None:
        """Everything that was to be opened is open."""
        self._tell(f"READY=1\nSTATUS={status}")

    async def starting(self, status: str) -> None:
        """Ask for more time to start until cancelled: what is waited for may be longer away than a start may take."""
        while self._address:
            self._tell(f"EXTEND_TIMEOUT_USEC={round(EXTENSION * 1_000_000)}\nSTATUS={status}")
            await asyncio.sleep(EXTENSION / 3)

    def stopping(self, status: str) -> None:
        """We were asked to stop, and have begun to."""
        self._tell(f"STOPPING=1\nSTATUS={status}")

    async def keep_alive(self) -> None:
        """Give signs of life until cancelled: as the event loop gives them, they end when it hangs."""
        if not self.watchdog or not self._address:
            return
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _tell(self, text: str) -> None:
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
        return 0.0  # it is for the process that started us
    return int(microseconds) / 1_000_000 if microseconds.isascii() and microseconds.isdigit() else 0.0


def inherited_sockets(environment: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """The listening sockets that were handed over. Taken once: the variables are removed, as children have none.

    Raises:
        ValueError: what was handed over is not what the variables say.
    """
    environment = os.environ if environment is None else environment
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count:
        return []
    if not count.isascii() or not count.isdigit() or int(count) > 1024:
        raise ValueError(f"LISTEN_FDS is {count!r}, which is no number of sockets")
    found: list[socket.socket] = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        try:
            one = socket.socket(fileno=descriptor)
            os.set_inheritable(descriptor, False)
            if one.type != socket.SOCK_STREAM or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError(f"descriptor {descriptor}, which was handed over, does not listen for streams")
        except OSError as error:
            raise ValueError(f"descriptor {descriptor}, which was handed over, is no socket") from error
        one.setblocking(False)
        found.append(one)
    return found
