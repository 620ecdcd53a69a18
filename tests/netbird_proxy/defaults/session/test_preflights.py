"""Preflights of scripts on other sites, where a login guards the service."""

from __future__ import annotations

import pytest

from tests.netbird_proxy.defaults.session.service import Service

ORIGIN = b"https://app.example.net"
PREFLIGHT = [
    (b"origin", ORIGIN),
    (b"access-control-request-method", b"PUT"),
    (b"access-control-request-headers", b"content-type,x-a"),
]


async def test_a_listed_origins_preflight_is_answered_without_a_login() -> None:
    """By the proxy alone: the upstream sees nothing that nobody was known for."""
    service = Service(password=True, core={"preflight_origins": [ORIGIN.decode()]})

    answer = await service.get("/x", method="OPTIONS", headers=PREFLIGHT)

    assert answer.status == 200
    assert answer.get(b"access-control-allow-origin") == ORIGIN
    assert answer.get(b"access-control-allow-methods") == b"PUT"
    assert answer.get(b"access-control-allow-headers") == b"content-type,x-a"
    assert answer.get(b"access-control-allow-credentials") == b"true"
    assert not service.play.upstreams.dialed


@pytest.mark.parametrize(
    ("listed", "method", "headers"),
    [
        ([], "OPTIONS", PREFLIGHT),
        (["https://other.example"], "OPTIONS", PREFLIGHT),
        ([ORIGIN.decode()], "GET", PREFLIGHT),
        ([ORIGIN.decode()], "OPTIONS", PREFLIGHT[:1]),
        ([ORIGIN.decode()], "OPTIONS", [*PREFLIGHT, (b"origin", b"https://evil.example")]),
        ([ORIGIN.decode()], "OPTIONS", [PREFLIGHT[0], (b"access-control-request-method", b"PUT X")]),
    ],
)
async def test_nothing_else_needs_no_login(listed: list[str], method: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Off by default; another origin, another method, or what is no preflight is asked to log in."""
    service = Service(password=True, core={"preflight_origins": listed} if listed else {})

    answer = await service.get("/x", method=method, headers=headers)

    assert answer.status == 401
    assert answer.get(b"access-control-allow-origin") is None
    assert not service.play.upstreams.dialed


async def test_people_can_log_in_where_preflights_are_answered() -> None:
    """The step that answers preflights hides no endpoint of the host: the login has its own."""
    service = Service(password=True, core={"preflight_origins": [ORIGIN.decode()]})

    answer = await service.get("/__netbird__/session/login")

    assert answer.status == 200
