"""A plugin's own application under a host, and the ASGI that it speaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Scope = dict[str, Any]

Message = dict[str, Any]

Receive = Callable[[], Awaitable[Message]]

Send = Callable[[Message], Awaitable[None]]

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE_STATE = "netbird_proxy.exchange"
"""Key in `scope["state"]` under which an endpoint finds the view of its exchange."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A plugin's own application under `/__netbird__/<plugin>/` of a host. Its requests never go upstream.

    Its scope has the whole path in `path`, its prefix in `root_path`, and the exchange's view in its state, under
    EXCHANGE_STATE.

    Attributes:
        app: runs after the host's restrict steps, without authenticate and authorize: it judges callers itself.
        on_private: serve it also on hosts whose routes only an `exclusive` authenticator opens; else 404 there.
        body_bytes: maximum size of a request body; a larger one is answered 413.
    """

    app: ASGIApp
    on_private: bool = False
    body_bytes: int = 65536


__all__ = [
    "EXCHANGE_STATE",
    "Endpoint",
]
