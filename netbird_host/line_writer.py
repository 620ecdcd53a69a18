"""A writer of log lines: the event loop queues them, and a thread writes them in batches.

A full pipe or a slow disk must delay neither the loop nor the end of the process. The thread is therefore a daemon, and
lines that it cannot write in time are dropped and counted.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

MAX_PENDING_BYTES = 8 << 20
RETRY = 0.05
"""Seconds between attempts to write to an output that is full and does not block."""
TOO_FAST = "they came faster than they could be written"
_STREAMS = {"stdout": 1, "stderr": 2}


_turns: int | None = None


def take_turns(descriptor: int | None) -> None:
    """Let processes that share standard output and standard error write one after the other, so that no line is torn.

    Args:
        descriptor: a file that all of these processes have open; None to end it. The end of a process unlocks it.
    """
    global _turns
    _turns = descriptor


@contextmanager
def _turn(stream: int) -> Iterator[None]:
    """Wait until no other process writes to this standard stream."""
    if (file := _turns) is None:
        yield
        return
    fcntl.lockf(file, fcntl.LOCK_EX, 1, stream)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, stream)


class LineWriter:
    """Appends lines to standard output, standard error or a file. A file that was moved away is created again."""

    def __init__(
        self, output: str, *, interval: float, failed: Callable[[int, str], None], name: str = "access log"
    ) -> None:
        """
        Args:
            output: `stdout`, `stderr` or a path. Raises OSError if the file cannot be opened.
            interval: seconds between two writes.
            failed: called in the thread with the number of lost lines and the reason.
            name: the thread's name.
        """
        self.path: Path | None = None if output in _STREAMS else Path(output)
        self._fd = _STREAMS[output] if self.path is None else _opened(self.path)
        self._interval = interval
        self._failed = failed
        self._pending: deque[bytes] = deque()
        # Each counter is written by one thread only, which its comment names.
        self._queued = 0  # bytes; the loop
        self._written = 0  # bytes; the writer
        self._dropped = 0  # lines; the loop
        self._reported = 0  # dropped lines that were reported; the writer
        self._reopen_asked = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line, its newline included. Never blocks, never raises."""
        if self._queued - self._written > MAX_PENDING_BYTES:
            self._dropped += 1
            return
        self._queued += len(line)
        self._pending.append(line)
        # Only the first line wakes the thread, which takes lines until the queue is empty. The length is checked after
        # the line is queued: otherwise the thread could empty the queue in between and sleep although a line waits.
        if len(self._pending) == 1:
            self._wake.set()

    def reopen(self) -> None:
        """Open the file again before the next line, even if the path still leads to the same file."""
        self._reopen_asked = True

    def close(self, timeout: float) -> bool:
        """Write the queued lines, for at most `timeout` seconds. Blocks. True if all lines were written."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(self._interval)  # let a batch gather
            self._wake.clear()
            self._flush()
        self._flush()
        if self.path is not None:
            os.close(self._fd)

    def _flush(self) -> None:
        lines: list[bytes] = []
        with suppress(IndexError):
            while True:
                lines.append(self._pending.popleft())
        if dropped := self._dropped - self._reported:
            self._reported += dropped
            self._failed(dropped, TOO_FAST)
        if not lines:
            return
        data = memoryview(b"".join(lines))
        try:
            self._reopen()
            # The kernel appends to a file in one piece; a pipe takes many lines in several.
            with _turn(self._fd) if self.path is None else nullcontext():
                while data:
                    try:
                        data = data[os.write(self._fd, data) :]
                    except BlockingIOError:  # another process that shares our standard error set O_NONBLOCK
                        select.select((), (self._fd,), (), RETRY)
        except OSError as error:
            self._failed(bytes(data).count(b"\n"), f"{error.strerror}")
        finally:
            # Bytes count as pending until the whole batch is written, so that the queue stays bounded during a stall.
            self._written += sum(map(len, lines))

    def _reopen(self) -> None:
        """Open the path again if log rotation has moved our file away."""
        if self.path is None:
            return
        try:
            named = self.path.stat()
        except FileNotFoundError:
            named = None
        current = os.fstat(self._fd)
        asked, self._reopen_asked = self._reopen_asked, False
        if asked or named is None or (named.st_dev, named.st_ino) != (current.st_dev, current.st_ino):
            fd = _opened(self.path)
            os.close(self._fd)
            self._fd = fd


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
