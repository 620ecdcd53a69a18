"""The proxy as an ASGI application: a scope becomes an exchange, finds its route, and runs its pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from netbird_proxy.api.errors import BadRequest, ForeignOrigin
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.headers import Headers, RawHeader
from netbird_proxy.api.model import ExchangeId, Origin
from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, DownstreamConnection, Message, Receive, Scope, Send
from netbird_proxy.http.folding import fold_authority
from netbird_proxy.http.refusals import RefusedHead
from netbird_proxy.pipeline.core_answers import LOOP_DETECTED
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import FixedAnswer
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import upgrade_protocols, without_session_token
from netbird_proxy.pipeline.open_exchanges import INTERVAL, OpenExchanges
from netbird_proxy.routing.apply import Routing

Recognizes = Callable[[object], bool]
"""Returns True for an origin that a live listener of this server issued."""

ClientAddress = Callable[[Scope], str]
"""Returns the address of a scope's client as an IP literal; "" if it is unknown."""

CheckHead = Callable[[Scope], str | None]
"""Returns the reason to refuse a scope of a foreign server with 400, or None."""


def _nobodys(_origin: object) -> bool:
    return False


class ReverseProxy:
    """Serves the routes of its routing, under our own listeners or any ASGI server.

    Args:
        recognizes: called for every origin in a scope. By default no origin is genuine: an embedded application gets
            none, and its clients count as untrusted ones on a host socket.
        check_head: called under foreign servers, which accept heads that our own parser refuses.
        client_address: under foreign servers, returns the address of a scope's client. Without it the server's own
            report is logged, but no restriction relies on it.
        notes: keys of notes that steps may store, see `PluginInfo.notes`.
        revalidate: seconds after which open exchanges are revalidated without an event.
        before_all: called before each such revalidation.

    Attributes:
        trusted: proxies in front of our host listeners whose reports about clients are trusted.
        exchanges: the open exchanges; the program that starts the application also runs `exchanges.run()`.
    """

    def __init__(
        self,
        routing: Routing,
        *,
        recognizes: Recognizes = _nobodys,
        check_head: CheckHead | None = None,
        client_address: ClientAddress | None = None,
        notes: Collection[str] = (),
        revalidate: float = INTERVAL,
        before_all: Callable[[], None] = lambda: None,
    ) -> None:
        self.routing = routing
        self._recognizes = recognizes
        self._check_head = check_head
        self._client_address = client_address
        self.trusted: TrustedProxies | None = None
        self._notes = frozenset(notes)
        self._pseudonym = routing.compiler.pseudonym
        self._ids: list[ExchangeId] = []
        self.exchanges = OpenExchanges(
            lambda host, path, account: routing.table.match(host, path, account),
            timeout=routing.compiler.environment.timeout,
            interval=revalidate,
            hung_steps=routing.compiler.environment.hung_steps,
            grace=routing.compiler.environment.grace,
            before_all=before_all,
        )
        if routing.on_change is None:
            routing.on_change = self.exchanges.changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            if kind == "lifespan":
                await _lifespan(receive, send)
                return
            if kind != "websocket":
                raise ValueError(f"the ASGI scope {kind!r} is not supported")
            # Foreign servers offer upgrades in this form only. It cannot carry one of ours, so it is answered.
            send = _answer_upgrade(scope, send)
        state = scope.get("state")
        origin = state.get(ORIGIN_STATE) if state else None
        extensions = scope.get("extensions")
        connection: DownstreamConnection | None = extensions.get(CONNECTION_EXTENSION) if extensions else None
        downstream = Downstream(receive, send, connection)
        if origin is not None and not self._recognizes(origin):
            exchange = self._exchange(scope, None, "", b"", b"")
            await self._say(
                exchange, downstream, ForeignOrigin(f"an origin that no listener of ours issued: {origin!r}")
            )
            return
        if connection is None and self._check_head is not None and (reason := self._check_head(scope)) is not None:
            await self._say(self._exchange(scope, origin, "", b"", b""), downstream, BadRequest(reason))
            return
        authority: bytes | None = None
        raw: list[RawHeader] = scope["headers"]
        if connection is None:  # foreign servers leave blanks behind values, which are no part of them
            raw = [(name, value.strip(b" \t")) for name, value in raw]
        looped = False
        for name, value in raw:
            if name == b"host":
                authority = value
            elif name == b"via" and self._pseudonym in value:
                looped = looped or any(part.split()[1:2] == [self._pseudonym] for part in value.split(b","))
        path: bytes | None = scope.get("raw_path")
        try:
            if authority is None or path is None:
                raise ValueError("no host" if authority is None else "no raw path")
            host = fold_authority(authority)
        except ValueError as exc:
            await self._say(self._exchange(scope, origin, "", b"", b""), downstream, BadRequest(str(exc)))
            return
        exchange = self._exchange(scope, origin, host, authority, path)
        if connection is not None and connection.empty_query:
            exchange.empty_query = True
        if looped:
            await self._fixed().send(exchange, downstream, LOOP_DETECTED)
            return
        if exchange.forwarded is not None and not exchange.client_address:
            exchange.client_address = exchange.origin.peer.host if exchange.origin is not None else ""
            await self._say(exchange, downstream, BadRequest("what a trusted proxy says of the client cannot be read"))
            return
        if path == b"*" and exchange.method == "OPTIONS":
            await self._fixed().server_options(exchange, downstream)
            return
        route = self.routing.table.match(host, path, None if origin is None else origin.account)
        exchange.route = route.spec
        exchange.arrive(*route.rules.views(raw))
        runner = route.runner
        if connection is None:
            asks = scope["type"] == "websocket"
        else:
            asks = connection.upgrade and bool(upgrade_protocols(value for name, value in raw if name == b"upgrade"))
        if asks:
            exchange.kind = "websocket"
            runner = route.upgrades
        under_way = self.exchanges.enter(exchange, downstream)
        try:
            await runner.run(exchange, downstream)
        finally:
            self.exchanges.leave(under_way)

    def _exchange(self, scope: Scope, origin: Origin | None, host: str, authority: bytes, path: bytes) -> Exchange:
        secure = scope["scheme"] in ("https", "wss") or (origin is not None and origin.behind_tls_proxy)
        scheme = "https" if secure else "http"
        forwarded = None
        if origin is not None:
            address = origin.peer.host
            if self.trusted is not None and origin.account is None:
                forwarded = self.trusted.read(address, scope["headers"])
                if forwarded is not None:
                    address = forwarded.client
        elif self._client_address is not None:
            address = self._client_address(scope)
        else:
            client = scope.get("client")
            address = client[0] if client else ""
        query: bytes = scope.get("query_string", b"")
        exchange = Exchange(
            id=self._ids.pop() if self._ids else self._new_id(),
            origin=origin,
            method=scope.get("method", "GET"),
            scheme=scheme,
            host=host,
            authority=authority,
            raw_path=path,
            query=without_session_token(query) if query else query,
            http_version=scope.get("http_version", "1.1"),
            headers=_NO_HEADERS,
            client_address=address,
            allowed_notes=self._notes,
        )
        exchange.forwarded = forwarded
        exchange.full_query = query
        return exchange

    def record_refusal(self, origin: Origin, scheme: str, refusal: RefusedHead) -> ExchangeId:
        """Observe a request whose head a listener of ours refused, with what is known of it, and return its id.

        Guards, authenticators and transforms see nothing of it. Strangers can cause any number of these.
        """
        exchange = Exchange(
            id=self._ids.pop() if self._ids else self._new_id(),
            origin=origin,
            method=refusal.method,
            scheme="https" if origin.behind_tls_proxy else scheme,
            host="",
            authority=b"",
            raw_path=refusal.target.partition(b"?")[0][:LONGEST_TARGET],
            query=b"",
            http_version="1.1",
            headers=_NO_HEADERS,
            client_address=origin.peer.host,
            allowed_notes=self._notes,
        )
        exchange.status = refusal.status
        exchange.error = BadRequest(refusal.reason)
        self._fixed().ending.observe(exchange)
        return exchange.id

    def _new_id(self) -> ExchangeId:
        """128 random bits in hex. Drawn for many exchanges at a time: each draw is a system call."""
        drawn = os.urandom(16 * _IDS_DRAWN).hex()
        self._ids = [ExchangeId(drawn[at : at + 32]) for at in range(0, len(drawn), 32)]
        return self._ids.pop()

    def _fixed(self) -> FixedAnswer:
        """The runner for answers before a route is matched."""
        runner = self.routing.table.no_route.runner
        assert isinstance(runner, FixedAnswer)  # noqa: S101 - the compiler makes it so
        return runner

    async def _say(self, exchange: Exchange, downstream: Downstream, error: BadRequest | ForeignOrigin) -> None:
        await self._fixed().send(exchange, downstream, error)


_NO_HEADERS = Headers([])
_IDS_DRAWN = 64
LONGEST_TARGET = 2048
"""Bytes that are remembered of the target of a request whose head was refused."""


def _answer_upgrade(scope: Scope, send: Send) -> Send:
    """Send an answer as websocket messages: whole if the server supports it, else as a close before the handshake."""
    whole = "websocket.http.response" in (scope.get("extensions") or {})

    async def answer(message: Message) -> None:
        if whole:
            await send({**message, "type": "websocket." + message["type"]})
        elif message["type"] == "http.response.start":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})

    return answer


async def _lifespan(receive: Receive, send: Send) -> None:
    """Complete both lifespan events: the embedding program starts and stops the parts of the application."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
