"""A member of a network of our own management as a process: `python -m tests.e2e.nat_member SETTINGS`.

SETTINGS is JSON: `management` (URL), `setup_key`, `directory` for its key, and `name`. Commands and reports are those
of `nat_node`; management's map has the peer and the servers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import structlog

from netbird_overlay.driver import open_socket
from netbird_overlay.keys import TunnelState
from netbird_overlay.membership.client import ManagementClient, open_channel
from netbird_overlay.membership.enrollment import enroll
from netbird_overlay.membership.joined import NodeOptions, joined
from netbird_overlay.membership.meta import system_meta
from tests.e2e.nat_node import PORT, Source, commands, say


async def serve(settings: dict[str, str]) -> None:
    """Join the network, and run until standard input ends."""
    state = TunnelState.load(Path(settings["directory"]))
    async with open_channel(settings["management"]) as channel:
        client = ManagementClient(channel, state.private_key, lambda files: system_meta(settings["name"], files=files))
        async with asyncio.timeout(60):
            login = await enroll(client, setup_key=settings["setup_key"])
        async with joined(state, open_socket("", 51820), client, login, NodeOptions()) as member:
            paths, report = member.paths, member.paths.on_change

            def on_change(key: bytes) -> None:
                if report is not None:
                    report(key)
                path = paths.state(key)
                say(path=path.kind, endpoint=path.endpoint.host if path.endpoint else "", at=time.monotonic())

            paths.on_change = on_change
            member.node.listen(PORT, Source)
            await commands(member.node, lambda: next(iter(member.node.members.values())).addresses[0])


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(json.loads(sys.argv[1])))
