"""A PostgreSQL server of Debian's, for tests: throw-away, on loopback, as its own user where we are root."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class NoPostgresql(Exception):
    """It is not installed here: `make system` does it."""


@dataclass(frozen=True)
class Server:
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://app@127.0.0.1:{self.port}/{database}"


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    if on_path is None:
        raise NoPostgresql("pg_ctl is not here")
    return Path(on_path).parent


def _command(*arguments: str) -> None:
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    subprocess.run([*become, *arguments], check=True, capture_output=True, timeout=50, cwd="/")


@contextmanager
def server() -> Iterator[Server]:
    """Started in a second or two, stopped at the end, gone afterwards. Raises `NoPostgresql`."""
    binaries = _binaries()
    directory = Path(tempfile.mkdtemp(prefix="netbird-postgresql-"))
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = directory / "data"
    options = f"-k {directory} -h 127.0.0.1 -p {port} -c fsync=off -c max_connections=200"
    try:
        initdb = ("-A", "trust", "-U", "app", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        _command(str(binaries / "initdb"), "-D", str(data), *initdb)
        _command(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log"), "-o", options, "start")
        try:
            yield Server(port)
        finally:
            _command(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
