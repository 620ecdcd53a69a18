"""Lines on their way out: gathered on the loop, written in batches by a thread.

A full pipe or a slow disk must hold up neither the loop nor the process's end, so the thread is a daemon and what it
cannot take in time is dropped and counted.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MAX_PENDING_BYTES = 8 << 20
RETRY = 0.05
"""Seconds between two looks at an output that is full and does not block."""
TOO_FAST = "they came faster than they could be written"
_STREAMS = {"stdout": 1, "stderr": 2}


class LineWriter:
    """Appends lines to standard output, standard error or a file; a file that was moved away is begun anew."""

    def __init__(
        self, output: str, *, interval: float, failed: Callable[[int, str], None], name: str = "access log"
    ) -> None:
        """
        Args:
            output: `stdout`, `stderr` or a path. OSError if the file cannot be opened.
            interval: seconds between two writes.
            failed: called in the thread with the number of lines that were lost, and why.
            name: of the thread.
        """
        self.path: Path | None = None if output in _STREAMS else Path(output)
        self._fd = _STREAMS[output] if self.path is None else _opened(self.path)
        self._interval = interval
        self._failed = failed
        self._pending: deque[bytes] = deque()
        # Each counter has one thread that writes it.
        self._taken = 0  # bytes; the loop's
        self._written = 0  # bytes; the thread's
        self._dropped = 0  # lines; the loop's
        self._told = 0  # of those; the thread's
        self._anew = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Take one line, its newline included. Never blocks, never raises."""
        if self._taken - self._written > MAX_PENDING_BYTES:
            self._dropped += 1
            return
        self._taken += len(line)
        self._pending.append(line)
        # Only the first one wakes: the thread takes lines until there are none. Asked after the line is there, or the
        # thread could take the last one in between and sleep on ours.
        if len(self._pending) == 1:
            self._wake.set()

    def reopen(self) -> None:
        """Open the file anew before the next line, even where the path still leads to it."""
        self._anew = True

    def close(self, timeout: float) -> bool:
        """Write what is there, at most for `timeout` seconds. Blocks; whether all was written."""
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
        if dropped := self._dropped - self._told:
            self._told += dropped
            self._failed(dropped, TOO_FAST)
        if not lines:
            return
        data = memoryview(b"".join(lines))
        try:
            self._reopen()
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:  # whoever shares our standard error made it so
                    select.select((), (self._fd,), (), RETRY)
        except OSError as error:
            self._failed(bytes(data).count(b"\n"), f"{error.strerror}")
        finally:
            # Written bytes count as pending until here, so that a stalled write bounds what gathers behind it.
            self._written += sum(map(len, lines))

    def _reopen(self) -> None:
        """Follow the path when log rotation has moved our file away."""
        if self.path is None:
            return
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        here = os.fstat(self._fd)
        anew, self._anew = self._anew, False
        if anew or there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            fd = _opened(self.path)
            os.close(self._fd)
            self._fd = fd


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
