"""Descriptions of the routes and plugins of a running proxy, for its operator. No step is run."""

from __future__ import annotations

from typing import Any

from netbird_host.plugins import Plugins
from netbird_proxy.api import hookspecs
from netbird_proxy.api.headers import fold
from netbird_proxy.api.model import AccountId
from netbird_proxy.http.folding import fold_host
from netbird_proxy.pipeline.bound import (
    BoundAuthenticator,
    BoundGuard,
    BoundResponseTransform,
    BoundSelector,
    BoundTransform,
)
from netbird_proxy.pipeline.pipeline import Pipeline
from netbird_proxy.routing.apply import Routing

HOOKS = tuple(name for name, spec in vars(hookspecs).items() if hasattr(spec, "netbird_proxy_spec"))


def describe_plugins(plugins: Plugins) -> list[dict[str, Any]]:
    """Describe the plugins, in the order of the operator's list."""
    return [
        {
            "id": plugin.id,
            "version": plugin.version,
            "distribution": plugin.distribution,
            "summary": plugin.info.summary,
            "claims": [claim.field for claim in plugin.info.claims],
            "hooks": [hook for hook in HOOKS if plugin.id in plugins.implementers(hook)],
        }
        for plugin in plugins
    ]


def describe_routes(routing: Routing) -> list[dict[str, Any]]:
    """Describe the routes that are served, and the mappings that are refused with the reasons."""
    rows: list[dict[str, Any]] = []
    for applied in routing:
        mapping = applied.mapping
        base = {"service": mapping.id, "account": mapping.account, "source": mapping.source, "host": mapping.host}
        if applied.compiled is None or applied.refused:
            rows.append(base | {"prefix": "/", "upstreams": [], "steps": [], "refused": applied.refused})
            continue
        for route in applied.compiled.routes.routes:
            if route.spec is not None:
                steps = _steps(route.runner)
                upstreams = [str(upstream) for upstream in route.spec.upstreams]
                prefix = route.spec.prefix.decode("latin-1")
                rows.append(base | {"prefix": prefix, "upstreams": upstreams, "steps": steps, "refused": ""})
    return rows


def dry_run(routing: Routing, host: str, path: str, account: str | None) -> dict[str, Any]:
    """Describe the route and steps of a request on a host listener, or in an account's tunnel."""
    story: dict[str, Any] = {"host": host, "path": path, "account": account, "steps": [], "upstreams": []}
    try:
        folded = fold_host(host)
    except ValueError as exc:
        return story | {"outcome": f"400: {exc}"}
    route = routing.table.match(folded, path.encode("latin-1", "replace"), AccountId(account) if account else None)
    for applied in routing:
        if applied.mapping.host == folded and applied.refused:
            return story | {"outcome": f"refused: {applied.refused}"}
    if route.spec is None:
        where = f"in the tunnel of account {account}" if account else "on a host listener"
        return story | {"outcome": f"no route {where}"}
    return story | {
        "outcome": f"service {route.spec.service} of account {route.spec.account}",
        "steps": _steps(route.runner),
        "upstreams": [str(upstream) for upstream in route.spec.upstreams],
    }


def _steps(runner: object) -> list[str]:
    if not isinstance(runner, Pipeline):
        return []
    bound: list[BoundGuard | BoundAuthenticator] = [*runner.restrict, *runner.authenticate, *runner.authorize]
    return [f"{step.stage} {step.plugin}" for step in bound] + [_transform(step) for step in runner.transforms]


def _transform(step: BoundTransform | BoundSelector | BoundResponseTransform) -> str:
    """Return the stage and plugin of a selector or a transform, with the names that the latter owns on the route."""
    if isinstance(step, BoundSelector):
        return f"select {step.plugin}"
    facts = [f"owns {', '.join(sorted(fold(name).decode('latin-1') for name in step.owns))}"] if step.owns else []
    stage = "transform_request"
    if isinstance(step, BoundResponseTransform):
        stage = "transform_response"
        facts += ["own answers too"] if step.own_answers else []
    return f"{stage} {step.plugin}" + (f" ({'; '.join(facts)})" if facts else "")
