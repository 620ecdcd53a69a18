"""Makers of values with sensible defaults, so that a test names only what it is about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from netbird_host.deprecation import older_arguments
from netbird_proxy.api.headers import Headers, RawHeader
from netbird_proxy.api.model import (
    AccountId,
    Address,
    ExchangeId,
    Group,
    Identity,
    Mode,
    Origin,
    Peer,
    PublicKey,
    RouteSpec,
    ServiceId,
    ServiceMapping,
    Upstream,
    UserId,
)
from netbird_proxy.pipeline.exchange import Exchange

ACCOUNT = AccountId("acct-1")
SERVICE = ServiceId("svc-1")
HOST = "app.example.com"


@older_arguments(tls_ahead="behind_tls_proxy")
def host_origin(peer: str = "203.0.113.9", *, behind_tls_proxy: bool = False) -> Origin:
    """A connection that a host listener accepted."""
    return Origin("http 127.0.0.1:8080", None, Address(peer, 50000), Address("127.0.0.1", 8080), behind_tls_proxy)


def tunnel_origin(address: str = "100.64.0.9", *, account: str = ACCOUNT, name: str = "laptop") -> Origin:
    """A connection that came in on an account's tunnel, from `peer(address, name)`."""
    return Origin(
        f"tunnel {account}",
        AccountId(account),
        Address(address, 50000),
        Address("100.64.0.1", 80),
        peer_key=peer(address, name).public_key,
    )


def upstream(url: str = "http://10.0.0.7:8080", path: bytes = b"/", **fields: Any) -> Upstream:
    """A target; `url` is scheme, host and port."""
    scheme, _, authority = url.partition("://")
    host, _, port = authority.rpartition(":")
    return Upstream(scheme=scheme, address=Address(host.strip("[]"), int(port)), path=path, **fields)  # type: ignore[arg-type]


def route(prefix: bytes = b"/", *, to: Upstream | tuple[Upstream, ...] | None = None, **fields: Any) -> RouteSpec:
    """One route of the default service, host and account."""
    upstreams = to if isinstance(to, tuple) else (to or upstream(),)
    given: dict[str, Any] = {"service": SERVICE, "account": ACCOUNT, "host": HOST, "domain": HOST, **fields}
    return RouteSpec(prefix=prefix, upstreams=upstreams, **given)


def mapping(
    *routes: RouteSpec,
    id: str = SERVICE,  # noqa: A002 - it is the mapping's id
    account: str = ACCOUNT,
    host: str = HOST,
    source: str = "management",
    mode: Mode = "http",
    digest: bytes | None = None,
    refused: str = "",
    **fields: Any,
) -> ServiceMapping:
    """A mapping of these routes, or of one root route. Its digest follows from what it says."""
    own = routes or (route(service=ServiceId(id), account=AccountId(account), host=host, domain=host),)
    content = repr((own, mode, host, refused)).encode()
    return ServiceMapping(
        id=ServiceId(id),
        account=AccountId(account),
        source=source,
        mode=mode,
        host=host,
        domain=host,
        routes=own,
        digest=digest if digest is not None else hashlib.sha256(content).digest(),
        refused=refused,
        **fields,
    )


def exchange(
    path: str = "/",
    *,
    method: str = "GET",
    origin: Origin | None = None,
    headers: Iterable[RawHeader] = (),
    spec: RouteSpec | None = None,
    identity: Identity | None = None,
    notes: Iterable[str] = (),
    scheme: str = "http",
    host: str = HOST,
    http_version: str = "1.1",
) -> Exchange:
    """An exchange on the default host, for calling a step directly."""
    raw_path, _, query = path.encode("latin-1").partition(b"?")
    made = Exchange(
        id=ExchangeId("0123456789abcdef0123456789abcdef"),
        origin=origin or host_origin(),
        method=method,
        scheme=scheme,
        host=host,
        authority=host.encode(),
        raw_path=raw_path,
        query=query,
        http_version=http_version,
        headers=Headers([(b"host", host.encode()), *headers]),
        client_address=(origin or host_origin()).peer.host,
        allowed_notes=frozenset(notes),
    )
    made.route = spec
    made.identity = identity
    return made


def identity(user: str = "user-1", *, groups: Mapping[str, str] | None = None, **fields: Any) -> Identity:
    """A caller; `groups` maps ids to names."""
    named = tuple(Group(id_, name) for id_, name in (groups or {}).items())
    return Identity(UserId(user), **{"email": f"{user}@example.com", "groups": named, "method": "tunnel", **fields})


def peer(address: str = "100.64.0.9", name: str = "laptop") -> Peer:
    """An overlay node with one address, and a key that follows from its name."""
    from base64 import b64encode

    return Peer(PublicKey(b64encode(hashlib.sha256(name.encode()).digest()).decode()), (address,), name)
