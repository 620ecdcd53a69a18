"""The short way for an answer that is all there: the same bytes as the two messages, or nothing done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netbird_proxy.api.headers import RawHeader
from netbird_proxy.asgi import CONNECTION_EXTENSION
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins
from netbird_proxy.testing.transports import MemoryTransport

GET = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"
PLAIN: list[RawHeader] = [(b"content-type", b"text/plain"), (b"content-length", b"5")]


async def answered(
    request: bytes, status: int, headers: list[RawHeader], body: bytes, *, whole: bool
) -> tuple[bytes, bool, bool]:
    """What a client gets, whether the short way was taken, and whether its connection stays open."""
    taken = False

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        nonlocal taken
        taken = whole and scope["extensions"][CONNECTION_EXTENSION].answer_whole(status, headers, body)
        if not taken:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    connections = Connections(app, origins=Origins(), listener="test")
    transport = MemoryTransport.open(Http1Protocol(connections))
    transport.feed(request)
    async with asyncio.timeout(10):
        while connections.tasks:
            await asyncio.wait(tuple(connections.tasks))
    found = bytes(transport.sent), taken, not transport.is_closing() and not transport.eof_sent
    transport.break_off()
    return found


async def test_length_that_is_not_the_bodys_is_left_to_the_long_way() -> None:
    """It fails there, and nothing of the answer goes out."""
    for _ in range(3):
        sent, taken, _ = await answered(GET, 200, [(b"content-length", b"6")], b"hello", whole=True)
        assert not taken
        assert b"hello" not in sent


@pytest.mark.parametrize(
    ("request_", "status", "headers", "body", "short"),
    [
        (GET, 200, PLAIN, b"hello", True),
        (GET, 404, PLAIN, b"hello", True),
        (GET + GET, 200, PLAIN, b"hello", True),
        (GET, 200, [(b"content-type", b"text/plain")], b"hello", False),
        (GET, 200, [*PLAIN, (b"connection", b"close")], b"hello", False),
        (GET, 200, [*PLAIN, (b"keep-alive", b"timeout=5")], b"hello", False),
        (GET, 200, [*PLAIN, (b"X-Case", b"1")], b"hello", False),
        (GET, 200, [*PLAIN, (b"x-twice", b"1"), (b"x-twice", b"2")], b"hello", True),
        (GET, 200, [*PLAIN, (b"content-length", b"5")], b"hello", False),
        (GET, 299, PLAIN, b"hello", True),
        (GET, 204, [], b"", False),
        (GET, 304, PLAIN, b"", False),
        (GET, 200, [(b"content-length", b"20000")], b"x" * 20_000, False),
        (GET.replace(b"GET", b"HEAD"), 200, PLAIN, b"", False),
        (GET.replace(b"1.1", b"1.0"), 200, PLAIN, b"hello", False),
        (GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), 200, PLAIN, b"hello", False),
        (
            GET.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"),
            200, PLAIN, b"hello", False,
        ),
    ],
)  # fmt: skip
async def test_short_way_sends_the_same_bytes(
    request_: bytes, status: int, headers: list[RawHeader], body: bytes, short: bool
) -> None:
    """Whichever way it takes, a client cannot tell, also by what becomes of the connection."""
    for _ in range(2):  # a name is looked at before it is passed on unseen
        await answered(request_, status, headers, body, whole=True)
    sent, taken, stays = await answered(request_, status, headers, body, whole=True)
    assert (sent, stays) == (lambda found: (found[0], found[2]))(
        await answered(request_, status, headers, body, whole=False)
    )
    assert taken is short
    assert sent.startswith(b"HTTP/1.1 %d " % status)


async def test_line_break_in_a_field_sends_nothing() -> None:
    """A value cannot start a field of its own; the client gets the 500 of an application that failed."""
    for value in (b"1", b"1", b"1\r\nx-b: 2"):
        sent, _, _ = await answered(GET, 200, [*PLAIN, (b"x-a", value)], b"hello", whole=True)
    assert sent.startswith(b"HTTP/1.1 500 ")
    assert b"x-b" not in sent
