"""Notices, the watchdog and inherited sockets. The test plays the supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netbird_host.systemd import Supervisor, inherited_sockets


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    """The supervisor's socket for notices."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(10)
        yield ear


def test_notices_are_datagrams(heard: socket.socket) -> None:
    """Readiness and shutdown are sent as one datagram each, with a status text."""
    supervisor = Supervisor({"NOTIFY_SOCKET": heard.getsockname()})
    supervisor.ready("listening on :443")
    supervisor.stopping("draining")
    assert heard.recv(1000) == b"READY=1\nSTATUS=listening on :443"
    assert heard.recv(1000) == b"STOPPING=1\nSTATUS=draining"


def test_abstract_address() -> None:
    """An address that begins with @ is an abstract one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")
        ear.settimeout(10)
        Supervisor({"NOTIFY_SOCKET": "@" + ear.getsockname()[1:].decode()}).ready("up")
        assert ear.recv(100).startswith(b"READY=1")


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_nobody_listening_is_no_failure(environment: dict[str, str]) -> None:
    """A process without a supervisor, or whose supervisor is gone, continues."""
    supervisor = Supervisor(environment)
    supervisor.ready("up")
    supervisor.stopping("down")


async def test_signs_of_life_come_twice_as_often_as_asked(heard: socket.socket) -> None:
    """The event loop itself sends them, so that a hanging loop sends none."""
    supervisor = Supervisor({"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "20000"})
    assert supervisor.watchdog == 0.02
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(supervisor.keep_alive())
        for _ in range(3):
            assert await asyncio.to_thread(heard.recv, 100) == b"WATCHDOG=1"
        task.cancel()


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "x"},
        {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "1000"},
    ],
)
async def test_signs_of_life_that_nobody_waits_for(environment: dict[str, str]) -> None:
    """Without a watchdog no sign of life is sent, and `keep_alive` returns at once."""
    async with asyncio.timeout(10):
        await Supervisor(environment).keep_alive()


CHILD = """
import os, sys
from netbird_host.systemd import inherited_sockets
os.environ["LISTEN_PID"] = {pid}
try:
    found = inherited_sockets()
except ValueError as error:
    sys.exit(str(error))
print([one.getsockname()[1] for one in found], sorted(name for name in os.environ if name.startswith("LISTEN")))
print([os.get_inheritable(one.fileno()) for one in found])
"""


def child(descriptor: int, *, pid: str = "str(os.getpid())", count: str = "1") -> subprocess.CompletedProcess[str]:
    """Run a process that inherits this descriptor as number 3."""
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(pid=pid)],
        env={**os.environ, "LISTEN_FDS": count, "LISTEN_FDNAMES": "http"},
        preexec_fn=lambda: os.dup2(descriptor, 3),
        close_fds=False,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_sockets_are_taken_once() -> None:
    """The variables are removed from the environment, and child processes do not inherit the sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = child(listening.fileno())
        assert done.stdout == f"[{listening.getsockname()[1]}] []\n[False]\n", done.stderr


def test_sockets_of_another_process_are_left() -> None:
    """Sockets that were meant for the parent process are ignored."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert child(listening.fileno(), pid="'1'").stdout == "[] []\n[]\n"


@pytest.mark.parametrize(
    ("count", "words"), [("x", "must be a number"), ("5000", "must be a number"), ("1", "does not listen")]
)
def test_what_is_not_as_announced_stops_the_start(count: str, words: str) -> None:
    """A wrong count, or a socket that does not listen, stops the start."""
    with socket.socket() as silent:
        done = child(silent.fileno(), count=count)
    assert done.returncode == 1
    assert words in done.stderr


def test_descriptor_that_is_no_socket(tmp_path: Path) -> None:
    """A descriptor of a file stops the start."""
    with (tmp_path / "file").open("w") as file:
        done = child(file.fileno())
    assert "is not a socket" in done.stderr


def test_nothing_handed_over() -> None:
    """Without the variables no socket is returned."""
    environment = {"LISTEN_PID": str(os.getpid())}
    assert inherited_sockets(environment) == []
    assert environment == {}
