"""The running proxy as its plugins see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from netbird_host.deprecation import older_name
from netbird_host.reload import ReloadReport
from netbird_proxy.accounts.accounts import Accounts, ProxyPeers
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.addresses import AddressJudge, AddressRules
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.host import OpenExchanges
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Dialer, Tunnel
from netbird_proxy.app import ReverseProxy
from netbird_proxy.process.listeners import Listeners
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.reload import host_reload
from netbird_proxy.process.state import open_state, proxy_id
from netbird_proxy.upstreams.host_dialer import HostDialer

O = TypeVar("O", bound=BaseModel)  # noqa: E741


class HostApi:
    """Implements `netbird_proxy.Proxy`.

    The compiler hands it to the hooks of plugins, so it is built first. `connect` adds the parts that are built later,
    before any hook is called.

    Attributes:
        counters: the process's counters, by name.
        reload: rereads the settings and files that can change while the process runs.
        rules: the addresses that dialers may reach from this machine.
    """

    management: ProxyPeers
    _app: ReverseProxy
    _accounts: Accounts
    _listeners: Listeners

    def __init__(self, loaded: Loaded) -> None:
        settings = loaded.settings
        self.state_directory: Path = open_state(settings.state_directory)
        self.id = proxy_id(self.state_directory)
        self.version = distribution_version("netbird-proxy")
        self.domain = settings.management.domain if settings.management is not None else ""
        self.private = settings.private
        self.share = loaded.share
        self.counters: Counter[str] = Counter()
        self.reload = host_reload(loaded)
        self.revocations = RevokedSessions(count=self.count)
        self._options = {type(section): section for section in loaded.options.values()}
        self._host_dialer = HostDialer()
        self.rules = AddressRules(self._options.values(), self.listening_addresses)

    def connect(self, app: ReverseProxy, accounts: Accounts, management: ProxyPeers, listeners: Listeners) -> None:
        self._app = app
        self._accounts = accounts
        self.management = management
        self._listeners = listeners

    def options(self, model: type[O]) -> O:
        section = self._options[model]
        assert isinstance(section, model)  # noqa: S101 - keyed by its own type
        return section

    def tunnel(self, account: AccountId) -> Tunnel | None:
        return self._accounts.tunnel(account)

    def account_dialer(self, account: AccountId) -> Dialer:
        return self._accounts.dialer(account)

    @property
    def exchanges(self) -> OpenExchanges:
        return self._app.exchanges

    def host_dialer(self) -> Dialer:
        return self._host_dialer

    def direct_dialer(self, account: AccountId) -> Dialer:
        return HostDialer(AddressJudge(self.rules, account))

    def address_refusal(self, account: AccountId, address: Address) -> str:
        return self.rules.refusal(account, *address)

    def generation(self, account: AccountId) -> int:
        return self._accounts.generation(account)

    def listening_addresses(self) -> Sequence[Address]:
        return self._listeners.addresses

    knows_clients = older_name("Proxy.knows_clients", "client_addresses_trusted")

    @property
    def client_addresses_trusted(self) -> bool:
        return True

    def trust(self, proxies: TrustedProxies | None) -> None:
        self._app.trusted = proxies

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        self.reload.register(name, step)

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount
