"""The cost of a run: a process's own counters before and after, and the load generator's count between them."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEASURED_CORE = 0
OTHER_CORE = 1
"""The measured process has a core of its own; whoever asks it and whoever it asks share the other."""

_SCHEDULER = 2
"""The kernel's clock of a process's CPU time is `~pid << 3 | 2` (`clock_getcpuclockid`). /proc has steps of 10 ms."""
_COUNT = re.compile(r"(\d+) requests in ([\d.]+)(ms|s|m)")
_ERRORS = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_SOCKET_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class LoadFailed(Exception):
    """The load generator did not do what was asked, so its figures say nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of load against one subject.

    Attributes:
        cpu: seconds that the subject's process used, all its threads and children.
        seconds: how long the load lasted.
    """

    requests: int
    seconds: float
    cpu: float

    @property
    def cpu_per_thousand(self) -> float:
        return self.cpu / self.requests * 1000

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a process. `resident` is in MB."""

    resident: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    pids = [pid]
    for member in pids:
        for task in Path(f"/proc/{member}/task").iterdir():
            pids += [int(child) for child in (task / "children").read_text().split()]
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, of all its threads and of its live children, to the microsecond.

    Children that ended are not counted: measured processes keep theirs.
    """
    return sum(time.clock_gettime((~each << 3) | _SCHEDULER) for each in family(pid))


def pin(pid: int, core: int) -> None:
    """Bind a process, its children and all their threads to one core. What they start later inherits it."""
    for member in family(pid):
        for task in os.listdir(f"/proc/{member}/task"):
            os.sched_setaffinity(int(task), {core})


async def load(
    url: str,
    *,
    host: str,
    seconds: float,
    connections: int,
    prefix: Sequence[str] = (),
    headers: Sequence[str] = (),
    script: Path | None = None,
) -> tuple[int, float]:
    """Ask for one URL on kept connections; how many answers in how many seconds.

    Args:
        host: what the Host field says; the URL may name the address.
        prefix: what the generator runs under, such as a network namespace.
        headers: further lines of the head.
        script: a Lua script of wrk's, which makes the requests.

    Raises:
        LoadFailed: an answer was an error, or connections broke.
    """
    argv = [*prefix, "taskset", "-c", str(OTHER_CORE), "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    argv += ["--timeout", "10s"]
    if script is not None:
        argv += ["-s", str(script)]
    for line in (f"Host: {host}", *headers):
        argv += ["-H", line]
    argv.append(url)
    handle = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(seconds + 30):
        output = (await handle.communicate())[0].decode()
    counted = _COUNT.search(output)
    if handle.returncode or counted is None or not int(counted[1]):
        raise LoadFailed(f"{' '.join(argv)}:\n{output}")
    broken = [int(match[1]) for match in (_ERRORS.search(output),) if match]
    broken += [sum(map(int, match.groups())) for match in (_SOCKET_ERRORS.search(output),) if match]
    if sum(broken) * 1000 > int(counted[1]):
        raise LoadFailed(f"{' '.join(argv)}:\n{output}")
    return int(counted[1]), float(counted[2]) * _SECONDS[counted[3]]


async def sample(
    pid: int,
    url: str,
    *,
    host: str,
    seconds: float,
    connections: int,
    prefix: Sequence[str] = (),
    headers: Sequence[str] = (),
    script: Path | None = None,
) -> Sample:
    before = cpu_seconds(pid)
    requests, lasted = await load(
        url, host=host, seconds=seconds, connections=connections, prefix=prefix, headers=headers, script=script
    )
    return Sample(requests, lasted, cpu_seconds(pid) - before)
