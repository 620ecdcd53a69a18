"""Latency under a fixed rate: requests leave when they are due, whether or not earlier ones were answered.

`python -m bench.openloop URL --rate 500 --seconds 4` prints JSON. A latency counts from the moment at which the request
was due, so that a slow answer cannot delay the requests that would have shown it (coordinated omission). The generator
is one thread with `select`, whose timeout has microseconds; event loops round theirs to milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.measure import OTHER_CORE, LoadFailed

RATE = 500.0
CONNECTIONS = 64
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the moment at which a request was due to the end of its answer.

    Attributes:
        late: 99 % of requests left no later than this after they were due; a large figure is the generator's fault.
    """

    rate: float
    count: int
    p50: float
    p99: float
    worst: float
    late: float


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the ordered values does not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * part // 1) - 1))]


def summary(rate: float, latencies: list[float], late: list[float]) -> Latency:
    """Raises LoadFailed where nothing was answered."""
    if not latencies:
        raise LoadFailed("no request was answered")
    ordered = sorted(latencies)
    return Latency(
        rate, len(ordered), percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1],
        percentile(sorted(late), 0.99),
    )  # fmt: skip


class _Connection:
    """A kept connection with at most one request on it."""

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self.stream = socket.create_connection((host, port), timeout=10)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.stream = context.wrap_socket(self.stream, server_hostname="localhost")
        self.stream.setblocking(False)
        self.due = 0.0
        self._read = b""

    def fileno(self) -> int:
        return self.stream.fileno()

    def answered(self) -> bool:
        """Read; whether the answer is whole. Raises LoadFailed for an end or any status but 200."""
        try:
            while chunk := self.stream.recv(65_536):
                self._read += chunk
                if len(chunk) < 65_536 and not isinstance(self.stream, ssl.SSLSocket):
                    break
            else:
                raise LoadFailed("a connection ended before its answer did")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        head, separator, body = self._read.partition(b"\r\n\r\n")
        if not separator:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise LoadFailed(f"an answer was {head[:60]!r}")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < length:
            return False
        self._read = b""
        return True


def run(url: str, host: str, rate: float, seconds: float, connections: int = CONNECTIONS) -> Latency:
    """Load at this rate for so long. Requests for which no connection is free wait, and their time counts."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    # The kernel otherwise wakes a sleeper up to 50 µs late.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    opened = [_Connection(parts.hostname or "", parts.port or (443 if tls else 80), tls) for _ in range(connections)]
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for connection in opened:  # so that neither side meets a connection for the first time while it is measured
        connection.stream.send(request)
        while not connection.answered():
            select.select([connection], [], [], 10)
    free, busy = deque(opened), set[_Connection]()
    latencies: list[float] = []
    late: list[float] = []
    total, sent, started = int(rate * seconds), 0, time.perf_counter()
    give_up = started + seconds + 20
    while len(latencies) < total:
        now = time.perf_counter()
        if now > give_up:
            raise LoadFailed(f"{total - len(latencies)} of {total} requests were not answered")
        while sent < total and free and (due := started + sent / rate) <= now:
            connection = free.popleft()
            connection.stream.send(request)
            connection.due = due
            late.append(now - due)
            busy.add(connection)
            sent += 1
        wait = max(0.0, started + sent / rate - now) if sent < total and free else 1.0
        for connection in select.select(list(busy), [], [], wait)[0]:
            if connection.answered():
                latencies.append(time.perf_counter() - connection.due)
                busy.discard(connection)
                free.append(connection)
    return summary(rate, latencies, late)


async def latency(url: str, *, host: str, rate: float = RATE, seconds: float) -> Latency:
    """The same in a process of its own, on the core of those that ask. Raises LoadFailed."""
    argv = ["taskset", "-c", str(OTHER_CORE), sys.executable, "-m", "bench.openloop", url, "--host", host]
    process = await asyncio.create_subprocess_exec(
        *argv, "--rate", str(rate), "--seconds", str(seconds),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(seconds + 60):
        output, errors = await process.communicate()
    if process.returncode:
        raise LoadFailed(errors.decode().strip().rpartition("\n")[2])
    return Latency(**json.loads(output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    made = run(given.url, given.host, given.rate, given.seconds)
    print(json.dumps({name: getattr(made, name) for name in Latency.__slots__}))
