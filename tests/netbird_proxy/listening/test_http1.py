"""What our HTTP/1.1 protocol promises the application above it and the client below it."""
# Over 500 lines: one parser's corpus, which the HTTP engine takes over.

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, ASGIApp, Receive, Scope, Send
from netbird_proxy.listening.connections import ListenLimits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def respond(
    *pieces: bytes,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
    trailers: list[tuple[bytes, bytes]] | None = None,
) -> ASGIApp:
    """An application that ignores its request and answers these pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers or [],
                "trailers": trailers is not None,
            }
        )
        for index, piece in enumerate(pieces or (b"",)):
            await send(
                {"type": "http.response.body", "body": piece, "more_body": index + 1 < len(pieces)},
            )
        if trailers is not None:
            await send({"type": "http.response.trailers", "headers": trailers})

    return app


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


class Gate:
    """An application that stops where the test wants it to."""

    def __init__(self, then: ASGIApp) -> None:
        self.then = then
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.scopes: list[Scope] = []
        self.cancelled = 0
        self.gone: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.entered.set()
        try:
            await self.open.wait()
            await self.then(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.gone.append(scope["extensions"][CONNECTION_EXTENSION].gone)


async def exchange(connect: Any, app: ASGIApp, request: bytes = GET, **settings: Any) -> bytes:
    client = connect(app, **settings)
    client.feed(request)
    await client.settle()
    return bytes(client.sent)


# The scope ------------------------------------------------------------------------------------------------------------


async def test_scope_shows_the_request_as_it_came(connect: Any) -> None:
    """The application sees the raw path, every field in order with duplicates, and the socket's own addresses."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(b"GET /caf%C3%A9;x?q=1 HTTP/1.1\r\nHost: A:80\r\nX-A: 1 \r\nx_a: 2\r\nX-A:3\r\n\r\n")
    await gate.entered.wait()

    (scope,) = gate.scopes
    assert scope["raw_path"] == b"/caf%C3%A9;x"
    assert scope["path"] == "/café;x"
    assert scope["query_string"] == b"q=1"
    assert scope["headers"] == [(b"host", b"A:80"), (b"x-a", b"1"), (b"x_a", b"2"), (b"x-a", b"3")]
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["client"], scope["server"]) == (("192.0.2.7", 40000), ("192.0.2.1", 80))
    assert scope["extensions"][CONNECTION_EXTENSION].has_body is False


async def test_origin_is_live_as_long_as_the_connection(connect: Any) -> None:
    """Every scope carries the connection's own origin, which its listener recognizes until the connection ends."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    await gate.entered.wait()
    origin = gate.scopes[0]["state"][ORIGIN_STATE]

    assert client.origins.recognizes(origin)
    assert (origin.listener, origin.account, origin.peer.host) == ("http 192.0.2.1:80", None, "192.0.2.7")

    client.vanish()
    await client.closed()
    assert not client.origins.recognizes(origin)


async def test_requests_behind_a_tls_proxy_are_https(connect: Any) -> None:
    """Where the operator says that TLS ends in front of the listener, its requests count as https."""
    gate = Gate(respond(b"ok"))
    client = connect(gate, behind_tls_proxy=True)
    client.feed(GET)
    await gate.entered.wait()

    assert gate.scopes[0]["scheme"] == "https"
    assert gate.scopes[0]["state"][ORIGIN_STATE].behind_tls_proxy


# Framing of the response ----------------------------------------------------------------------------------------------


async def test_head_and_first_piece_leave_in_one_write(connect: Any) -> None:
    """The head waits for the first body bytes: one write for a small answer."""
    client = connect(respond(b"hello", headers=[(b"content-length", b"5"), (b"x", b"y")]))
    client.feed(GET)
    await client.settle()

    assert client.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello"
    assert client.transport.writes == 1


async def test_a_head_without_a_body_yet_does_not_wait_for_long(connect: Any) -> None:
    """An event stream's head reaches the client although no event has happened."""
    forever = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await forever.wait()

    client = connect(app)
    client.feed(GET)
    await client.until(lambda: client.sent.endswith(b"\r\n\r\n"))

    assert b"transfer-encoding: chunked" in client.sent


async def test_a_held_head_that_cannot_be_written_cuts_the_connection(connect: Any) -> None:
    """Sending a head late is no way around its checks."""
    forever = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b=c")]})
        await forever.wait()

    client = connect(app)
    client.feed(GET)
    await client.closed()
    await client.settle()
    assert client.sent == b""
    assert client.log.events() == ["application.failed"]
    assert not client.connections.tasks


async def test_an_empty_piece_sends_the_head(connect: Any) -> None:
    """A relay that has the head and nothing else can say so."""
    forever = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await forever.wait()

    assert await exchange(connect, app) == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("app", "request_bytes", "answer"),
    [
        (respond(b"abc"), GET, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"),
        (
            respond(b"ab", b"", b"c"),
            GET,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        ),
        (
            respond(b"ab", trailers=[(b"X-Sum", b"1")]),
            GET,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        (
            respond(b"ab", headers=[(b"content-length", b"2")], trailers=[(b"x-sum", b"1")]),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab",
        ),
        (
            respond(b"ab", b"c"),
            b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc",
        ),
        (
            respond(b"abc"),
            b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc",
        ),
        (
            respond(b"abc"),
            b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        ),
        (
            respond(b"abc", headers=[(b"content-length", b"3")]),
            b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        ),
        (respond(b"", b"abc"), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (
            respond(b"abc", status=204, headers=[(b"content-length", b"3")]),
            GET,
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ),
        (
            respond(b"abc", status=304, headers=[(b"content-length", b"3"), (b"etag", b"x")]),
            GET,
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\netag: x\r\n\r\n",
        ),
        (respond(b"a", status=299), GET, b"HTTP/1.1 299 \r\ncontent-length: 1\r\n\r\na"),
        (
            respond(b"abc", headers=[(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")]),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            respond(b"abc", headers=[(b"content-length", b"3"), (b"content-length", b"3"), (b"keep-alive", b"x")]),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            respond(b"abc", headers=[(b"connection", b"close")]),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        ),
        (
            respond(b"x" * 40000),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 40000\r\n\r\n" + b"x" * 40000,
        ),
        (
            respond(b"x" * 40000, b"y" * 20000),
            GET,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9c40\r\n"
            + b"x" * 40000
            + b"\r\n4e20\r\n"
            + b"y" * 20000
            + b"\r\n0\r\n\r\n",
        ),
    ],
)
async def test_framing_of_a_response(connect: Any, app: ASGIApp, request_bytes: bytes, answer: bytes) -> None:
    """A body is framed by its length, by chunks, or by the end of the connection, and never by two of them."""
    client = connect(app)
    client.feed(request_bytes)
    await client.settle()

    assert client.sent == answer
    assert client.transport.closing is (b"connection: close" in answer)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a\r\nset-cookie: b=c")],
        [(b"x", b"a\nb")],
        [(b"x", b"a\rb")],
        [(b"x", b"a\0b")],
        [(b"x: y\r\nz", b"a")],
        [(b"", b"a")],
        [(b"content-length", b"1x")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
    ],
)
async def test_a_field_that_would_split_the_response_is_never_written(
    connect: Any, headers: list[tuple[bytes, bytes]]
) -> None:
    """What an application cannot have meant becomes a 500, not two responses."""
    client = connect(respond(b"a", headers=headers))
    client.feed(GET)
    await client.settle()

    assert client.sent.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"set-cookie" not in client.sent
    assert client.log.events() == ["application.failed"]
    assert client.transport.closing


async def test_a_trailer_that_would_split_the_response_cuts_the_connection(connect: Any) -> None:
    """After the head a failure can only be shown by truncation."""
    client = connect(respond(b"a", trailers=[(b"x", b"a\r\n\r\nHTTP/1.1 200 OK")]))
    client.feed(GET)
    await client.settle()

    assert client.sent.endswith(b"1\r\na\r\n")
    assert client.transport.aborted


@pytest.mark.parametrize("pieces", [(b"ab",), (b"ab", b""), (b"abcd",), (b"ab", b"cd")])
async def test_a_body_that_differs_from_its_length_is_cut(connect: Any, pieces: tuple[bytes, ...]) -> None:
    """A wrong length never makes the next response start inside this one."""
    client = connect(respond(*pieces, headers=[(b"content-length", b"3")]))
    client.feed(GET + GET)
    await client.settle()

    assert client.transport.aborted
    assert client.sent.count(b"HTTP/1.1") <= 1


async def test_informational_heads_come_before_the_final_one(connect: Any) -> None:
    """103 goes out at once; a 1.0 client gets none, since it would take it for the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["extensions"][CONNECTION_EXTENSION].inform(103, [(b"link", b"</a>")])
        await respond(b"ok")(scope, receive, send)

    final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
    assert await exchange(connect, app) == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + final + b"\r\nok"
    assert await exchange(connect, app, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n") == final + b"connection: close\r\n\r\nok"


@pytest.mark.parametrize("status", [99, 101, 200])
async def test_what_is_not_informational_is_no_informational_head(connect: Any, status: int) -> None:
    """101 would hand the connection over, which nobody here can do."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["extensions"][CONNECTION_EXTENSION].inform(status, [])

    assert (await exchange(connect, app)).startswith(b"HTTP/1.1 500 ")


# Failing applications -------------------------------------------------------------------------------------------------


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers nothing."""


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("secret")


async def half_started(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ValueError("secret")


async def switching(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 101, "headers": []})


async def out_of_turn(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b""})


async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize("app", [silent, raising, half_started, switching, out_of_turn, nonsense])
async def test_an_application_that_fails_before_its_head_is_answered_for(connect: Any, app: ASGIApp) -> None:
    """The client gets a plain 500 that tells nothing, and the operator a line."""
    client = connect(app)
    client.feed(GET)
    await client.settle()

    assert client.sent.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in client.sent
    assert client.transport.closing
    assert client.log.events() in (["application.failed"], ["application.unfinished"])


@pytest.mark.parametrize("raises", [True, False])
async def test_an_application_that_fails_after_its_head_cuts_the_connection(connect: Any, raises: bool) -> None:
    """A response that was begun is never completed by the server: the client sees that it is cut off."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if raises:
            raise ValueError("x")

    client = connect(app)
    client.feed(GET)
    await client.settle()

    assert client.sent.endswith(b"4\r\npart\r\n")
    assert client.transport.aborted


async def test_an_application_may_cut_the_connection(connect: Any) -> None:
    """`abort` ends the connection without completing the response, and the client did not leave."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["extensions"][CONNECTION_EXTENSION]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        connection.abort()
        assert not connection.gone

    client = connect(app)
    client.feed(GET)
    await client.settle()

    assert client.transport.aborted
    assert client.log.events() == []


# The request's body ---------------------------------------------------------------------------------------------------


async def test_pieces_come_as_they_arrive(connect: Any) -> None:
    """A body is passed on piece by piece; the last message says that it is the last."""
    messages: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["extensions"][CONNECTION_EXTENSION].has_body
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            messages.put_nowait(message)
        await respond(b"ok")(scope, receive, send)
        messages.put_nowait(await receive())

    client = connect(app)
    client.feed(CHUNKED)
    client.feed(b"3\r\nabc\r\n")
    assert await messages.get() == {"type": "http.request", "body": b"abc", "more_body": True}
    client.feed(b"1\r\nd\r\n1\r\ne\r\n")
    assert await messages.get() == {"type": "http.request", "body": b"de", "more_body": True}
    client.feed(b"0\r\n\r\n")
    assert await messages.get() == {"type": "http.request", "body": b"", "more_body": False}
    assert await messages.get() == {"type": "http.disconnect"}


async def test_trailers_never_join_the_head(connect: Any) -> None:
    """Trailers come with the last body message; the fields that were judged stay as they were."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = list(scope["headers"])
        message = await receive()
        while message["more_body"]:
            message = await receive()
        seen.extend((before, scope["headers"], message["trailers"]))
        await respond(b"ok")(scope, receive, send)

    client = connect(app)
    client.feed(CHUNKED + b"3\r\nabc\r\n")
    await client.settle()
    client.feed(b"0\r\nX-Netbird-User: eve\r\nHost: b\r\n\r\n" + GET)
    await client.settle()

    before, after, trailers = seen[:3]
    assert before == after
    assert trailers == [(b"x-netbird-user", b"eve"), (b"host", b"b")]


async def test_continue_is_sent_when_the_body_is_wanted(connect: Any) -> None:
    """A client that asks first is told to go on by the first `receive`, never before."""
    gate = Gate(respond(b"ok"))

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        assert await read_body(receive) == b"abc"
        await respond(b"ok")(scope, receive, send)

    gate.then = reading
    client = connect(gate)
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    await gate.entered.wait()
    await client.settle()
    assert client.sent == b""

    gate.open.set()
    await client.settle()
    assert client.sent == b"HTTP/1.1 100 Continue\r\n\r\n"

    client.feed(b"abc")
    await client.settle()
    assert client.sent.endswith(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def test_a_refused_body_is_never_asked_for(connect: Any) -> None:
    """An answer instead of `100 Continue` ends the connection: whether the body follows cannot be known."""
    client = connect(respond(b"no", status=403))
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    await client.settle()

    assert client.sent == b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
    client.feed(b"GET")
    assert client.transport.eof_written


async def test_a_small_unwanted_body_does_not_cost_the_connection(connect: Any) -> None:
    """What the application left unread is read and dropped, and the next request is served."""
    client = connect(respond(b"no", status=403))
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    await client.settle()
    client.feed(b"GET")
    client.feed(GET)
    await client.settle()

    assert client.sent.count(b"HTTP/1.1 403") == 2
    assert not client.transport.closing


async def test_a_large_unwanted_body_is_not_read_to_its_end(connect: Any) -> None:
    """Past a bound the connection is ended, with the answer first."""
    client = connect(respond(b"no", status=403), limits=ListenLimits(drain_bytes=1000))
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc")
    await client.settle()
    for _ in range(4):
        client.feed(b"x" * 600)

    assert client.sent.endswith(b"no")
    assert client.transport.eof_written
    assert client.transport.aborted


@pytest.mark.parametrize("wanted", [True, False], ids=["read", "unwanted"])
async def test_the_last_piece_of_a_body_is_no_part_of_a_head(connect: Any, wanted: bool) -> None:
    """However large it is: the next request is heard, and nothing is answered that was not asked."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if wanted:
            await read_body(receive)
        await respond(b"ok")(scope, receive, send)

    client = connect(app, limits=ListenLimits(head_bytes=1000, drain_bytes=1 << 20))
    body = b"x" * 5000
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * len(body)))
    for piece in (body, body, GET):
        client.feed(piece)
        await client.settle()

    assert client.sent.count(b"HTTP/1.1 ") == client.sent.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert client.counters == {}


async def test_an_unwanted_body_that_stalls_is_bounded_in_time(connect: Any) -> None:
    """A client that stops sending what nobody reads does not keep the connection."""
    client = connect(respond(b"no", status=403), limits=ListenLimits(linger_timeout=0.02))
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc")

    await client.closed()
    assert client.sent.endswith(b"no")


async def test_reading_stops_while_the_application_does_not_receive(connect: Any) -> None:
    """A slow application slows the client; there is no queue without bound in between."""
    gate = Gate(respond(b"ok"))
    received: list[bytes] = []

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await read_body(receive))
        await respond(b"ok")(scope, receive, send)

    gate.then = reading
    client = connect(gate, limits=ListenLimits(body_buffer=10))
    client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n0123456789")
    assert client.transport.reading
    client.feed(b"x")
    assert not client.transport.reading

    gate.open.set()
    await client.settle()
    assert client.transport.reading
    client.feed(b"y" * 19)
    await client.settle()
    assert received == [b"0123456789x" + b"y" * 19]


async def test_sending_waits_for_a_client_that_does_not_read(connect: Any) -> None:
    """`send` returns only once the transport is below its high-water mark."""
    progress: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for index in range(3):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": index < 2})
            progress.append(index)

    client = connect(app, high_water=100)
    client.feed(GET)
    await client.settle()
    assert progress == []
    client.transport.take()
    await client.settle()
    assert progress == [0]
    client.transport.take()
    await client.settle()
    assert progress == [0, 1, 2]


async def test_a_client_that_takes_nothing_counts_as_gone(connect: Any) -> None:
    """Whoever asks for much and reads none of it does not hold an upstream for ever."""
    gate = Gate(respond(b"x" * 200, b"y"))
    gate.open.set()
    client = connect(gate, high_water=100, limits=ListenLimits(write_timeout=0.02))
    client.feed(GET)

    await client.closed()
    await client.settle()
    assert (gate.cancelled, gate.gone) == (1, [True])


async def test_a_client_that_takes_a_little_is_waited_for(connect: Any) -> None:
    """Slow is not gone: each time that something was taken, the client has as long again."""
    gate = Gate(respond(b"x" * 200, b"y"))
    gate.open.set()
    client = connect(gate, high_water=100, limits=ListenLimits(write_timeout=0.2, min_rate=50))
    client.feed(GET)
    await client.settle()
    client.transport.unread -= 10
    other = connect(gate, high_water=100, limits=ListenLimits(write_timeout=0.25))
    other.feed(GET)
    await other.closed()
    assert not client.transport.closing

    client.transport.take()
    await client.until(lambda: client.sent.endswith(b"0\r\n\r\n"))


@pytest.mark.parametrize(
    "rest", [b"zz\r\n", b"3\r\nabcd\r\n", b"0\r\nX: a\nb\r\n\r\n", b"0\r\nContent-Length: 3\r\n\r\n"]
)
async def test_a_body_that_breaks_is_never_completed(connect: Any, rest: bytes) -> None:
    """The application is cancelled, so that nothing it forwards looks complete; the client is told 400."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(CHUNKED + b"3\r\nabc\r\n")
    await gate.entered.wait()
    client.feed(rest)
    await client.settle()

    assert (gate.cancelled, gate.gone) == (1, [True])
    assert client.sent.startswith(b"HTTP/1.1 400 ")
    assert client.counters == {"head_refused_malformed_body": 1}


async def test_a_body_that_breaks_before_the_application_ran(connect: Any) -> None:
    """In one segment with its head, a broken body keeps the application from starting at all."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(CHUNKED + b"zz\r\n")
    await client.settle()

    assert gate.scopes == []
    assert client.sent.startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_breaks_after_the_head_cuts_the_response(connect: Any) -> None:
    """Once the response has begun there is no second one."""
    waiting = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await waiting.wait()

    client = connect(app)
    client.feed(CHUNKED)
    await client.settle()
    client.feed(b"zz\r\n")
    await client.settle()

    assert client.sent.count(b"HTTP/1.1") == 1
    assert client.transport.aborted


# Order ----------------------------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_served_one_after_the_other(connect: Any) -> None:
    """Requests that come at once are answered in order, never two at a time."""
    running = 0
    paths: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        body = await read_body(receive)
        paths.append(scope["raw_path"] + body)
        running -= 1
        await respond(scope["raw_path"] + body)(scope, receive, send)

    client = connect(app)
    client.feed(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy"
        b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"
        b"GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n"
    )
    await client.until(lambda: client.transport.closing)

    assert paths == [b"/1", b"/2xy", b"/3z", b"/4"]
    assert [client.sent.index(path) for path in paths] == sorted(client.sent.index(path) for path in paths)
    assert client.counters == {}


async def test_reading_stops_while_requests_wait(connect: Any) -> None:
    """Whoever sends requests faster than they are answered is slowed down."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    assert client.transport.reading
    client.feed(GET)
    assert not client.transport.reading

    gate.open.set()
    await client.settle()
    assert client.transport.reading
    assert client.sent.count(b"200 OK") == 2


async def test_a_refusal_waits_for_the_answers_before_it(connect: Any) -> None:
    """A malformed request behind a good one does not take the good one's answer."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET + b"GET /../ HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    await client.settle()
    assert client.sent == b""

    gate.open.set()
    await client.settle()
    assert client.sent.index(b"200 OK") < client.sent.index(b"400 Bad Request")
    assert client.sent.count(b"HTTP/1.1") == 2
    assert client.transport.eof_written


async def test_a_body_that_breaks_behind_another_request(connect: Any) -> None:
    """A waiting request whose body turns out broken is refused when its turn comes, and never runs."""
    gate = Gate(respond(b"ok"))
    client = connect(gate, limits=ListenLimits(pipeline_depth=2))
    client.feed(GET + CHUNKED + b"1\r\na\r\n")
    await gate.entered.wait()
    client.feed(b"zz\r\n")
    gate.open.set()
    await client.settle()

    assert len(gate.scopes) == 1
    assert client.sent.index(b"200 OK") < client.sent.index(b"400 Bad Request")


async def test_an_unwanted_body_that_breaks_ends_the_connection(connect: Any) -> None:
    """What nobody reads must still end where it says, or nothing behind it can be found."""
    client = connect(respond(b"no", status=403))
    client.feed(CHUNKED + b"1\r\na\r\n")
    await client.settle()
    client.feed(b"zz\r\n" + GET)
    await client.settle()

    assert client.sent.count(b"HTTP/1.1") == 1
    assert client.transport.eof_written


async def test_an_upgrade_is_answered_and_ends_the_connection(connect: Any) -> None:
    """Nobody here speaks the other protocol: the answer is an ordinary one, and what follows is not parsed as HTTP."""
    gate = Gate(respond(b"no", status=501))
    client = connect(gate)
    client.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
    client.feed(GET)
    await gate.entered.wait()
    gate.open.set()
    await client.settle()

    assert len(gate.scopes) == 1
    assert (b"upgrade", b"websocket") in gate.scopes[0]["headers"]
    assert client.sent == b"HTTP/1.1 501 Not Implemented\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"


# Leaving --------------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_cancels_its_request(connect: Any) -> None:
    """The task that runs the application is cancelled, and can tell why."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    await gate.entered.wait()
    client.vanish()
    await client.settle()

    assert (gate.cancelled, gate.gone) == (1, [True])
    assert client.log.events() == []


async def test_a_client_that_leaves_before_its_request_started(connect: Any) -> None:
    """A request whose client has gone before its first step never runs."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    client.protocol.connection_lost(None)
    client.transport.lost.set()
    client.transport.closing = True
    await client.settle()

    assert gate.scopes == []


async def test_a_client_that_leaves_with_its_answer_cancels_nothing(connect: Any) -> None:
    """What an application does after its last byte, such as its log line, is not cut short."""
    finished = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(b"ok")(scope, receive, send)
        for _ in range(5):
            await asyncio.sleep(0)
        finished.set()

    client = connect(app)
    client.feed(GET)
    await client.until(lambda: client.sent.endswith(b"ok"))
    client.vanish()
    await client.closed()
    async with asyncio.timeout(5):
        await finished.wait()


async def test_an_application_that_swallows_its_cancellation_can_do_no_harm(connect: Any) -> None:
    """After the client has gone, `receive` says so and `send` raises."""
    results: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            results.append(await receive())
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            except ConnectionResetError:
                results.append("reset")

    client = connect(app)
    client.feed(GET)
    await client.settle()
    client.vanish()
    await client.settle()

    assert results == [{"type": "http.disconnect"}, "reset"]


async def test_a_half_closed_client_gets_its_answer(connect: Any) -> None:
    """Whoever sends whole requests and shuts down its sending side is answered, then closed."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET + GET)
    client.eof()
    await client.settle()
    assert not client.transport.closing

    gate.open.set()
    await client.settle()
    assert client.sent.count(b"200 OK") == 2
    assert client.transport.closing
    assert gate.cancelled == 0


async def test_a_half_closed_client_is_waited_for_within_a_bound(connect: Any) -> None:
    """A client that left looks half-closed, so its request does not go on for ever."""
    gate = Gate(respond(b"ok"))
    client = connect(gate, limits=ListenLimits(half_close_timeout=0.02))
    client.feed(GET)
    client.eof()

    await client.closed()
    await client.settle()
    assert (gate.cancelled, gate.gone) == (1, [True])


@pytest.mark.parametrize("part", [b"", b"GET / HT", CHUNKED + b"3\r\nab", b"\r\n"])
async def test_a_client_that_ends_in_the_middle_is_closed(connect: Any, part: bytes) -> None:
    """Half a request is no request: its application is cancelled, and nothing is answered."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(part)
    await client.settle()
    client.eof()

    await client.closed()
    await client.settle()
    assert client.sent == b""
    assert gate.cancelled == len(gate.scopes)
    assert all(gate.gone)


async def test_a_half_request_behind_a_whole_one_is_dropped(connect: Any) -> None:
    """A client that ends inside its second request still gets the answer to the first."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET + CHUNKED + b"3\r\nab")
    client.eof()
    gate.open.set()
    await client.settle()

    assert client.sent.count(b"200 OK") == 1
    assert len(gate.scopes) == 1
    assert client.transport.closing


# Bounds ---------------------------------------------------------------------------------------------------------------


def lines(count: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % index for index in range(count - 1)) + b"\r\n"


@pytest.mark.parametrize(("count", "status"), [(100, b"200"), (101, b"431")])
async def test_lines_of_a_head_are_bounded(connect: Any, count: int, status: bytes) -> None:
    """A hundred field lines pass, one more does not."""
    assert (await exchange(connect, respond(b"ok"), lines(count))).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("piece", [1 << 30, 1000])
@pytest.mark.parametrize(("size", "status"), [(65536 - 30, b"200"), (65536, b"431")])
async def test_bytes_of_a_head_are_bounded(connect: Any, size: int, status: bytes, piece: int) -> None:
    """64 KiB pass, more does not, whole or in pieces."""
    client = connect(respond(b"ok"))
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * size + b"\r\n\r\n"
    for at in range(0, len(request), piece):
        client.feed(request[at : at + piece])
    await client.settle()

    assert client.sent.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("endless", "status"),
    # A target has a status of its own (RFC 9112 §3).
    [(b"GET /" + b"a" * 5000, b"414"), (b"GET / HTTP/1.1\r\nX: " + b"a" * 5000, b"431"), (b"\r\n" * 2500, b"431")],
)
async def test_a_head_without_an_end_is_cut_off(connect: Any, endless: bytes, status: bytes) -> None:
    """What never becomes a head is not kept: neither a long target, nor a long value, nor empty lines."""
    client = connect(respond(b"ok"))
    client.feed(endless)
    for _ in range(20):
        client.feed(b"\r\n" * 2500 if endless == b"\r\n" * 2500 else b"a" * 5000)
    await client.settle()

    assert client.sent.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    "trailers",
    [
        b"".join(b"X-%d: a\r\n" % index for index in range(101)) + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (index, b"a" * 7000) for index in range(10)) + b"\r\n",
    ],
)
async def test_trailers_have_the_same_bounds_as_a_head(connect: Any, trailers: bytes) -> None:
    """Nobody gets around the limits of a head by sending it behind the body."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(CHUNKED + b"1\r\na\r\n")
    await gate.entered.wait()
    client.feed(b"0\r\n" + trailers)
    await client.settle()

    assert (gate.cancelled, gate.gone) == (1, [True])
    assert client.sent.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"1;"])
async def test_framing_without_a_body_is_bounded(connect: Any, start: bytes) -> None:
    """A trailer or a chunk extension that never ends is not collected."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(CHUNKED + b"1\r\na\r\n")
    await gate.entered.wait()
    client.feed(start)
    for _ in range(20):
        client.feed(b"a" * 5000)
    await client.settle()

    assert client.sent.startswith(b"HTTP/1.1 431 ")
    assert gate.cancelled == 1


async def test_large_chunks_are_not_mistaken_for_framing(connect: Any) -> None:
    """However large the pieces that a body comes in, it is a body."""
    bodies: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append(len(await read_body(receive)))
        await respond(b"ok")(scope, receive, send)

    client = connect(app)
    client.feed(CHUNKED)
    for _ in range(5):
        client.feed(b"30d40\r\n" + b"x" * 200000 + b"\r\n")
        await client.settle()
    client.feed(b"0\r\n\r\n")
    await client.settle()

    assert bodies == [1000000]


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_a_head_that_does_not_come_in_time_is_answered_408(connect: Any, part: bytes) -> None:
    """Whoever trickles a head does not keep its connection."""
    client = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.02))
    client.feed(part)
    await client.until(lambda: client.transport.eof_written)

    assert client.sent.startswith(b"HTTP/1.1 408 ")
    assert client.counters == {"head_refused_head_timeout": 1}


async def test_a_silent_client_is_closed_without_a_word(connect: Any) -> None:
    """There is no request to answer."""
    client = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.02))
    await client.closed()
    assert client.sent == b""


async def test_an_idle_connection_is_closed_without_a_word(connect: Any) -> None:
    """Between requests a connection waits for so long and no longer."""
    client = connect(respond(b"ok"), limits=ListenLimits(idle_timeout=0.03))
    client.feed(GET)
    await client.closed()
    assert client.sent.count(b"HTTP/1.1") == 1


async def test_each_request_starts_the_idle_time_anew(connect: Any) -> None:
    """A connection in use is not idle, however long ago it was opened."""
    client = connect(respond(b"ok"), limits=ListenLimits(idle_timeout=0.2))
    client.feed(GET)
    await client.settle()
    other = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.1))
    await other.closed()
    client.feed(GET)
    await client.settle()
    other = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.15))
    await other.closed()

    assert not client.transport.closing
    await client.closed()
    assert client.sent.count(b"200 OK") == 2


async def test_the_second_head_has_its_own_time(connect: Any) -> None:
    """A head that starts on a kept connection is bounded by the head's time, not by the idle one."""
    client = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.02, idle_timeout=60))
    client.feed(GET)
    await client.settle()
    client.feed(b"GET / HTTP/1.1\r\nHost")
    await client.until(lambda: b" 408 " in client.sent)


async def test_a_busy_connection_has_no_timer(connect: Any) -> None:
    """A request that takes long upstream is not the listener's to end."""
    gate = Gate(respond(b"ok"))
    client = connect(gate, limits=ListenLimits(head_timeout=0.01, idle_timeout=0.01))
    client.feed(GET)
    await gate.entered.wait()
    other = connect(respond(b"ok"), limits=ListenLimits(head_timeout=0.03))
    await other.closed()

    assert not client.transport.closing
    gate.open.set()
    await client.until(lambda: client.sent.endswith(b"ok"))


async def test_a_refused_client_that_goes_on_sending_is_cut_off(connect: Any) -> None:
    """What follows a refusal is swallowed within bounds of bytes and of time, so that the refusal arrives."""
    client = connect(respond(b"ok"), limits=ListenLimits(drain_bytes=1000, linger_timeout=0.02))
    client.feed(b"GET /../ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.transport.eof_written
    assert not client.transport.closing
    client.feed(b"x" * 999)
    assert not client.transport.closing
    client.feed(b"x" * 999)
    assert client.transport.aborted

    patient = connect(respond(b"ok"), limits=ListenLimits(linger_timeout=0.02))
    patient.feed(b"GET /../ HTTP/1.1\r\nHost: a\r\n\r\n")
    await patient.closed()


# Stopping -------------------------------------------------------------------------------------------------------------


async def test_stopping_closes_idle_connections_at_once(connect: Any) -> None:
    """Nobody waits for connections on which nothing happens."""
    client = connect(respond(b"ok"))
    client.feed(GET)
    await client.settle()
    await client.connections.drain(5)

    assert client.transport.closing
    assert not client.transport.aborted


async def test_stopping_lets_busy_connections_finish(connect: Any) -> None:
    """A request under way is answered, with the note that the connection ends."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    await gate.entered.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(client.connections.drain(5))
        await client.settle()
        assert not client.transport.closing
        gate.open.set()

    assert client.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert gate.cancelled == 0


async def test_stopping_takes_no_longer_than_asked(connect: Any) -> None:
    """What does not finish within the bound is cut off, and its client did not leave."""
    gate = Gate(respond(b"ok"))
    client = connect(gate)
    client.feed(GET)
    await gate.entered.wait()
    await client.connections.drain(0.02)

    assert client.transport.aborted
    assert gate.cancelled == 1
    assert client.log.events() == ["listener.drain_overran"]


async def test_a_connection_that_comes_while_stopping_is_closed(connect: Any) -> None:
    """A handshake that ends during the stop serves nothing any more."""
    client = connect(respond(b"ok"))
    await client.connections.drain(1)
    late = type(client.protocol)(client.connections)
    transport = type(client.transport)()
    transport.protocol = late
    late.connection_made(transport)

    assert transport.closing
    await transport.lost.wait()
