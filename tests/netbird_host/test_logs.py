"""Logs: what a line looks like, ours and a library's."""

from __future__ import annotations

import io
import json
import logging
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
    """Event, level, logger, time and fields; fields of any type, and none can begin a line of its own."""
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
    """The standard library's logging goes the same way, its exceptions too."""
    stream = io.StringIO()
    logs.configure(stream=stream)

    try:
        raise OSError("no")
    except OSError:
        logging.getLogger("some.library").exception("it failed: %s", "badly")

    (line,) = lines(stream)
    assert (line["level"], line["event"], line["logger"]) == ("error", "it failed: badly", "some.library")
    assert "OSError: no" in line["exception"]


def test_the_level_holds_for_all() -> None:
    """What is below it is not written; chatty libraries stay quiet at debug."""
    stream = io.StringIO()
    logs.configure(level="debug", stream=stream)
    structlog.get_logger().debug("shown")
    logging.getLogger("httpcore").debug("headers")
    logs.configure(level="error", stream=stream)
    structlog.get_logger().warning("hidden")
    logging.getLogger("library").warning("hidden")

    assert [line["event"] for line in lines(stream)] == ["shown"]


def test_a_terminal_gets_readable_lines() -> None:
    """`auto` asks the stream; a value cannot forge a line there either."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure(stream=stream)

    structlog.get_logger().info("thing.happened", text="a\nb")

    assert "thing.happened" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_configuring_again_does_not_double_lines() -> None:
    """A second call replaces the first, and leaves handlers that are not ours."""
    stream = io.StringIO()
    for _ in range(2):
        logs.configure(stream=stream)

    logging.getLogger("library").error("once")

    assert len(lines(stream)) == 1
