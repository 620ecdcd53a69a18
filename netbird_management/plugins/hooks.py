"""Typed calls of the hooks; no other module calls pluggy. A plugin's mistake denies access and never grants it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import netbird_management.plugins.hookspecs as hookspecs
from netbird_host.info import Claim, PluginId
from netbird_host.plugins import Plugins, load
from netbird_management.model.server_urls import server_url, stun_server
from netbird_management.model.services import AccessLogEntry, Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.steps import (
    Management,
    NetworkPatch,
    PeerGate,
    PeerServers,
    RpcService,
    SessionGate,
    TakeSocket,
    Violation,
    WithholdPredicate,
)
from netbird_wire.proxy_service_pb2 import ProxyMapping

if TYPE_CHECKING:
    from fastapi import APIRouter

GROUP = "netbird_management"
"""Entry-point group of this host's plugins."""

API = "/api"
"""Path of the REST API, which no plugin may take over."""

_log = logging.getLogger(__name__)


class HookError(Exception):
    """A plugin raised, or returned a value of a type that its hook does not allow. `plugin` and `hook` name them."""

    def __init__(self, plugin: str, hook: str, why: str) -> None:
        super().__init__(f"plugin {plugin}: {hook}: {why}")
        self.plugin = plugin
        self.hook = hook


def load_hooks(
    allowed: Sequence[PluginId | tuple[PluginId, object]] = (),
    *,
    defaults: Mapping[PluginId, object] | None = None,
    reserved_ids: Collection[str] = (),
) -> Hooks:
    """Loads the operator's plugins: entry-point names, or `(id, object)` pairs from a program or a test.

    `defaults` are the host's own plugins, which come after the operator's.

    Raises `netbird_host.plugins.PluginError`: a plugin is missing or wrong, and the message states what to change.
    """
    return Hooks(
        load(
            hookspecs.PROJECT,
            hookspecs,
            group=GROUP,
            allowed=allowed,
            defaults=defaults or {},
            reserved_ids=reserved_ids,
        )
    )


class Hooks:
    """One method per hook, and the fields that all plugins together claim."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.by_field: Mapping[str, Claim] = {claim.field: claim for plugin in plugins for claim in plugin.info.claims}
        self.claims: frozenset[str] = frozenset(self.by_field)
        self.options: Mapping[PluginId, type[BaseModel]] = {
            plugin.id: plugin.info.options for plugin in plugins if plugin.info.options is not None
        }
        """The models of the plugins' sections in the settings file."""
        self.settings = tuple((plugin.id, model) for plugin in plugins for model in plugin.info.settings)
        self.target_settings = tuple((plugin.id, model) for plugin in plugins for model in plugin.info.target_settings)

    def _each(
        self, hook: str, kind: type[Any] | tuple[type[Any], ...], arguments: Mapping[str, object]
    ) -> Iterable[tuple[PluginId, Any]]:
        """Each plugin's name and answer, without answers that are `None`. Raises `HookError`."""
        for name, call in self.plugins.calls(hook):
            try:
                answer = call(**arguments)
            except Exception as error:
                raise HookError(name, hook, f"raised {type(error).__name__}: {error}") from error
            if answer is None:
                continue
            if not isinstance(answer, kind):
                raise HookError(name, hook, f"returned {type(answer).__name__}")
            yield name, answer

    @asynccontextmanager
    async def lifespan(self, management: Management) -> AsyncIterator[None]:
        """Enters the plugins' lifespans in order, and leaves them in reverse order."""
        async with AsyncExitStack() as stack:
            for name, context in self._each("lifespan", object, {"management": management}):
                if not hasattr(context, "__aenter__"):
                    raise HookError(name, "lifespan", f"returned {type(context).__name__}")
                await stack.enter_async_context(context)
            yield

    def validate_service(
        self, service: Service, previous: Service | None, sent: frozenset[str], account: AccountSnapshot
    ) -> list[Violation]:
        """Every broken rule of every plugin. Raises `HookError`."""
        arguments = {"service": service, "previous": previous, "sent": sent, "account": account}
        violations: list[Violation] = []
        for name, answer in self._each("validate_service", Sequence, arguments):
            for violation in answer:
                if not isinstance(violation, Violation):
                    raise HookError(name, "validate_service", f"returned {type(violation).__name__}")
                violations.append(violation)
        return violations

    def build_mapping(self, service: Service, mapping: ProxyMapping) -> None:
        """Lets every plugin fill its fields. Raises `HookError`; the caller must then not send the mapping."""
        for name, answer in self._each("build_mapping", object, {"service": service, "mapping": mapping}):
            raise HookError(name, "build_mapping", f"returned {type(answer).__name__}")

    def withhold_mapping(self, service: Service) -> tuple[tuple[str, WithholdPredicate], ...]:
        """Predicates by plugin, each of which may withhold the mapping from a proxy. Raises `HookError`."""
        return tuple(self._callables("withhold_mapping", {"service": service}))

    def peer_gates(self, service: Service, management: Management) -> tuple[tuple[str, PeerGate], ...]:
        """Gates by plugin, all of which must allow. Raises `HookError`; the caller must then admit no peer."""
        return tuple(self._callables("peer_gate", {"service": service, "management": management}))

    def session_gates(self, service: Service, management: Management) -> tuple[tuple[str, SessionGate], ...]:
        """Gates by plugin, all of which must allow. Raises `HookError`; the caller must then issue no session."""
        return tuple(self._callables("session_gate", {"service": service, "management": management}))

    def network_patches(self, service: Service, account: AccountSnapshot) -> tuple[NetworkPatch, ...]:
        """The patches that plugins add to the account's network for a service. A failure is logged and adds nothing."""
        try:
            arguments = {"service": service, "account": account}
            return tuple(patch for _, patch in self._each("network_patches", NetworkPatch, arguments))
        except HookError:
            _log.exception("plugin.network_patches.failed")
            return ()

    def rpc(self, management: Management) -> tuple[tuple[str, RpcService], ...]:
        """Services by plugin. Raises `HookError`."""
        of_plugins: list[tuple[str, RpcService]] = []
        for name, services in self._each("rpc", Sequence, {"management": management}):
            for service in services:
                if not isinstance(service, RpcService):
                    raise HookError(name, "rpc", f"returned {type(service).__name__}")
                of_plugins.append((name, service))
        return tuple(of_plugins)

    def routes(self, management: Management) -> tuple[tuple[str, APIRouter], ...]:
        """Routers by plugin. Raises `HookError`."""
        from fastapi import APIRouter  # slow to import, and only the server needs it

        return tuple(self._each("routes", APIRouter, {"management": management}))

    def upgrades(self, management: Management) -> Mapping[str, tuple[str, TakeSocket]]:
        """Plugin and callable by path. Raises `HookError`."""
        by_path: dict[str, tuple[str, TakeSocket]] = {}
        for name, paths in self._each("upgrades", Mapping, {"management": management}):
            for path, take in paths.items():
                if not isinstance(path, str) or not path.startswith("/") or path.startswith(API + "/") or "?" in path:
                    raise HookError(name, "upgrades", f"{path!r} is not a path outside of {API}")
                if path in by_path:
                    raise HookError(name, "upgrades", f"{path} is already served by {by_path[path][0]}")
                if not callable(take):
                    raise HookError(name, "upgrades", f"returned {type(take).__name__} for {path}")
                by_path[path] = name, take
        return by_path

    def peer_servers(self, management: Management) -> PeerServers:
        """The servers of all plugins. Raises `HookError`."""
        signal, relays, stuns = "", list[str](), list[str]()
        for name, servers in self._each("peer_servers", PeerServers, {"management": management}):
            try:
                signal = signal or (server_url(servers.signal, "http", "https") if servers.signal else "")
                relays += (server_url(url, "rel", "rels") for url in servers.relays)
                stuns += map(stun_server, servers.stuns)
            except (ValueError, TypeError, AttributeError) as error:
                raise HookError(name, "peer_servers", f"{servers}: {error}") from error
        return PeerServers(signal, tuple(dict.fromkeys(relays)), tuple(dict.fromkeys(stuns)))

    def record_access(self, entries: Sequence[AccessLogEntry]) -> None:
        """Passes a batch to every plugin. A plugin that fails is logged; the others still get the batch."""
        for name, call in self.plugins.calls("record_access"):
            try:
                call(entries=entries)
            except Exception:
                _log.exception("plugin.record_access.failed", extra={"plugin": name})

    def _callables(self, hook: str, arguments: Mapping[str, object]) -> Iterable[tuple[str, Callable[..., Any]]]:
        for name, answer in self._each(hook, object, arguments):
            if not callable(answer):
                raise HookError(name, hook, f"returned {type(answer).__name__}")
            yield name, answer
