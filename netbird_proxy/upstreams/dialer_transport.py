"""An httpx transport over any dialer, with which a plugin calls a peer in an account's overlay.

    async with httpx.AsyncClient(transport=DialerTransport(proxy.account_dialer(account))) as client:
        answer = await client.get("http://100.64.0.7:8080/status")

The dialer resolves names. httpx handles redirects, cookies and authentication. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Literal, cast

import httpx

from netbird_host.http_fields import TOKEN
from netbird_proxy.api.errors import (
    AddressRefused,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    HeadTimeout,
    ProtocolViolation,
    TlsFailed,
    TunnelNotReady,
    UpstreamClosed,
    UpstreamError,
    UpstreamOverloaded,
)
from netbird_proxy.api.model import Address, Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.upstreams.connection import Answer, Http1Connection
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.protocols import BodyLengthMismatch

_ERRORS: dict[type[UpstreamError], type[httpx.TransportError]] = {
    DialTimeout: httpx.ConnectTimeout,
    TunnelNotReady: httpx.ConnectTimeout,
    DialRefused: httpx.ConnectError,
    DialUnreachable: httpx.ConnectError,
    DialFailed: httpx.ConnectError,
    AddressRefused: httpx.ConnectError,
    TlsFailed: httpx.ConnectError,
    UpstreamOverloaded: httpx.PoolTimeout,
    HeadTimeout: httpx.ReadTimeout,
    ProtocolViolation: httpx.RemoteProtocolError,
    UpstreamClosed: httpx.RemoteProtocolError,
}

_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_MAX_POOLS = 64
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_VALUE = re.compile(rb"[^\x00\r\n]*")


class DialerTransport(httpx.AsyncBaseTransport):
    """An httpx transport over a dialer. It keeps connections until `aclose`.

    Args:
        dialer: opens the streams.
        tls: the context for https; by default with the system's roots.
        connect_timeout: seconds, unless the request sets its own.
    """

    def __init__(self, dialer: Dialer, *, tls: ssl.SSLContext | None = None, connect_timeout: float = 30.0) -> None:
        self._dialer = dialer
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._pools: dict[tuple[str, str, int, str | None], UpstreamPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        head, has_body, chunked = _head(request)
        method = request.method.encode("ascii")
        timeouts = cast("dict[str, float | None]", request.extensions.get("timeout", {}))
        pool = self._pool(request)
        with _translated(request):
            try:
                connection, answer = await self._exchange(pool, request, method, head, has_body, chunked, timeouts)
            except UpstreamClosed:
                # The peer was just closing an idle connection. Retry once, if the request may be sent twice.
                if method not in _REPEATABLE or not isinstance(request.stream, httpx.ByteStream):
                    raise
                connection, answer = await self._exchange(
                    pool, request, method, head, has_body, chunked, timeouts, fresh=True
                )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(request, pool, connection, answer, timeouts.get("read")),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": answer.reason},
        )

    async def aclose(self) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close()

    async def _exchange(
        self,
        pool: UpstreamPool,
        request: httpx.Request,
        method: bytes,
        head: bytes,
        has_body: bool,
        chunked: bool,
        timeouts: dict[str, float | None],
        *,
        fresh: bool = False,
    ) -> tuple[Http1Connection, Answer]:
        with _late(httpx.ConnectTimeout, request):
            async with asyncio.timeout(timeouts.get("connect") or self._connect_timeout):
                connection = await pool.acquire(fresh=fresh)
        try:
            connection.send_head(head, method=method, has_body=has_body)
            if has_body:
                try:
                    async for piece in cast(httpx.AsyncByteStream, request.stream):
                        with _late(httpx.WriteTimeout, request):
                            async with asyncio.timeout(timeouts.get("write")):
                                await connection.send_body(piece, chunked=chunked)
                    connection.finish_body([], chunked=chunked)
                except UpstreamClosed:
                    pass  # the peer may have answered early; if not, `answer` raises the same error
            with _late(httpx.ReadTimeout, request):
                async with asyncio.timeout(timeouts.get("read")):
                    return connection, await connection.answer()
        except UpstreamClosed as error:
            connection.abort()
            if connection.reused and connection.nothing_received:
                raise
            raise _as_httpx(error, request) from error
        except BaseException:
            connection.abort()
            raise

    def _pool(self, request: httpx.Request) -> UpstreamPool:
        url = request.url
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"the scheme {url.scheme!r} is not supported", request=request)
        scheme = cast(Literal["http", "https"], url.scheme)
        port = url.port or (443 if scheme == "https" else 80)
        server_name = cast("str | None", request.extensions.get("sni_hostname"))
        key = (scheme, url.raw_host.decode("ascii"), port, server_name)
        pool = self._pools.get(key)
        if pool is None:
            if len(self._pools) >= _MAX_POOLS:
                for old, unused in list(self._pools.items()):
                    if not unused.idle and not unused.in_flight:
                        del self._pools[old]
            pool = self._pools[key] = UpstreamPool(
                Upstream(scheme, Address(key[1], port)),
                self._dialer,
                dial_timeout=3600,  # the request's own timeout applies
                tls=self._tls,
                server_name=server_name,
                max_idle=10,
            )
        return pool


class _Body(httpx.AsyncByteStream):
    """The answer's body. Closing it early resets the connection."""

    def __init__(
        self,
        request: httpx.Request,
        pool: UpstreamPool,
        connection: Http1Connection,
        answer: Answer,
        timeout: float | None,
    ) -> None:
        self._request = request
        self._pool = pool
        self._connection: Http1Connection | None = connection
        self._answer = answer
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            with _translated(self._request), _late(httpx.ReadTimeout, self._request):
                async with asyncio.timeout(self._timeout):
                    piece = await self._answer.read()
            if not piece:
                return
            yield piece

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection)


def _head(request: httpx.Request) -> tuple[bytes, bool, bool]:
    """The request head, true if a body follows, and true if the body is chunked."""
    method = request.method.encode("latin-1")
    target = request.url.raw_path
    if not TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise httpx.LocalProtocolError("method or target cannot be sent", request=request)
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    lengths: list[bytes] = []
    chunked = False
    for name, value in request.headers.raw:
        if not TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise httpx.LocalProtocolError(f"header {name!r} cannot carry its value", request=request)
        name = name.lower()
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise httpx.LocalProtocolError("a transfer coding other than chunked", request=request)
            chunked = True
        lines.append(b"%b: %b\r\n" % (name, value))
    if len(lengths) > (0 if chunked else 1) or not all(length.isdigit() for length in lengths):
        raise httpx.LocalProtocolError("the body's length is given twice", request=request)
    lines.append(b"\r\n")
    return b"".join(lines), chunked or (bool(lengths) and int(lengths[0]) > 0), chunked


def _as_httpx(error: UpstreamError, request: httpx.Request) -> httpx.TransportError:
    return _ERRORS.get(type(error), httpx.TransportError)(str(error), request=request)


@contextmanager
def _translated(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except UpstreamError as error:
        raise _as_httpx(error, request) from error
    except BodyLengthMismatch as error:
        raise httpx.LocalProtocolError(str(error), request=request) from error


@contextmanager
def _late(leaf: type[httpx.TimeoutException], request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise leaf("timed out", request=request) from error
