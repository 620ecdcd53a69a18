"""What HTTP says beside plain requests and answers, between real ends: interim answers, trailers, empty bodies."""

from __future__ import annotations

import asyncio

import pytest

from .stage import WAIT, Stage, staged

GET = b"GET /x HTTP/1.1\r\nHost: app.example\r\n\r\n"
LISTENERS = pytest.mark.parametrize("listener", ["host", "tunnel"])


async def ask(stage: Stage, sent: bytes, answer: bytes = b"", *, early: bool = False) -> bytes:
    """What the client gets, to its end, when the upstream answers so."""
    stage.upstream.answer, stage.upstream.early = answer, early
    async with asyncio.timeout(WAIT):
        return await stage.ask(sent)


@LISTENERS
async def test_interim_answers_pass_at_once_and_in_order(listener: str) -> None:
    """103 goes on without what concerned the upstream's connection; a client of 1.0 gets none."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with staged(listener) as stage:
        received = await ask(stage, GET, hints + final)
        first, second, third = received.split(b"\r\n\r\n")[:3]
        assert (first, second) == (b"HTTP/1.1 103 Early Hints\r\nlink: </a>", b"HTTP/1.1 102 Processing")
        assert third.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(b"\r\n\r\nok")

        received = await ask(stage, GET.replace(b"1.1", b"1.0"), hints + final)
        assert received.startswith(b"HTTP/1.1 200 ")


@LISTENERS
async def test_the_hundred_is_said_once_and_by_us(listener: str) -> None:
    """An upstream's own comes late: the body is on its way, and the client has been told."""
    sent = b"POST /x HTTP/1.1\r\nHost: app.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with staged(listener) as stage:
        received = await ask(stage, sent, answer)

        assert received.count(b"HTTP/1.1 100 ") <= 1
        assert received.count(b"HTTP/1.1 200 ") == 1
        (one,) = stage.upstream.seen
        assert (one.body, one.get(b"expect")) == (b"hello", [])


@LISTENERS
async def test_the_hundred_waits_for_the_guards(listener: str) -> None:
    """A client whose request is refused is not invited to send a body first."""
    sent = b"POST /a/%2e%2e/b HTTP/1.1\r\nHost: app.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    async with staged(listener) as stage:
        received = await ask(stage, sent)

        assert received.startswith(b"HTTP/1.1 400 ")
        assert b"100 Continue" not in received
        assert not stage.upstream.bytes


@LISTENERS
async def test_trailers_pass_both_ways(listener: str) -> None:
    """Those of a request in chunks, and those that an answer in chunks has announced."""
    sent = (
        b"POST /x HTTP/1.1\r\nHost: app.example\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    answer = (
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Sum: 2\r\nSet-Cookie: nb_session=x\r\nContent_Length: 9\r\n\r\n"
    )
    async with staged(listener) as stage:
        received = await ask(stage, sent, answer)

        (one,) = stage.upstream.seen
        assert one.get(b"trailer x-sum") == [b"1"]
        assert one.get(b"te") == [b"trailers"]
        assert received.endswith(b"2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n")


@LISTENERS
@pytest.mark.parametrize(
    ("method", "answer", "told"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nX-A: 1\r\n\r\n", b"content-length: 500"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n", b"x-a: 1"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", b"x-a: 1"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n', b"content-length: 500"),
        (b"OPTIONS", b"HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n", b"allow: GET"),
    ],
)
async def test_answers_that_end_with_their_heads(listener: str, method: bytes, answer: bytes, told: bytes) -> None:
    """Nothing follows, whatever length they state, and the next request on the connection is heard."""
    sent = method + GET[3:]
    async with staged(listener) as stage:
        received = await ask(stage, sent + sent, answer)

        first, second, rest = received.split(b"\r\n\r\n")
        assert rest == b""
        for head in (first, second):
            assert told in head.lower().replace(b"allow: get", b"allow: GET")
            assert b"transfer-encoding" not in head.lower()
        assert [one.line for one in stage.upstream.seen] == [f"{method.decode()} /x"] * 2


@LISTENERS
async def test_early_answer_is_heard(listener: str) -> None:
    """An upstream that refuses a body while it comes is repeated; the rest of the body is nobody's request."""
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    head = b"POST /x HTTP/1.1\r\nHost: app.example\r\nContent-Length: 300000\r\n\r\n"
    async with staged(listener) as stage:
        received = await ask(stage, head + b"x" * 300_000, answer, early=True)

        assert received.startswith(b"HTTP/1.1 413 ")
        assert received.endswith(b"\r\n\r\nno")


@LISTENERS
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\nX: y\nContent-Length: 0\n\n"],
)
async def test_old_answer_is_written_in_the_grammar_of_today(listener: str, answer: bytes) -> None:
    """A blank before a colon and ends of lines without CR are read, and no client sees them."""
    async with staged(listener) as stage:
        assert await ask(stage, GET, answer) == b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n\r\n"


@LISTENERS
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
)
async def test_upstream_that_answers_in_two_ways_is_not_repeated(listener: str, answer: bytes) -> None:
    """What the client could read differently than we do is no answer: 502, and nothing of it."""
    async with staged(listener) as stage:
        received = await ask(stage, GET, answer)

        assert received.startswith(b"HTTP/1.1 502 ")
        assert b"hello" not in received
