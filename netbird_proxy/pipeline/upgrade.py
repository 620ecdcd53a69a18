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

from netbird_http import WrittenHead
from netbird_proxy.api.errors import ClientGone, DownstreamError, ProtocolViolation, StreamIdle, UpgradeUnsupported
from netbird_proxy.api.errors import UpstreamError as UpstreamFailed
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.asgi import RawDownstream
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.forward import Forwarder, Target
from netbird_proxy.pipeline.selection import Selection
from netbird_proxy.upstreams.protocols import UpstreamAnswer, UpstreamConnection

IDLE = 300.0
"""Maximum seconds without a byte either way on an upgraded connection; on expiry it is closed."""
LINGER = 5.0
"""Maximum seconds for an upstream to end after its client has ended."""


class Upgrader(Forwarder):
    """Sends admitted upgrades to a route's upstreams. An answer other than 101 is relayed as usual."""

    __slots__ = ("_idle",)
    grants = True

    def __init__(self, targets: Sequence[Target], selection: Selection | None = None, *, idle: float = IDLE) -> None:
        super().__init__(targets, selection)
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
        assert client is not None  # noqa: S101 - `forward` has checked it
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
    """Return the protocol that a 101 names. Raises ProtocolViolation unless it is exactly one that was asked for."""
    named = [part.strip(b" \t") for name, value in headers if name == b"upgrade" for part in value.split(b",")]
    if len(named) != 1 or named[0].lower() not in [protocol.lower() for protocol in offered]:
        raise ProtocolViolation(f"asked for an upgrade to {list(offered)}, the upstream switched to {named}")
    return named[0]


class Splice:
    """Relays bytes both ways until both sides have ended, or one has and the other cannot be half-closed.

    If one side ends, the other is half-closed and may go on sending. A failure on either side ends both.
    """

    __slots__ = ("_active_at", "_answer", "_client", "_connection", "_exchange", "_idle", "_upstream_ended")

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
        self._active_at = 0.0
        self._upstream_ended = False

    async def run(self) -> None:
        """Relay until the end, or until cancelled. The caller closes both sides.

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
            # If both sides failed, the client's failure is the cause.
            blamed = [
                error for error in failures.exceptions if isinstance(error, DownstreamError)
            ] or failures.exceptions
            raise blamed[0] from None

    async def _up(self) -> bool:
        """Relay from client to upstream. Returns whether the other direction may go on after the end of this one."""
        client, connection, exchange = self._client, self._connection, self._exchange
        clock = asyncio.get_running_loop().time
        try:
            while data := await client.read():
                self._active_at = clock()
                exchange.bytes_received += len(data)
                await connection.send_body(data, chunked=False)
            connection.finish_body([], chunked=False)
        except UpstreamFailed:
            if not self._upstream_ended:
                raise
            return False  # the upstream has ended, and takes no more
        return connection.half_closes and not client.gone

    async def _down(self) -> bool:
        """Relay from upstream to client. Returns the same as `_up`."""
        client, answer, exchange = self._client, self._answer, self._exchange
        clock = asyncio.get_running_loop().time
        while data := await answer.read():
            self._active_at = clock()
            try:
                await client.write(data)
            except ConnectionResetError:
                continue  # the client left in order: read on until the upstream ends
            exchange.bytes_sent += len(data)
        self._upstream_ended = True
        return client.finish() and self._connection.half_closes

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        self._active_at = clock()
        left = self._idle
        while left > 0:
            await asyncio.sleep(left)
            left = self._active_at + self._idle - clock()
        raise StreamIdle(f"nothing passed on the upgraded connection for {self._idle:g} s")
