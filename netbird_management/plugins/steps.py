"""Types that hooks take and return: decisions, gates, network patches, and the plugin's view of the host."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from socket import socket
from typing import Any, Final, Literal, Protocol, TypeVar

from pydantic import BaseModel

from netbird_management.model.accounts import Group, Peer, Policy, User
from netbird_management.model.ids import AccountId, GroupId
from netbird_management.model.services import Capabilities
from netbird_management.model.snapshot import AccountSnapshot

OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Allow(Enum):
    """The only value that grants access; an enum with one member, so that `is not ALLOW` narrows to `Deny`."""

    ALLOW = "allow"


ALLOW: Final = Allow.ALLOW


@dataclass(frozen=True, slots=True)
class Deny:
    """A denial. `reason` is a stable code for programs (`not_in_group`); membership in any of `required_groups` would
    have been enough."""

    reason: str
    required_groups: tuple[Group, ...] = ()


Decision = Literal[Allow.ALLOW] | Deny


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a service breaks. The client reads `message`; `field` is the dotted REST name of the wrong field."""

    message: str
    field: str = ""


class PeerGate(Protocol):
    """Decides whether a peer may use the service for which the gate was made."""

    def __call__(self, *, peer: Peer, groups: tuple[Group, ...], account: AccountSnapshot) -> Decision:
        """Decides without I/O. `groups` are the *peer's* groups by name, `All` included. An exception denies."""


@dataclass(frozen=True, slots=True)
class Login:
    """An authenticated login that asks for a session on a service, or already has the session.

    Attributes:
        method: `password`, `pin`, `header`, `oidc`.
        subject: the subject of the session's token: a user's id, or a fixed name such as `password-user`.
        user: the user; None after a login with a shared secret, which identifies no user.
        groups: the user's current groups.
        client_address: the client's address as the proxy sees it; "" if the proxy does not report it.
        again: True if the session exists and the proxy asks whether it is still valid.
    """

    method: str
    subject: str
    user: User | None = None
    groups: tuple[Group, ...] = ()
    client_address: str = ""
    again: bool = False


class SessionGate(Protocol):
    """Decides whether a login gets a session on the service for which the gate was made."""

    async def __call__(self, *, login: Login, account: AccountSnapshot) -> Decision:
        """Decides within one second, which all gates of a login share. An exception or a late answer denies. The call
        is cancelled when the proxy, or the browser behind it, disconnects."""


WithholdPredicate = Callable[[Capabilities], Decision]
"""Decides whether a proxy with these capabilities may get a mapping. Anything but `ALLOW`, an exception included,
withholds it; the operator sees the reason of a denial."""


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """An address record for the members of some groups.

    `zone` is the apex of its zone and `name` the full name, both without trailing dot; `address` is IPv4 text; `ttl` is
    in seconds.
    """

    groups: frozenset[GroupId]
    zone: str
    name: str
    address: str
    ttl: int = 5


@dataclass(frozen=True, slots=True)
class NetworkPatch:
    """Policies and records that one service adds to its account's network. The API does not show or store them.

    Zones made of `records` are non-authoritative (other names under the apex still resolve normally) and are no search
    domains.
    """

    policies: tuple[Policy, ...] = ()
    records: tuple[DnsRecord, ...] = ()


class ApiCaller(Protocol):
    """The user of an API request: has a valid token, is not blocked and does not wait for approval."""

    @property
    def user(self) -> User: ...

    @property
    def account(self) -> AccountSnapshot:
        """The user's account at the time of the request. Objects of other accounts are never in it."""


@dataclass(frozen=True, slots=True)
class ProxyCaller:
    """The proxy that makes a gRPC call.

    Attributes:
        account_id: the account for which its token is valid; None if the token is valid for all accounts.
        address: the address from which the call comes; "" if gRPC does not report it.
        proxy_id: the proxy's id, which distinguishes proxies with the same token; "" if the call does not send it.
    """

    account_id: AccountId | None
    address: str = ""
    proxy_id: str = ""


@dataclass(frozen=True, slots=True)
class RpcService:
    """One gRPC service in addition to the host's own.

    Attributes:
        servicer: the implementation; all of its methods are `async`.
        add: the generated function that registers it, such as `add_GreeterServicer_to_server`.
        open: True to accept calls without a token. Otherwise a call needs a proxy's token, like calls of the proxies'
            own service.
        stop: called once when the host begins to stop; it ends the service's streams, which otherwise delay the stop
            until they are cut. It must not wait. An exception is logged.
    """

    servicer: object
    add: Callable[[Any, Any], None]
    open: bool = False
    stop: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class PeerServers:
    """Servers that a plugin runs for peers. Management announces them to peers unless the operator's settings name
    others of the same kind.

    Attributes:
        signal: the URL of a signal server, `https://host:port` or `http://host:port`; "" for none.
        relays: URLs of relays, each `rels://host:port` (TLS) or `rel://host:port`, which admit tokens made with
            `Management.relay_secret`.
        stuns: STUN servers, each `stun:host:port`.
    """

    signal: str = ""
    relays: tuple[str, ...] = ()
    stuns: tuple[str, ...] = ()


class TakeSocket(Protocol):
    """Serves a connection that a client upgrades to another protocol."""

    def __call__(self, *, connection: socket, head: bytes, address: str) -> None:
        """Takes over the connection and returns at once; the caller is the host's event loop.

        Args:
            connection: a connected, non-blocking stream socket without TLS. The receiver closes it. It may be a pair's
                end, and so have no address of the client.
            head: the bytes that the client has sent so far, from the request line on: at least the whole head.
            address: the client's address; "" if it is not known.
        """


class Management(Protocol):
    """A plugin's view of the running host."""

    @property
    def relay_secret(self) -> str:
        """The secret that management shares with relays, and makes their tokens with (`netbird_wire.relay_tokens`)."""

    @property
    def rest_url(self) -> str:
        """The URL at which peers reach the REST port, such as `https://management.example:443`; "" before the host
        listens."""

    @property
    def grpc_url(self) -> str:
        """The URL at which peers reach the gRPC port; "" before the host listens."""

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        """The current snapshot of an account; None if the account does not exist."""

    def account_of_peer(self, public_key: str) -> AccountId | None:
        """The account of the peer with this WireGuard key, as base64 text; None if no peer has the key."""

    def options(self, model: type[OptionsT]) -> OptionsT:
        """The operator's section for the plugin whose `PluginInfo.options` this model is."""

    def allowed(self, module: str, operation: Literal["create", "read", "update", "delete"]) -> Any:
        """The default value for a route's parameter of type `ApiCaller`: the user, if the user's role permits this.

        Otherwise the client gets 403, and without a valid token 401, before the route runs. `module` is a module of
        the roles, such as `services`, `peers`, `policies` or `events`; only the owner has permissions in an unknown
        module.
        """

    def caller_address(self) -> str:
        """The client address of the current gRPC call, behind the operator's trusted proxies; "" where it is not
        known."""

    def proxy_caller(self) -> ProxyCaller:
        """The proxy that makes the current gRPC call. Raises `LookupError` outside of a call and in an open service."""
