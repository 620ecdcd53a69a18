"""The parent of the workers: it starts, watches and stops them, and accepts no client itself."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from netbird_host.collector import calm_collector
from netbird_host.settings import Given, Sources
from netbird_host.shutdown import Shutdown, on_signals
from netbird_host.systemd import Supervisor
from netbird_proxy.api.model import Address
from netbird_proxy.api.share import Share
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.workers.hello import Hello
from netbird_proxy.process.workers.seat import Seat
from netbird_proxy.process.workers.sockets import ParentSockets

log = structlog.get_logger("netbird_proxy.workers")

CHECK = 0.5
"""Seconds between two checks of the workers' signs of life."""
STOP_MARGIN, CUT = 20.0, 5.0
"""Seconds for which workers may need beyond `limits.drain` to stop; and to end after that, before they are killed."""

Attendant = Callable[["Parent"], AbstractAsyncContextManager[Sequence[Address]]]
"""A service beside the workers, such as the health listener. It yields the addresses on which it accepts."""


class WorkersFailed(Exception):
    """A worker could not start. The message is the worker's, and `code` the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Parent:
    """Keeps a worker in each of its seats.

    Attributes:
        loaded: settings and plugins of the whole proxy, undivided.
        seats: the workers' places, by their numbers.
        stopping: a stop was asked for.
        counters: the parent's own counters.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        config: Path | None,
        flags: Sequence[Given],
        lock: int,
        turns: int,
        supervisor: Supervisor | None = None,
        attendants: Sequence[Attendant] = (),
    ) -> None:
        """
        Args:
            config, flags: the file and the flags of which `loaded` was read.
            lock: descriptor of the locked state directory; workers keep it locked until the last one has ended.
            turns: descriptor of the file on which processes lock to write lines.
            supervisor: notified when all workers are ready, and when they stop.
            attendants: entered in order before the first worker starts, left in reverse after the last one has ended.
        """
        self.loaded = loaded
        self.stopping = False
        self.counters: Counter[str] = Counter()
        self._config, self._flags = config, list(flags)
        self._inherited = (lock, turns)
        self._turns = turns
        self._sources = loaded.given.sources.dump()
        self._supervisor = supervisor or Supervisor({})
        self._attendants = attendants
        self._beside: list[Address] = []
        self._sockets: ParentSockets | None = None
        self._shutdown: Shutdown | None = None
        self._failure: WorkersFailed | None = None
        self._changed = asyncio.Event()
        self._covering: tuple[int, frozenset[int], int] = (0, frozenset(), 0)
        settings = loaded.settings.process
        self.seats = [
            Seat(
                number,
                hello=self._hello,
                failed=self._start_failed,
                changed=self._changed.set,
                count=self.count,
                watchdog=settings.watchdog,
                longest_drain=loaded.settings.limits.drain + STOP_MARGIN,
            )
            for number in range(1, settings.workers + 1)
        ]

    @property
    def ready(self) -> int:
        """The number of workers that are ready."""
        return sum(not seat.unready for seat in self.seats)

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def adopt(self, sources: Sources) -> None:
        """Let workers that start from now on have the reloaded settings: the log's and the certificates."""
        self._sources = Sources.restored(self._sources, newer=sources.dump(), of="log tls").dump()

    async def run(self) -> int:
        """Serve until a signal asks for a stop. Returns the exit code, 0 after such a stop."""
        calm_collector()
        with on_signals(ends_process=True) as shutdown:
            await self.serve(shutdown)
        return 0

    async def serve(self, shutdown: Shutdown) -> None:
        """Start the workers, keep them running until `shutdown` is asked for, and stop them.

        Raises:
            SettingsError: an address or socket is not available; no worker was started.
            WorkersFailed: a worker could not start; all others were stopped.
        """
        self._shutdown = shutdown
        settings = self.loaded.settings
        self._sockets = sockets = await ParentSockets.bind(settings.listen, settings.process.workers)
        try:
            async with self._attended():
                await self._serve(shutdown, sockets)
        finally:
            sockets.close()
        log.info("workers.stopped", reason=shutdown.reason)
        if self._failure is not None:
            raise self._failure

    @asynccontextmanager
    async def _attended(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as attended:
            for attend in self._attendants:
                self._beside += await attended.enter_async_context(attend(self))
            yield

    async def _serve(self, shutdown: Shutdown, sockets: ParentSockets) -> None:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._supervisor.keep_alive(), name="watchdog messages"),
                group.create_task(self._watch(), name="workers' signs of life"),
                group.create_task(self._follow(sockets), name="workers' states"),
            ]
            seats = [group.create_task(seat.run(), name=f"worker {seat.number}") for seat in self.seats]
            reason = await shutdown.wait()
            log.info("workers.stopping", reason=reason)
            self.stopping = True
            self._supervisor.stopping("open exchanges have their time to end")
            # No worker covers another any more: with the last copies, the kernel refuses new connections.
            sockets.close()
            for seat in self.seats:
                seat.stop(reason)
            await self._stopped(shutdown, seats)
            for task in background:
                task.cancel()

    async def _stopped(self, shutdown: Shutdown, seats: Collection[asyncio.Task[None]]) -> None:
        """Wait until all workers have ended; cut those that do not end in time, then kill them."""
        bound = self.loaded.settings.limits.drain + STOP_MARGIN
        if await shutdown.drain(asyncio.wait(seats), timeout=bound):
            return
        for seat in self.seats:
            seat.cut()
        _, pending = await asyncio.wait(seats, timeout=CUT)
        if pending:
            log.error("workers.killed", numbers=[seat.number for seat in self.seats if seat.pid is not None])
            for seat in self.seats:
                seat.kill()
            await asyncio.wait(pending)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + CHECK
        while True:
            await asyncio.sleep(CHECK)
            now = loop.time()
            # A machine that was suspended, or a stopped parent, must not look like workers that hang.
            late = now - due if now - due > CHECK else 0.0
            due = now + CHECK
            for seat in self.seats:
                seat.check(late)
            self._changed.set()

    async def _follow(self, sockets: ParentSockets) -> None:
        """Report readiness once, and let a listening worker cover those that cannot accept."""
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(self._supervisor.starting("waiting for the workers"))
            while not all(seat.was_ready for seat in self.seats):
                await self._next_change()
            starting.cancel()
        where = ", ".join(map(str, sockets.addresses))
        log.info("workers.ready", workers=len(self.seats), pids=[seat.pid for seat in self.seats], listening=where)
        self._supervisor.ready(f"{len(self.seats)} workers listen on {where}")
        while True:
            await self._next_change()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()
        self._cover()

    def _cover(self) -> None:
        """Let the first worker that accepts do so on the sockets of those that do not."""
        listening = [seat for seat in self.seats if seat.listening]
        if self.stopping or not listening:
            return
        chosen = listening[0]
        absent = frozenset(seat.number for seat in self.seats if seat not in listening)
        # A seat's next process, and a socket that listens since the last message, need another message.
        age = sum(seat.restarts for seat in self.seats)
        covering = (chosen.number, absent, age)
        if covering == self._covering:
            return
        self._covering = covering
        for seat in listening:
            seat.cover(absent if seat is chosen else ())

    def _start_failed(self, seat: Seat, message: str, code: int) -> None:
        if self._failure is None:
            self._failure = WorkersFailed(message, code)
        if self._shutdown is not None and not self._shutdown.asked:
            self._shutdown.ask(f"worker {seat.number} could not start")

    def _hello(self, number: int, channel: int) -> tuple[Hello, Collection[int]]:
        assert self._sockets is not None  # noqa: S101 - seats run after the sockets are bound
        hello = Hello(
            share=Share(number, len(self.seats)),
            channel=channel,
            turns=self._turns,
            config=str(self._config) if self._config is not None else None,
            flags=self._flags,
            sources=self._sources,
            own=self._sockets.own(number),
            others=self._sockets.others(number),
            beside=[(address.host, address.port) for address in self._beside],
        )
        return hello, {*self._inherited, *self._sockets.descriptors()}


def output_turns() -> int:
    """A file that no path leads to, on which processes lock to write to an output that they share."""
    return os.memfd_create("netbird-proxy output", os.MFD_CLOEXEC)
