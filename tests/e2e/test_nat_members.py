"""Two members of a network of nothing but our own parts, behind NATs: management announces all servers itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.nat_networks import SERVER, Internet, Site, internet
from tests.e2e.nat_node import MEGABYTE, digest
from tests.e2e.nat_programs import NodeProcess, program, reading, script
from tests.netbird_overlay.nat import Behavior

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

REST, GRPC = f"{SERVER}:8081", f"{SERVER}:8082"


@pytest.fixture
def outside() -> Iterator[Internet]:
    with internet() as made:
        yield made


def run(argv: list[str]) -> str:
    """Run a program to its end, and return its output."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def network(
    outside: Internet, a: Site, b: Site, directory: Path
) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    """Run management with its own servers, and two members that join by a setup key."""
    config = directory / "management.toml"
    config.write_text(
        f'state_directory = "{directory / "management"}"\n[rest]\nlisten = "{REST}"\n[grpc]\nlisten = "{GRPC}"\n'
        '[relay]\nstun = ":3478"\n'
    )
    management = outside.command(script("netbird-management"))
    owner = ["init", "--config", str(config), "--email", "owner@example.com", "--proxy-token", "any", "--json"]
    token = json.loads(await asyncio.to_thread(run, [*management, *owner]))["personal_access_token"]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(program([*management, "run", "--config", str(config)], "ready"))
        wish = {"name": "members", "type": "reusable", "expires_in": 86400, "auto_groups": [], "usage_limit": 0}
        call = ["curl", "-sS", "--fail-with-body", f"http://{REST}/api/setup-keys", "-d", json.dumps(wish)]
        call += ["-H", f"authorization: Token {token}", "-H", "content-type: application/json"]
        setup_key = json.loads(await asyncio.to_thread(run, outside.command(*call)))["key"]
        nodes = []
        for name, site in (("one", a), ("other", b)):
            (directory / name).mkdir(mode=0o700)
            settings = {
                "management": f"http://{GRPC}",
                "setup_key": setup_key,
                "directory": str(directory / name),
                "name": name,
            }
            argv = site.command(sys.executable, "-m", "tests.e2e.nat_member", json.dumps(settings))
            nodes.append(NodeProcess(await stack.enter_async_context(program(argv, '{"ready"'))))
        await stack.enter_async_context(reading(*nodes))
        yield nodes[0], nodes[1]


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (Behavior.PORT_RESTRICTED, Behavior.PORT_RESTRICTED, "ice"),
        (Behavior.SYMMETRIC, Behavior.PORT_RESTRICTED, "relay"),
    ],
    ids=str,
)
async def test_members_reach_each_other_on_the_best_path(
    outside: Internet, tmp_path: Path, a: Behavior, b: Behavior, kind: str
) -> None:
    async with network(outside, outside.behind_tun(a), outside.behind_tun(b), tmp_path) as (one, other):
        for node in (one, other):
            await node.until_path(kind)
        one.get(MEGABYTE)
        await one.until(lambda: bool(one.of("digest")))
        assert one.of("digest") == [digest(MEGABYTE)]
        assert one.of("path")[-1] == kind
