"""The accounts that need a tunnel, each with a task that keeps its tunnel up.

A tunnel is opened when the first mapping needs it, reopened with back-off after a failure, and closed when no mapping
needs it. Until it is up, dials wait within their own deadline. This module holds the state of all tunnels: nodes,
listeners and generations.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import structlog

from netbird_host.containment import describe_error, must_pass
from netbird_proxy.api.errors import TunnelNotReady
from netbird_proxy.api.host import ManagementChannel, Proxy
from netbird_proxy.api.model import AccountId, Address, PublicKey
from netbird_proxy.api.tunnels import ProtocolFactory, Reachability, Tunnel
from netbird_proxy.routing.hooks import Hooks
from netbird_proxy.upstreams.judged import exempt
from netbird_wire.backoff import Backoff

log = structlog.get_logger("netbird_proxy.accounts")

FIRST_DELAY, FACTOR, LONGEST_DELAY = 0.8, 1.7, 15.0
"""Back-off between attempts to open a tunnel, in seconds; each wait is uniform in [half, whole]."""
REACHABILITY_INTERVAL = 1.0
"""Minimum time in seconds between two reports of an account's reachability, however often its peers come and go."""
GENERATIONS = 65_536
"""Maximum number of accounts that have a generation of their own."""
REASON_LENGTH = 300
"""Maximum length of a plugin's reason that is passed on to management."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ProxyPeers(ManagementChannel, Protocol):
    """The management channel, with the call that only the host makes."""

    async def create_proxy_peer(
        self, account: AccountId, public_key: PublicKey, endpoint: str, *, serves_dns: bool = False
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class InboundListeners:
    """The overlay address that an account's peers connect to, as reported to management. None: port not served."""

    address: str
    http_port: int | None
    https_port: int | None


@dataclass(slots=True)
class AccountState:
    """The state of an account's tunnel. `tunnel` is None until it is up, and after it is lost."""

    id: AccountId
    tunnel: Tunnel | None = None
    inbound: InboundListeners | None = None
    error: str = ""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Handle:
    """Implements `netbird_proxy.api.steps.AccountHandle`."""

    id: AccountId
    directory: Path
    management: ProxyPeers
    accounts: Accounts

    @property
    def generation(self) -> int:
        return self.accounts.generation(self.id)

    @property
    def connections(self) -> int:
        return self.accounts.connections

    async def register(self, public_key: PublicKey, *, endpoint: str = "", serves_dns: bool = False) -> None:
        await self.management.create_proxy_peer(self.id, public_key, endpoint, serves_dns=serves_dns)


@dataclass(frozen=True, slots=True)
class AccountDialer:
    """A dialer through an account's tunnel, also after it was reopened. Dialers of an account are equal."""

    accounts: Accounts
    account: AccountId
    through_tunnel: ClassVar[bool] = True
    """Marks targets whose services depend on a peer of the account."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        factory = exempt(protocol_factory, self.account)
        tunnel = await self.accounts.wait_for_tunnel(self.account, timeout)
        return await tunnel.dial(factory, address, timeout=max(deadline - loop.time(), 0.001))


class Accounts:
    """The tunnels of all accounts."""

    def __init__(
        self,
        hooks: Hooks,
        management: ProxyPeers,
        state_directory: Path,
        *,
        listening: Callable[[AccountId, Tunnel], AbstractAsyncContextManager[InboundListeners]] | None,
        on_change: Callable[[AccountState], None],
        on_map: Callable[[AccountId], object],
        on_reachability: Callable[[AccountId], object] = lambda _account: None,
        connections: int,
        count: Callable[[str], object] = lambda _name: None,
    ) -> None:
        """Args:
        listening: starts the listeners in a tunnel that is up; None if this proxy serves no private services.
        on_change: called when a tunnel is up, was lost, or could not be opened.
        on_map: called after each change of an account's network map, after its generation was raised.
        on_reachability: called after changes of what an account's tunnel can reach.
        connections: maximum number of open connections inside each tunnel.
        count: adds 1 to a counter of the process.
        """
        self._hooks = hooks
        self._management = management
        self._directory = state_directory / "accounts"
        self._listening = listening
        self._on_change = on_change
        self._on_map = on_map
        self._on_reachability = on_reachability
        self.connections = connections
        self._states: dict[AccountId, AccountState] = {}
        self._generations: dict[AccountId, int] = {}
        self._epoch = 0
        self.count = count
        self._group: asyncio.TaskGroup | None = None
        self._proxy: Proxy | None = None

    async def run(self, proxy: Proxy, group: asyncio.TaskGroup) -> None:
        """Start to keep tunnels up, as tasks of the group. Tunnels that are already needed start now."""
        self._proxy = proxy
        self._group = group
        self.want(frozenset(self._states))

    def want(self, accounts: frozenset[AccountId]) -> None:
        """Keep a tunnel for exactly these accounts: new ones start, others are closed. Idempotent."""
        for account in accounts:
            state = self._states.setdefault(account, AccountState(account))
            if state.task is None and self._group is not None:
                state.task = self._group.create_task(self._keep(state), name=f"tunnel {account}")
        for account in [account for account in self._states if account not in accounts]:
            state = self._states.pop(account)
            self.raise_generation(account)
            if state.task is not None:
                state.task.cancel()

    async def stop(self) -> None:
        """Close all tunnels, and wait until they are closed. No tunnel is opened after that."""
        tasks = [state.task for state in self._states.values() if state.task is not None]
        self._group = None
        self.want(frozenset())
        if tasks:
            await asyncio.wait(tasks)

    def state(self, account: AccountId) -> AccountState | None:
        return self._states.get(account)

    def tunnel(self, account: AccountId) -> Tunnel | None:
        state = self._states.get(account)
        return state.tunnel if state else None

    @property
    def all_up(self) -> bool:
        """True if every account that needs a tunnel has one."""
        return all(state.tunnel is not None for state in self._states.values())

    def tunnels(self) -> list[Tunnel]:
        return [state.tunnel for state in self._states.values() if state.tunnel is not None]

    def unreachable(self, account: AccountId, address: Address) -> str:
        """The reason why the account's tunnel cannot reach an address now; "" if it can, or cannot tell."""
        tunnel = self.tunnel(account)
        if not isinstance(tunnel, Reachability):
            return ""
        try:
            reason = tunnel.unreachable(address)
            if not isinstance(reason, str):
                raise TypeError(f"unreachable() returned {type(reason).__name__}, not str")
        except BaseException as failure:
            # The plugin's code ends here. Its answer is for people, so a service is not closed for lack of it.
            if must_pass(failure):
                raise
            self.count("reachability_failed")
            log.warning("tunnel.reachability_failed", account_id=account, error=describe_error(failure))
            return ""
        return reason[:REASON_LENGTH]

    def generation(self, account: AccountId) -> int:
        return self._epoch + self._generations.get(account, 0)

    def raise_generation(self, account: AccountId) -> None:
        """Invalidate all cached and pending answers about this account."""
        self._generations[account] = self._generations.get(account, 0) + 1
        if len(self._generations) > GENERATIONS:
            # Management may name any number of accounts. Raising the epoch invalidates the answers of all of them.
            self._epoch += max(self._generations.values()) + 1
            self._generations.clear()
            self.count("generations_forgotten")

    def raise_generations(self) -> None:
        """Invalidate the answers about every account, including unknown ones."""
        self._epoch += 1

    def dialer(self, account: AccountId) -> AccountDialer:
        return AccountDialer(self, account)

    async def wait_for_tunnel(self, account: AccountId, timeout: float) -> Tunnel:
        """Wait until the account's tunnel is up, and return it. TunnelNotReady after `timeout` seconds."""
        state = self._states.get(account)
        if state is None:
            raise TunnelNotReady(f"account {account} has no tunnel")
        if state.tunnel is None:
            try:
                async with asyncio.timeout(timeout):
                    await state.up.wait()
            except TimeoutError as exc:
                why = state.error or "it is still starting"
                raise TunnelNotReady(f"tunnel of account {account} was not up within {timeout:g} s: {why}") from exc
        if state.tunnel is None:
            raise TunnelNotReady(f"tunnel of account {account} was lost")
        return state.tunnel

    def handle(self, account: AccountId) -> Handle:
        """The account as its tunnel plugin sees it. Creates its private directory."""
        name = account if _SAFE_NAME.fullmatch(account) else "x-" + hashlib.sha256(account.encode()).hexdigest()[:40]
        directory = self._directory / name
        self._directory.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        return Handle(account, directory, self._management, self)

    async def _keep(self, state: AccountState) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, factor=FACTOR)
        while True:
            was_up = False
            try:
                was_up = await self._once(state)
                state.error = "the tunnel closed"
            except BaseException as failure:
                # The tunnel plugin's code ends here: any exception is reported, and the tunnel is opened again. The
                # account's services stay closed meanwhile.
                if must_pass(failure) or _is_cancelled():
                    raise
                was_up = was_up or state.up.is_set()
                state.error = "; ".join(_causes(failure))
                log.warning("tunnel.failed", account_id=state.id, error=state.error)
            finally:
                self._down(state)
            self._on_change(state)
            if was_up:
                backoff.reset()
            await asyncio.sleep(backoff.next_wait())

    async def _once(self, state: AccountState) -> bool:
        """Open a tunnel, and keep it until it ends."""
        assert self._proxy is not None  # noqa: S101 - run() sets it before the first task exists
        opened = self._hooks.open_tunnel(self.handle(state.id), self._proxy)
        if opened is None:
            raise TunnelNotReady("no plugin of this proxy opens tunnels")
        _, context = opened
        async with context as tunnel, AsyncExitStack() as stack:
            if self._listening is not None:
                state.inbound = await stack.enter_async_context(self._listening(state.id, tunnel))
            state.tunnel = tunnel
            state.error = ""
            state.up.set()
            self.raise_generation(state.id)
            log.info("tunnel.up", account_id=state.id, addresses=list(tunnel.addresses))
            self._on_change(state)
            if isinstance(tunnel, Reachability) and self._group is not None:
                following = self._group.create_task(self._follow(state, tunnel), name=f"reachability {state.id}")
                stack.callback(following.cancel)
            async for _ in tunnel.changes():
                self.raise_generation(state.id)
                self._on_map(state.id)
        return True

    async def _follow(self, state: AccountState, tunnel: Reachability) -> None:
        """Report changes of what a tunnel can reach, until the tunnel ends."""
        try:
            async for _ in tunnel.reachability():
                self._on_reachability(state.id)
                await asyncio.sleep(REACHABILITY_INTERVAL)
        except BaseException as failure:
            # The plugin's code ends here: its tunnel goes on, and statuses keep what was reported last.
            if must_pass(failure) or _is_cancelled():
                raise
            log.warning("tunnel.reachability_failed", account_id=state.id, error=describe_error(failure))

    def _down(self, state: AccountState) -> None:
        state.tunnel = None
        state.inbound = None
        state.up.clear()
        self.raise_generation(state.id)


def _causes(failure: BaseException) -> list[str]:
    """The messages of the exceptions in a group, whose own message is not informative."""
    if isinstance(failure, BaseExceptionGroup):
        return [cause for error in failure.exceptions for cause in _causes(error)]
    return [describe_error(failure).removeprefix(f"{type(failure).__name__}: ")]


def _is_cancelled() -> bool:
    """True if the calling task was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
