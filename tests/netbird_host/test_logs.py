"""The format and the limits of log lines, for the host's own events and for libraries."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from netbird_host import logs
from netbird_host.setting_types import Secret


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object() -> None:
    """A line has event, level, logger, time and fields; fields of any type are encoded, none can start a new line."""
    stream = io.StringIO()
    logs.configure(stream=stream)

    structlog.get_logger("netbird.test").warning("thing.happened", path=Path("/x"), text="a\nb", secret=Secret("nbx"))

    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "thing.happened",
        "logger": "netbird.test",
        "path": "/x",
        "text": "a\nb",
        "secret": "***",
    }


def test_a_librarys_line_looks_the_same() -> None:
    """Records of the standard library's logging have the same format, exceptions included."""
    stream = io.StringIO()
    logs.configure(stream=stream)

    try:
        raise OSError("no")
    except OSError:
        logging.getLogger("some.library").exception("it failed: %s", "badly")

    (line,) = lines(stream)
    assert (line["level"], line["event"], line["logger"]) == ("error", "it failed: badly", "some.library")
    assert "OSError: no" in line["exception"]


def test_fields_of_the_standard_librarys_logging_are_in_the_line() -> None:
    """Management logs by it, and states what an event concerns in `extra`; its request's id, for one. A field cannot
    take the place of the line's own."""
    stream = io.StringIO()
    logs.configure(stream=stream)

    logging.getLogger("netbird.test").warning("thing.happened", extra={"port": 1, "path": Path("/x"), "level": "fine"})

    (line,) = lines(stream)
    assert (line["event"], line["port"], line["path"], line["level"]) == ("thing.happened", 1, "/x", "warning")


def test_the_level_holds_for_all() -> None:
    """Events below the level are not written; verbose libraries stay at warning even at level debug."""
    stream = io.StringIO()
    logs.configure(level="debug", stream=stream)
    structlog.get_logger().debug("shown")
    logging.getLogger("httpcore").debug("headers")
    logs.configure(level="error", stream=stream)
    structlog.get_logger().warning("hidden")
    logging.getLogger("library").warning("hidden")

    assert [line["event"] for line in lines(stream)] == ["shown"]


def test_a_terminal_gets_readable_lines() -> None:
    """`auto` detects a terminal; values cannot forge a line there either."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure(stream=stream)

    structlog.get_logger().info("thing.happened", text="a\nb")

    assert "thing.happened" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_configuring_again_does_not_double_lines() -> None:
    """A second call replaces the handler of the first, and keeps foreign handlers."""
    stream = io.StringIO()
    for _ in range(2):
        logs.configure(stream=stream)

    logging.getLogger("library").error("once")

    assert len(lines(stream)) == 1


def test_an_event_that_comes_too_often_is_left_out_and_counted() -> None:
    """Each event has a rate limit of its own, so that an event that clients cause does not suppress other events."""
    stream, now = io.StringIO(), [0.0]
    logs.configure(stream=stream, clock=lambda: now[0])
    log = structlog.get_logger("netbird.test")

    for number in range(1000):
        log.info("request.refused", number=number)
        logging.getLogger("library").warning("refused %s", number)
    log.info("proxy.ready")
    written = lines(stream)
    assert [line["event"] for line in written].count("request.refused") == logs.BURST
    assert sum(line["logger"] == "library" for line in written) == logs.BURST
    assert written[-1]["event"] == "proxy.ready"

    now[0] += 1.0
    log.info("request.refused", number="last")
    summary, last = lines(stream)[-2:]
    assert (summary["event"], summary["of"], summary["lines"]) == ("log.left_out", "request.refused", 1000 - logs.BURST)
    assert last["number"] == "last"


FULL_PIPE = """
import structlog
from netbird_host import logs

logs.configure(format="json")
log = structlog.get_logger("netbird.test")
for number in range(20_000):
    log.info(f"event.{number}", text="x" * 200)
print("done", flush=True)
input()
log.info("the.last")
"""


async def test_a_full_pipe_stops_nobody_who_logs() -> None:
    """A reader that stops reading delays the writing thread only, and later receives every line up to the last."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", FULL_PIPE],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=4096,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"done\n"
        process.stdin.write(b"\n")
        process.stdin.close()
        read = (await process.stderr.read()).splitlines()
        assert await process.wait() == 0
    assert len(read) == 20_001
    assert json.loads(read[-1])["event"] == "the.last"
