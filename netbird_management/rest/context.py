"""The context of every route: the state, the plugins, and the settings that responses depend on."""

import time
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request

from netbird_host.buckets import Buckets
from netbird_host.sources import Network
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.login.settings import AgentLogin
from netbird_management.login.sign_on import SignOn
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import DNS_DOMAIN
from netbird_management.operations.custom_domains import DnsResolver, Resolver
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import ApiCaller
from netbird_management.store.state import State

# Failures that an address (IPv6: a /64) may cause at setup or at the login callback; beyond them 429.
LOGIN_BURST: Final = 15
LOGINS_PER_SECOND: Final = 10 / 60
# Addresses whose failures are counted; the one without a failure for the longest time is forgotten first.
LOGIN_SOURCES: Final = 4096


def _login_buckets() -> Buckets:
    return Buckets(time.monotonic, burst=LOGIN_BURST, per_second=LOGINS_PER_SECOND, keys=LOGIN_SOURCES)


@dataclass(frozen=True, slots=True)
class Context:
    """The context of every route.

    Attributes:
        refused_domains: folded domains that no service may use.
        setup_secret: the secret that permits the creation of the first user; "" permits it to nobody.
    """

    state: State
    hooks: Hooks
    maps: NetworkMaps = field(repr=False)
    refused_domains: tuple[str, ...] = ()
    setup_secret: str = field(default="", repr=False)
    dns_domain: str = DNS_DOMAIN
    resolver: Resolver = field(default_factory=DnsResolver, repr=False)
    sign_on: SignOn | None = None
    callbacks: Buckets = field(default_factory=_login_buckets, repr=False)
    """Failed logins at the identity provider's callback, by the client's address."""
    setup_tries: Buckets = field(default_factory=_login_buckets, repr=False)
    """Wrong setup secrets, by the client's address."""
    trusted_proxies: tuple[Network, ...] = ()
    agent_login: AgentLogin | None = None
    """The identity provider at which users of agents log in."""

    def account_of(self, caller: ApiCaller) -> AccountSnapshot:
        """The caller's account with the changes of this request; as it was before the request if it is deleted."""
        return self.state.snapshots.get(caller.account.account.id) or caller.account


def context_of(request: Request) -> Context:
    context = request.state.context
    assert isinstance(context, Context)  # noqa: S101 - rest.app sets it
    return context


InContext = Annotated[Context, Depends(context_of)]
