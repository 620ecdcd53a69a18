"""The interceptor of every call: it checks the proxy's token before it reads the call's message, counts wrong tokens by
address, and turns every error into a status."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from netbird_host.buckets import Buckets, Places
from netbird_host.sources import Network, nearest_client, source_of
from netbird_management.grpc.connections import NO_CALL, Connection, Connections, ProxyCall
from netbird_management.grpc.errors import Refused, as_refusal
from netbird_management.grpc.wire import serialized
from netbird_management.model.ids import AccountId
from netbird_management.operations.proxy_tokens import ProxyToken, find_proxy_token, note_token_used
from netbird_management.store.state import State
from netbird_wire.extensions import NO_STREAM, PROXY_ID_METADATA
from netbird_wire.tokens import TokenKind, stored_hash, well_formed

PROXY_SERVICE: Final = "/management.ProxyService/"
PEERS: Final = frozenset({"management.ManagementService"})
"""The service whose callers, the peers of the overlay, authenticate by the envelope of each message."""
_STREAMS: Final = ("GetMappingUpdate", "SyncMappings")
PROXY_MESSAGE_BYTES: Final = 4 << 20
"""Maximum size of a message of a caller with a token; beyond it RESOURCE_EXHAUSTED."""
OPEN_MESSAGE_BYTES: Final = 1 << 20
"""Maximum size of a message of a caller without a token, such as a peer; beyond it RESOURCE_EXHAUSTED."""
REQUEST_SECONDS: Final = 10.0
"""Maximum time until the message of a call, or the first message of a stream; on expiry DEADLINE_EXCEEDED."""
UNREAD_OF_A_SOURCE: Final = 1_000
"""Maximum number of calls from one address (IPv6: a /64) that wait for their message; beyond it RESOURCE_EXHAUSTED."""
CALLS_OF_AN_ACCOUNT: Final = 10_000
"""Maximum number of concurrent calls, streams included, with an account's tokens; beyond it RESOURCE_EXHAUSTED."""

# Wrong tokens that an address (IPv6: a /64) may send at once, and the time until it may send another.
FAILURES: Final = 5
FAILURE_SECONDS: Final = 12.0
GUESSERS: Final = 16_384
"""Maximum number of addresses whose wrong tokens are counted; the one without a call for longest is forgotten first."""
LOOKUPS: Final = 4
"""Maximum number of concurrent lookups of tokens in the store; only one is for addresses with too many failures."""


@dataclass(frozen=True, slots=True)
class AuthenticatedProxy:
    """The proxy whose token a call carries. `connection` is its live mapping stream; None where the call has no proxy
    id, as NetBird's own proxies send none."""

    token: ProxyToken
    token_hash: str
    address: str
    connection: Connection | None
    call: ProxyCall = NO_CALL

    def check_account(self, account_id: str) -> None:
        """Raises `Refused` for a token of another account; an account's token is not valid for an empty id either."""
        if self.token.account_id is not None and self.token.account_id != account_id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"account-scoped token cannot access account {account_id}")


_calling_proxy: ContextVar[AuthenticatedProxy] = ContextVar("calling_proxy")
_address: ContextVar[str] = ContextVar("address", default="")


def calling_proxy() -> AuthenticatedProxy:
    """The proxy that makes the current call. Raises `LookupError` in a call that needs no token."""
    return _calling_proxy.get()


def call_address() -> str:
    """The client address of the current call; "" where it is not known."""
    return _address.get()


def peer_address(peer: str) -> str:
    """The address in gRPC's name of a peer (`ipv4:192.0.2.1:50000`, `ipv6:[::1]:50000`); "" if it contains none."""
    scheme, _, rest = unquote(peer).partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


class FailureLimiter:
    """Counts the wrong tokens of each address (IPv6: a /64).

    It slows guesses down, and never refuses a valid token: many proxies may share an address with a wrong caller.
    """

    def __init__(self, clock: Callable[[], float], count: Callable[[str], object] = lambda _name: None) -> None:
        self._count = count
        self._buckets = Buckets(clock, burst=FAILURES, per_second=1 / FAILURE_SECONDS, keys=GUESSERS)

    def is_suspect(self, address: str) -> bool:
        """True if the address has sent too many wrong tokens."""
        return bool(address) and self._buckets.is_empty(source_of(address))

    def failed(self, address: str) -> None:
        """Counts a wrong token. Raises `Refused` if the address has sent too many."""
        if address and not self._buckets.take(source_of(address)):
            self._count("token_guesses_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many failed authentication attempts")


class Edge(grpc.aio.ServerInterceptor):
    """Wraps every handler.

    Args:
        open_services: the services that need no proxy's token; peers of the overlay prove their key by the envelope.
        trusted: networks of reverse proxies whose `x-forwarded-for` metadata contains the caller's address.
        patience: maximum time until the message of a call, in seconds; on expiry DEADLINE_EXCEEDED.
        addresses: client addresses by gRPC's name of the peer, of connections that another port of this process
            accepted.
    """

    def __init__(
        self,
        state: State,
        connections: Connections,
        open_services: frozenset[str] = PEERS,
        *,
        trusted: Sequence[Network] = (),
        patience: float = REQUEST_SECONDS,
        addresses: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._addresses = addresses
        self._open = open_services
        self._state = state
        self._connections = connections
        self._trusted = trusted
        self._patience = patience
        self._limiter = FailureLimiter(asyncio.get_running_loop().time, state.count)
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._suspects = asyncio.Semaphore(1)
        self._unread = Places(UNREAD_OF_A_SOURCE)
        self._calls = Places(CALLS_OF_AN_ACCOUNT)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """A handler that runs before the call's message is read, for all four kinds of calls: for a single request,
        gRPC would otherwise receive and parse the message before the token is checked."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        is_open = method.strip("/").partition("/")[0] in self._open
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def call(requests: Any, context: Any) -> Any:
            try:
                address = self._address(context)
                _address.set(address)
                if not is_open:
                    _calling_proxy.set(await self._authenticated(method, address, context))
                account_id = None if is_open else calling_proxy().token.account_id
                with self._account_place(account_id):
                    if not handler.request_streaming:
                        largest = OPEN_MESSAGE_BYTES if is_open else PROXY_MESSAGE_BYTES
                        requests = await self._request(handler, address, context, largest)
                    return await behavior(requests, context)
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                refusal = as_refusal(error, method)
            return await context.abort(refusal.code, refusal.message)

        wrap = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        deserializer = handler.request_deserializer if handler.request_streaming else None
        return wrap(call, deserializer, serialized(handler.response_serializer))

    def _address(self, context: Any) -> str:
        name = context.peer()
        peer = self._addresses.get(name) or peer_address(name)
        lines = [value for key, value in context.invocation_metadata() or () if key == "x-forwarded-for"]
        return nearest_client(peer, (line for line in lines if isinstance(line, str)), self._trusted)

    async def _request(self, handler: Any, address: str, context: Any, largest: int) -> Any:
        """The message of a call with a single request. Raises `Refused` if it is late, too large, absent or
        malformed."""
        with self._unread.place(
            source_of(address),
            refusal=lambda: self._full("unread_calls_refused", "too many calls without a request"),
        ):
            try:
                async with asyncio.timeout(self._patience):
                    raw = await context.read()
            except TimeoutError as error:
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no request arrived in time") from error
        if raw is grpc.aio.EOF:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        if len(raw) > largest:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request is too large")
        try:
            return handler.request_deserializer(raw)
        except DecodeError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the request is malformed") from error

    def _account_place(self, account_id: AccountId | None) -> AbstractContextManager[None]:
        """A place among the calls with the account's tokens; calls of peers and with management-wide tokens need
        none."""
        if account_id is None:
            return nullcontext()
        return self._calls.place(
            account_id,
            refusal=lambda: self._full("calls_of_account_refused", "too many calls with the tokens of this account"),
        )

    def _full(self, counter: str, message: str) -> Refused:
        self._state.count(counter)
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    async def _authenticated(self, method: str, address: str, context: Any) -> AuthenticatedProxy:
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            metadata.setdefault(key, value)
        try:
            token, token_hash = await self._token(metadata.get("authorization"), address)
        except Refused:
            self._limiter.failed(address)
            raise
        connection = None
        proxy_id = metadata.get(PROXY_ID_METADATA)
        if proxy_id is not None and method.removeprefix(PROXY_SERVICE) not in _STREAMS:
            connection = self._connection(proxy_id, token)
        call = ProxyCall(context.peer(), address, names_proxy=proxy_id is not None)
        return AuthenticatedProxy(token, token_hash, address, connection, call)

    async def _token(self, authorization: str | None, address: str) -> tuple[ProxyToken, str]:
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
            async with self._suspects if self._limiter.is_suspect(address) else self._lookups:
                token = await find_proxy_token(self._state, hashed)
            if token is not None and token.valid:
                await note_token_used(self._state, token)
        if token is None or not token.valid:
            raise Refused(unauthenticated, "invalid proxy token")
        return token, hashed

    def _connection(self, proxy_id: str, token: ProxyToken) -> Connection:
        """The proxy's mapping stream. Raises `Refused`: UNAVAILABLE while the proxy has none, so that it tries again,
        and PERMISSION_DENIED for a stream with another token."""
        connection = self._connections.get(proxy_id)
        if connection is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"{NO_STREAM}: connect it first")
        if connection.token.id != token.id:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this proxy's mapping stream uses another token")
        return connection
