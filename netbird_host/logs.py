"""Logs of a host: one JSON object a line, or readable lines on a terminal; ours and our libraries' alike.

An event's name is fixed and dotted (`management.stream.lost`); what varies is in its fields. What is logged for each
exchange has a writer of its own, because this way costs more than a request may.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

_QUIET = dict.fromkeys(("asyncio", "grpc", "httpcore", "httpx", "uvicorn"), logging.WARNING)
# At debug these tell of each request, headers included.

_encoder = msgspec.json.Encoder(enc_hook=str)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that configuring again replaces it and leaves others'."""


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Set up structlog and the standard library's logging; may be called again.

    Args:
        stream: standard error by default. `auto` asks it whether it is a terminal.
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
        # A value printed as it is could begin a line of its own.
        [structlog.dev.ConsoleRenderer(colors=out.isatty(), repr_native_str=True)]
        if console
        else [structlog.processors.format_exc_info, _json]
    )
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
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
