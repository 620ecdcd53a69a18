"""Debian's TURN server on loopback."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbird_overlay.paths.servers import TurnServer

SECRET = "shared-with-management"


def require_coturn() -> None:
    """Fail in CI, and skip elsewhere with the reason, where the program is missing."""
    if shutil.which("turnserver") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs turnserver, of the package coturn")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.bind(("127.0.0.1", 0))
        return int(stream.getsockname()[1])


@dataclass
class Coturn:
    """A running server.

    Attributes:
        log: the file to which it writes what it does.
    """

    port: int
    log: Path
    process: asyncio.subprocess.Process

    def server(self, transport: str = "udp", *, secret: str = SECRET, lifetime: int = 3600) -> TurnServer:
        """The server with credentials for a time, as management makes them: a name with its end, and its HMAC."""
        user = f"{int(time.time()) + lifetime}:proxy"
        password = base64.b64encode(hmac.digest(secret.encode(), user.encode(), hashlib.sha1)).decode()
        return TurnServer(f"turn:127.0.0.1:{self.port}?transport={transport}", user, password)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()


@asynccontextmanager
async def coturn(folder: Path, *options: str) -> AsyncIterator[Coturn]:
    """Start the server, and wait until it answers."""
    port, log = free_port(), folder / "turn.log"
    process = await asyncio.create_subprocess_exec(
        *("turnserver", "-n", "--listening-port", str(port), "--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1"),
        *("--allow-loopback-peers", "--use-auth-secret", "--static-auth-secret", SECRET, "--realm", "example"),
        *("--no-cli", "--no-tls", "--no-dtls", "--verbose", "--simple-log", "--log-file", str(log)),
        *("--pidfile", str(folder / "turn.pid"), "--userdb", str(folder / "turn.db"), *options),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    server = Coturn(port, log, process)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield server
    finally:
        await server.stop()
