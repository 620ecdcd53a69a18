"""The plugins' routes: validated before the host listens, and matched after the host's own."""

from collections.abc import Iterable
from typing import Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

from netbird_management.plugins.hooks import HookError
from netbird_management.rest.auth import authenticate
from netbird_management.rest.errors import REFUSED
from netbird_management.rest.openapi import PREFIX

DOCUMENT: Final = PREFIX + "/openapi.json"


def add_plugin_routes(app: FastAPI, own: Iterable[APIRouter], routers: Iterable[tuple[str, APIRouter]]) -> None:
    """Adds the routers of the plugins; `own` are the host's routers.

    Every route requires a valid token, so a route that checks no role is still closed to strangers.

    Raises `HookError` for a route that is not a plain operation, and for a path that another route also matches.
    """
    paths = [PREFIX + route.path for router in own for route in router.routes if isinstance(route, APIRoute)]
    owners = {_pattern(path): "the host" for path in (*paths, DOCUMENT)}
    for plugin, router in routers:
        added: dict[tuple[str, ...], str] = {}
        for route in router.routes:
            if not isinstance(route, APIRoute):
                raise HookError(
                    plugin, "routes", f"{type(route).__name__} is not supported: add operations to the router"
                )
            pattern = _pattern(PREFIX + route.path)
            for taken, owner in owners.items():
                if _overlap(pattern, taken):
                    raise HookError(plugin, "routes", f"{route.path} overlaps a path of {owner}: choose another path")
            added[pattern] = plugin
        owners |= added
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(authenticate)], responses=REFUSED)


def _pattern(path: str) -> tuple[str, ...]:
    """The segments of a path: text, `*` for a parameter, and at the end `**` for a parameter of any number of them."""
    segments: list[str] = []
    for segment in path.strip("/").split("/"):
        if "{" not in segment:
            segments.append(segment)
        elif ":path}" in segment:
            return (*segments, "**")
        else:
            segments.append("*")
    return tuple(segments)


def _overlap(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """True if some path matches both patterns."""
    if not first or not second:
        return first == second or first == ("**",) or second == ("**",)
    if "**" in (first[0], second[0]):
        return True
    return (first[0] == second[0] or "*" in (first[0], second[0])) and _overlap(first[1:], second[1:])
