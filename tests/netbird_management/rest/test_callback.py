"""Where the identity provider sends browsers back to, over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from netbird_management.login.settings import OidcSettings
from netbird_management.login.sign_on import SignOn
from netbird_management.model.services import Service
from netbird_management.rest.app import create_app
from netbird_management.rest.client_address import client_address
from netbird_management.rest.context import LOGIN_BURST as BURST
from tests.netbird_management.conftest import Home, context_for
from tests.netbird_management.login.test_sign_on import (
    PLACE,
    Provider,
    invited,
    oidc,
    provider,
    query_of,
    service,
    sign_on,
)

__all__ = ["oidc", "provider", "service", "sign_on"]

CALLBACK = "/api/reverse-proxy/callback"
Calling = Callable[..., Any]


@asynccontextmanager
async def calling(home: Home, **options: Any) -> AsyncIterator[Calling]:
    """A function that comes back from the provider, as some address."""
    app = create_app(context_for(home, **options))

    async def come(address: str = "192.0.2.1", headers: dict[str, str] | None = None, **query: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(CALLBACK, params=query, headers=headers)

    yield come


async def test_agents_are_told_where_their_users_log_in(home: Home, oidc: OidcSettings) -> None:
    """Without a token: the issuer, and the first client for agents, else management's own; no secret is among it."""
    for clients, named in (((), oidc.client_id), (("agents", "others"), "agents")):
        settings = oidc.model_copy(update={"agent_client_ids": clients})
        answer = await _told(home, agent_login=settings.agent_login)
        assert (answer.status_code, answer.json()) == (200, {"issuer": oidc.issuer, "client_id": named})
    assert (await _told(home)).status_code == 404


async def _told(home: Home, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(context_for(home, **options)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/api/agent-login")


async def test_a_login_goes_back_to_where_it_came_from(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Once, with a token, over TLS; nothing of it is stored or told in a referrer."""
    await invited(home)
    async with calling(home, sign_on=sign_on) as come:
        state = provider.came(await sign_on.begin(PLACE, home.account_id))
        answer = await come(state=state, code="c0de")

        assert answer.status_code == 302
        assert "session_token" in query_of(answer.headers["location"])
        assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
        again = await come(state=state, code="c0de")
        assert (again.status_code, "location" in again.headers) == (400, False)


async def test_what_leads_nowhere(home: Home, sign_on: SignOn, provider: Provider, service: Service) -> None:
    """Each has its status, as text that quotes nothing; without a provider there is no such place."""
    async with calling(home, sign_on=sign_on) as come:
        forged = await come(state="a|b|<c>", code="c0de")
        assert (forged.status_code, "<c>" in forged.text) == (400, False)
        state = provider.came(await sign_on.begin(PLACE, home.account_id))
        assert (await come(state=state, code="wr0ng")).status_code == 500
        provider.claims = {}
        state = provider.came(await sign_on.begin(PLACE, home.account_id))
        assert (await come(state=state, code="c0de")).status_code == 401
        assert forged.headers["content-type"].startswith("text/plain")
    async with calling(home) as come:
        assert (await come(state="a|b|c", code="c0de")).status_code == 404


async def test_who_comes_too_often_waits(home: Home, sign_on: SignOn) -> None:
    """By address, an IPv6 host by its network; others are let through."""
    async with calling(home, sign_on=sign_on) as come:
        for address in ("192.0.2.1", "2001:db8::1"):
            assert [(await come(address)).status_code for _ in range(BURST + 1)] == [400] * BURST + [429]
        assert (await come("2001:db8::2")).status_code == 429
        assert (await come("192.0.2.2", {"x-forwarded-for": "192.0.2.1"})).status_code == 400


async def test_people_who_come_in_hold_nobody_up(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Many people behind one address may all log in: only failures count."""
    await invited(home)
    async with calling(home, sign_on=sign_on) as come:
        for _ in range(BURST + 5):
            state = provider.came(await sign_on.begin(PLACE, home.account_id))
            assert (await come(state=state, code="c0de")).status_code == 302


async def test_behind_a_proxy_people_do_not_hold_each_other_up(home: Home, sign_on: SignOn) -> None:
    """Where it is trusted to say who they are."""
    async with calling(home, sign_on=sign_on, trusted_proxies=(ip_network("10.0.0.0/8"),)) as come:
        for i in range(BURST + 5):
            assert (await come("10.0.0.7", {"x-forwarded-for": f"198.51.100.{i}"})).status_code == 400
        tries = [await come("10.0.0.7", {"x-forwarded-for": "198.51.100.200"}) for _ in range(BURST + 1)]
        assert tries[-1].status_code == 429


@pytest.mark.parametrize(
    ("peer", "lines", "found"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.7", [], "10.0.0.7"),
        ("10.0.0.7", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.7", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.7", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.7", ["1.2.3.4", "198.51.100.1, 10.0.0.8"], "198.51.100.1"),
        ("10.0.0.7", ["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
        ("10.0.0.7", ["1.2.3.4, nonsense, 10.0.0.8"], "10.0.0.8"),
        ("10.0.0.7", ["nonsense"], "10.0.0.7"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_nobody_chooses_their_own_address(peer: str, lines: list[str], found: str) -> None:
    """What stands left of what a trusted proxy wrote is anybody's word."""
    request = Request(
        {
            "type": "http",
            "client": (peer, 1) if peer else None,
            "headers": [(b"x-forwarded-for", line.encode()) for line in lines],
        }
    )
    assert client_address(request, (ip_network("10.0.0.0/8"),)) == found
