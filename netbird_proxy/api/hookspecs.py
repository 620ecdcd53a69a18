"""Every hook of the proxy host. All are plain `def`, called with keyword arguments; none is called per request.

`first` means that the first result that is not None is taken. The order is `tryfirst`, plain, `trylast` everywhere, and
inside a rank that of the operator's `plugins` list.
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
    from netbird_proxy.api.steps import (
        Authenticator,
        Guard,
        Observer,
        Pages,
        RequestTransform,
        ResponseTransform,
        Selector,
    )
    from netbird_proxy.api.tunnels import Dialer, Tunnel

PROJECT = "netbird_proxy"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def describe() -> PluginInfo:  # type: ignore[empty-body]
    """Describe the plugin.

    Called: once, at load, before any other hook.
    Returns: version, capabilities, claims, notes and settings models.
    Order: none; every plugin must implement it exactly once.
    Failure: the process does not start; the message names the plugin.
    Used by: all.
    """


@hookspec
def lifespan(proxy: Proxy) -> AbstractAsyncContextManager[None] | None:
    """Run background work, and hold resources, while the proxy runs.

    Called: at start, before listeners open.
    Returns: an async context manager; background work belongs in a TaskGroup inside it.
    Order: entered in plugin order, left in reverse, after the last exchange has ended.
    Failure: on entering, the process does not start. In background work, the error is logged with its traceback, and
        the proxy drains and stops. On leaving, the error is logged. The exit code is not 0 in each case.
    Used by: private_service (its cache and rate limits), telemetry (its exporter), access_log (its queue),
        access_restrictions (its database), forwarding (its trusted proxies).
    """


@hookspec(firstresult=True)
def open_tunnel(account: AccountHandle, proxy: Proxy) -> AbstractAsyncContextManager[Tunnel] | None:
    """Open an account's tunnel.

    Called: when the first mapping that needs it is applied; again, with back-off, after a failure.
    Returns: an async context manager of a tunnel that is up, ready to listen and dial. Left when no mapping needs it.
    Order: first.
    Failure: reported to management as the services' error, and retried; dials wait, then fail with `tunnel_not_ready`.
    Used by: tunnel_netstack.
    """


@hookspec(firstresult=True)
def dialer(route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer | None:
    """Choose the dialer that reaches an upstream.

    Called: at apply, once for each upstream of a route.
    Returns: a dialer. If all plugins return None, the route is refused. Equal dialers share a pool, so dialers that
        dial alike should compare equal (a frozen dataclass). The core judges each stream's peer by the operator's
        rules before anything is sent, unless the stream goes through the account's own tunnel.
    Order: first. RouteRefused refuses the route with its message; later plugins are not called.
    Failure: refuses the route.
    Used by: direct_upstream (flagged targets), tunnel_netstack (`trylast`: everything else).
    """


@hookspec
def restrict(route: RouteSpec, proxy: Proxy) -> Guard | None:
    """Judge the source address of an exchange, before the caller is identified.

    Called: at apply.
    Returns: a guard, which runs for each exchange, and again while it is open; the first verdict but ALLOW ends it.
    Order: plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service (a route that only its account's tunnel may reach), access_restrictions.
    """


@hookspec
def endpoint(host: ServiceMapping, proxy: Proxy) -> Endpoint | None:
    """Serve `/__netbird__/<plugin>/` of a host: a login's return, assets, keys.

    Called: at apply, once for each mapping of kind HTTP.
    Returns: an ASGI application, which runs after the host's `restrict` steps, before paths are matched.
    Order: none; each plugin has its own prefix. Nothing under `/__netbird__/` ever goes upstream.
    Failure: at apply, refuses the mapping; per exchange, 503 `step_failed`.
    Used by: session (login, its return, logout).
    """


@hookspec
def authenticate(route: RouteSpec, proxy: Proxy) -> Authenticator | list[Authenticator] | None:
    """Identify the caller.

    Called: at apply.
    Returns: authenticators, each with a phase. The first Identity, Deny or Challenge ends the stage; the offers of
        phase `prompt` are collected on one page.
    Order: by phase (`exclusive`, `credential`, `ambient`, `prompt`), inside a phase plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service, session.
    """


@hookspec
def authorize(route: RouteSpec, proxy: Proxy) -> Guard | None:
    """Judge whether the caller may access the route.

    Called: at apply.
    Returns: a guard, which runs for each exchange, and again while it is open; every guard must return ALLOW. A guard
        may return a `Challenge` instead of a refusal, for example to ask for a second factor: its offers are presented
        to the caller like logins.
    Order: plugin order.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`.
    Used by: private_service, session, identity_headers.
    """


@hookspec
def transform_request(route: RouteSpec, proxy: Proxy) -> RequestTransform | None:
    """Change the head that goes to the upstream.

    Called: at apply.
    Returns: a transform with the names that it owns on this route. If two plugins own a name, the route is refused.
    Order: plugin order, after the core has removed hop-by-hop, reserved and owned names.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`, nothing dialed.
    Used by: identity_headers (`trylast`), telemetry (trace context), forwarding.
    """


@hookspec(firstresult=True)
def select(route: RouteSpec, proxy: Proxy) -> Selector | None:
    """Select the upstream of each try, on a route with several upstreams.

    Called: at apply, for each route with at least two upstreams.
    Returns: a selector, which picks an upstream for each try, and gets the outcome. An upstream that cannot be dialed
        gives way to another one, at most three for an exchange. Without a selector, the upstreams take turns.
    Order: first.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`, and nothing more is dialed. A failing
        `outcome` is logged and counted.
    Used by: load_balancing.
    """


@hookspec
def transform_response(route: RouteSpec, proxy: Proxy) -> ResponseTransform | None:
    """Change the response head that goes to the client.

    Called: at apply, also for the route of each endpoint of the host, whose prefix begins with `OWN_PATHS`.
    Returns: a transform with the names that it owns on this route. If two plugins own a name, the route is refused. It
        runs for each final head of an upstream; with `own_answers`, also for answers of the proxy itself and of
        endpoints, to which it can only add.
    Order: plugin order, after the core has removed hop-by-hop fields and cookies of the proxy.
    Failure: at apply, refuses the route; per exchange, 503 `step_failed`, and nothing of the upstream's answer is sent.
        An answer of the proxy itself or of an endpoint is sent unchanged.
    Used by: response_headers.
    """


@hookspec(firstresult=True)
def pages(proxy: Proxy) -> Pages | None:
    """Make the pages for browsers in answers of the proxy itself: logins, refusals, errors.

    Called: once, at load, after the options were read.
    Returns: a function that makes a page. Without one, browsers get the same plain text as programs.
    Order: first.
    Failure: at load, the process does not start; per exchange, logged and counted, and the answer is plain text.
    Used by: session.
    """


@hookspec
def observe(route: RouteSpec | None, proxy: Proxy) -> Observer | None:
    """Observe every exchange once it is over, whatever its outcome.

    Called: at apply, and once with None for exchanges without a route.
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
    Failure: the command names the plugin that failed and exits with 2; other commands work without it.
    Used by: peer.
    """


__all__ = [
    "hookimpl",
]
