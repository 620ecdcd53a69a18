"""Autobahn's fuzzing client, straight to an echo server and through the proxy to the same.

A case that fails through the proxy and not without it is ours, and fails the run. The suite needs Python 2.7
(`PYTHON2`, or pyenv's) and is installed beside the environment on the first run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from examples.demo.processes import Processes
from tests.live.house import house

SITE = Path(__file__).parents[2] / ".venv" / "autobahn"
DOMAIN = "localhost"
RUN = "import site, sys; site.addsitedir({site!r}); sys.argv = ['wstest', '-m', 'fuzzingclient', '-s', {spec!r}]; "
RUN += "from autobahntestsuite import wstest; wstest.run()"
QUICK = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
SLOW = ["9.*", "12.*", "13.*"]
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}


def python2() -> str:
    """An interpreter that the suite still runs on."""
    if given := os.environ.get("PYTHON2"):
        return given
    found = sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python"))
    if not found:
        raise SystemExit("no Python 2.7: say where one is in PYTHON2")
    return str(found[-1])


def install(python: str) -> None:
    if not (SITE / "autobahntestsuite").exists():
        subprocess.run([python, "-m", "pip", "install", "-q", "--target", str(SITE), "autobahntestsuite"], check=True)


async def echo(client: ServerConnection) -> None:
    with suppress(ConnectionClosed):  # most cases end in a way that is meant to be wrong
        async for message in client:
            await client.send(message)


async def run(directory: Path, cases: list[str]) -> dict[str, dict[str, Any]]:
    """By agent and case: how it behaved, and how it closed."""
    python = python2()
    await asyncio.to_thread(install, python)
    async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with house(directory, port, domain=DOMAIN) as made, Processes(directory / "tools") as processes:
            spec = directory / "spec.json"
            agents = [
                {"agent": "direct", "url": f"ws://127.0.0.1:{port}"},
                {"agent": "proxied", "url": f"ws://{DOMAIN}:{made.http}"},
            ]
            spec.write_text(
                json.dumps(
                    {
                        "outdir": str(directory / "report"),
                        "servers": [{**one, "options": {"version": 18}} for one in agents],
                        "cases": cases,
                        "exclude-cases": [],
                        "exclude-agent-cases": {},
                    }
                )
            )
            argv = [python, "-c", RUN.format(site=str(SITE), spec=str(spec))]
            code, output, errors = await processes.run(argv, timeout=1800)
            index = directory / "report" / "index.json"
            if not index.exists():
                raise SystemExit(f"the suite ended with {code}:\n{output[-2000:]}{errors[-2000:]}")
    found: dict[str, dict[str, Any]] = json.loads(index.read_text())
    return found


def bad(case: dict[str, Any]) -> bool:
    return case["behavior"] not in GOOD or case["behaviorClose"] not in GOOD


def main() -> int:
    parser = argparse.ArgumentParser(prog="make autobahn", description=__doc__)
    parser.add_argument("--all", action="store_true", help="large messages and compression, too: minutes more")
    parser.add_argument("cases", nargs="*", help="patterns such as 7.*")
    arguments = parser.parse_args()
    wanted = arguments.cases or (QUICK + SLOW if arguments.all else QUICK)
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory), wanted))
    direct, proxied = found["direct"], found["proxied"]
    ours = [case for case in proxied if bad(proxied[case]) and not bad(direct[case])]
    both = [case for case in proxied if bad(proxied[case]) and bad(direct[case])]
    for case in ours:
        print(f"{case}: through the proxy {proxied[case]}, without it {direct[case]}")
    passed = len(proxied) - len(ours) - len(both)
    print(
        f"{len(proxied)} cases: {passed} pass through the proxy, {len(ours)} fail through the proxy only, "
        f"{len(both)} fail without it as well: {', '.join(both) or '-'}"
    )
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
