"""The core's own answers: a code, one sentence, the exchange's id. Never an address, a plugin, a cause or a group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from netbird_proxy.errors import ExchangeError
from netbird_proxy.exchange import Exchange
from netbird_proxy.headers import RawHeader
from netbird_proxy.model import Challenge, Deny
from netbird_proxy.pipeline.downstream import Downstream

NO_ROUTE = Deny(404, "no_route", "no mapping has this host and path")
AMBIGUOUS_PATH = Deny(400, "ambiguous_path", "the path and its folded form lead to routes with different guards")
LOOP_DETECTED = Deny(508, "loop_detected", "the request has been through this proxy already")

_SENTENCES = {
    "no_route": "No service answers at this address.",
    "ambiguous_path": "The path can be read in more than one way.",
    "loop_detected": "The request came back to where it had been.",
    "tunnel_required": "This service is reachable through its private network only.",
    "peer_unknown": "This device is not known to the service's network.",
    "not_in_group": "You are not allowed to use this service.",
    "tls_required": "This service must be reached over HTTPS.",
    "cross_site": "The request came from another site.",
}
_BY_STATUS = {
    401: "Authentication is required.",
    403: "You are not allowed to use this service.",
    404: "No service answers at this address.",
    421: "The request reached the wrong place.",
    429: "There were too many requests.",
}
_CODE = re.compile(r"[a-z0-9_]{1,64}")
_NOT_A_STEPS = frozenset((b"connection", b"content-length", b"content-type", b"transfer-encoding"))
_ALWAYS: list[RawHeader] = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def sentence(status: int, code: str) -> str:
    """What a client is told besides the code. A plugin's own codes get their status's sentence."""
    return (
        _SENTENCES.get(code)
        or _BY_STATUS.get(status)
        or ("The request was refused." if status < 500 else "The service is not available.")
    )


async def refuse(exchange: Exchange, downstream: Downstream, denial: Deny) -> None:
    """Answer a guard's no."""
    code = denial.code if _CODE.fullmatch(denial.code) else "denied"
    await _answer(exchange, downstream, denial.status, code, sentence(denial.status, code), denial.headers)


async def challenge(exchange: Exchange, downstream: Downstream, asked: Challenge) -> None:
    """Answer with what an authenticator asks for, or with the core's words where it brought no page."""
    if not asked.body:
        code = asked.code if _CODE.fullmatch(asked.code) else "challenge"
        await _answer(exchange, downstream, asked.status, code, sentence(asked.status, code), asked.headers)
        return
    headers = [
        pair for pair in asked.headers if (name := pair[0].lower()) == b"content-type" or name not in _NOT_A_STEPS
    ]
    headers += [(b"content-length", b"%d" % len(asked.body)), *_ALWAYS]
    await downstream.start(exchange, asked.status, headers)
    await downstream.finish(b"" if exchange.method == "HEAD" else asked.body)


async def fail(
    exchange: Exchange, downstream: Downstream, error: ExchangeError, headers: Iterable[RawHeader] = ()
) -> None:
    """Answer a failure."""
    await _answer(exchange, downstream, error.status, error.code, error.sentence, headers)


async def _answer(
    exchange: Exchange, downstream: Downstream, status: int, code: str, told: str, headers: Iterable[RawHeader]
) -> None:
    accept = exchange.headers.get(b"accept") or b""
    if b"json" in accept.lower():
        kind = b"application/json"
        body = json.dumps({"code": code, "message": told, "exchange": exchange.id}).encode() + b"\n"
    else:
        kind = b"text/plain; charset=utf-8"
        body = f"{told}\n\ncode: {code}\nexchange: {exchange.id}\n".encode()
    await downstream.start(
        exchange,
        status,
        [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            *_ALWAYS,
            *((name.lower(), value) for name, value in headers if name.lower() not in _NOT_A_STEPS),
        ],
    )
    await downstream.finish(b"" if exchange.method == "HEAD" else body)
