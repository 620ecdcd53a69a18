"""The hooks of the management host: signature and docstring, nothing else.

Implementations are plain functions that take any of the arguments by name. They are called at load, at start, when a
service is saved or changes, (`peer_gate`, `session_gate`) when a caller is judged, and (`record_access`) when proxies
report; they do no I/O.

A plugin *claims*, in `describe()`, the fields it gives meaning to, by their dotted name in `ProxyMapping`. Claimable
are `private` (with the service's `access_groups`) and `path.options.direct_upstream`; core claims the rest. A service
that sets a field which nobody claims is refused when it is saved (422) and, where it is stored already, withheld from
every proxy with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pluggy

from netbird_host.info import PluginInfo
from netbird_management.model.services import AccessLogEntry, Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.steps import (
    Management,
    NetworkPatch,
    PeerGate,
    RpcService,
    SessionGate,
    Violation,
    WithholdPredicate,
)
from netbird_wire.proxy_service_pb2 import ProxyMapping

if TYPE_CHECKING:
    from fastapi import APIRouter  # a fifth of a second, which the commands that do not serve save

PROJECT = "netbird_management"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def describe() -> PluginInfo:
    """Say what the plugin is.

    Called: once, at load, before any other hook.
    Returns: version, claims and the model of the plugin's own section of the settings.
    Order: none; every plugin must have exactly one.
    Failure: the host does not start; the message names the plugin.
    Used by: all.
    """
    raise NotImplementedError


@hookspec
def lifespan(management: Management) -> AbstractAsyncContextManager[None] | None:
    """Do something for as long as the host runs.

    Called: at start, before it listens.
    Returns: an async context manager; background work belongs into a TaskGroup inside it.
    Order: entered in plugin order, left in reverse.
    Failure: on entering, the host does not start.
    Used by: access_export.
    """
    raise NotImplementedError


@hookspec
def validate_service(
    service: Service, previous: Service | None, sent: frozenset[str], account: AccountSnapshot
) -> list[Violation] | None:
    """Judge a service by the rules of the plugin's own fields.

    Called: before a service is created (`previous` is None) or updated. `service` is what would be stored, `sent` the
        dotted names of the members that the caller wrote (`private`, `access_groups`, `auth`, `auth.bearer_auth`,
        `targets.0.options.direct_upstream`).
    Returns: the broken rules; empty or None for none.
    Order: all, joined; core's rules come before.
    Failure: the save is refused (500).
    Used by: private_service, direct_upstream.
    """
    raise NotImplementedError


@hookspec
def build_mapping(service: Service, mapping: ProxyMapping) -> None:
    """Fill the plugin's claimed fields into what proxies get.

    Called: when a service changes, or a snapshot is made. `mapping` has core's fields already, `mapping.path[i]`
        belongs to the i-th *enabled* target.
    Returns: nothing; changes only its own fields.
    Order: all.
    Failure: the mapping is withheld from every proxy; so it is when a claimed field that the service sets did not
        arrive in it.
    Used by: private_service, direct_upstream.
    """
    raise NotImplementedError


@hookspec
def withhold_mapping(service: Service) -> WithholdPredicate | None:
    """Say which proxies may not have a mapping.

    Called: once a change of the service.
    Returns: a predicate on a proxy's capabilities, asked once for each distinct set of them; None if the plugin does
        not mind.
    Order: all; any may withhold.
    Failure: withheld.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def peer_gate(service: Service, management: Management) -> PeerGate | None:
    """Say who may use a service over the tunnel.

    Called: when a tunnel peer is validated for the service.
    Returns: a gate, or None if the plugin does not mind. A private service that no plugin gates admits nobody.
    Order: all must say ALLOW; the first denial is told.
    Failure: denied.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def session_gate(service: Service, management: Management) -> SessionGate | None:
    """Say who may have a session on a service.

    Called: when somebody has shown a right credential or comes back from the identity provider, and when a proxy asks
        whether a single sign-on session is still good (`ValidateSession`). Tunnel peers have `peer_gate`.
    Returns: a gate, which may wait for an answer from elsewhere; or None if the plugin does not mind.
    Order: all must say ALLOW, after core's own rules (blocked, waiting for approval and, where a session is asked
        about, the groups of single sign-on); the first denial is told.
    Failure: denied; so is a gate that raises, is late or answers anything else.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def network_patches(service: Service, account: AccountSnapshot) -> NetworkPatch | None:
    """Add what a service needs to the network of its account: policies and address records.

    Called: when the service or its account changes.
    Returns: a patch, or None.
    Order: all, joined.
    Failure: the service adds nothing, which is logged.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def rpc(management: Management) -> list[RpcService] | None:
    """Add gRPC services to the port that proxies and peers use.

    Called: at start, when the lifespans are entered and nothing listens yet.
    Returns: services with the generated function that adds each; empty or None for none.
    Order: all. A name that the host or another plugin has is nobody else's.
    Failure: the host does not start. A call that fails says `INTERNAL` and is logged; one without a proxy's token does
        not get there, unless the service is open.
    Used by: health.
    """
    raise NotImplementedError


@hookspec
def routes(management: Management) -> APIRouter | None:
    """Add routes to the API, under `/api`.

    Called: at start, when the lifespans are entered and nothing listens yet.
    Returns: a router of plain operations. Each asks for a good token by itself; `management.allowed` asks for a role.
    Order: all, after the host's own.
    Failure: the host does not start; so it does when an operation could answer for a path that the host or another
        plugin has. A call that fails says 500 and is logged.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def record_access(entries: Sequence[AccessLogEntry]) -> None:
    """Hear of exchanges that the proxies report, of every account.

    Called: with each batch of access-log entries once it is stored: up to 500, a quarter of a second after the first. A
        proxy that got no answer sends entries again: an id may come twice.
    Returns: nothing, at once: what takes time belongs into a task of the plugin's lifespan.
    Order: all.
    Failure: logged; the entries are stored, and other plugins hear of them, all the same.
    Used by: access_export.
    """
    raise NotImplementedError
