"""The proxy's half: sends the caller's identity to the upstream, in headers that no client can send."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from netbird_identity_headers.settings import FIELD, PLUGIN, IdentityHeadersSettings, NonAscii
from netbird_proxy import (
    ALLOW,
    Claim,
    Decision,
    Deny,
    ExchangeView,
    Guard,
    Identity,
    IdentityCache,
    OutgoingHead,
    PluginInfo,
    Proxy,
    RequestTransform,
    RouteSpec,
    TrailEntry,
    hookimpl,
)

USER_HEADER = b"x-netbird-user"
GROUPS_HEADER = b"x-netbird-groups"
OMITTED_HEADER = b"x-netbird-groups-omitted"
"""The number of the caller's groups that are not sent: all if they exceed the limit, else those with unsafe names."""
NAMES = (USER_HEADER, GROUPS_HEADER, OMITTED_HEADER)


class IdentityHeadersOptions(BaseModel):
    """`[identity_headers]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users_only: bool = False
    """Omit the user header for a peer without a user, if management distinguishes the two."""
    non_ascii: NonAscii = "omit"
    """Encoding of names outside printable ASCII: omitted, percent-encoded, or UTF-8."""


CACHED = 1024
"""Maximum number of identities for each route whose headers are cached; authenticators often return the same object."""


class IdentityHeaders:
    """Sets `X-NetBird-User` and `X-NetBird-Groups` from the identity; without an identity it removes them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-identity-headers"),
            summary="sends the caller's e-mail address and groups to the upstream",
            claims=(Claim(FIELD, guards=_denies),),
            options=IdentityHeadersOptions,
            settings=(IdentityHeadersSettings,),
        )

    @hookimpl
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        """Denies callers whose groups exceed the service's limit, if the service is set to `deny`."""
        settings = _settings(route)
        if not settings.denies:
            return None
        spelling = settings.non_ascii or proxy.options(IdentityHeadersOptions).non_ascii

        async def within(exchange: ExchangeView) -> Decision:
            identity = exchange.identity
            if identity is None or _fits(_groups(identity, spelling)[0], settings):
                return ALLOW
            groups, limit = len(identity.groups), settings.groups_max_bytes
            return Deny(403, "too_many_groups", f"{groups} groups exceed {limit} bytes")

        return Guard(within, depends_on=(settings, spelling))

    @hookimpl(trylast=True)  # after every other transform, so that none changes these headers
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> RequestTransform:
        options, settings = proxy.options(IdentityHeadersOptions), _settings(route)
        users_only, spelling = options.users_only, settings.non_ascii or options.non_ascii
        sends_groups = settings.groups == "all"
        cache: IdentityCache[Identity, tuple[list[tuple[bytes, bytes]], TrailEntry | None]] = IdentityCache(CACHED)

        def set_headers(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            identity = exchange.identity
            if identity is None:
                outgoing.replace(NAMES, ())
                return
            lines, entry = cache.get(identity) or cache.keep(identity, fields(identity))
            outgoing.replace(NAMES, lines)
            if entry is not None:
                exchange.trail.append(entry)

        def fields(identity: Identity) -> tuple[list[tuple[bytes, bytes]], TrailEntry | None]:
            groups, unsent = _groups(identity, spelling) if sends_groups else (None, [])
            omitted, reason = len(unsent), f"names that cannot be sent: {', '.join(map(repr, unsent))}"
            if not _fits(groups, settings):
                if settings.denies:
                    raise ValueError("the groups exceed the limit, and no guard denied the caller")
                groups, omitted = None, len(identity.groups)
                reason = f"together they exceed {settings.groups_max_bytes} bytes"
            lines = (
                (USER_HEADER, _user(identity, users_only, spelling)),
                (GROUPS_HEADER, groups),
                (OMITTED_HEADER, b"%d" % omitted if omitted else None),
            )
            entry = TrailEntry("transform_request", PLUGIN, f"{omitted} groups omitted", reason) if omitted else None
            return [(name, value) for name, value in lines if value is not None], entry

        return RequestTransform(set_headers, owns=NAMES, depends_on=(settings, users_only, spelling))


def _denies(settings: Any) -> bool:
    """True if the settings, as the wire's struct, can deny a caller: without groups there is no limit to exceed."""
    return ("groups_overflow", "deny") in settings.items() and ("groups", "none") not in settings.items()


_DEFAULTS = IdentityHeadersSettings()


def _settings(route: RouteSpec) -> IdentityHeadersSettings:
    """Return the service's settings, or the defaults for a route that a program made without settings."""
    settings: IdentityHeadersSettings = route.values.get(IdentityHeadersSettings, _DEFAULTS)
    return settings


def _fits(groups: bytes | None, settings: IdentityHeadersSettings) -> bool:
    return groups is None or settings.groups_max_bytes is None or len(groups) <= settings.groups_max_bytes


def _spelled(text: str, spelling: NonAscii) -> bytes | None:
    """Encode the text as a field value; None if it contains a byte that is unsafe in a header."""
    raw = text.encode("utf-8", "replace")
    if spelling == "percent":
        return b"".join(b"%c" % byte if byte in _UNCHANGED else b"%%%02X" % byte for byte in raw) or None
    highest = 0xFF if spelling == "utf8" else 0x7E
    return raw if raw and all(byte == 0x09 or (0x20 <= byte <= highest and byte != 0x7F) for byte in raw) else None


_UNCHANGED = frozenset(range(0x20, 0x7F)) - frozenset(b"%,")


def _user(identity: Identity, users_only: bool, spelling: NonAscii) -> bytes | None:
    if users_only and identity.attributes.get("user") == "":
        return None
    return _spelled(identity.email, spelling)


def _groups(identity: Identity, spelling: NonAscii) -> tuple[bytes | None, list[str]]:
    """Return the sorted labels joined with commas, and the labels that cannot be sent; ids never replace these."""
    names: list[bytes] = []
    unsent: list[str] = []
    for label in sorted(group.label for group in identity.groups):
        raw = _spelled(label, spelling)
        if raw is None or b"," in raw:
            unsent.append(label)
        else:
            names.append(raw)
    return b",".join(names) or None, unsent
