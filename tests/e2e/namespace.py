"""A network namespace with one cable to this machine: where a stock WireGuard client lives in tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLS = ("ip", "wg-quick", "wireguard-go", "curl")


def require_namespaces() -> None:
    """Fail in CI, and say elsewhere why the test does not run, where there is no root or a tool is missing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    why = (
        "needs root, to make a network namespace" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    )
    if why:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


class Namespace:
    """Programs started in it see one interface besides loopback, whose other end is `host_address` here."""

    def __init__(self, number: int) -> None:
        self.name = f"nbt{os.getpid() % 100_000}x{number}"
        self._here, self._there = f"nbh{os.getpid() % 10_000}x{number}", f"nbn{os.getpid() % 10_000}x{number}"
        # A documentation range of its own for each process that tests, so that two runs do not meet.
        block = 4 * (os.getpid() % 8_000 + 16 * number)
        self.host_address = f"10.213.{block // 256 % 256}.{block % 256 + 1}"
        self.address = f"10.213.{block // 256 % 256}.{block % 256 + 2}"

    def command(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program inside, to its end."""
        env = {**os.environ, "WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go", "LOG_LEVEL": "error"}
        # Files, not pipes: wg-quick leaves wireguard-go behind, which would hold a pipe open for as long as it lives.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = subprocess.run(
                self.command(*argv),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
                env=env,
            ).returncode
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(argv, code, out.read(), err.read())
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @contextmanager
    def wireguard(self, config: Path) -> Iterator[str]:
        """Debian's wireguard-go, configured by wg-quick from the file without its DNS line; the interface's name."""
        # The interface is called like the file, and wireguard-go's socket like the interface: one name for each run.
        name = f"nbw{os.getpid() % 100_000}"
        own = config.with_name(f"{name}.conf")
        own.touch(mode=0o600)
        # wg-quick would set the machine's name servers, which namespaces do not isolate.
        own.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("DNS")))
        self.run("wg-quick", "up", str(own))
        try:
            yield name
        finally:
            self.run("wg-quick", "down", str(own), check=False)

    def up(self) -> None:
        for argv in (
            ["netns", "add", self.name],
            ["link", "add", self._here, "type", "veth", "peer", "name", self._there],
            ["link", "set", self._there, "netns", self.name],
            ["addr", "add", f"{self.host_address}/30", "dev", self._here],
            ["link", "set", self._here, "up"],
            ["-n", self.name, "addr", "add", f"{self.address}/30", "dev", self._there],
            ["-n", self.name, "link", "set", self._there, "up"],
            ["-n", self.name, "link", "set", "lo", "up"],
        ):
            subprocess.run(["ip", *argv], check=True, capture_output=True, text=True, timeout=10)

    def down(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True, timeout=10)
        subprocess.run(["ip", "link", "del", self._here], check=False, capture_output=True, timeout=10)


@contextmanager
def namespace(number: int = 0) -> Iterator[Namespace]:
    require_namespaces()
    made = Namespace(number)
    made.up()
    try:
        yield made
    finally:
        made.down()
