"""What hooks take and return: decisions, gates, patches of the network, and what a plugin sees of the host."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Protocol, TypeVar

from pydantic import BaseModel

from netbird_management.model.accounts import Group, Peer, Policy, User
from netbird_management.model.ids import AccountId, GroupId
from netbird_management.model.services import Capabilities
from netbird_management.model.snapshot import AccountSnapshot

OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Allow(Enum):
    """The one value that opens a door; an enum with one member, so that `is not ALLOW` narrows to the denial."""

    ALLOW = "allow"


ALLOW: Final = Allow.ALLOW


@dataclass(frozen=True, slots=True)
class Deny:
    """Not let in. `reason` is stable, for machines (`not_in_group`); `required_groups` would have been enough."""

    reason: str
    required_groups: tuple[Group, ...] = ()


Decision = Literal[Allow.ALLOW] | Deny


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a service breaks. `message` is what the caller reads, `field` the dotted REST name it is about."""

    message: str
    field: str = ""


class PeerGate(Protocol):
    """Says whether a peer may use the service it was made for."""

    def __call__(self, *, peer: Peer, groups: tuple[Group, ...], account: AccountSnapshot) -> Decision:
        """`groups` are the *peer's* groups by name, `All` included. In memory, no I/O. Raising denies."""


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who has proved something, and is about to have a session on a service, or has one.

    Attributes:
        method: `password`, `pin`, `header`, `oidc`.
        subject: what the session's token names: a user's id, or `password-user` and the like.
        user: the person; None where a shared secret says only that somebody knows it.
        groups: the person's, as they are now.
        client_address: where they are, as the proxy sees it; "" where nobody tells.
        again: the session is there already, and is asked about.
    """

    method: str
    subject: str
    user: User | None = None
    groups: tuple[Group, ...] = ()
    client_address: str = ""
    again: bool = False


class SessionGate(Protocol):
    """Says whether somebody may have a session on the service it was made for."""

    async def __call__(self, *, login: Login, account: AccountSnapshot) -> Decision:
        """All gates of a login have a second together. Raising, and being late, denies. Cancelled where the proxy, or
        the browser behind it, has gone."""


WithholdPredicate = Callable[[Capabilities], Decision]
"""Whether a proxy with these capabilities may have a mapping. A denial's reason is shown to the operator; raising, or
returning anything but `ALLOW`, withholds."""


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """An address record that the members of some groups get to see.

    `zone` is the apex it is listed under and `name` the full name, both without trailing dot; `address` is IPv4 text.
    """

    groups: frozenset[GroupId]
    zone: str
    name: str
    address: str
    ttl: int = 5


@dataclass(frozen=True, slots=True)
class NetworkPatch:
    """What one service adds to its account's network. Never stored, never shown as a policy or a zone.

    Zones made of `records` are non-authoritative (other names under the apex resolve as ever) and no search domains.
    """

    policies: tuple[Policy, ...] = ()
    records: tuple[DnsRecord, ...] = ()


class ApiCaller(Protocol):
    """Who calls the API: somebody with a good token, neither blocked nor waiting for approval."""

    @property
    def user(self) -> User: ...

    @property
    def account(self) -> AccountSnapshot:
        """Theirs, as it was when the call came. What belongs to another account is not found."""


@dataclass(frozen=True, slots=True)
class ProxyCaller:
    """The proxy that a call comes from.

    Attributes:
        account_id: the account that its token is good for; None where it is good for all of them.
        address: where the call comes from; "" where gRPC does not say.
        proxy_id: which of the proxies with this token; "" where the call does not say.
    """

    account_id: AccountId | None
    address: str = ""
    proxy_id: str = ""


@dataclass(frozen=True, slots=True)
class RpcService:
    """One gRPC service beside the host's own.

    Attributes:
        servicer: what answers, all of its methods `async`.
        add: the generated function that belongs to it, such as `add_GreeterServicer_to_server`.
        open: whether anybody may call it. Else a call needs a proxy's token, as those of the proxies' own service do.
    """

    servicer: object
    add: Callable[[Any, Any], None]
    open: bool = False


class Management(Protocol):
    """What a plugin sees of the running host."""

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        """What is true of an account right now."""

    def options(self, model: type[OptionsT]) -> OptionsT:
        """The operator's section for the plugin whose `PluginInfo.options` this model is."""

    def allowed(self, module: str, operation: Literal["create", "read", "update", "delete"]) -> Any:
        """The default value of a parameter `who: ApiCaller` of a route: the caller, if their role lets them do this.

        Everybody else reads 403, and who has no good token 401, before the route is run. `module` is one that roles
        know, such as `services`, `peers`, `policies` or `events`; nobody but the owner may do anything to one unheard
        of.
        """

    def proxy_caller(self) -> ProxyCaller:
        """Who makes the gRPC call under way. Raises `LookupError` outside of one, and in a service that is open."""
