"""The record of one request with its response: made by the application, written by the pipeline, read by steps.

`Exchange` is the only mutable record of the request path. Steps get it typed as `ExchangeView`, whose members are
read-only, so that mypy checks that each field has one writer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from netbird_host.deprecation import older_name
from netbird_proxy.api.exchange import TrailEntry, Try
from netbird_proxy.api.forwarded import Forwarded
from netbird_proxy.api.headers import Headers
from netbird_proxy.api.model import Deny, ExchangeId, Identity, Kind, Origin, RouteSpec

if TYPE_CHECKING:
    from netbird_proxy.api.errors import ExchangeError


_NO_VIEWS: Mapping[str, Headers] = {}


class Exchange:
    """One exchange. The comments name the writer of each field: app, pipeline, relay or steps."""

    __slots__ = (
        "allowed_notes",
        "authority",
        "body",
        "bytes_received",
        "bytes_sent",
        "client_address",
        "denial",
        "empty_query",
        "ended_ns",
        "error",
        "forwarded",
        "full_query",
        "headers",
        "host",
        "http_version",
        "id",
        "identity",
        "kind",
        "method",
        "notes",
        "origin",
        "public",
        "public_query",
        "query",
        "raw_path",
        "revalidating",
        "route",
        "scheme",
        "started_at",
        "started_ns",
        "status",
        "trail",
        "tries",
        "views",
    )

    def __init__(
        self,
        *,
        id: ExchangeId,  # noqa: A002 - it is the exchange's id
        origin: Origin | None,
        method: str,
        scheme: str,
        host: str,
        authority: bytes,
        raw_path: bytes,
        query: bytes,
        http_version: str,
        headers: Headers,
        client_address: str,
        allowed_notes: frozenset[str] = frozenset(),
        kind: Kind = "http",
        revalidating: bool = False,
    ) -> None:
        self.id = id
        self.kind = kind
        self.revalidating = revalidating
        self.origin = origin
        self.method = method
        self.scheme = scheme
        self.host = host
        self.authority = authority
        self.raw_path = raw_path
        self.query = query
        self.http_version = http_version
        self.headers = self.public = headers
        self.views: Mapping[str, Headers] = _NO_VIEWS  # app: by plugin, the head with its own secrets
        self.public_query = self.full_query = query  # app: without `session_token`; as received, for endpoints
        self.empty_query = False  # app: the target ends with `?`, which ASGI's query does not show
        self.client_address = client_address
        self.allowed_notes = allowed_notes
        self.forwarded: Forwarded | None = None  # app, on arrival
        self.route: RouteSpec | None = None  # app, after the match
        self.identity: Identity | None = None  # pipeline, authenticate
        self.denial: Deny | None = None  # pipeline
        self.error: ExchangeError | None = None  # pipeline
        self.status = 0  # pipeline, with the response head
        self.bytes_received = 0  # relay
        self.bytes_sent = 0  # relay
        self.body: bytes | None = None  # pipeline, for a step with body_bytes
        self.tries: list[Try] = []  # relay
        self.trail: list[TrailEntry] = []  # pipeline
        self.notes: dict[str, object] = {}  # steps, through note()
        self.started_ns = time.monotonic_ns()
        self.started_at = time.time()
        self.ended_ns = 0  # pipeline, before observe

    asked_again = older_name("exchange.asked_again", "revalidating")

    def again(self, route: RouteSpec) -> Exchange:
        """Return a record of the same request before any step, for its revalidation on the route that serves it now."""
        again = Exchange(
            id=self.id,
            origin=self.origin,
            method=self.method,
            scheme=self.scheme,
            host=self.host,
            authority=self.authority,
            raw_path=self.raw_path,
            query=self.public_query,
            http_version=self.http_version,
            headers=self.public,  # not the view of the step that may be running
            client_address=self.client_address,
            allowed_notes=self.allowed_notes,
            kind=self.kind,
            revalidating=True,
        )
        again.route = route
        again.forwarded = self.forwarded
        again.views, again.full_query, again.empty_query = self.views, self.full_query, self.empty_query
        return again

    @property
    def target(self) -> bytes:
        return self.raw_path + b"?" + self.query if self.query or self.empty_query else self.raw_path

    def arrive(self, public: Headers, views: Mapping[str, Headers]) -> None:
        """Take the head as every step may see it, and by plugin as it looks with the plugin's own secrets."""
        self.headers = self.public = public
        self.views = views

    def show(self, plugin: str) -> None:
        """Code of this plugin runs from now on: show it the head with its own cookies and credentials."""
        self.headers = self.views.get(plugin, self.public)

    def hide(self) -> None:
        """Code of any plugin may run from now on: show it the head and query without secrets."""
        self.headers, self.query = self.public, self.public_query

    def note(self, key: str, value: object) -> None:
        if key not in self.allowed_notes:
            raise KeyError(f"note {key!r} is not declared by any loaded plugin")
        self.notes[key] = value
