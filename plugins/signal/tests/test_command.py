"""`netbird-signal run` as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from typer.testing import CliRunner

from netbird_signal.command import app
from plugins.signal.tests.agents import SECONDS, agent, key, message, read, status_of


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The process and its port; killed if it still runs at the end."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "netbird_signal.command", "run", "--listen", "127.0.0.1:0", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        ready = await asyncio.wait_for(running.stdout.readline(), 30)
        yield running, int(ready.decode().rpartition(":")[2])
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


@pytest.mark.live
async def test_it_serves_until_a_signal_and_ends_streams_at_once() -> None:
    """Its last line has the sums."""
    bob = key()
    async with process() as (running, port), agent(port) as ours:
        stream = await ours.register(bob)
        await ours.send(message(key(), bob))
        assert await read(stream)

        running.send_signal(signal.SIGTERM)

        assert await status_of(stream.read()) is grpc.StatusCode.UNAVAILABLE
        _, errors = await asyncio.wait_for(running.communicate(), SECONDS)
        assert running.returncode == 0
        last = json.loads(errors.splitlines()[-1])
        assert last["event"] == "signal.totals"
        assert last["counters"]["accepted"] == 1


@pytest.mark.live
async def test_its_limits_are_options() -> None:
    async with process("--streams", "1") as (_, port), agent(port) as ours:
        await ours.register(key())
        assert await status_of(ours.register(key())) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--certificate", "x"], "belong together"),
        (["--certificate", "/no", "--key", "/no"], "No such file"),
        (["--trusted-proxy", "all"], "'all' does not appear to be"),
    ],
)
def test_wrong_options_stop_the_start_with_a_sentence(arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(app, ["run", "--listen", "127.0.0.1:0", *arguments])

    assert result.exit_code == 1
    assert why in result.output


def test_an_address_without_a_port_is_refused() -> None:
    result = CliRunner().invoke(app, ["run", "--listen", "nonsense::::"])

    assert result.exit_code == 1
    assert "error: " in result.output
