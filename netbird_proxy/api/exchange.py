"""One request with its response, as a step sees it: everything is readable, and nothing is writable but notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from netbird_proxy.api.forwarded import Forwarded
from netbird_proxy.api.headers import Headers
from netbird_proxy.api.model import Deny, ExchangeId, Identity, Kind, Origin, RouteSpec, Upstream

if TYPE_CHECKING:
    from netbird_proxy.api.errors import ExchangeError


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One thing that was decided, for `explain`: `authenticate private_service: deny not_in_group`."""

    stage: str
    plugin: str
    verdict: str
    reason: str = ""
    facts: Mapping[str, str] | None = None


@dataclass(slots=True)
class Try:
    """One attempt at an upstream. Times are `time.monotonic_ns`; zero means that point was not reached."""

    upstream: Upstream
    started_ns: int
    connected_ns: int = 0
    head_ns: int = 0
    ended_ns: int = 0
    reused: bool = False
    status: int = 0
    error: str = ""


class ExchangeView(Protocol):
    """What a step sees of an exchange: everything, and nothing to write but notes."""

    @property
    def id(self) -> ExchangeId: ...
    @property
    def kind(self) -> Kind:
        """`websocket` where the client asks for an upgrade, to that protocol or another; else `http`."""

    @property
    def revalidating(self) -> bool:
        """It is under way, and the proxy wants to know whether it may go on. Its caller did nothing to cause this."""

    @property
    def origin(self) -> Origin | None:
        """None when the application is embedded in a server that is not ours: an untrusted host socket."""

    @property
    def method(self) -> str: ...
    @property
    def scheme(self) -> str:
        """`http` or `https`, by the connection; forwarded headers never decide it."""

    @property
    def host(self) -> str:
        """Folded: lower case, no port, no trailing dot, IDNA."""

    @property
    def authority(self) -> bytes:
        """The Host field as the client sent it, port included."""

    @property
    def raw_path(self) -> bytes:
        """The bytes that were matched and will be forwarded; never decoded."""

    @property
    def query(self) -> bytes:
        """As it came, without a `session_token`, which only an endpoint of its own path sees."""

    @property
    def http_version(self) -> str: ...
    @property
    def headers(self) -> Headers:
        """The client's head as an upstream would get it: without reserved names, names that a plugin owns on this route
        and cookies of the proxy's own and its plugins'. Steps of a plugin see the cookies that it declared as well."""

    @property
    def client_address(self) -> str:
        """Who is calling, for restrictions and logs: the socket's peer, or what a trusted proxy in front says."""

    @property
    def forwarded(self) -> Forwarded | None:
        """What a trusted proxy in front says; None where the connection's own peer is no such proxy."""

    @property
    def route(self) -> RouteSpec | None: ...
    @property
    def identity(self) -> Identity | None: ...
    @property
    def denial(self) -> Deny | None: ...
    @property
    def error(self) -> ExchangeError | None: ...
    @property
    def status(self) -> int:
        """What the client was answered; 0 until the head is decided."""

    @property
    def bytes_received(self) -> int:
        """Request body bytes read so far."""

    @property
    def bytes_sent(self) -> int:
        """Response body bytes handed to the client so far."""

    @property
    def started_ns(self) -> int:
        """`time.monotonic_ns` when the head was complete."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch when the head was complete."""

    @property
    def ended_ns(self) -> int:
        """`time.monotonic_ns` when the answer was complete or given up; 0 before."""

    @property
    def tries(self) -> list[Try]: ...
    @property
    def trail(self) -> list[TrailEntry]: ...
    @property
    def notes(self) -> Mapping[str, object]: ...
    @property
    def body(self) -> bytes | None:
        """The buffered request body, only in a step that declared `body_bytes`."""

    def note(self, key: str, value: object) -> None:
        """Leave a fact for later stages. KeyError for a key that no loaded plugin declared in `PluginInfo.notes`."""


OBSERVED = "core.observed"
"""The core's own note: what guards that only observe would have refused, as `plugin:code`, apart by blanks."""


__all__ = [
    "OBSERVED",
    "ExchangeView",
    "TrailEntry",
    "Try",
]
