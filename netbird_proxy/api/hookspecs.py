"""Every hook of the proxy host. All are plain `def`, called with keyword arguments; none is called per request.

`first` means: the first implementation that returns something is taken. Order everywhere: `tryfirst`, plain,
`trylast`; inside a rank the operator's `plugins` list.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from netbird_host.info import PluginInfo
    from netbird_proxy.api.endpoints import Endpoint
    from netbird_proxy.api.host import AccountHandle, Proxy
    from netbird_proxy.api.model import RouteSpec, ServiceMapping, Upstream
    from netbird_proxy.api.steps import Authenticator, Guard, Observer, Pages, RequestTransform
    from netbird_proxy.api.tunnels import Dialer, Tunnel

PROJECT = "netbird_proxy"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def describe() -> PluginInfo:  # type: ignore[empty-body]
    """Say what the plugin is.

    Called: once, at load, before any other hook.
    Returns: version, capabilities, claims, notes and settings models.
    Order: none; every plugin must have exactly one.
    Failure: the process does not start; the message names the plugin.
    Used by: all.
    """


@hookspec
def lifespan(proxy: Proxy) -> AbstractAsyncContextManager[None] | None:
    """Do something for as long as the proxy runs.

    Called: at start, before listeners open.
    Returns: an async context manager; background work belongs into a TaskGroup inside it.
    Order: entered in plugin order, left in reverse, after the last exchange has ended.
    Failure: on entering, the process does not start; of background work, logged with its traceback, then the proxy
        drains and stops; on leaving, logged; and the exit code is not 0.
    Used by: private_service (its cache and rate limits), telemetry (its exporter), access_log (its queue),
        access_restrictions (its database), forwarding (whom to believe).
    """


@hookspec(firstresult=True)
def open_tunnel(account: AccountHandle, proxy: Proxy) -> AbstractAsyncContextManager[Tunnel] | None:
    """Open an account's tunnel.

    Called: when the first mapping that needs it is applied; again, with back-off, after a failure.
    Returns: an async context manager of a tunnel that is up: it may listen and dial. Left when no mapping needs it.
    Order: first.
    Failure: reported as the services' error and retried; dials wait, then fail with `tunnel_not_ready`.
    Used by: tunnel_netstack.
    """


@hookspec(firstresult=True)
def dialer(route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer | None:
    """Say how an upstream is reached.

    Called: at apply, once for each upstream of a route.
    Returns: a dialer. None from all refuses the route. Equal dialers share a pool, so make them compare equal where
        they dial alike (a frozen dataclass). Each stream's peer is judged by the operator's rules before anything is
        sent, unless the stream goes through the account's own tunnel.
    Order: first. Raising RouteRefused refuses the route with that message, whoever comes later.
    Failure: refuses the route.
    Used by: direct_upstream (flagged targets), tunnel_netstack (`trylast`: everything else).
    """


@hookspec
def restrict(route: RouteSpec, proxy: Proxy) -> Guard | None:
    """Judge where an exchange comes from, before anybody asks who sent it.

    Called: at apply.
    Returns: a guard, asked for each exchange, and again while it is open; the first that does not say ALLOW ends it.
    Order: plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service (a route that only its account's tunnel may reach), access_restrictions.
    """


@hookspec
def endpoint(host: ServiceMapping, proxy: Proxy) -> Endpoint | None:
    """Answer under `/__netbird__/<plugin>/` of a host: a login's return, assets, keys.

    Called: at apply, once for each mapping of kind HTTP.
    Returns: an ASGI application; asked before paths are matched, after the host's `restrict` steps, and by nobody else.
    Order: none; each has its own prefix. Nothing under `/__netbird__/` ever goes upstream.
    Failure: at apply, refuses the mapping; per exchange, 503 `step_failed`.
    Used by: session (login, its return, logout).
    """


@hookspec
def authenticate(route: RouteSpec, proxy: Proxy) -> Authenticator | list[Authenticator] | None:
    """Find out who is calling.

    Called: at apply.
    Returns: authenticators, each with a phase. The first Identity, Deny or Challenge ends the stage; offers of phase
        `prompt` are gathered into one page.
    Order: by phase (`exclusive`, `credential`, `ambient`, `prompt`), inside a phase plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service, session.
    """


@hookspec
def authorize(route: RouteSpec, proxy: Proxy) -> Guard | None:
    """Judge whether the one who is calling may.

    Called: at apply.
    Returns: a guard, asked for each exchange, and again while it is open; every one must say ALLOW. It may answer with
        a `Challenge` instead of a no: what it offers is put to the caller as a login is, so that one may ask for a
        second factor.
    Order: plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service, session, identity_headers.
    """


@hookspec
def transform_request(route: RouteSpec, proxy: Proxy) -> RequestTransform | None:
    """Change the head that goes to the upstream.

    Called: at apply.
    Returns: a transform with the names it owns on this route. Two owners of one name refuse the route.
    Order: plugin order, after the core has removed hop-by-hop, reserved and owned names.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`, nothing dialed.
    Used by: identity_headers (`trylast`), telemetry (trace context), forwarding, session (keeps credentials).
    """


@hookspec(firstresult=True)
def pages(proxy: Proxy) -> Pages | None:
    """Make the pages that browsers get as answers of the proxy's own: logins, refusals, errors.

    Called: once, at load, after options are known.
    Returns: what makes a page. Without any, browsers get the plain text that programs get.
    Order: first.
    Failure: at load, the process does not start; per exchange, logged and counted, and the answer is plain text.
    Used by: session.
    """


@hookspec
def observe(route: RouteSpec | None, proxy: Proxy) -> Observer | None:
    """See every exchange when it is over, whatever became of it.

    Called: at apply, and once with None for exchanges that found no route.
    Returns: an observer, called once for each exchange, last.
    Order: plugin order.
    Failure: logged and counted; the exchange is over already.
    Used by: access_log, telemetry.
    """


@hookspec
def commands() -> typer.Typer | None:
    """Add commands under `netbird-proxy <plugin> …`.

    Called: by the command line only; no settings file is needed.
    Returns: a Typer app.
    Order: none.
    Failure: the command says which plugin failed and exits 2; other commands go on without it.
    Used by: peer.
    """


__all__ = [
    "hookimpl",
]
