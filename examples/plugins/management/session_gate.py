"""Allows shared passwords from the office only, and denies administrators sessions on services."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from netbird_management import (
    ALLOW,
    AccountSnapshot,
    Decision,
    Deny,
    Login,
    PluginInfo,
    Role,
    Service,
    SessionGate,
    hookimpl,
)

OFFICE = ip_network("192.0.2.0/24")


class OfficeRules:
    """One of several gates, all of which must allow the login, after management's own checks."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="shared passwords in the office only; no administrators")

    @hookimpl
    def session_gate(self, service: Service) -> SessionGate | None:
        return _office if service.auth.password_auth or service.auth.bearer_auth else None


async def _office(*, login: Login, account: AccountSnapshot) -> Decision:
    if login.user is not None:
        return Deny("no_administrators") if login.user.role in (Role.OWNER, Role.ADMIN) else ALLOW
    try:
        inside = ip_address(login.client_address) in OFFICE
    except ValueError:  # the proxy does not report addresses
        inside = False
    return ALLOW if inside else Deny("not_in_the_office")
