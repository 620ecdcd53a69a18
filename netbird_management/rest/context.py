"""What every router gets: the state, the plugins, and the few settings that answers depend on."""

import time
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request

from netbird_host.buckets import Buckets
from netbird_host.sources import Network
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.login.sign_on import SignOn
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.accounts import DNS_DOMAIN
from netbird_management.operations.custom_domains import DnsResolver, Resolver
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import ApiCaller
from netbird_management.store.state import State

LOGIN_BURST: Final = 15
LOGINS_PER_SECOND: Final = 10 / 60
LOGIN_SOURCES: Final = 4096
"""Failures that a source of requests may have, at setup and on its way back from the identity provider, and how many
sources are remembered."""


def _login_buckets() -> Buckets:
    return Buckets(time.monotonic, burst=LOGIN_BURST, per_second=LOGINS_PER_SECOND, keys=LOGIN_SOURCES)


@dataclass(frozen=True, slots=True)
class Context:
    """`refused_domains` are folded; `setup_secret` lets the first user be made; "" lets nobody."""

    state: State
    hooks: Hooks
    maps: NetworkMaps = field(repr=False)
    refused_domains: tuple[str, ...] = ()
    setup_secret: str = field(default="", repr=False)
    dns_domain: str = DNS_DOMAIN
    resolver: Resolver = field(default_factory=DnsResolver, repr=False)
    sign_on: SignOn | None = None
    callbacks: Buckets = field(default_factory=_login_buckets, repr=False)
    """Logins by the identity provider that failed, by source."""
    setup_tries: Buckets = field(default_factory=_login_buckets, repr=False)
    """Wrong secrets at setup, by source."""
    trusted_proxies: tuple[Network, ...] = ()

    def account_of(self, caller: ApiCaller) -> AccountSnapshot:
        """The caller's account with what the call has changed; as the call found it where the account is gone."""
        return self.state.snapshots.get(caller.account.account.id) or caller.account


def context_of(request: Request) -> Context:
    found = request.state.context
    assert isinstance(found, Context)  # noqa: S101 - put there by rest.app
    return found


InContext = Annotated[Context, Depends(context_of)]
