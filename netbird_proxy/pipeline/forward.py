"""Forwarding: relays one exchange to an upstream, bytes both ways, with back-pressure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

import structlog

from netbird_host.sources import source_of
from netbird_http import WrittenHead
from netbird_proxy.api.errors import (
    BadRequest,
    ClientGone,
    DownstreamError,
    ExchangeError,
    ProtocolViolation,
    TlsFailed,
    TunnelNotReady,
    UpgradeUnsupported,
    UpstreamClosed,
    UpstreamError,
)
from netbird_proxy.api.exchange import Try
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Upstream
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.request_heads import RequestHeads
from netbird_proxy.pipeline.response_heads import ResponseHeads
from netbird_proxy.pipeline.selection import Selection
from netbird_proxy.upstreams.protocols import BodyLengthMismatch, Pool, UpstreamAnswer, UpstreamConnection

log = structlog.get_logger("netbird_proxy.pipeline")

TRIES = 3
"""Maximum number of upstreams of a route that are tried for one exchange."""

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))  # RFC 9110 §9.2.2


def _is_its_own(send: object, client: object) -> bool:
    """Return whether `send` is the listener's own, so that no wrapper around it misses a message."""
    return getattr(send, "__self__", None) is client


def _source(exchange: Exchange) -> str:
    """Return the client for the fair share of an upstream's slots; "" where one address may stand for many clients."""
    origin = exchange.origin
    if origin is None or (origin.behind_tls_proxy and exchange.forwarded is None):
        return ""
    return exchange.client_address if origin.account is not None else source_of(exchange.client_address)


def _may_go_elsewhere(exchange: Exchange, error: ExchangeError) -> bool:
    """True if nothing of the request was sent, and another upstream may be reached although this one was not."""
    if isinstance(error, TunnelNotReady) or not isinstance(error, UpstreamError):
        return False
    return (error.retryable or isinstance(error, TlsFailed)) and not exchange.tries[-1].connected_ns


class Target:
    """One upstream of one route: its pool, and the heads both ways."""

    __slots__ = ("pool", "requests", "responses", "upstream")

    def __init__(self, upstream: Upstream, pool: Pool, requests: RequestHeads, responses: ResponseHeads) -> None:
        self.upstream = upstream
        self.pool = pool
        self.requests = requests
        self.responses = responses


class Forwarder:
    """Sends admitted exchanges to a route's upstreams, in turn or as a plugin selects them.

    If no connection to an upstream could be made, TLS included, nothing was sent, and another upstream is tried. If the
    account's tunnel is missing, no other upstream is tried, because all of them need it.

    Args:
        selection: picks the upstream of each try; None lets them take turns.

    Attributes:
        grants: true for a forwarder that can carry an upgrade.
    """

    __slots__ = ("_next", "_selection", "targets")
    grants: ClassVar[bool] = False

    def __init__(self, targets: Sequence[Target], selection: Selection | None = None) -> None:
        self.targets = tuple(targets)
        self._selection = selection
        self._next = 0

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None:
        """Relay one exchange and its answer.

        Cancellation resets the upstream connection, so that a request body that was cut never looks complete.

        Raises:
            ExchangeError: the exchange failed. If the answer has started, the caller can only close the stream.
        """
        targets = self.targets
        if self._selection is not None:
            await self._forward_selected(exchange, downstream, self._selection)
            return
        first = self._next % len(targets)
        self._next = first + 1
        last = min(len(targets), TRIES) - 1
        for turn in range(last):
            try:
                await self._send(exchange, downstream, targets[(first + turn) % len(targets)])
            except UpstreamError as error:
                if not _may_go_elsewhere(exchange, error):
                    raise
                log.debug("upstream.passed_over", exchange=exchange.id, error=str(error))
            else:
                return
        await self._send(exchange, downstream, targets[(first + last) % len(targets)])

    async def _forward_selected(self, exchange: Exchange, downstream: Downstream, selection: Selection) -> None:
        tried: list[int] = []
        last = min(len(self.targets), TRIES)
        while True:
            picked = selection.pick(exchange, tried)
            tried.append(picked)
            failure: ExchangeError | None = None
            try:
                await self._send(exchange, downstream, self.targets[picked])
            except ExchangeError as error:
                failure = error
                if len(tried) == last or not _may_go_elsewhere(exchange, error):
                    raise
                log.debug("upstream.passed_over", exchange=exchange.id, error=str(error))
            except BaseException:
                failure = ClientGone("the exchange was cut before its answer was complete")
                raise
            else:
                return
            finally:
                selection.report(exchange, picked, failure)

    async def _send(self, exchange: Exchange, downstream: Downstream, target: Target) -> None:
        """Send to one upstream; once more if it had closed the idle connection that was used."""
        connection = downstream.connection
        request = target.requests.write(exchange, None if connection is None else connection.has_body)
        if request.upgrade and not self.grants:
            raise UpgradeUnsupported(f"upgrade to {exchange.headers.get(b'upgrade')!r}")
        if not await self._attempt(exchange, downstream, target, request, fresh=False):
            await self._attempt(exchange, downstream, target, request, fresh=True)

    async def _attempt(
        self, exchange: Exchange, downstream: Downstream, target: Target, request: WrittenHead, *, fresh: bool
    ) -> bool:
        """Make one try. Returns False if an idle connection was closed already and the request may be sent again."""
        attempt = Try(target.upstream, time.monotonic_ns())
        exchange.tries.append(attempt)
        try:
            connection = await target.pool.acquire(fresh=fresh, source=_source(exchange))
        except ExchangeError as error:
            attempt.error = error.code
            attempt.ended_ns = time.monotonic_ns()
            raise
        attempt.connected_ns = time.monotonic_ns()
        attempt.reused = connection.reused
        try:
            connection.send_head(request.head, method=request.method, has_body=request.has_body, upgrade=self.grants)
            if request.has_body or downstream.connection is None:
                await self._both_ways(exchange, downstream, connection, target, request, attempt)
            else:
                await self._download(exchange, downstream, connection, target, request, attempt)
        except BaseException as error:
            untouched = connection.nothing_received
            connection.abort()
            attempt.error = error.code if isinstance(error, ExchangeError) else "cut"
            if (
                isinstance(error, UpstreamClosed)
                and untouched
                and connection.reused
                and not fresh
                and not request.has_body
                and request.method in _IDEMPOTENT
            ):
                return False
            raise
        finally:
            attempt.ended_ns = time.monotonic_ns()
            target.pool.release(connection)
        return True

    async def _both_ways(
        self,
        exchange: Exchange,
        downstream: Downstream,
        connection: UpstreamConnection,
        target: Target,
        request: WrittenHead,
        attempt: Try,
    ) -> None:
        """Send the body while waiting for the answer. An upstream may answer early; the end of its answer ends both."""
        try:
            async with asyncio.TaskGroup() as group:
                upload = group.create_task(self._upload(exchange, downstream, connection, target, request))
                await self._download(exchange, downstream, connection, target, request, attempt)
                upload.cancel()
        except BaseExceptionGroup as failures:
            # If both sides failed, the client's failure is the cause: it made the proxy reset the upstream.
            blamed = [
                error for error in failures.exceptions if isinstance(error, DownstreamError)
            ] or failures.exceptions
            raise blamed[0] from None

    async def _upload(
        self,
        exchange: Exchange,
        downstream: Downstream,
        connection: UpstreamConnection,
        target: Target,
        request: WrittenHead,
    ) -> None:
        if request.has_body:
            try:
                for data in downstream.taken:
                    await connection.send_body(data, chunked=request.chunked)
                while not downstream.exhausted:
                    if data := await downstream.read(exchange):
                        await connection.send_body(data, chunked=request.chunked)
                trailers: list[RawHeader] = []
                if downstream.trailers and request.chunked:
                    trailers = target.requests.trailers(downstream.trailers)
                connection.finish_body(trailers, chunked=request.chunked)
            except UpstreamError as exc:
                # The upstream takes no more of the body, because it has answered or will; its answer decides.
                log.debug("upstream.upload_ended", exchange=exchange.id, error=str(exc))
            except BodyLengthMismatch as exc:
                raise BadRequest(f"the request body is not as long as its head says: {exc}") from exc
        if downstream.connection is None:
            await self._watch(downstream)

    @staticmethod
    async def _watch(downstream: Downstream) -> None:
        """Wait until the client leaves. Other ASGI servers report it by a message; our listener cancels the task."""
        while (await downstream.receive())["type"] != "http.disconnect":
            continue
        if not downstream.complete:
            raise ClientGone("the client left before its answer was complete")

    async def _download(
        self,
        exchange: Exchange,
        downstream: Downstream,
        connection: UpstreamConnection,
        target: Target,
        request: WrittenHead,
        attempt: Try,
    ) -> None:
        client = downstream.connection
        informed = client is not None and exchange.http_version != "1.0"
        answer = await connection.answer(downstream.inform if informed else None)
        status = answer.status
        attempt.head_ns = time.monotonic_ns()
        attempt.status = status
        if status < 200:
            await self._switched(exchange, downstream, connection, target, request, answer)
            return
        headers, length, trailing = target.responses.read(exchange, status, answer.headers)
        trailing = trailing and client is not None
        exchange.status = status
        downstream.started = True
        data = b""
        if length and answer.complete and client is not None and _is_its_own(downstream.send, client):
            data = await answer.read()
            if len(data) == length and client.answer_whole(status, headers, data):
                downstream.complete = True
                exchange.bytes_sent += length
                return
        start = {"type": "http.response.start", "status": status, "headers": headers}
        if trailing:
            start["trailers"] = True
        send = downstream.send
        await send(start)
        if request.method == b"HEAD" or status in (204, 304):
            await answer.read()
            await downstream.finish()
            return
        sent = 0
        while data or (data := await answer.read()):
            sent += len(data)
            exchange.bytes_sent += len(data)
            if sent == length:
                # The last piece and the end go out in one write. The read lets the connection notice that it is done.
                await downstream.finish(data)
                await answer.read()
                return
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = b""
        if length is not None and length != sent:
            raise UpstreamClosed(f"{target.upstream} sent {sent} of {length} bytes")
        await self._end(downstream, target, answer, trailing)

    async def _switched(
        self,
        exchange: Exchange,
        downstream: Downstream,
        connection: UpstreamConnection,
        target: Target,
        request: WrittenHead,
        answer: UpstreamAnswer,
    ) -> None:
        """Handle an upstream's 101."""
        raise ProtocolViolation(f"{target.upstream} switched protocols without being asked")

    @staticmethod
    async def _end(downstream: Downstream, target: Target, answer: UpstreamAnswer, trailing: bool) -> None:
        if not trailing:
            await downstream.finish()
            return
        await downstream.send({"type": "http.response.body", "body": b"", "more_body": False})
        downstream.complete = True
        trailers = target.responses.trailers(answer.trailers)
        await downstream.send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})
