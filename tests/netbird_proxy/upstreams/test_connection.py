"""The upstream connection, byte by byte on a transport in memory."""
# Over 500 lines: one connection's protocol, tried with one scripted upstream.

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from netbird_proxy.api.errors import HeadTimeout, ProtocolViolation, TlsFailed, UpstreamClosed
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.testing.transports import MemoryTransport
from netbird_proxy.upstreams.connection import HIGH_WATER, Answer, Http1Connection
from netbird_proxy.upstreams.protocols import BodyLengthMismatch, HeadLimits

T = TypeVar("T")

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
PUT5 = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Owner:
    """Remembers what connections told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def gone(self, connection: Http1Connection) -> None:
        self.told.append("gone")

    def given_up(self, connection: Http1Connection) -> None:
        self.told.append("given up")


def opened(*, head_timeout: float = 300.0, owner: Owner | None = None) -> tuple[Http1Connection, MemoryTransport]:
    connection = Http1Connection(name="http://up:80", head_timeout=head_timeout, owner=owner)
    return connection, MemoryTransport.open(connection)


async def everything(answer: Answer) -> bytes:
    body = b""
    while piece := await answer.read():
        body += piece
    return body


def started(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begun beside the test, which awaits it before it ends."""
    return asyncio.create_task(work)  # noqa: TID251 - see above


async def settle() -> None:
    """Let what the loop has ready run: two rounds, as closing a transport takes one."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_an_exchange_is_one_write_and_the_connection_lives_on() -> None:
    """The plain case, twice on one connection."""
    connection, transport = opened()
    for count in (1, 2):
        connection.send_head(GET, method=b"GET", has_body=False)
        assert connection.nothing_received
        transport.feed(OK)
        answer = await connection.answer()
        assert not connection.nothing_received
        assert (answer.status, await everything(answer)) == (200, b"hi")
        assert connection.finish()
        assert connection.usable
        assert connection.exchanges == count
    assert transport.writes == [GET, GET]


async def test_body_pieces_pass_as_they_came() -> None:
    """Pieces of some size are neither joined nor cut; the answer waits for those that have not come."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    answer = await connection.answer()
    reading = started(answer.read())
    await settle()
    assert not reading.done()
    transport.feed(b"a" * 4000)
    transport.feed(b"b" * 6000)
    assert await reading == b"a" * 4000
    assert await answer.read() == b"b" * 6000
    assert await answer.read() == b""


async def test_tiny_pieces_are_joined() -> None:
    """An upstream that writes a chunk a byte does not cost a write a byte."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50 + b"0\r\n\r\n")
    answer = await connection.answer()
    assert [await answer.read(), await answer.read()] == [b"a" * 50, b""]


async def test_informational_heads_are_passed_on_in_order() -> None:
    """100 and 103 reach the callback, before the final head is returned."""
    connection, transport = opened()
    seen: list[tuple[int, list[RawHeader]]] = []

    async def informational(status: int, headers: list[RawHeader]) -> None:
        seen.append((status, headers))

    connection.send_head(POST, method=b"POST", has_body=True)
    waiting = started(connection.answer(informational))
    transport.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    await settle()
    assert seen == [(100, [])]
    transport.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    assert (await waiting).status == 200
    assert seen[1:] == [(103, [(b"link", b"</a>")])]


async def test_an_unasked_switch_is_a_violation() -> None:
    """A 101 that nobody asked for would make the next request part of a stream."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
    with pytest.raises(ProtocolViolation):
        await connection.answer()
    assert transport.aborted


async def test_after_a_switch_the_stream_is_raw_both_ways() -> None:
    """Bytes pass as they are, either side may half-close, and the connection is not kept."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False, upgrade=True)
    transport.feed(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nfirst")
    answer = await connection.answer()
    assert answer.status == 101
    assert await answer.read() == b"first"
    await connection.send_body(b"0\r\n\r\n", chunked=False)
    transport.feed(b"second")
    assert await answer.read() == b"second"
    transport.feed_eof()
    assert await answer.read() == b""
    await connection.send_body(b"still", chunked=False)
    connection.finish_body([], chunked=False)
    assert transport.eof_sent
    assert bytes(transport.sent) == GET + b"0\r\n\r\nstill"
    assert not connection.finish()
    assert transport.is_closing()
    assert not transport.aborted


async def test_request_bodies_are_framed() -> None:
    """Chunks with sizes, no empty chunk in between, trailers at the end."""
    connection, transport = opened()
    connection.send_head(POST, method=b"POST", has_body=True)
    await connection.send_body(b"hello", chunked=True)
    await connection.send_body(b"", chunked=True)
    await connection.send_body(b"x" * 17, chunked=True)
    connection.finish_body([(b"x-sum", b"1"), (b"x-b", b"2")], chunked=True)
    assert bytes(transport.sent) == (
        POST + b"5\r\nhello\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\nx-sum: 1\r\nx-b: 2\r\n\r\n"
    )


async def test_request_bodies_of_known_length_go_as_they_are() -> None:
    """Without chunks nothing is added, and the connection can be used again."""
    connection, transport = opened()
    connection.send_head(PUT5, method=b"PUT", has_body=True)
    await connection.send_body(b"hel", chunked=False)
    await connection.send_body(b"lo", chunked=False)
    connection.finish_body([], chunked=False)
    transport.feed(OK)
    await everything(await connection.answer())
    assert bytes(transport.sent) == PUT5 + b"hello"
    assert connection.finish()


@pytest.mark.parametrize("pieces", [(b"hel",), (), (b"hello", b"!"), (b"hello!",)])
async def test_a_body_of_another_length_never_goes_through(pieces: tuple[bytes, ...]) -> None:
    """A body that is shorter or longer than its head says would smuggle a request: the connection is reset."""
    connection, transport = opened()
    connection.send_head(PUT5, method=b"PUT", has_body=True)

    async def send() -> None:
        for piece in pieces:
            await connection.send_body(piece, chunked=False)
        connection.finish_body([], chunked=False)

    with pytest.raises(BodyLengthMismatch):
        await send()
    assert transport.aborted
    assert len(transport.sent) <= len(PUT5) + 5
    assert not connection.finish()


async def test_a_declared_length_is_never_sent_in_chunks() -> None:
    """Framing that contradicts the head is refused before a byte of it is written."""
    connection, transport = opened()
    connection.send_head(PUT5, method=b"PUT", has_body=True)
    with pytest.raises(BodyLengthMismatch):
        await connection.send_body(b"hello", chunked=True)
    assert bytes(transport.sent) == PUT5


async def test_an_abort_leaves_the_body_unfinished() -> None:
    """Whatever the caller does after an abort, the upstream never sees the last chunk."""
    owner = Owner()
    connection, transport = opened(owner=owner)
    connection.send_head(POST, method=b"POST", has_body=True)
    await connection.send_body(b"hello", chunked=True)
    connection.abort()
    connection.abort()
    connection.finish_body([], chunked=True)
    with pytest.raises(UpstreamClosed):
        await connection.send_body(b"more", chunked=True)
    await settle()
    assert transport.aborted
    assert bytes(transport.sent) == POST + b"5\r\nhello\r\n"
    assert "given up" in owner.told


async def test_an_answer_is_over_when_it_was_aborted() -> None:
    """Who waits for the answer while another task aborts is woken with an error."""
    connection, _ = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    waiting = started(connection.answer())
    await settle()
    connection.abort()
    with pytest.raises(UpstreamClosed):
        await waiting


async def test_an_early_answer_is_given_while_the_body_is_still_sent() -> None:
    """The answer does not wait for the body; a connection whose body is unfinished is not kept."""
    connection, transport = opened()
    connection.send_head(POST, method=b"POST", has_body=True)
    await connection.send_body(b"hello", chunked=True)
    transport.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert (await connection.answer()).status == 413
    assert not connection.finish()
    assert transport.aborted


async def test_an_early_answer_outlives_its_connection() -> None:
    """An upstream that answers, closes and reads no more is still heard."""
    connection, transport = opened()
    connection.send_head(POST, method=b"POST", has_body=True)
    transport.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    transport.break_off()
    with pytest.raises(UpstreamClosed):
        await connection.send_body(b"hello", chunked=True)
    answer = await connection.answer()
    assert (answer.status, await everything(answer)) == (413, b"no")


@pytest.mark.parametrize("how", ["eof", "reset", "tls"])
@pytest.mark.parametrize(
    ("received", "nothing"),
    [(b"", True), (b"HTTP/1.1 200 OK\r\n", False), (b"HTTP/1.1 100 Continue\r\n\r\n", False)],
)
async def test_closing_before_the_head(how: str, received: bytes, nothing: bool) -> None:
    """`nothing_received` tells a possible race from a broken answer, however the upstream leaves."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    connection.exchanges = 2  # not its first, so that TLS errors are no handshake's
    if received:
        transport.feed(received)
    waiting = started(connection.answer())
    await settle()
    if how == "eof":
        transport.feed_eof()
    else:
        transport.break_off(ssl.SSLError("bad record") if how == "tls" else None)
    with pytest.raises(UpstreamClosed):
        await waiting
    assert connection.nothing_received is nothing
    assert not connection.finish()


async def test_a_tls_refusal_after_the_handshake_is_named() -> None:
    """Over TLS 1.3 a missing client certificate shows only in the first read."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.break_off(ssl.SSLError("alert certificate required"))
    with pytest.raises(TlsFailed):
        await connection.answer()


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    "partial",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_truncated_body_ends_in_an_error(partial: bytes, broken: bool) -> None:
    """What came is read, then it fails: a truncated body never looks complete."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(partial)
    answer = await connection.answer()
    transport.break_off() if broken else transport.feed_eof()
    assert await answer.read() == b"hello"
    with pytest.raises(UpstreamClosed):
        await answer.read()
    assert not connection.finish()


async def test_a_body_until_the_close_ends_with_it() -> None:
    """An orderly close ends such a body; the connection is gone."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\n\r\nhello")
    answer = await connection.answer()
    assert await answer.read() == b"hello"
    transport.feed_eof()
    assert await answer.read() == b""
    assert not connection.finish()


async def test_a_body_until_the_close_broken_off_is_truncated() -> None:
    """A reset is no end."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\n\r\nhello")
    answer = await connection.answer()
    transport.break_off()
    assert await answer.read() == b"hello"
    with pytest.raises(UpstreamClosed):
        await answer.read()


async def test_bytes_without_a_request_end_the_connection() -> None:
    """An unasked answer on an idle connection must not become the next request's."""
    owner = Owner()
    connection, transport = opened(owner=owner)
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(OK)
    await everything(await connection.answer())
    assert connection.finish()
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert transport.aborted
    assert owner.told == ["gone"]
    connection.send_head(GET, method=b"GET", has_body=False)
    with pytest.raises(ProtocolViolation):
        await connection.answer()
    assert connection.nothing_received


@pytest.mark.parametrize("glued", [True, False])
async def test_bytes_after_the_answer_spoil_the_connection_not_the_answer(glued: bool) -> None:
    """The answer stands, the connection is reset."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    if glued:
        transport.feed(OK + b"more")
    else:
        transport.feed(OK)
        transport.feed(b"more")
    assert await everything(await connection.answer()) == b"hi"
    assert not connection.finish()
    assert transport.aborted


async def test_a_violation_within_the_body_is_told_to_the_reader() -> None:
    """A bad chunk ends the body with the violation, not with a close."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    answer = await connection.answer()
    transport.feed(b"zz\r\n")
    assert await answer.read() == b"hi"
    with pytest.raises(ProtocolViolation):
        await answer.read()
    assert transport.aborted


async def test_a_slow_reader_stops_the_upstream() -> None:
    """Above the high-water mark the transport is paused, below the low one it goes on, and nothing is lost."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    size = 16384
    count = HIGH_WATER // size + 10
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * size))
    for index in range(count):
        transport.feed(bytes([index]) * size)
    answer = await connection.answer()
    assert transport.reading_paused
    assert answer.buffered <= HIGH_WATER + size
    got = [await answer.read() for _ in range(count)]
    assert got == [bytes([index]) * size for index in range(count)]
    assert await answer.read() == b""
    assert not transport.reading_paused


async def test_a_slow_upstream_stops_the_sender() -> None:
    """`send_body` waits while the transport is full, and goes on when it is not."""
    connection, transport = opened()
    transport.stall()
    connection.send_head(POST, method=b"POST", has_body=True)
    sending = started(connection.send_body(b"x" * 200_000, chunked=True))
    await settle()
    assert not sending.done()
    transport.unstall()
    await sending
    assert len(transport.sent) > 200_000


async def test_a_sender_that_waits_is_told_when_the_upstream_leaves() -> None:
    """Nobody waits for a drain that cannot come."""
    connection, transport = opened()
    transport.stall()
    connection.send_head(POST, method=b"POST", has_body=True)
    sending = started(connection.send_body(b"x" * 200_000, chunked=True))
    await settle()
    transport.break_off()
    with pytest.raises(UpstreamClosed):
        await sending


async def test_a_cancelled_sender_leaves_the_connection_abortable() -> None:
    """Cancellation passes through the waiting send; the body stays unfinished."""
    connection, transport = opened()
    transport.stall()
    connection.send_head(POST, method=b"POST", has_body=True)
    sending = started(connection.send_body(b"x" * 200_000, chunked=True))
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not connection.finish()
    assert transport.aborted


async def test_a_cancelled_reader_loses_nothing() -> None:
    """Cancelling a read that waits does not swallow what comes next."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    waiting = started(connection.answer())
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    transport.feed(OK)
    assert await everything(await connection.answer()) == b"hi"


async def test_the_head_has_a_deadline() -> None:
    """An upstream that says nothing is given up."""
    connection, transport = opened(head_timeout=0.02)
    connection.send_head(GET, method=b"GET", has_body=False)
    async with asyncio.timeout(10):
        with pytest.raises(HeadTimeout):
            await connection.answer()
    assert transport.aborted


async def test_a_stalled_body_has_the_same_deadline() -> None:
    """An upstream that neither reads nor answers is given up while the body waits."""
    connection, transport = opened(head_timeout=0.02)
    transport.stall()
    connection.send_head(POST, method=b"POST", has_body=True)
    async with asyncio.timeout(10):
        with pytest.raises(HeadTimeout):
            await connection.send_body(b"x" * 200_000, chunked=True)
    assert transport.aborted


async def test_the_body_of_an_answer_has_no_deadline() -> None:
    """A stream of events may be silent for as long as it likes: the head's timer is not the body's."""
    connection, transport = opened(head_timeout=0.01)
    connection.send_head(GET, method=b"GET", has_body=False)
    waiting = started(connection.answer())
    await settle()
    transport.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = await waiting
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await answer.read()
    transport.feed(b"1\r\na\r\n")
    assert await answer.read() == b"a"


async def test_a_timer_of_an_earlier_exchange_does_not_end_a_later_one() -> None:
    """The timer is armed once and asks again: what it finds is the present exchange's deadline."""
    connection, transport = opened(head_timeout=0.1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while loop.time() - start < 0.25:  # exchanges well within their own deadline, over more than one of the timer's
        connection.send_head(GET, method=b"GET", has_body=False)
        waiting = started(connection.answer())
        passed: asyncio.Future[None] = loop.create_future()
        loop.call_later(0.02, passed.set_result, None)
        await passed
        transport.feed(OK)
        assert await everything(await waiting) == b"hi"
        assert connection.finish()


async def test_closed_when_the_upstream_says_so() -> None:
    """`Connection: close` is obeyed, in order and not by a reset."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    await connection.answer()
    assert not connection.finish()
    await settle()
    assert transport.lost
    assert not transport.aborted


async def test_a_connection_takes_one_request_at_a_time() -> None:
    """A second head before the end of the first exchange is our own mistake and is not written."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    with pytest.raises(RuntimeError):
        connection.send_head(GET, method=b"GET", has_body=False)
    assert transport.writes == [GET]


async def test_an_old_answer_reads_nothing_of_the_next() -> None:
    """A reader that kept an unfinished answer gets an error, not another exchange's bytes."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    old = await connection.answer()
    assert not connection.finish()
    with pytest.raises(UpstreamClosed):
        await old.read()


async def test_limits_reach_the_parser() -> None:
    """The head limits of a connection are those of its answers."""
    connection = Http1Connection(limits=HeadLimits(bytes=100, lines=3))
    transport = MemoryTransport.open(connection)
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200)
    with pytest.raises(ProtocolViolation):
        await connection.answer()


async def test_given_up_before_it_was_open() -> None:
    """A connection that was aborted while it was dialed closes the transport it gets."""
    connection = Http1Connection()
    connection.abort()
    assert MemoryTransport.open(connection).aborted


async def test_repr_tells_the_state() -> None:
    """What a failing test or a log shows."""
    connection, transport = opened()
    assert repr(connection) == "<Http1Connection http://up:80 idle, 0 exchanges>"
    connection.send_head(GET, method=b"GET", has_body=False)
    assert "busy, 1 exchanges" in repr(connection)
    transport.feed(OK)
    assert "complete" in repr(connection)
    connection.abort()
    assert "failed" in repr(connection)


async def test_a_complete_answer_that_nobody_read_does_not_leave_the_next_one_unread() -> None:
    """Given back while reading was paused, the connection reads again."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    size = HIGH_WATER + 1
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert transport.reading_paused
    await connection.answer()
    assert connection.finish()
    assert not transport.reading_paused
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(OK)
    assert await everything(await connection.answer()) == b"hi"


async def test_a_transport_that_is_closing_is_not_kept() -> None:
    """Whoever closes the stream below ends the connection."""
    connection, transport = opened()
    connection.send_head(GET, method=b"GET", has_body=False)
    transport.feed(OK)
    await everything(await connection.answer())
    transport.close()
    assert not connection.finish()
    assert not connection.usable


async def test_misuse_is_told() -> None:
    """Two readers, two senders, a body where none is: our own mistakes raise, they do not corrupt a stream."""
    connection, transport = opened()
    with pytest.raises(RuntimeError):
        await connection.answer()
    connection.send_head(GET, method=b"GET", has_body=False)
    with pytest.raises(RuntimeError):
        await connection.send_body(b"x", chunked=True)
    reader = started(connection.answer())
    await settle()
    with pytest.raises(RuntimeError):
        await connection.answer()
    transport.feed(OK)
    await reader
    assert connection.finish()
    transport.stall()
    connection.send_head(POST, method=b"POST", has_body=True)
    sender = started(connection.send_body(b"x" * 200_000, chunked=True))
    await settle()
    with pytest.raises(RuntimeError):
        await connection.send_body(b"y", chunked=True)
    connection.abort()
    with pytest.raises(UpstreamClosed):
        await sender


@pytest.mark.parametrize(
    ("method", "has_body", "kept"),
    [
        (b"GET", True, False),
        (b"HEAD", True, False),
        (b"OPTIONS", True, False),
        (b"GET", False, True),
        (b"POST", True, True),
        (b"DELETE", True, True),
    ],
)
async def test_where_a_body_means_nothing_the_connection_is_the_last_one_s(
    method: bytes, has_body: bool, kept: bool
) -> None:
    """An upstream that overlooks it takes it for the next request, and answers that, to whoever comes then."""
    connection, transport = opened()
    length = b"content-length: 2\r\n" if has_body else b""
    connection.send_head(method + b" / HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n", method=method, has_body=has_body)
    if has_body:
        await connection.send_body(b"hi", chunked=False)
        connection.finish_body([], chunked=False)
    transport.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await everything(await connection.answer())
    assert connection.finish() is kept


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nx",
    ],
    ids=["head too large", "no chunk"],
)
async def test_violation_that_comes_with_the_head_is_told_instead_of_it(data: bytes) -> None:
    """However much of the answer one read brings: nobody has been told of the head yet."""
    connection, transport = opened()
    connection.send_head(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", method=b"GET", has_body=False)
    transport.feed(data)
    with pytest.raises(ProtocolViolation):
        await connection.answer()
