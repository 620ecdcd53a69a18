"""Requests that a listener refuses: their record, and their answer."""

from __future__ import annotations

from dataclasses import dataclass

from netbird_host.http_fields import retry_after
from netbird_proxy.http.framing import STATUS_LINES

_SENTENCES = {
    400: (b"bad_request", b"The request is malformed."),
    408: (b"read_timeout", b"The request did not arrive in time."),
    414: (b"target_too_long", b"The request target is too long."),
    417: (b"expectation_failed", b"The expectation cannot be met."),
    431: (b"head_too_large", b"The request head is too large."),
    500: (b"internal_error", b"The request could not be answered."),
    503: (b"too_many_connections", b"There are too many connections."),
    505: (b"version_unsupported", b"The protocol version is not supported."),
}


@dataclass(slots=True)
class RefusedHead:
    """A request that never reaches the application.

    Attributes:
        status: status of the answer.
        reason: stable, from a bounded set, for the counter and the log line: `host_missing`.
        method, target: the request's, as far as they were read; else empty.
        exchange: the id under which the request is remembered; empty until then.
    """

    reason: str
    status: int = 400
    method: str = ""
    target: bytes = b""
    exchange: str = ""


def refusal_response(status: int, *, with_body: bool = True, exchange: str = "") -> bytes:
    code, sentence = _SENTENCES[status]
    body = code + b": " + sentence + b"\n"
    if exchange:
        body += b"exchange: " + exchange.encode("ascii") + b"\n"
    head = STATUS_LINES[status] + (
        b"\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
        % (len(body), b"%b: %b\r\n" % retry_after(1) if status == 503 else b"")
    )
    return head + body if with_body else head
