"""The hooks of the management host, as signatures with docstrings.

An implementation is a plain function that takes any of the arguments by name and does no I/O. Management calls hooks at
load, at start, when a service is saved or changes, when a peer or login asks for access (`peer_gate`, `session_gate`),
and when proxies report exchanges (`record_access`).

In `describe()` a plugin *claims* the fields to which it gives meaning, by their dotted name in `ProxyMapping`. A plugin
may claim `private` (with the service's `access_groups`) and `path.options.direct_upstream`; the core claims the rest.
Management refuses to save a service that sets an unclaimed field (422), and withholds such a service from every proxy,
with the reason, if it is already stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    PeerServers,
    RpcService,
    SessionGate,
    TakeSocket,
    Violation,
    WithholdPredicate,
)
from netbird_wire.proxy_service_pb2 import ProxyMapping

if TYPE_CHECKING:
    from fastapi import APIRouter  # takes a fifth of a second to import; only the server needs it

PROJECT = "netbird_management"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def describe() -> PluginInfo:
    """Describe the plugin.

    Called: once, at load, before any other hook.
    Returns: version, claims and the model of the plugin's own section of the settings.
    Order: none; every plugin must have exactly one.
    Failure: the host does not start; the message names the plugin.
    Used by: all.
    """
    raise NotImplementedError


@hookspec
def lifespan(management: Management) -> AbstractAsyncContextManager[None] | None:
    """Run code for as long as the host runs.

    Called: at start, before it listens.
    Returns: an async context manager; background work belongs in a TaskGroup inside it.
    Order: entered in plugin order, left in reverse.
    Failure: on entering, the host does not start.
    Used by: access_export, relay, signal_server.
    """
    raise NotImplementedError


@hookspec
def validate_service(
    service: Service, previous: Service | None, sent: frozenset[str], account: AccountSnapshot
) -> list[Violation] | None:
    """Validate a service by the rules of the plugin's own fields.

    Called: before a service is created (`previous` is None) or updated. `service` is the value to be stored, `sent` the
        dotted names of the members in the client's request (`private`, `access_groups`, `auth`, `auth.bearer_auth`,
        `targets.0.options.direct_upstream`).
    Returns: the broken rules; empty or None for none.
    Order: all, joined; the core's rules come first.
    Failure: the save is refused (500).
    Used by: private_service, direct_upstream.
    """
    raise NotImplementedError


@hookspec
def build_mapping(service: Service, mapping: ProxyMapping) -> None:
    """Write the plugin's claimed fields into the mapping that proxies get.

    Called: when a service changes, or a snapshot is made. `mapping` already contains the core's fields;
        `mapping.path[i]` belongs to the i-th *enabled* target.
    Returns: nothing; changes only its own fields.
    Order: all.
    Failure: the mapping is withheld from every proxy. It is also withheld if the service sets a claimed field that the
        mapping then lacks.
    Used by: private_service, direct_upstream.
    """
    raise NotImplementedError


@hookspec
def withhold_mapping(service: Service) -> WithholdPredicate | None:
    """Name the proxies that must not get a mapping.

    Called: once per change of the service.
    Returns: a predicate on a proxy's capabilities, called once for each distinct set of them; None if the plugin
        has no objection.
    Order: all; any may withhold.
    Failure: withheld.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def peer_gate(service: Service, management: Management) -> PeerGate | None:
    """Decide which peers may use a service over the tunnel.

    Called: when a tunnel peer is validated for the service.
    Returns: a gate, or None if the plugin has no objection. A private service without a gate admits no peer.
    Order: all must return ALLOW; the first denial is reported.
    Failure: denied.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def session_gate(service: Service, management: Management) -> SessionGate | None:
    """Decide which logins get a session on a service.

    Called: when a user or client has sent a correct credential or returns from the identity provider, and when a proxy
        asks whether a single sign-on session is still valid (`ValidateSession`). For tunnel peers see `peer_gate`.
    Returns: a gate, which may wait for another system's answer; or None if the plugin has no objection.
    Order: all must return ALLOW, after the core's own rules (the user is not blocked and not waiting for approval; for
        an existing session, the groups of single sign-on); the first denial is reported.
    Failure: denied, also if a gate raises, is late or returns another type.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def network_patches(service: Service, account: AccountSnapshot) -> NetworkPatch | None:
    """Add policies and address records that a service needs to the network of its account.

    Called: when the service or its account changes.
    Returns: a patch, or None.
    Order: all, joined.
    Failure: logged; the service adds nothing.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def rpc(management: Management) -> list[RpcService] | None:
    """Add gRPC services to the port that proxies and peers use.

    Called: at start, after the lifespans are entered and before the host listens.
    Returns: services with the generated function that adds each; empty or None for none.
    Order: all. Each service name must be unique among the host's and all plugins'.
    Failure: the host does not start. A call that fails is logged and answered with `INTERNAL`; a call without a proxy's
        token is refused before it reaches the service, unless the service is open.
    Used by: health, signal_server.
    """
    raise NotImplementedError


@hookspec
def routes(management: Management) -> APIRouter | None:
    """Add routes to the API, under `/api`.

    Called: at start, after the lifespans are entered and before the host listens.
    Returns: a router of plain operations. Each requires a valid token; `management.allowed` also requires a role.
    Order: all, after the host's own.
    Failure: the host does not start, also if an operation matches a path of the host or of another plugin. A request
        that fails is logged and answered with 500.
    Used by: private_service.
    """
    raise NotImplementedError


@hookspec
def upgrades(management: Management) -> Mapping[str, TakeSocket] | None:
    """Serve WebSockets at paths of the REST port, on an event loop of the plugin's own.

    Called: at start, after the lifespans are entered and before the host listens.
    Returns: by path (without query), the callable that takes over a connection; empty or None for none. The paths are
        outside of `/api`. Clients need no token: the plugin authenticates them.
    Order: all. Each path must be unique among all plugins'.
    Failure: the host does not start. If a callable raises, this is logged and the connection is closed.
    Used by: relay.
    """
    raise NotImplementedError


@hookspec
def peer_servers(management: Management) -> PeerServers | None:
    """Name the servers for peers that the plugin runs, so that management announces them.

    Called: at start, when both ports are bound and before the first peer connects.
    Returns: the servers, or None. A gRPC service named `signalexchange.SignalExchange` is announced without this hook.
    Order: all, joined; the first signal server is announced.
    Failure: the host does not start.
    Used by: relay.
    """
    raise NotImplementedError


@hookspec
def record_access(entries: Sequence[AccessLogEntry]) -> None:
    """Receive the exchanges that proxies report, for every account.

    Called: with each batch of access-log entries after it is stored: up to 500, a quarter of a second after the first.
        A proxy that got no answer sends its entries again, so an id may occur twice.
    Returns: nothing, without delay; longer work belongs in a task of the plugin's lifespan.
    Order: all.
    Failure: logged; the entries stay stored, and the other plugins still receive them.
    Used by: access_export.
    """
    raise NotImplementedError
