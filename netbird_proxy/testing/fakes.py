"""The proxy as a plugin sees it, without a process behind it: management, tunnel, host."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc.aio
from pydantic import BaseModel

from netbird_host.deprecation import older_arguments, older_name
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.addresses import AddressJudge, AddressRules
from netbird_proxy.api.errors import DialRefused, ManagementUnavailable, TunnelNotReady
from netbird_proxy.api.forwarded import TrustedProxies
from netbird_proxy.api.kit import ReloadReport
from netbird_proxy.api.model import AccountId, Address, Peer, PublicKey, ServiceId, UserId
from netbird_proxy.api.share import WHOLE, Share
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory, Tunnel, TunnelListener
from netbird_proxy.upstreams.host_dialer import HostDialer as JudgingDialer

O = TypeVar("O", bound=BaseModel)  # noqa: E741

Answer = object | BaseException | Callable[[Any], Any]
"""The answer to a call: a message, an exception to raise, or a function of the request (which may be async)."""


class FakeManagement:
    """A management channel that answers as told, and remembers what it was asked.

    Implements `ManagementChannel`. An unscripted call fails as unreachable management does: guards must close.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None, *, extensions: Sequence[str] = ()) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self.calls: list[tuple[str, Any]] = []
        self.timeouts: list[float | None] = []
        self.exists = True
        self.connected = True
        self.extensions = frozenset(extensions)

    @property
    def channel(self) -> grpc.aio.Channel:
        raise ManagementUnavailable("the fake has no channel: script `answers` instead")

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer test"), ("x-netbird-proxy-id", "proxy-1"))

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        self.calls.append((method, request))
        self.timeouts.append(timeout)
        answer = self.answers.get(method)
        if answer is None:
            raise ManagementUnavailable(f"call {method}: nothing scripted")
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            reply = answer(request)
            return await reply if asyncio.iscoroutine(reply) else reply
        return answer


class _Listener:
    def __init__(self, tunnel: FakeTunnel, port: int) -> None:
        self._tunnel = tunnel
        self._port = port

    def close(self) -> None:
        self._tunnel.listening.pop(self._port, None)


class FakeTunnel:
    """An account's overlay with a roster. Implements `Tunnel`.

    Attributes:
        roster: overlay address → peer; what `whois` answers from.
        listening: port → factory of the protocol that a stream accepted there would get.
        dials: what was asked to be dialed, in order.
        upstreams: address → where a dial there really goes, on this machine; others are refused.
    """

    def __init__(
        self,
        roster: Mapping[str, Peer] | None = None,
        *,
        addresses: Sequence[str] = ("100.64.0.1",),
        key: str = "a" * 43,
    ) -> None:
        self.roster: dict[str, Peer] = dict(roster or {})
        self.addresses: Sequence[str] = tuple(addresses)
        self.public_key = PublicKey(key + "=")
        self.listening: dict[int, ProtocolFactory] = {}
        self.dials: list[Address] = []
        self.upstreams: dict[Address, Address] = {}
        self._changed = asyncio.Event()

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        self.dials.append(address)
        where = self.upstreams.get(address)
        if where is None:
            raise DialRefused(f"dial {address} through the fake tunnel: refused")
        async with asyncio.timeout(timeout):
            return await asyncio.get_running_loop().create_connection(protocol_factory, *where)

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> TunnelListener:
        self.listening[port] = protocol_factory
        return _Listener(self, port)

    def whois(self, address: str) -> Peer | None:
        return self.roster.get(address)

    def change(self, roster: Mapping[str, Peer] | None = None) -> None:
        """Let the account's map change."""
        if roster is not None:
            self.roster = dict(roster)
        self._changed.set()

    async def changes(self) -> AsyncIterator[None]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield


class FakeExchanges:
    """Open exchanges that nobody has; remembers who was to be asked again. Implements `OpenExchanges`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str | None]] = []

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        self.asked.append({"account": account, "user": user, "peer": peer, "service": service})
        return 0


class HostDialer:
    """Dials this machine's own network. Judges no address."""

    def __init__(self) -> None:
        self.dials: list[Address] = []

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        self.dials.append(address)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().create_connection(protocol_factory, *address)
        except ConnectionRefusedError as exc:
            raise DialRefused(f"dial {address}: refused") from exc


class _NoTunnel:
    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        raise TunnelNotReady(f"dial {address}: the account has no tunnel here")


class FakeProxy:
    """The host as its plugins see it. Implements `Proxy`.

    Args:
        tunnels: account → tunnel that is up.
        options: the operator's sections; a model that is missing is made from its defaults.
    """

    knows_clients = older_name("Proxy.knows_clients", "client_addresses_trusted")

    @older_arguments(knows_clients="client_addresses_trusted")
    def __init__(
        self,
        *,
        management: FakeManagement | None = None,
        tunnels: Mapping[str, Tunnel] | None = None,
        options: Sequence[BaseModel] = (),
        state_directory: Path | None = None,
        private: bool = True,
        client_addresses_trusted: bool = True,
        listening: Sequence[Address] = (),
        share: Share = WHOLE,
    ) -> None:
        self.share = share
        self.id = "proxy-1"
        self.version = "0"
        self.domain = "proxy.example.com"
        self.private = private
        self.client_addresses_trusted = client_addresses_trusted
        self.trusted: TrustedProxies | None = None
        self.management = management or FakeManagement()
        self.exchanges = FakeExchanges()
        self.revocations = RevokedSessions()
        self.tunnels: dict[str, Tunnel] = dict(tunnels or {})
        self.generations: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        self.reloads: dict[str, Callable[[ReloadReport], None]] = {}
        self.host = HostDialer()
        self._options = {type(section): section for section in options}
        self._state_directory = state_directory
        self._listening = tuple(listening)
        self.rules = AddressRules(options, lambda: self.listening_addresses())

    @property
    def state_directory(self) -> Path:
        if self._state_directory is None:
            raise RuntimeError("give the fake a state_directory, such as pytest's tmp_path")
        return self._state_directory

    def options(self, model: type[O]) -> O:
        return cast(O, self._options.get(model)) or model()

    def tunnel(self, account: AccountId) -> Tunnel | None:
        return self.tunnels.get(account)

    def account_dialer(self, account: AccountId) -> Dialer:
        return self.tunnels.get(account) or _NoTunnel()

    def host_dialer(self) -> Dialer:
        return self.host

    def direct_dialer(self, account: AccountId) -> Dialer:
        return JudgingDialer(AddressJudge(self.rules, account))

    def address_refusal(self, account: AccountId, address: Address) -> str:
        return self.rules.refusal(account, *address)

    def generation(self, account: AccountId) -> int:
        return self.generations[account]

    def listening_addresses(self) -> Sequence[Address]:
        return self._listening

    def trust(self, proxies: TrustedProxies | None) -> None:
        self.trusted = proxies

    def on_reload(self, name: str, step: Callable[[ReloadReport], None]) -> None:
        self.reloads[name] = step

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount
