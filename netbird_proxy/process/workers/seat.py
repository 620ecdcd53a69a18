"""The place of one worker: a process serves in it, and the next one follows when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import structlog

from netbird_proxy.process.workers.channel import Channel, Message, channel_pair
from netbird_proxy.process.workers.hello import Hello
from netbird_wire.backoff import Backoff

log = structlog.get_logger("netbird_proxy.workers")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between the end of a worker and the start of the next one; they double as long as workers end early."""
STEADY = 60.0
"""Seconds of service after which a worker's end counts as the first one again."""
START = 60.0
"""Seconds in which a worker's first report must arrive, if that is longer than the watchdog's time."""
LATE = 3.0
"""Seconds without a report after which another worker accepts on this one's sockets."""
MODULE = "netbird_proxy.operator.worker"
_SUPERVISOR = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Seat:
    """A place of the parent for a worker.

    Attributes:
        number: the worker's number, from 1.
        restarts: processes that followed the first one.
        hung: processes that were killed because they gave no sign of life.
        was_ready: a process of this seat has been ready.
        count: see below.
    """

    def __init__(
        self,
        number: int,
        *,
        hello: Callable[[int, int], tuple[Hello, Collection[int]]],
        failed: Callable[[Seat, str, int], object],
        changed: Callable[[], object],
        count: Callable[[str], object],
        watchdog: float,
        longest_drain: float,
    ) -> None:
        """
        Args:
            hello: returns the message for a worker by its number and its channel's descriptor, and the descriptors
                that its process inherits.
            failed: called with message and exit code if a process ended by itself before any of this seat was ready.
            changed: called when the seat's state has changed.
            count: adds 1 to a counter of the parent's.
            watchdog: maximum seconds between two reports.
            longest_drain: maximum seconds in which a worker that stops by itself must have ended.
        """
        self.number = number
        self.restarts = 0
        self.hung = 0
        self.was_ready = False
        self._hello = hello
        self._failed = failed
        self._changed = changed
        self.count = count
        self._watchdog = watchdog
        self._longest_drain = longest_drain
        self._backoff = Backoff(FIRST_WAIT, LONGEST_WAIT)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._report: dict[str, Any] = {}
        self._failure: tuple[str, int] | None = None
        self._heard_at = self._ready_at = 0.0
        self._draining = self._killed = False
        self._draining_since = 0.0
        self._stopping = asyncio.Event()
        self._past: Counter[str] = Counter()

    @property
    def pid(self) -> int | None:
        """The running process, or None between two of them."""
        return self._process.pid if self._process is not None else None

    @property
    def listening(self) -> bool:
        """The worker accepts connections, and could accept those of others."""
        now = asyncio.get_running_loop().time()
        fresh = self._process is not None and now - self._heard_at <= LATE
        return fresh and not self._draining and bool(self._report.get("listening"))

    @property
    def unready(self) -> str:
        """The reason why this worker should get no clients now; empty if it should."""
        if self._process is None:
            return "starting"
        if self._draining or self._stopping.is_set():
            return "stopping"
        if not self._report:
            return "starting"
        if asyncio.get_running_loop().time() - self._heard_at > LATE:
            return "stalled"
        return str(self._report.get("unready", ""))

    @property
    def report(self) -> Mapping[str, Any]:
        """The worker's last report; empty before the first one and after its end."""
        return self._report

    def counters(self) -> Counter[str]:
        """The sums of all of this seat's processes, as last reported: they never fall."""
        return self._past + Counter(self._report.get("counters", {}))

    async def run(self) -> None:
        """Run one process after the other until `stop`. Cancellation kills the process."""
        while not self._stopping.is_set():
            code = await self._run_one()
            if self._stopping.is_set():
                return
            failure, self._failure = self._failure, None
            reason = failure[0] if failure is not None else describe_exit(code)
            if not self.was_ready and code > 0:
                self._failed(self, reason, failure[1] if failure is not None else code)
                await self._stopping.wait()
                return
            if self._ready_at and asyncio.get_running_loop().time() - self._ready_at >= STEADY:
                self._backoff.reset()
            # A ready worker that ends with 0 was asked to: by its operator, with a signal.
            wait = 0.0 if code == 0 and self._ready_at else self._backoff.next_wait()
            log.warning("worker.ended", number=self.number, reason=reason, restart_after=round(wait, 2))
            self.restarts += 1
            self.count("workers_restarted")
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    def stop(self, reason: str) -> None:
        """Let the worker drain and end, and start no other. Idempotent."""
        self._stopping.set()
        if self._channel is not None:
            self._channel.send({"stop": reason})

    def cut(self) -> None:
        """Let the worker end without waiting for open exchanges."""
        if self._channel is not None:
            self._channel.send({"cut": True})

    def cover(self, numbers: Collection[int]) -> None:
        """Let the worker accept on the sockets of these workers, instead of those of the last call."""
        if self._channel is not None:
            self._channel.send({"cover": sorted(numbers)})

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)  # reaches a stopped process too

    def check(self, late: float) -> None:
        """Kill the worker if it gave no sign of life in time.

        Args:
            late: seconds for which the parent itself did not run, so that reports could not arrive.
        """
        self._heard_at += late
        if self._process is None or self._stopping.is_set():
            return
        if self._draining:
            limit, since = self._longest_drain, self._draining_since
        else:
            limit, since = self._watchdog if self._report else max(START, self._watchdog), self._heard_at
        if not self._killed and asyncio.get_running_loop().time() - since > limit:
            log.error("worker.hung", number=self.number, pid=self.pid, seconds=limit)
            self.hung += 1
            self.count("workers_hung")
            self._killed = True
            self.kill()

    async def _run_one(self) -> int:
        """Run one process to its end. Returns its exit code, negative after a signal; 1 if it could not start."""
        channel, theirs = channel_pair()
        loop = asyncio.get_running_loop()
        self._heard_at, self._ready_at = loop.time(), 0.0
        self._draining = self._killed = False
        try:
            hello, descriptors = self._hello(self.number, theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                # -P: a worker imports nothing from the directory in which the proxy was started.
                *[sys.executable, "-P", "-m", MODULE],
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno(), *descriptors],
                env={name: value for name, value in os.environ.items() if name not in _SUPERVISOR},
                # A signal of the terminal reaches the parent only, which stops the workers in order.
                start_new_session=True,
            )
        except OSError as error:
            channel.close()
            self._failure = f"a worker cannot be started: {error.strerror or error}", 1
            return 1
        finally:
            theirs.close()
        self._process, self._channel = process, channel
        channel.listen(self._received, lambda: None)
        try:
            await self._send_hello(process, hello)
            code = await process.wait()
        finally:
            self.kill()
            channel.read_rest(self._received)
            channel.close()
            self._past, self._report = self.counters(), {}
            self._process = self._channel = None
            self._changed()
        return code

    async def _send_hello(self, process: asyncio.subprocess.Process, hello: Hello) -> None:
        assert process.stdin is not None  # noqa: S101 - a pipe, see above
        with suppress(ConnectionError):  # it ended already, and its exit code says more
            process.stdin.write(hello.encode())
            await process.stdin.drain()
        process.stdin.close()
        if self._stopping.is_set():  # asked while the process was created
            self.stop("stopping")

    def _received(self, message: Message) -> None:
        if isinstance(report := message.get("report"), dict):
            self._heard_at = asyncio.get_running_loop().time()
            self._report = report
            if not report.get("unready") and not self._ready_at:
                self._ready_at, self.was_ready = self._heard_at, True
        elif "stopping" in message:
            self._draining, self._draining_since = True, asyncio.get_running_loop().time()
        elif "failed" in message:
            self._failure = str(message["failed"]), int(message.get("code", 1))
        self._changed()


def describe_exit(code: int) -> str:
    """Describe an exit code as `asyncio` returns it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
