"""The worker's side: reports to the parent and its requests, and the worker's end when the parent ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from netbird_host.systemd import Supervisor
from netbird_proxy.process.server import ProxyServer
from netbird_proxy.process.workers.channel import Channel, Message

BEAT = 1.0
"""Seconds between two reports, which are the worker's signs of life."""
ORPHAN_MARGIN = 30.0
"""Seconds beyond `limits.drain` in which a worker without a parent must have ended by itself."""
LONGEST_FAILURE = 32_768
"""Characters of a failure's message."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Membership(Supervisor):
    """The parent as the worker's supervisor: it gets the notices that systemd gets from a proxy without workers."""

    def __init__(self, channel: Channel) -> None:
        super().__init__({})
        self._channel = channel
        self._report: Callable[[], dict[str, Any]] = dict

    def ready(self, status: str) -> None:
        self._beat()

    def stopping(self, status: str) -> None:
        self._channel.send({"stopping": True})

    async def keep_alive(self) -> None:
        while True:
            self._beat()
            await asyncio.sleep(BEAT)

    def failed(self, message: str, code: int) -> None:
        """Report the failure that is about to end this process with an exit code."""
        self._channel.send({"failed": message[:LONGEST_FAILURE], "code": code})

    def _beat(self) -> None:
        self._channel.send({"report": self._report()})

    @contextmanager
    def attached(self, server: ProxyServer, report: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Obey the parent until the context is left. With the parent's end, the worker drains and ends.

        Args:
            report: returns the worker's state, as JSON.
        """
        self._report = report

        def obey(message: Message) -> None:
            shutdown = server.shutdown
            if shutdown is None:
                return
            if "stop" in message and not shutdown.asked:
                shutdown.ask(str(message["stop"]))
            elif "cut" in message:
                shutdown.ask("cut")
            elif "cover" in message and not shutdown.asked:
                server.parts.listeners.cover(int(number) for number in message["cover"])

        def orphaned() -> None:
            if server.shutdown is not None:
                server.shutdown.ask("the parent process has ended")

        self._channel.listen(obey, orphaned)
        continue_with_parents_end()
        bound = server.loaded.settings.limits.drain + ORPHAN_MARGIN
        threading.Thread(
            target=end_with_parent, args=(self._channel.fileno(), bound), name="parent's end", daemon=True
        ).start()
        try:
            yield
        finally:
            self._report = dict


def continue_with_parents_end() -> None:
    """Let the kernel continue this process when its parent ends: a stopped one could not end by itself."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def end_with_parent(channel: int, bound: float) -> None:
    """End the process some time after its parent's end, even if the event loop hangs; runs in a thread."""
    poll = select.poll()
    poll.register(channel, 0)  # the hang-up only, which is reported always
    poll.poll()
    time.sleep(bound)
    os._exit(1)
