"""Tell the upstream who is calling. That nobody else can say it is the core's promise."""

from __future__ import annotations

from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from netbird_proxy import ExchangeView, Identity, OutgoingHead, PluginInfo, Proxy, RequestTransform, RouteSpec, hookimpl

USER_HEADER = b"x-netbird-user"
GROUPS_HEADER = b"x-netbird-groups"


class IdentityHeadersOptions(BaseModel):
    """`[identity_headers]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users_only: bool = False
    """Leave the user header out for a peer that belongs to nobody, where management tells the two apart."""


class IdentityHeaders:
    """Stamps `X-NetBird-User` and `X-NetBird-Groups` from the identity, or makes sure that they are absent."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-identity-headers"),
            summary="tells the upstream the caller's e-mail and groups",
            options=IdentityHeadersOptions,
        )

    @hookimpl(trylast=True)  # after every other transform, so that what we stamp is what is sent
    def transform_request(self, route: RouteSpec, proxy: Proxy) -> RequestTransform:
        users_only = proxy.options(IdentityHeadersOptions).users_only

        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            who = exchange.identity
            outgoing.set_or_delete(USER_HEADER, _user(who, users_only) if who else None)
            outgoing.set_or_delete(GROUPS_HEADER, _groups(who) if who else None)

        return RequestTransform(stamp, owns=(USER_HEADER, GROUPS_HEADER))


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
