"""Real upstreams that close: early answers are heard, and idle connections that are gone carry nothing more."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from typing import Self

import pytest
import trustme

from netbird_http import Answer
from netbird_proxy.api.errors import UpstreamError
from netbird_proxy.api.model import Address, Upstream
from netbird_proxy.testing.makers import upstream
from netbird_proxy.testing.transports import MemoryDialer
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.pool import UpstreamPool

WAIT = 20.0
UPLOADS = 30
PIECE = bytes(65536)
PIECES = 32
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (len(PIECE) * PIECES)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large"


class Refusing:
    """An upstream that answers as soon as it has seen the head, with 413, and closes without reading the body."""

    def __init__(self, context: ssl.SSLContext | None, answer: bytes = TOO_LARGE, times: int = UPLOADS) -> None:
        self._context = context
        self._answer = answer
        self._times = times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._gone = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.join(WAIT)
        self._listener.close()

    def wait_until_gone(self) -> None:
        """Block until a connection was answered and closed: the event loop sees nothing of it meanwhile."""
        self._gone.acquire()

    def _serve(self) -> None:
        for _ in range(self._times):
            accepted, _ = self._listener.accept()
            with self._context.wrap_socket(accepted, server_side=True) if self._context else accepted as connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                connection.sendall(self._answer)
            self._gone.release()


@pytest.fixture(scope="module")
def sides() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a TLS upstream and of a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_every_early_answer_is_heard(scheme: str, sides: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Of 30 uploads that the upstream ends with a 413 and a reset, each one gets the 413."""
    statuses = []
    server, client = sides
    with Refusing(server if scheme == "https" else None) as refusing:
        pool = UpstreamPool(upstream(f"{scheme}://127.0.0.1:{refusing.port}"), HostDialer(), tls=client)
        for _ in range(UPLOADS):
            connection = await pool.acquire()
            connection.send_head(POST, method=b"POST", has_body=True)
            refusing.wait_until_gone()
            try:
                for _ in range(PIECES):
                    await connection.send_body(PIECE, chunked=False)
            except UpstreamError:
                pass  # the body can no longer be sent
            answer = await connection.answer()
            statuses.append((answer.status, await answer.read()))
            pool.release(connection)
    assert statuses == [(413, b"too large")] * UPLOADS


@pytest.mark.parametrize("size", [150_000, 300_000, 450_000])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_slow_reader_gets_all_of_an_answer_whose_upstream_has_left(
    scheme: str, size: int, sides: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """The answer fits into the buffers between us, so the upstream leaves long before its last byte is read."""
    server, client = sides
    body = b"x" * size
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % size + body
    with Refusing(server if scheme == "https" else None, whole, times=1) as leaving:
        pool = UpstreamPool(upstream(f"{scheme}://127.0.0.1:{leaving.port}"), HostDialer(), tls=client)
        connection = await pool.acquire()
        connection.send_head(GET, method=b"GET", has_body=False)
        answer = await connection.answer()
        for _ in range(100):  # the end of the stream arrives while the reader reads nothing
            await asyncio.sleep(0)
        received = b""
        async with asyncio.timeout(WAIT):
            while piece := await answer.read():
                received += piece
        pool.release(connection)
    assert received == body


async def test_an_idle_connection_that_the_upstream_closed_is_not_used() -> None:
    """Also where the event loop has not come to the close: a POST on it would be lost."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = UpstreamPool(Upstream("http", Address("127.0.0.1", listener.getsockname()[1])), HostDialer())
        first = await pool.acquire()
        accepted, _ = listener.accept()
        first.send_head(GET, method=b"GET", has_body=False)
        accepted.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        await first.answer()
        pool.release(first)
        assert pool.idle == 1
        accepted.close()  # nothing is awaited between this and the next line

        second = await pool.acquire()

        assert (second is first, second.reused) == (False, False)
        second.abort()
        listener.accept()[0].close()


@pytest.mark.parametrize(("seconds", "reused"), [(0, False), (1, False), (60, True)])
async def test_the_time_that_an_upstream_states_is_kept_with_a_margin(seconds: int, reused: bool) -> None:
    """A connection is not used in the last second for which the upstream keeps it."""
    dialer = MemoryDialer()
    pool = UpstreamPool(Upstream("http", Address("10.0.0.7", 80)), dialer)
    first = await pool.acquire()
    first.send_head(GET, method=b"GET", has_body=False)
    dialer.transports[-1].feed(b"HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=%d, max=9\r\n\r\n" % seconds)
    await first.answer()
    pool.release(first)

    assert (await pool.acquire()).reused is reused

    await pool.close()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"timeout=5, max=100", 5),
        (b"max=100, Timeout = 7", 7),
        (b'timeout="15"', 15),
        (b"max=100", None),
        (b"xtimeout=5", None),
        (b"timeout=-1", None),
        (b"timeout=", None),
    ],
)
def test_how_a_time_is_stated(value: bytes, seconds: int | None) -> None:
    """By parameter name, among others; anything else states nothing."""
    answer = Answer(b"GET", max_bytes=1000, max_lines=10)
    answer.feed(b"HTTP/1.1 200 OK\r\nDate: x\r\nKeep-Alive: %b\r\n\r\n" % value)
    assert answer.kept_for == seconds
