"""The plugins' routes, judged before anything listens, and added after the host's own."""

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
    """Raises `HookError` for what is no plain operation, and for one that could answer where somebody else does.

    Each of them asks for a good token, so that one that forgot to ask for a role is open to this account's people, and
    to nobody else. `own` are the host's routers.
    """
    paths = [PREFIX + route.path for router in own for route in router.routes if isinstance(route, APIRoute)]
    owners = {_pattern(path): "the host itself" for path in (*paths, DOCUMENT)}
    for plugin, router in routers:
        mine: dict[tuple[str, ...], str] = {}
        for route in router.routes:
            if not isinstance(route, APIRoute):
                raise HookError(plugin, "routes", f"{type(route).__name__} is no operation: add routes to the router")
            pattern = _pattern(PREFIX + route.path)
            for held, owner in owners.items():
                if _meet(pattern, held):
                    told = f"{route.path} could answer for a path of {owner}: choose another"
                    raise HookError(plugin, "routes", told)
            mine[pattern] = plugin
        owners |= mine
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(authenticate)], responses=REFUSED)


def _pattern(path: str) -> tuple[str, ...]:
    """Segment by segment: the text, `*` for any one, and `**` at the end for any number of them."""
    found: list[str] = []
    for segment in path.strip("/").split("/"):
        if "{" not in segment:
            found.append(segment)
        elif ":path}" in segment:
            return (*found, "**")
        else:
            found.append("*")
    return tuple(found)


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether some path is matched by both."""
    if not one or not other:
        return one == other or one == ("**",) or other == ("**",)
    if "**" in (one[0], other[0]):
        return True
    return (one[0] == other[0] or "*" in (one[0], other[0])) and _meet(one[1:], other[1:])
