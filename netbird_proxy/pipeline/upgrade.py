"""Upgrades: websockets and other protocols, relayed as bytes after the upstream's 101.

The proxy does not read frames, subprotocols, extensions and pings. It checks the handshake: the client may ask for no
protocol that carries further requests (see `upgrade_protocols`), and the upstream may switch only to a protocol that it
was asked for. Bytes that the client sends behind its request wait until the upstream has answered 101.

Browsers send a session cookie from any site. A guard that judges `Origin` and `Sec-Fetch-Site` decides which sites may
open a websocket with it; guards see an upgrade like any other request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from netbird_proxy.api.errors import ClientGone, DownstreamError, ProtocolViolation, StreamIdle, UpgradeUnsupported
from netbird_proxy.api.errors import UpstreamError as UpstreamFailed
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.asgi import RawDownstream
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.forward import Forwarder, Target
from netbird_proxy.pipeline.request_heads import WrittenHead
from netbird_proxy.upstreams.protocols import UpstreamAnswer, UpstreamConnection

IDLE = 300.0
"""Seconds in which something must pass on an upgraded connection, either way."""
LINGER = 5.0
"""Seconds that an upstream has to end once its client has left in order, or cannot be told that it has ended."""


class Upgrader(Forwarder):
    """Sends admitted upgrades to a route's upstreams. One that answers otherwise is relayed as usual."""

    __slots__ = ("_idle",)
    grants = True

    def __init__(self, targets: Sequence[Target], *, idle: float = IDLE) -> None:
        super().__init__(targets)
        self._idle = idle

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None:
        connection = downstream.connection
        if connection is None or not connection.upgrade or exchange.method != "GET":
            raise UpgradeUnsupported(f"upgrade to {exchange.headers.get(b'upgrade')!r} with {exchange.method}")
        await super().forward(exchange, downstream)

    async def _switched(
        self,
        exchange: Exchange,
        downstream: Downstream,
        connection: UpstreamConnection,
        target: Target,
        request: WrittenHead,
        answer: UpstreamAnswer,
    ) -> None:
        protocol = granted(answer.headers, request.upgrade)
        headers, _, _ = target.responses.read(exchange, 101, answer.headers)
        client = downstream.connection
        assert client is not None  # noqa: S101 - forward saw to it
        try:
            raw = client.switch([*headers, (b"upgrade", protocol)])
        except ConnectionResetError as exc:
            raise ClientGone("the client left before its upgrade was granted") from exc
        exchange.status = 101
        downstream.started = True
        await Splice(exchange, raw, connection, answer, idle=self._idle).run()
        downstream.complete = True
        raw.close()


def granted(headers: Iterable[RawHeader], offered: Sequence[bytes]) -> bytes:
    """The one protocol that a 101 names. ProtocolViolation if it is none of those that were asked for."""
    named = [part.strip(b" \t") for name, value in headers if name == b"upgrade" for part in value.split(b",")]
    if len(named) != 1 or named[0].lower() not in [one.lower() for one in offered]:
        raise ProtocolViolation(f"asked for an upgrade to {list(offered)}, the upstream switched to {named}")
    return named[0]


class Splice:
    """Bytes both ways, until both sides have ended, or one has in a way that the other cannot be told.

    A side that ends is half-closed towards the other, which may go on. What fails on either side ends both.
    """

    __slots__ = ("_answer", "_client", "_connection", "_exchange", "_idle", "_seen", "_upstream_ended")

    def __init__(
        self,
        exchange: Exchange,
        client: RawDownstream,
        connection: UpstreamConnection,
        answer: UpstreamAnswer,
        *,
        idle: float,
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._connection = connection
        self._answer = answer
        self._idle = idle
        self._seen = 0.0
        self._upstream_ended = False

    async def run(self) -> None:
        """Relay until it is over. Cancellation ends it; the caller closes both sides.

        Raises:
            StreamIdle: nothing passed for too long.
            UpstreamError: the upstream broke off.
        """
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                up = group.create_task(self._up())
                down = group.create_task(self._down())
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if up.done():
                    await asyncio.wait((down,), timeout=None if up.result() else LINGER)
                elif down.result():
                    await asyncio.wait((up,))
                for task in (watch, up, down):
                    task.cancel()
        except BaseExceptionGroup as failures:
            # A client that was idle, or left, is the cause where there are two.
            blamed = [one for one in failures.exceptions if isinstance(one, DownstreamError)] or failures.exceptions
            raise blamed[0] from None

    async def _up(self) -> bool:
        """From the client to the upstream. Whether the other way may go on once this one has ended."""
        client, connection, exchange = self._client, self._connection, self._exchange
        clock = asyncio.get_running_loop().time
        try:
            while data := await client.read():
                self._seen = clock()
                exchange.bytes_received += len(data)
                await connection.send_body(data, chunked=False)
            connection.finish_body([], chunked=False)
        except UpstreamFailed:
            if not self._upstream_ended:
                raise
            return False  # it has said all it had to say, and takes no more
        return connection.half_closes and not client.gone

    async def _down(self) -> bool:
        """From the upstream to the client. The same."""
        client, answer, exchange = self._client, self._answer, self._exchange
        clock = asyncio.get_running_loop().time
        while data := await answer.read():
            self._seen = clock()
            try:
                await client.write(data)
            except ConnectionResetError:
                continue  # it left in order: only the upstream's end is waited for
            exchange.bytes_sent += len(data)
        self._upstream_ended = True
        return client.finish() and self._connection.half_closes

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        self._seen = clock()
        left = self._idle
        while left > 0:
            await asyncio.sleep(left)
            left = self._seen + self._idle - clock()
        raise StreamIdle(f"nothing passed on the upgraded connection for {self._idle:g} s")
