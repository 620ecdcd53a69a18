"""Tell the upstream who is calling. That nobody else can say it is the core's promise."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from netbird_identity_headers.settings import FIELD, IdentityHeadersSettings
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
    hookimpl,
)

USER_HEADER = b"x-netbird-user"
GROUPS_HEADER = b"x-netbird-groups"
OMITTED_HEADER = b"x-netbird-groups-omitted"
"""How many groups the caller has where they are too many to be told."""
NAMES = (USER_HEADER, GROUPS_HEADER, OMITTED_HEADER)


class IdentityHeadersOptions(BaseModel):
    """`[identity_headers]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users_only: bool = False
    """Leave the user header out for a peer that belongs to nobody, where management tells the two apart."""


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
    def authorize(self, route: RouteSpec) -> Guard | None:
        """Refuses a caller whose groups are more than the service's upstream may be told, where it wants that."""
        settings = _settings(route)
        if not settings.denies:
            return None

        async def within(exchange: ExchangeView) -> Decision:
            who = exchange.identity
            if who is None or _fits(_groups(who), settings):
                return ALLOW
            return Deny(403, "too_many_groups", f"{len(who.groups)} groups are over {settings.groups_max_bytes} bytes")

        return Guard(within, depends_on=settings)

    @hookimpl(trylast=True)  # after every other transform, so that what we stamp is what is sent
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> RequestTransform:
        users_only = proxy.options(IdentityHeadersOptions).users_only
        settings = _settings(route)
        tells_groups = settings.groups == "all"
        told: dict[int, tuple[Identity, list[tuple[bytes, bytes]]]] = {}

        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            who = exchange.identity
            if who is None:
                outgoing.replace(NAMES, ())
                return
            found = told.get(id(who))
            if found is None or found[0] is not who:
                if len(told) >= TOLD:
                    told.clear()
                found = told[id(who)] = (who, fields(who))
            outgoing.replace(NAMES, found[1])

        def fields(who: Identity) -> list[tuple[bytes, bytes]]:
            groups, omitted = _groups(who) if tells_groups else None, None
            if not _fits(groups, settings):
                if settings.denies:
                    raise ValueError("the groups are too many, and nobody refused them")
                groups, omitted = None, b"%d" % len(who.groups)
            said = ((USER_HEADER, _user(who, users_only)), (GROUPS_HEADER, groups), (OMITTED_HEADER, omitted))
            return [(name, value) for name, value in said if value is not None]

        return RequestTransform(stamp, owns=NAMES, depends_on=(settings, users_only))


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


def _printable(text: str) -> bytes | None:
    """The text as a field value, or None where it holds anything that a header could be broken with."""
    raw = text.encode()
    return raw if raw and all(byte == 0x09 or 0x20 <= byte <= 0x7E for byte in raw) else None


def _user(who: Identity, users_only: bool) -> bytes | None:
    if users_only and who.attributes.get("user") == "":
        return None
    return _printable(who.email)


def _groups(who: Identity) -> bytes | None:
    """Labels by name, joined with commas; one that cannot stand in the list is left out, never replaced by its id."""
    labels = sorted(label for group in who.groups if (label := group.label) and "," not in label)
    printable = [raw for label in labels if (raw := _printable(label)) is not None]
    return b",".join(printable) or None
