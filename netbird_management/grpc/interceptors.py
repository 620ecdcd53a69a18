"""What stands before every call: a proxy's token, a brake on guessing it, and the status for whatever goes wrong."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio

from netbird_host.sources import source_of
from netbird_management.grpc.connections import Connection, Connections
from netbird_management.grpc.errors import Refused, as_refusal
from netbird_management.grpc.wire import serialized
from netbird_management.operations.proxy_tokens import ProxyToken, find_proxy_token, note_token_used
from netbird_management.store.state import State
from netbird_wire.extensions import NO_STREAM, PROXY_ID_METADATA
from netbird_wire.tokens import TokenKind, stored_hash, well_formed

PROXY_SERVICE: Final = "/management.ProxyService/"
PEERS: Final = frozenset({"management.ManagementService"})
"""The service whose callers prove who they are by the envelope."""
_STREAMS: Final = ("GetMappingUpdate", "SyncMappings")
MAX_PROXY_REQUEST_BYTES: Final = 4 << 20

FAILURES: Final = 5
FAILURE_SECONDS: Final = 12.0
"""How many bad tokens an address may show at once, and how long until it may show another."""
GUESSERS: Final = 16_384
"""Addresses that are remembered for a bad token; the one that has been quiet for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes this call. `connection` is the proxy's live stream, if the call says which proxy it is."""

    token: ProxyToken
    token_hash: str
    address: str
    connection: Connection | None

    def check_account(self, account_id: str) -> None:
        """Raises `Refused`: an account's token is good for that account alone, and for an empty one not at all."""
        if self.token.account_id is not None and self.token.account_id != account_id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"account-scoped token cannot access account {account_id}")


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """The caller of the call under way. Raises `LookupError` where no token was asked for."""
    return _caller.get()


def peer_address(peer: str) -> str:
    """The address in gRPC's own name for a peer (`ipv4:192.0.2.1:50000`, `ipv6:[::1]:50000`); "" if it has none."""
    scheme, _, rest = unquote(peer).partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


class FailureLimiter:
    """A bucket of failures for each address (IPv6: a /64). An empty one refuses before anything is looked at."""

    def __init__(self, clock: Callable[[], float], count: Callable[[str], object] = lambda _name: None) -> None:
        self._clock = clock
        self._count = count
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, address: str) -> None:
        if address and self._left(source_of(address)) < 1:
            self._count("token_guesses_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many failed authentication attempts")

    def failed(self, address: str) -> None:
        if not address:
            return
        source = source_of(address)
        self._buckets[source] = (self._left(source) - 1, self._clock())
        self._buckets.move_to_end(source)
        if len(self._buckets) > GUESSERS:
            self._buckets.popitem(last=False)

    def _left(self, source: str) -> float:
        left, at = self._buckets.get(source, (float(FAILURES), self._clock()))
        return min(float(FAILURES), left + (self._clock() - at) / FAILURE_SECONDS)


class Edge(grpc.aio.ServerInterceptor):
    """Wraps every handler. A call needs a proxy's token, but for the services in `open_services`; peers of the overlay
    prove their key by the envelope."""

    def __init__(self, state: State, connections: Connections, open_services: frozenset[str] = PEERS) -> None:
        self._open = open_services
        self._state = state
        self._connections = connections
        self._limiter = FailureLimiter(asyncio.get_running_loop().time, state.count)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def call(request: Any, context: Any) -> Any:
            try:
                if method.strip("/").partition("/")[0] not in self._open:
                    _caller.set(await self._authenticated(method, context))
                    if not handler.request_streaming and request.ByteSize() > MAX_PROXY_REQUEST_BYTES:
                        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request is too large")
                return await behavior(request, context)
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                refusal = as_refusal(error, method)
            return await context.abort(refusal.code, refusal.message)

        wrap = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return wrap(call, handler.request_deserializer, serialized(handler.response_serializer))

    async def _authenticated(self, method: str, context: Any) -> Caller:
        address = peer_address(context.peer())
        self._limiter.check(address)
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            metadata.setdefault(key, value)
        try:
            token, token_hash = await self._token(metadata.get("authorization"))
        except Refused:
            self._limiter.failed(address)
            raise
        connection = None
        proxy_id = metadata.get(PROXY_ID_METADATA)
        if proxy_id is not None and method.removeprefix(PROXY_SERVICE) not in _STREAMS:
            connection = self._connection(proxy_id, token)
        return Caller(token, token_hash, address, connection)

    async def _token(self, authorization: str | None) -> tuple[ProxyToken, str]:
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        if authorization is None:
            raise Refused(unauthenticated, "missing authorization header")
        if not authorization.startswith("Bearer "):
            raise Refused(unauthenticated, "invalid authorization scheme: want Bearer")
        text = authorization.removeprefix("Bearer ")
        if not well_formed(text, TokenKind.PROXY):
            raise Refused(unauthenticated, "invalid token format")
        hashed = stored_hash(text)
        token = self._connections.known_token(hashed)
        if token is None:
            token = await find_proxy_token(self._state, hashed)
            if token is not None and token.valid:
                await note_token_used(self._state, token)
        if token is None or not token.valid:
            raise Refused(unauthenticated, "invalid proxy token")
        return token, hashed

    def _connection(self, proxy_id: str, token: ProxyToken) -> Connection:
        """The proxy's stream with this very token. A proxy that is just connecting anew can try again."""
        connection = self._connections.get(proxy_id)
        if connection is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"{NO_STREAM}: connect it first")
        if connection.token.id != token.id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this proxy's mapping stream has another token")
        return connection
