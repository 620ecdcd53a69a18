"""A proxy without management, its services from a file: for starts, idle connections and workers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MEASURED_CORE, cpu_seconds, family
from bench.servers import until_ready
from examples.demo.processes import BIN, Process, Processes
from examples.demo.stack import PLUGINS, free_port

HOST = "s0.bench.test"
_IMPORTS = "import grpc, pydantic, uvloop"


@dataclass(frozen=True, slots=True)
class Alone:
    """One proxy process, and its plain port."""

    process: Process
    port: int


def configure(directory: Path, upstream: int, *, services: int = 1, extra: str = "") -> tuple[Path, int]:
    """Write a settings file with so many services `s0.bench.test`, …; the file and the proxy's port."""
    directory.mkdir(parents=True)
    port = free_port()
    mappings = directory / "mappings.toml"
    mappings.write_text(
        "".join(
            f'[[mapping]]\nid = "s{i}"\ndomain = "s{i}.bench.test"\n[[mapping.path]]\npath = "/"\n'
            f'target = "http://127.0.0.1:{upstream}"\n[mapping.path.options]\ndirect_upstream = true\n'
            for i in range(services)
        )
    )
    config = directory / "proxy.toml"
    config.write_text(
        f"plugins = [{', '.join(repr(plugin) for plugin in PLUGINS)}]\n"
        f'state_directory = "{directory / "state"}"\nmappings_file = "{mappings}"\n'
        f'[[listen]]\naddress = "127.0.0.1:{port}"\n[admin]\nsocket = "{directory / "admin.sock"}"\n'
        f'[access_log]\noutput = "{directory / "access.log"}"\n'
        f"[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = ['127.0.0.1/32']\n{extra}"
    )
    return config, port


def command(config: Path) -> list[str]:
    """The start, on the measured core from its first instruction."""
    return ["taskset", "-c", str(MEASURED_CORE), str(BIN / "netbird-proxy"), "run", "--config", str(config)]


async def start(
    processes: Processes, directory: Path, upstream: int, *, extra: str = "", options: tuple[str, ...] = ()
) -> Alone:
    config, port = configure(directory, upstream, extra=extra)
    process = await processes.start(directory.name, [*command(config), *options])
    await until_ready(process, port)
    return Alone(process, port)


async def cold_start(processes: Processes, directory: Path, upstream: int) -> float:
    """CPU seconds of a new proxy with 10 services until its first answer."""
    config, port = configure(directory, upstream, services=10)
    process = await processes.start(directory.name, command(config))
    request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    give_up = time.monotonic() + 60
    while process.running and time.monotonic() < give_up:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            answer = await reader.read(12)
            writer.close()
        except OSError:
            await asyncio.sleep(0.005)
            continue
        cpu = cpu_seconds(process.pid)
        await process.stop()
        if answer != b"HTTP/1.1 200":
            raise RuntimeError(f"the first answer was {answer!r}")
        return cpu
    raise RuntimeError(f"no answer of {process.name}:\n{process.tail()}")


async def imports() -> float:
    """CPU seconds of an interpreter that imports the three heaviest libraries."""

    def run() -> float:
        argv = ["taskset", "-c", str(MEASURED_CORE), sys.executable, "-c", _IMPORTS]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        child = subprocess.Popen(argv, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"`{_IMPORTS}` failed")
        return usage.ru_utime + usage.ru_stime

    return await asyncio.to_thread(run)


def workers_of(process: Process) -> list[int]:
    """The processes that serve: the parent's children, or the process itself where it has none."""
    return family(process.pid)[1:] or [process.pid]
