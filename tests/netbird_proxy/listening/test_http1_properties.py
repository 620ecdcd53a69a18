"""Properties of the protocol under any splitting and any bytes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netbird_proxy.asgi import Receive, Scope, Send
from netbird_proxy.listening.connections import ListenLimits

STREAMS = [
    b"GET /a?b HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /c HTTP/1.0\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: v\r\n\r\n"
    b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /../ HTTP/1.1\r\nHost: a\r\n\r\nGET",
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\nGET http://a/b HTTP/1.1\r\nhost: a\r\n\r\nGET  /c",
    b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /a HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 120 + b"\r\n",
]


class Recorder:
    """An application that reads each request to its end and answers with what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        message = await receive()
        while message["type"] == "http.request" and message["more_body"]:
            body += message["body"]
            message = await receive()
        body += message.get("body", b"")
        self.seen.append((scope["raw_path"], scope["headers"], body, message.get("trailers")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start < end]


async def play(connect: Any, parts: list[bytes], *, settle: bool) -> tuple[Any, ...]:
    app = Recorder()
    client = connect(app)
    for part in parts:
        if not client.transport.reading:
            await client.settle()
            assert client.transport.reading
        client.feed(part)
        if settle:
            await client.settle()
    await client.settle()
    sent = client.sent.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    result = app.seen, sent, dict(client.counters), client.transport.closing or client.transport.eof_written
    await client.end()
    return result


@given(data=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 10_000), max_size=12), settle=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_of_a_stream_means_the_same(connect_sync: Any, data: bytes, cuts: list[int], settle: bool) -> None:
    """How the network cuts a stream decides nothing: the same requests, the same verdicts, the same answers."""

    async def both() -> None:
        whole = await play(connect_sync, [data], settle=True)
        split = await play(connect_sync, pieces(data, cuts), settle=settle)
        assert split == whole

    asyncio.run(both())


TOKENS = [
    b"GET ", b"POST ", b"OPTIONS ", b"CONNECT ", b"/", b"*", b"http://a", b"/a%2e", b"?q", b"#f", b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b"Expect: 100-continue\r\n", b"X: y\r\n",
    b"\r\n", b"\n", b"\r", b"3\r\nabc\r\n", b"0\r\n", b"0\r\nT: v\r\n", b"abc", b"\0", b"\xff", b"\x16\x03\x01",
]  # fmt: skip


@given(
    parts=st.lists(
        st.one_of(st.sampled_from(TOKENS), st.binary(max_size=40), st.lists(st.sampled_from(TOKENS)).map(b"".join)),
        max_size=30,
    ),
    eof=st.booleans(),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_the_protocol(connect_sync: Any, parts: list[bytes], eof: bool) -> None:
    """Whatever arrives, nothing raises, nothing hangs, and a drain leaves nothing behind."""

    async def run() -> None:
        app = Recorder()
        client = connect_sync(app, limits=ListenLimits(drain_bytes=200, linger_timeout=0.5))
        for part in parts:
            client.feed(part)
            await asyncio.sleep(0)
        if eof:
            client.eof()
        await client.settle()
        async with asyncio.timeout(5):
            await client.connections.drain(0.005)
            await client.closed()
        assert not client.connections.open
        assert not client.connections.tasks
        assert len(client.origins) == 0
        assert client.protocol.current is None
        assert "application.failed" not in client.log.events()

    asyncio.run(run())
