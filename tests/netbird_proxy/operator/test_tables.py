"""The command line's tables: texts that tenants and plugins chose are shown as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from examples.demo.processes import BIN
from netbird_proxy.operator.admin import serve_admin

TEXT = "no [/x] and [tunnel] \x1b[2J"


class Server:
    """Shows the same text in every cell."""

    decisions: Any = None
    reload: Any = None

    def describe_routes(self) -> list[dict[str, Any]]:
        cell = dict.fromkeys(("host", "prefix", "service", "refused"), TEXT)
        return [{**cell, "upstreams": [TEXT], "steps": []}]

    def describe_plugins(self) -> list[dict[str, Any]]:
        return [{"id": TEXT, "version": TEXT, "hooks": [TEXT], "claims": [TEXT], "summary": TEXT}]

    def describe_state(self) -> dict[str, Any]:
        return {}

    def dry_run(self, host: str, path: str, account: str | None) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("command", "cells"), [("routes", 5), ("plugins", 5)])
async def test_a_cell_is_neither_markup_nor_an_order_to_the_terminal(tmp_path: Path, command: str, cells: int) -> None:
    """A refusal that a tenant caused neither breaks the command nor hides a word of it."""
    socket = tmp_path / "admin.sock"
    async with serve_admin(Server(), socket):
        process = await asyncio.create_subprocess_exec(
            *[str(BIN / "netbird-proxy"), command, "--admin", str(socket)],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().count("no [/x] and [tunnel] \\x1b[2J") == cells
