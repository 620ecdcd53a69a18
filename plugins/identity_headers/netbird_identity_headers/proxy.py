"""Tell the upstream who is calling. That nobody else can say it is the core's promise."""

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
"""How many of the caller's groups are not sent: all where they are too many, else those whose names cannot be sent."""
NAMES = (USER_HEADER, GROUPS_HEADER, OMITTED_HEADER)


class IdentityHeadersOptions(BaseModel):
    """`[identity_headers]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users_only: bool = False
    """Leave the user header out for a peer that belongs to nobody, where management tells the two apart."""
    non_ascii: NonAscii = "omit"
    """How upstreams get names outside printable ASCII: not at all, percent-encoded, or in UTF-8."""


TOLD = 1024
"""Identities a route whose headers are kept: whoever vouches for a caller again and again may say the same object."""


class IdentityHeaders:
    """Stamps `X-NetBird-User` and `X-NetBird-Groups` from the identity, or makes sure that they are absent."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-identity-headers"),
            summary="tells the upstream the caller's e-mail and groups",
            claims=(Claim(FIELD, guards=_denies),),
            options=IdentityHeadersOptions,
            settings=(IdentityHeadersSettings,),
        )

    @hookimpl
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        """Refuses a caller whose groups are more than the service's upstream may be told, where it wants that."""
        settings = _settings(route)
        if not settings.denies:
            return None
        spelling = settings.non_ascii or proxy.options(IdentityHeadersOptions).non_ascii

        async def within(exchange: ExchangeView) -> Decision:
            who = exchange.identity
            if who is None or _fits(_groups(who, spelling)[0], settings):
                return ALLOW
            return Deny(403, "too_many_groups", f"{len(who.groups)} groups are over {settings.groups_max_bytes} bytes")

        return Guard(within, depends_on=(settings, spelling))

    @hookimpl(trylast=True)  # after every other transform, so that what we stamp is what is sent
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> RequestTransform:
        options, settings = proxy.options(IdentityHeadersOptions), _settings(route)
        users_only, spelling = options.users_only, settings.non_ascii or options.non_ascii
        tells_groups = settings.groups == "all"
        told: dict[int, tuple[Identity, list[tuple[bytes, bytes]], TrailEntry | None]] = {}

        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            who = exchange.identity
            if who is None:
                outgoing.replace(NAMES, ())
                return
            found = told.get(id(who))
            if found is None or found[0] is not who:
                if len(told) >= TOLD:
                    told.clear()
                found = told[id(who)] = (who, *fields(who))
            outgoing.replace(NAMES, found[1])
            if found[2] is not None:
                exchange.trail.append(found[2])

        def fields(who: Identity) -> tuple[list[tuple[bytes, bytes]], TrailEntry | None]:
            groups, unsent = _groups(who, spelling) if tells_groups else (None, [])
            omitted, reason = len(unsent), f"names that cannot be sent: {', '.join(map(repr, unsent))}"
            if not _fits(groups, settings):
                if settings.denies:
                    raise ValueError("the groups are too many, and nobody refused them")
                groups, omitted = None, len(who.groups)
                reason = f"together they are over {settings.groups_max_bytes} bytes"
            lines = (
                (USER_HEADER, _user(who, users_only, spelling)),
                (GROUPS_HEADER, groups),
                (OMITTED_HEADER, b"%d" % omitted if omitted else None),
            )
            entry = TrailEntry("transform_request", PLUGIN, f"{omitted} groups omitted", reason) if omitted else None
            return [(name, value) for name, value in lines if value is not None], entry

        return RequestTransform(stamp, owns=NAMES, depends_on=(settings, users_only, spelling))


def _denies(said: Any) -> bool:
    """Whether these settings, as the wire's struct, need somebody who says no. Without groups nothing overflows."""
    return ("groups_overflow", "deny") in said.items() and ("groups", "none") not in said.items()


_UNSAID = IdentityHeadersSettings()


def _settings(route: RouteSpec) -> IdentityHeadersSettings:
    """The service's own; a route that a program made may say nothing."""
    found: IdentityHeadersSettings = route.values.get(IdentityHeadersSettings, _UNSAID)
    return found


def _fits(groups: bytes | None, settings: IdentityHeadersSettings) -> bool:
    return groups is None or settings.groups_max_bytes is None or len(groups) <= settings.groups_max_bytes


def _spelled(text: str, spelling: NonAscii) -> bytes | None:
    """The text as a field value, or None where it cannot be one."""
    raw = text.encode("utf-8", "replace")
    if spelling == "percent":
        return b"".join(b"%c" % byte if byte in _UNCHANGED else b"%%%02X" % byte for byte in raw) or None
    highest = 0xFF if spelling == "utf8" else 0x7E
    return raw if raw and all(byte == 0x09 or (0x20 <= byte <= highest and byte != 0x7F) for byte in raw) else None


_UNCHANGED = frozenset(range(0x20, 0x7F)) - frozenset(b"%,")


def _user(who: Identity, users_only: bool, spelling: NonAscii) -> bytes | None:
    if users_only and who.attributes.get("user") == "":
        return None
    return _spelled(who.email, spelling)


def _groups(who: Identity, spelling: NonAscii) -> tuple[bytes | None, list[str]]:
    """Labels by name, joined with commas, and those that cannot stand in the list, which are never replaced by ids."""
    names: list[bytes] = []
    unsent: list[str] = []
    for label in sorted(group.label for group in who.groups):
        raw = _spelled(label, spelling)
        if raw is None or b"," in raw:
            unsent.append(label)
        else:
            names.append(raw)
    return b",".join(names) or None, unsent
