"""The proxy as a plugin sees it: management, accounts, open exchanges, revoked sessions, and the process itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc.aio
from pydantic import BaseModel

from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.kit import ReloadReport
from netbird_proxy.api.model import AccountId, Address, PublicKey, ServiceId, UserId
from netbird_proxy.api.tunnels import Dialer, Tunnel

O = TypeVar("O", bound=BaseModel)  # noqa: E741


class ManagementChannel(Protocol):
    """The one connection to management. Every call has a deadline and carries token and proxy id."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """For services of their own; calls on it must set `timeout` and pass `metadata()`."""

    def metadata(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def exists(self) -> bool:
        """Whether this proxy has a management at all. Where it has none, every call fails."""

    @property
    def extensions(self) -> frozenset[str]:
        """What management said it understands beyond NetBird's own wire; empty before the first message."""

    @property
    def connected(self) -> bool:
        """Whether the mapping stream has had a message on its present connection."""

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        """One unary `ProxyService` call by its name, such as `ValidateTunnelPeer`.

        Args:
            timeout: seconds; None takes the proxy's setting (2 s).

        Raises:
            ManagementUnavailable, ManagementTimeout, ManagementRefused.
        """


class AccountHandle(Protocol):
    """One tenant, as its tunnel plugin sees it."""

    @property
    def id(self) -> AccountId: ...

    @property
    def generation(self) -> int:
        """Raised whenever cached answers about this account must be dropped."""

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def directory(self) -> Path:
        """A private directory (0700) that outlives the process, for keys and endpoints."""

    @property
    def connections(self) -> int:
        """How many connections the proxy takes inside this account's tunnel at once: `limits.connections`."""

    async def register(self, public_key: PublicKey, *, endpoint: str = "") -> None:
        """Make management know our node's key (`CreateProxyPeer`), spending one unspent one-time token.

        `endpoint` is `host:port` where stock WireGuard clients reach us, or empty. Waits for a token if all are
        spent. Raises ManagementError.
        """


class OpenExchanges(Protocol):
    """The exchanges and connections that are under way."""

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        """Ask the steps again about the open ones that match all that is given, and cut those that are refused.

        Asked are guards in `restrict` and `authorize`, but for those with `again=False`, and authenticators; each sees
        `exchange.revalidating`. An exchange of somebody who is not known yet matches any user and peer. One that could
        not be asked about within `limits.step_deadline` is cut as well.

        Returns how many will be asked.
        """


class Revocations(Protocol):
    """Sessions that are over before they expire, as management tells of them."""

    def revoked(self, account: AccountId, *, subject: str, token_hash: bytes, issued_at: float) -> bool:
        """Whether a session token that is otherwise good must be refused. No I/O: ask it for each exchange, also where
        the token was verified before.

        Args:
            subject: the token's `sub`.
            token_hash: SHA-256 of the token as it stands in the cookie.
            issued_at: the token's `iat`, seconds since the epoch.
        """


class Proxy(Protocol):
    """What the host offers its plugins."""

    @property
    def id(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def domain(self) -> str:
        """The cluster's address, as told to management."""

    @property
    def private(self) -> bool:
        """Whether this proxy listens inside its accounts' tunnels."""

    @property
    def state_directory(self) -> Path: ...

    @property
    def management(self) -> ManagementChannel: ...

    @property
    def exchanges(self) -> OpenExchanges: ...

    @property
    def revocations(self) -> Revocations: ...

    def options(self, model: type[O]) -> O:
        """The operator's section for the plugin whose `PluginInfo.options` this model is."""

    def tunnel(self, account: AccountId) -> Tunnel | None:
        """The account's tunnel while it is up."""

    def account_dialer(self, account: AccountId) -> Dialer:
        """Dials through the account's tunnel, waiting inside the dial's deadline until it is up."""

    def host_dialer(self) -> Dialer:
        """Dials from this machine's own network.

        It judges no address, but as a route's dialer it gets no further than `direct_dialer`: the core judges the peer
        of each stream that a route's dialer opens, before anything is sent, and closes what the operator's rules
        refuse.
        """

    def direct_dialer(self, account: AccountId) -> Dialer:
        """Dials from this machine's own network what the operator's rules open to an account.

        A name is judged by the addresses that it resolves to, and the address that was judged is the one dialed. Where
        all are refused the dial raises AddressRefused.
        """

    def address_refusal(self, account: AccountId, address: Address) -> str:
        """The reason why `direct_dialer` refuses a literal, for the plugin to refuse the route with; "" if it does not,
        or if the host is a name."""

    def generation(self, account: AccountId) -> int:
        """See AccountHandle.generation; 0 for an account never heard of."""

    def listening_addresses(self) -> Sequence[Address]:
        """Every address this process itself accepts on, tunnel listeners and admin sockets included."""

    @property
    def client_addresses_trusted(self) -> bool:
        """Whether `client_address` can be believed: our own listeners took it, or whoever embeds us says how."""

    def trust(self, proxies: TrustedProxies | None) -> None:
        """Believe these about a client's address, on host listeners; None: nobody. A tunnel's peers are never asked."""

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        """Run `step` whenever the operator asks for a reload (SIGHUP, `netbird-proxy reload`): read files again, and
        report what came of it. Whatever it raises is reported under `name` as kept."""

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the process's counters; names are `snake_case` and bounded in number."""


__all__ = [
    "AccountHandle",
    "ManagementChannel",
    "OpenExchanges",
    "Proxy",
    "Revocations",
]
