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
    """A decision about an exchange, for `explain`: `authenticate private_service: deny not_in_group`."""

    stage: str
    plugin: str
    verdict: str
    reason: str = ""
    facts: Mapping[str, str] | None = None


@dataclass(slots=True)
class Try:
    """An attempt to reach an upstream. Times are `time.monotonic_ns`; 0 where the attempt did not get that far."""

    upstream: Upstream
    started_ns: int
    connected_ns: int = 0
    head_ns: int = 0
    ended_ns: int = 0
    reused: bool = False
    status: int = 0
    error: str = ""


class ExchangeView(Protocol):
    """An exchange as a step sees it: everything is readable, and only notes can be written."""

    @property
    def id(self) -> ExchangeId: ...
    @property
    def kind(self) -> Kind:
        """`websocket` where the client requests an upgrade to any protocol; else `http`."""

    @property
    def revalidating(self) -> bool:
        """True while the proxy checks whether an open exchange may continue. The client sent no new request."""

    @property
    def origin(self) -> Origin | None:
        """None where the application is embedded in another ASGI server: treat it as an untrusted host socket."""

    @property
    def method(self) -> str: ...
    @property
    def scheme(self) -> str:
        """`http` or `https`, from the connection; forwarded headers never decide it."""

    @property
    def host(self) -> str:
        """The folded host: lower case, no port, no trailing dot, IDNA."""

    @property
    def authority(self) -> bytes:
        """The Host field as the client sent it, port included."""

    @property
    def raw_path(self) -> bytes:
        """The path that was matched and is forwarded, byte for byte; never decoded."""

    @property
    def query(self) -> bytes:
        """The query as the client sent it, without `session_token`, which only the endpoint of its own path sees."""

    @property
    def target(self) -> bytes:
        """Path and query as on the client's request line: `/a?` where an empty query was sent."""

    @property
    def http_version(self) -> str: ...
    @property
    def headers(self) -> Headers:
        """The client's head as an upstream would get it: without reserved names, without names that a plugin owns on
        this route, and without the cookies of the proxy and its plugins. A plugin's steps also see the cookies that
        the plugin declared."""

    @property
    def client_address(self) -> str:
        """The client's address, for restrictions and logs: the socket's peer, or as a trusted proxy reports it."""

    @property
    def forwarded(self) -> Forwarded | None:
        """The report of a trusted proxy in front of us; None where the connection's peer is not such a proxy."""

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
        """The status of the answer; 0 until its head is decided."""

    @property
    def bytes_received(self) -> int:
        """Bytes of the request body that were read so far."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of the response body that were passed to the client's connection so far."""

    @property
    def started_ns(self) -> int:
        """`time.monotonic_ns` when the head was complete."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch when the head was complete."""

    @property
    def ended_ns(self) -> int:
        """`time.monotonic_ns` when the answer was complete or abandoned; 0 before."""

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
        """Store a fact for later stages. KeyError for a key that no loaded plugin declared in `PluginInfo.notes`."""


OBSERVED = "core.observed"
"""Key of the core's note: refusals of guards that only observe, as `plugin:code`, separated by spaces."""


__all__ = [
    "OBSERVED",
    "ExchangeView",
    "TrailEntry",
    "Try",
]
