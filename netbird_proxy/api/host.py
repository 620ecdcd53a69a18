"""The proxy as a plugin sees it: management, accounts, open exchanges, revoked sessions, and the process itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar, overload

import grpc.aio
from pydantic import BaseModel

from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.kit import ReloadReport
from netbird_proxy.api.model import AccountId, Address, PublicKey, ServiceId, UserId
from netbird_proxy.api.share import Share
from netbird_proxy.api.tunnels import Dialer, Tunnel
from netbird_wire.proxy_service_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    GetOIDCURLRequest,
    GetOIDCURLResponse,
    SendAccessLogRequest,
    SendAccessLogResponse,
    SendStatusUpdateRequest,
    SendStatusUpdateResponse,
    ValidateSessionRequest,
    ValidateSessionResponse,
    ValidateTunnelPeerRequest,
    ValidateTunnelPeerResponse,
)

O = TypeVar("O", bound=BaseModel)  # noqa: E741


class ManagementChannel(Protocol):
    """The single connection to management. Every call has a deadline and carries the token and the proxy's id."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """The gRPC channel, for a plugin's own services; calls on it must set `timeout` and pass `metadata()`."""

    def metadata(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def exists(self) -> bool:
        """True if this proxy is configured with a management. Without one, every call fails."""

    @property
    def extensions(self) -> frozenset[str]:
        """Extensions of NetBird's wire that management reported to support; empty before its first message."""

    @property
    def connected(self) -> bool:
        """True once the mapping stream has received a message on its present connection."""

    @overload
    async def call(
        self, method: Literal["Authenticate"], request: AuthenticateRequest, *, timeout: float | None = None
    ) -> AuthenticateResponse:
        """One unary `ProxyService` call by its name, such as `ValidateTunnelPeer`.

        Args:
            timeout: seconds; None takes the proxy's setting (2 s).

        Raises:
            ManagementUnavailable, ManagementTimeout, ManagementRefused.
        """

    @overload
    async def call(
        self, method: Literal["GetOIDCURL"], request: GetOIDCURLRequest, *, timeout: float | None = None
    ) -> GetOIDCURLResponse: ...

    @overload
    async def call(
        self, method: Literal["SendAccessLog"], request: SendAccessLogRequest, *, timeout: float | None = None
    ) -> SendAccessLogResponse: ...

    @overload
    async def call(
        self, method: Literal["SendStatusUpdate"], request: SendStatusUpdateRequest, *, timeout: float | None = None
    ) -> SendStatusUpdateResponse: ...

    @overload
    async def call(
        self, method: Literal["ValidateSession"], request: ValidateSessionRequest, *, timeout: float | None = None
    ) -> ValidateSessionResponse: ...

    @overload
    async def call(
        self, method: Literal["ValidateTunnelPeer"], request: ValidateTunnelPeerRequest, *, timeout: float | None = None
    ) -> ValidateTunnelPeerResponse: ...


class AccountHandle(Protocol):
    """An account, as its tunnel plugin sees it."""

    @property
    def id(self) -> AccountId: ...

    @property
    def generation(self) -> int:
        """A number that grows whenever cached answers about this account must be dropped."""

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def directory(self) -> Path:
        """A private directory (0700) that survives restarts, for keys and endpoints."""

    @property
    def connections(self) -> int:
        """Maximum number of open connections inside this account's tunnel: `limits.connections`."""

    async def register(self, public_key: PublicKey, *, endpoint: str = "", serves_dns: bool = False) -> None:
        """Register the node's key with management (`CreateProxyPeer`). Uses up a one-time token, and waits for one.

        Args:
            endpoint: `host:port` at which stock WireGuard clients reach this proxy, or empty.
            serves_dns: the node answers DNS queries at its overlay address, and the files of stock clients may name it.

        Raises:
            ManagementError.
        """


class OpenExchanges(Protocol):
    """The open exchanges and connections."""

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        """Run the steps again for the open exchanges that match all arguments, and cut the exchanges that they refuse.

        Authenticators run, and guards of `restrict` and `authorize` unless they have `again=False`; they see
        `exchange.revalidating`. An exchange that has no identity yet matches any user and peer. An exchange whose steps
        have not returned within `limits.step_deadline` is cut as well.

        Returns:
            The number of exchanges that match.
        """


class Revocations(Protocol):
    """Sessions that management ended before they expire."""

    def revoked(self, account: AccountId, *, subject: str, token_hash: bytes, issued_at: float) -> bool:
        """True if a session token that is otherwise valid must be refused.

        Does no I/O: call it for each exchange, also if the token was verified before.

        Args:
            subject: the token's `sub`.
            token_hash: SHA-256 of the token as it stands in the cookie.
            issued_at: the token's `iat`, seconds since the epoch.
        """


class Proxy(Protocol):
    """The host's services to its plugins."""

    @property
    def id(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def domain(self) -> str:
        """The cluster's address, as reported to management."""

    @property
    def private(self) -> bool:
        """True if this proxy listens inside its accounts' tunnels."""

    @property
    def share(self) -> Share:
        """This process's share of limits that apply to the machine: several workers may serve together."""

    @property
    def state_directory(self) -> Path: ...

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def exchanges(self) -> OpenExchanges: ...

    @property
    def revocations(self) -> Revocations: ...

    def options(self, model: type[O]) -> O:
        """The operator's settings for the plugin that declared this model in `PluginInfo.options`."""

    def tunnel(self, account: AccountId) -> Tunnel | None:
        """The account's tunnel, or None while it is down."""

    def account_dialer(self, account: AccountId) -> Dialer:
        """A dialer through the account's tunnel. A dial waits within its deadline until the tunnel is up."""

    def host_dialer(self) -> Dialer:
        """A dialer from this machine's own network.

        It does not judge addresses. As a route's dialer it reaches no more than `direct_dialer` does: the core judges
        the peer of each stream that a route's dialer opens, before anything is sent, and closes the stream if the
        operator's rules refuse the address.
        """

    def direct_dialer(self, account: AccountId) -> Dialer:
        """A dialer from this machine's own network, limited to addresses that the operator's rules open to the account.

        A name is judged by the addresses that it resolves to, and exactly the judged address is dialed. If all
        addresses are refused, the dial raises AddressRefused.
        """

    def address_refusal(self, account: AccountId, address: Address) -> str:
        """The reason why `direct_dialer` refuses an address, as the message of the plugin's RouteRefused; "" if it does
        not refuse it, or if the host is a DNS name."""

    def generation(self, account: AccountId) -> int:
        """See `AccountHandle.generation`; 0 for an unknown account."""

    def listening_addresses(self) -> Sequence[Address]:
        """Every address that this process accepts connections on, including tunnel listeners and admin sockets."""

    @property
    def client_addresses_trusted(self) -> bool:
        """True if `client_address` is reliable: from our own listeners, or by a function of the embedding program."""

    def trust(self, proxies: TrustedProxies | None) -> None:
        """Trust these proxies' reports of client addresses, on host listeners only; None trusts no proxy."""

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        """Run `step` at each reload that the operator requests (SIGHUP, `netbird-proxy reload`).

        The step reads its files again and records the outcome in the report. If it raises, the report lists the error
        under `name`, as state that was kept.
        """

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter of the process. Names are `snake_case`; a plugin uses a bounded number of them."""


__all__ = [
    "AccountHandle",
    "ManagementChannel",
    "OpenExchanges",
    "Proxy",
    "Revocations",
]
