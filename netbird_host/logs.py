"""A host's log: one JSON object a line, or readable lines on a terminal, for the host and its libraries alike.

An event's name is fixed and dotted (`management.stream.lost`); all that varies is in its fields. The access log of a
proxy has a writer of its own, because structlog costs more than a request may.

Clients can cause events, so each event has a rate limit; a later line reports how many lines were left out. A thread
writes the lines: a full pipe or a slow disk delays neither the event loop nor the end of the process.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from netbird_host.buckets import Buckets
from netbird_host.line_writer import TOO_FAST, LineWriter

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

# At level debug these libraries log every request, headers included.
_QUIET = dict.fromkeys(("asyncio", "grpc", "httpcore", "httpx", "uvicorn"), logging.WARNING)

BURST, PER_SECOND = 200, 20.0
"""Maximum number of lines of one event: at once, and then in each second. Further lines are left out and counted."""
EVENTS = 1024
"""Maximum number of events that are counted separately."""
FLUSH_TIMEOUT = 2.0
"""Maximum time in seconds for which the end of the process waits for the last lines to be written."""

_writer: LineWriter | None = None
_lost: Counter[str] = Counter()
_encoder = msgspec.json.Encoder(enc_hook=str)


class _Handler(logging.Handler):
    """Formats records, and leaves out records of an event that is over its rate limit."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        super().__init__()
        self._write = write
        self._lines = Buckets(clock, burst=BURST, per_second=PER_SECOND, keys=EVENTS)
        self._left_out: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = f"{record.name} {record.msg['event'] if isinstance(record.msg, dict) else record.msg}"[:200]
        if not self._lines.take(event):
            self._left_out[event if event in self._left_out or len(self._left_out) < EVENTS else "others"] += 1
            return
        try:
            if left_out := self._left_out.pop(event, 0):
                _log.warning("log.left_out", of=event.partition(" ")[2], lines=left_out, reason="too many at once")
            self._write(self.format(record))
        except Exception:
            self.handleError(record)


def lost_lines() -> int:
    """The number of log lines that this process lost because its output did not take them."""
    return _lost.total()


def _failed(lines: int, why: str) -> None:
    _lost["lines"] += lines
    if why == TOO_FAST:  # the output accepts lines again; after any other failure this line would be lost too
        _log.error("log.lines_lost", lines=lines, reason=why)


def _standard_error() -> Callable[[str], object]:
    """Return a function that writes lines to standard error in a thread, which all calls share."""
    global _writer
    if _writer is None:
        _writer = LineWriter("stderr", interval=0.0, failed=_failed, name="log")
        atexit.register(_writer.close, FLUSH_TIMEOUT)
    writer = _writer
    return lambda line: writer.write(line.encode(errors="backslashreplace") + b"\n")


def configure(
    level: Level = "info",
    format: Format = "auto",  # noqa: A002
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Set up structlog and the standard library's logging; may be called again.

    Args:
        format: `auto` means `console` if the stream is a terminal, else `json`.
        stream: standard error by default, written by a thread.
        clock: returns seconds, for the rate limit of events.
    """
    out = stream if stream is not None else sys.stderr
    console = out.isatty() if format == "auto" else format == "console"
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        # Values are printed as `repr`: a line break in one could otherwise forge a line of the log.
        [structlog.dev.ConsoleRenderer(colors=out.isatty(), repr_native_str=True)]
        if console
        else [structlog.processors.format_exc_info, _json]
    )
    write = _standard_error() if stream is None else lambda line: stream.write(f"{line}\n")
    handler = _Handler(write, clock)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # Before the others, whose fields then replace those of the same names.
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(number, least))
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
    return _encoder.encode({**first, **{str(name): value for name, value in event.items()}}).decode()


_log = structlog.get_logger("netbird_host.logs")
