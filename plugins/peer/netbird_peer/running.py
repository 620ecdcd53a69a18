"""Runs a command's coroutine, and turns its failures into one sentence and an exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import structlog
import typer

from netbird_overlay.errors import OverlayError
from netbird_overlay.wgconf import ConfigError
from netbird_peer.errors import ControlStop, JoinFailed
from netbird_peer.fetch import FetchError

T = TypeVar("T")


class Ended(Exception):
    """Ends the command without an error, through all task groups."""


ENDINGS = (Ended, ControlStop)
EXPECTED = (OverlayError, ConfigError, FetchError, JoinFailed, OSError, *ENDINGS)  # a TimeoutError is an OSError


async def until_signal() -> NoReturn:
    """Wait for SIGINT or SIGTERM. Raises Ended."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled.set)
    await signalled.wait()
    raise Ended


def log_to_stderr() -> None:
    """Write the library's events to standard error: standard output is the command's own."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


def run(main: Coroutine[Any, Any, T]) -> T | None:
    """Run the command; exit with a message for failures of files, peers and the network."""
    try:
        return asyncio.run(main)
    except (*EXPECTED, BaseExceptionGroup) as exc:
        leaves = _leaves(exc)
        if not all(isinstance(leaf, EXPECTED) for leaf in leaves):
            raise
        failures = [leaf for leaf in leaves if not isinstance(leaf, ENDINGS)]
        if not failures:
            return None
        fail("; ".join(dict.fromkeys(str(leaf) or "no complete answer in time" for leaf in failures)))


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc]
