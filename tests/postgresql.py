"""A PostgreSQL server of Debian's, for tests: throw-away, in memory, as its own user where we are root.

It listens on a Unix socket only: a port chosen beforehand may be somebody else's by the time the server takes it.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

START_SECONDS: Final = 50.0
_FAST: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "200",
    "listen_addresses": "",
}
"""Nothing here outlives the server, so nothing is made to survive a crash of it."""


class NoPostgresql(Exception):
    """It is not installed here (`make system` does it), or it does not start."""


@dataclass(frozen=True)
class Server:
    directory: Path

    def url(self, database: str) -> str:
        return f"postgresql://app@/{database}?host={self.directory}"

    async def create(self, database: str, *, template: str = "template1") -> str:
        """A database like another, to which nobody is connected; its URL."""
        await self._execute(f"CREATE DATABASE {database} TEMPLATE {template} STRATEGY file_copy")
        return self.url(database)

    async def drop(self, database: str) -> None:
        """Whoever is connected is cut off. Databases left behind would take longer to delete than all tests take."""
        await self._execute(f"DROP DATABASE {database} WITH (FORCE)")

    async def cut(self, database: str) -> None:
        """Ends every connection to it, as a server that is started again does."""
        await self._execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

    @asynccontextmanager
    async def away(self, database: str) -> AsyncIterator[None]:
        """Nobody is connected to it, and nobody can be."""
        await self._execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await self.cut(database)
        yield
        await self._execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def server() -> Iterator[Server]:
    """Started in a second or two; gone afterwards, also when this process is killed. Raises `NoPostgresql`."""
    binaries = _binaries()
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="netbird-postgresql-", dir=memory if memory.is_dir() else None))
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    data = directory / "data"
    initdb = ("-A", "trust", "-U", "app", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
    options = [word for name, value in _FAST.items() for word in ("-c", f"{name}={value}")]
    try:
        subprocess.run(
            _as_itself(binaries / "initdb", "-D", data, *initdb), check=True, capture_output=True, timeout=50, cwd="/"
        )
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                _as_itself(binaries / "postgres", "-D", data, "-k", directory, *options),
                stdout=log,
                stderr=log,
                cwd="/",
            )
        try:
            _wait_for(process, binaries, directory)
            yield Server(directory)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, without writing anything back
            process.wait(50)
    finally:
        shutil.rmtree(directory)


def _wait_for(process: subprocess.Popen[bytes], binaries: Path, directory: Path) -> None:
    ready = (str(binaries / "pg_isready"), "-q", "-U", "app", "-h", str(directory))
    until = time.monotonic() + START_SECONDS
    while subprocess.run(ready, check=False, timeout=50).returncode:
        if process.poll() is not None or time.monotonic() > until:
            raise NoPostgresql((directory / "log").read_text())
        time.sleep(0.05)


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    if on_path is None:
        raise NoPostgresql("postgres is not here")
    return Path(on_path).parent


def _as_itself(*arguments: str | Path) -> list[str]:
    """The server refuses to be root; and it goes when we go, however that is."""
    user = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig=QUIT", *user, *map(str, arguments)]
