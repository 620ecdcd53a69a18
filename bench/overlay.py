"""A machine of somebody else's: a network namespace with a stock WireGuard client in it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.processes import Processes, ProcessFailed


@dataclass(frozen=True, slots=True)
class Machine:
    """The namespace, the address under which it reaches us, and the name of its WireGuard interface."""

    namespace: str
    host: str
    interface: str

    @property
    def prefix(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]


async def _run(processes: Processes, *argv: str, env: dict[str, str] | None = None) -> str:
    code, output, errors = await processes.run(argv, env=env)
    if code:
        raise ProcessFailed(f"{' '.join(argv)}: {errors}")
    return output


@asynccontextmanager
async def machine(processes: Processes) -> AsyncIterator[Machine]:
    """A namespace joined to ours by a pair of virtual interfaces. Needs root."""
    tag = f"{os.getpid() % 100000}"
    made = Machine(f"nbbench{tag}", f"10.213.{os.getpid() % 250}.1", f"nbb{tag}")
    near, far = f"nba{tag}", f"nbz{tag}"
    inside = made.host.removesuffix(".1") + ".2"
    await _run(processes, "ip", "netns", "add", made.namespace)
    try:
        await _run(processes, "ip", "link", "add", near, "type", "veth", "peer", "name", far)
        await _run(processes, "ip", "link", "set", far, "netns", made.namespace)
        await _run(processes, "ip", "addr", "add", f"{made.host}/30", "dev", near)
        await _run(processes, "ip", "link", "set", near, "up")
        await _run(processes, *made.prefix, "ip", "addr", "add", f"{inside}/30", "dev", far)
        await _run(processes, *made.prefix, "ip", "link", "set", far, "up")
        await _run(processes, *made.prefix, "ip", "link", "set", "lo", "up")
        yield made
    finally:
        # A WireGuard interface that goes away ends its process; the namespace's end takes both interfaces of the pair.
        await processes.run([*made.prefix, "ip", "link", "del", made.interface])
        await processes.run(["ip", "link", "del", near])
        await _run(processes, "ip", "netns", "del", made.namespace)


def _renamed(peer_file: Path, interface: str) -> Path:
    """A copy whose name is the interface's: wg-quick takes it from there."""
    path = peer_file.with_name(f"{interface}.conf")
    path.touch(mode=0o600)
    path.write_text(peer_file.read_text())
    return path


async def join(processes: Processes, where: Machine, peer_file: Path, core: int) -> None:
    """Bring the client up with the file that management handed out."""
    path = _renamed(peer_file, where.interface)
    env = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go", "GOMAXPROCS": "1"}
    await _run(processes, *where.prefix, "taskset", "-c", str(core), "wg-quick", "up", str(path), env=env)
