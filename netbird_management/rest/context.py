"""What every router gets: the state, the plugins, and the few settings that answers depend on."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from netbird_host.sources import Network
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.login.sign_on import SignOn
from netbird_management.operations.accounts import DNS_DOMAIN
from netbird_management.operations.custom_domains import DnsResolver, Resolver
from netbird_management.plugins.hooks import Hooks
from netbird_management.rest.rate import Rate
from netbird_management.store.state import State


@dataclass(frozen=True, slots=True)
class Context:
    """`refused_domains` are folded; `setup_secret` lets the first user be made from elsewhere than loopback."""

    state: State
    hooks: Hooks
    refused_domains: tuple[str, ...] = ()
    setup_secret: str = field(default="", repr=False)
    dns_domain: str = DNS_DOMAIN
    resolver: Resolver = field(default_factory=DnsResolver, repr=False)
    sign_on: SignOn | None = None
    callbacks: Rate = field(default_factory=Rate)
    trusted_proxies: tuple[Network, ...] = ()
    maps: NetworkMaps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", NetworkMaps(self.hooks))


def context_of(request: Request) -> Context:
    found = request.state.context
    assert isinstance(found, Context)  # noqa: S101 - put there by rest.app
    return found


InContext = Annotated[Context, Depends(context_of)]
