"""The identity provider's own tokens at the API."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from netbird_management.grpc.access_log import AccessLogs
from netbird_management.login.claimed_accounts import ClaimedAccounts
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import LoginRefused
from netbird_management.login.settings import OidcSettings
from netbird_management.login.sign_on import SignOn
from netbird_management.model.accounts import Role, User
from netbird_management.model.services import Service
from netbird_management.operations.access_log import access_log_page
from netbird_management.operations.account_settings import delete_account
from netbird_management.operations.users import update_user
from netbird_management.plugins.hooks import load_hooks
from netbird_management.rest.app import create_app
from netbird_wire.proxy_service_pb2 import AccessLog
from tests.netbird_management.conftest import Home, context_for
from tests.netbird_management.login.test_sign_on import (
    ISSUER,
    KEY,
    Host,
    Provider,
    invited,
    log_in,
    oidc,
    provider,
    service,
    sign_on,
    signing_on,
)

__all__ = ["oidc", "provider", "service", "sign_on"]


LOGOUT = {"http://schemas.openid.net/event/backchannel-logout": {}}


def token(key: RSAKey = KEY, kind: str = "JWT", **claims: Any) -> str:
    when = int(time.time())
    whole = {"iss": ISSUER, "aud": "m", "sub": "u-1", "iat": when, "exp": when + 60, **claims}
    return jwt.encode({"alg": "RS256", "kid": "k1", "typ": kind}, whole, key)


@pytest.fixture
async def client(home: Home, sign_on: SignOn) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(context_for(home, sign_on=sign_on))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as opened:
        yield opened


async def _status(client: httpx.AsyncClient, text: str, scheme: str = "Bearer") -> int:
    answer = await client.get("/api/users/current", headers={"authorization": f"{scheme} {text}"})
    return answer.status_code


@pytest.fixture
async def alice(home: Home, sign_on: SignOn, provider: Provider, service: Service) -> User:
    user = await invited(home)
    await log_in(sign_on, provider, home)
    return user


async def test_who_has_logged_in_may_call(client: httpx.AsyncClient, alice: User) -> None:
    """As themselves, with their role, and only as `Bearer`."""
    answer = await client.get("/api/users/current", headers={"authorization": f"Bearer {token()}"})
    assert (answer.status_code, answer.json()["id"]) == (200, alice.id)
    assert (await client.get("/api/users", headers={"authorization": f"Bearer {token()}"})).status_code == 403
    assert await _status(client, token(), "Token") == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.test"},
        {"aud": "other"},
        {"exp": 1},
        {"sub": "nobody"},
        {"sub": ""},
        {"azp": "other"},
        {"azp": None},
        {"aud": ["m", "other"]},
        {"events": LOGOUT},
        {"typ": "Logout"},
        {"typ": "Refresh"},
        {"kind": "logout+jwt"},
        {"kind": "application/secevent+jwt"},
    ],
)
async def test_what_is_no_token_for_us(client: httpx.AsyncClient, alice: User, claims: dict[str, Any]) -> None:
    """Another issuer, audience, client, time or kind of token, and a person who never came: 401, and nobody is made."""
    assert await _status(client, token(**claims)) == 401


@pytest.mark.parametrize(
    "claims", [{"azp": "m"}, {"aud": ["m", "x"], "azp": "m"}, {"typ": "ID"}, {"typ": "Bearer"}, {"kind": "at+jwt"}]
)
async def test_tokens_that_name_a_person_for_us(client: httpx.AsyncClient, alice: User, claims: dict[str, Any]) -> None:
    """ID tokens and access tokens for our client, however the provider marks them."""
    assert await _status(client, token(**claims)) == 200


@pytest.mark.parametrize("claims", [{"azp": "other"}, {"events": LOGOUT}, {"typ": "Logout"}, {"typ": "Bearer"}])
async def test_a_login_wants_an_id_token(
    home: Home, sign_on: SignOn, provider: Provider, service: Service, claims: dict[str, Any]
) -> None:
    """A login that ends with another kind of token makes no session."""
    await invited(home)
    provider.claims |= claims
    with pytest.raises(LoginRefused):
        await log_in(sign_on, provider, home)


async def test_another_key_is_no_key(client: httpx.AsyncClient, alice: User) -> None:
    """A forged signature is refused, and does not make us ask the provider each time."""
    forged = token(RSAKey.generate_key(2048, {"kid": "k1"}))
    assert [await _status(client, forged) for _ in range(3)] == [401, 401, 401]
    assert await _status(client, "a.b.c") == 401


async def test_a_blocked_person_is_out_at_once(client: httpx.AsyncClient, home: Home, alice: User) -> None:
    """The token is good, and its owner may not come in."""
    await update_user(home.state, home.account_id, alice.id, role=Role.USER, auto_groups=[], blocked=True)
    assert await _status(client, token()) == 403


async def test_a_provider_that_is_away_is_not_a_bad_token(
    home: Home, provider: Provider, sign_on: SignOn, client: httpx.AsyncClient
) -> None:
    """503: try again later."""
    provider.down = True
    assert await _status(client, token()) == 503


async def test_the_first_of_an_account_founds_it(home: Home, oidc: OidcSettings, provider: Provider) -> None:
    """Where the provider names accounts: the first is the owner, the next waits for them, and nobody is of two."""
    claimed = oidc.model_copy(update={"account_claim": "org"})
    sign_on = signing_on(home, claimed, provider, SessionGates(load_hooks(), Host(home)))
    accounts = ClaimedAccounts(claimed)
    app = create_app(context_for(home, sign_on=sign_on))
    vouched = {"email_verified": True, "org": "acme"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert await _status(client, token(sub="f", email="f@acme.test", org="acme")) == 401  # an address of nobody's
        assert await _status(client, token(sub="f", email="f@acme.test", email_verified=True)) == 401  # no account
        assert home.state.snapshots.get(accounts.named("acme")) is None

        founder = token(sub="f", email="f@acme.test", **vouched)
        assert [await _status(client, founder) for _ in range(2)] == [200, 200]
        account = home.state.snapshots.get(accounts.named("acme"))
        assert account is not None
        assert [(user.role, user.email) for user in account.users.values()] == [(Role.OWNER, "f@acme.test")]

        assert await _status(client, token(sub="g", email="g@acme.test", **vouched)) == 403
        account = home.state.snapshots.get(accounts.named("acme"))
        assert account is not None
        assert [user.email for user in account.users.values() if user.pending_approval] == ["g@acme.test"]
        moved = token(sub="f", email="f@acme.test", email_verified=True, org="other")
        assert await _status(client, moved) == 401
        assert home.state.snapshots.get(accounts.named("other")) is None


async def test_two_who_come_first_at_once_are_of_one_account(
    home: Home, oidc: OidcSettings, provider: Provider
) -> None:
    """One founds it, the other waits for approval in it."""
    claimed = oidc.model_copy(update={"account_claim": "org"})
    sign_on = signing_on(home, claimed, provider, SessionGates(load_hooks(), Host(home)))
    tokens = [token(sub=sub, email=f"{sub}@acme.test", email_verified=True, org="acme") for sub in ("a", "b")]

    await asyncio.gather(*(sign_on.bearer(one) for one in tokens))

    account = home.state.snapshots.get(ClaimedAccounts(claimed).named("acme"))
    assert account is not None
    assert sorted((user.role, user.pending_approval) for user in account.users.values()) == [
        (Role.OWNER, False),
        (Role.USER, True),
    ]


async def test_promise_10_an_account_that_is_founded_again_has_no_old_log(
    home: Home, oidc: OidcSettings, provider: Provider
) -> None:
    """The id follows from the account's name; entries of the one before are gone, those that still waited too."""
    claimed = oidc.model_copy(update={"account_claim": "org"})
    sign_on = signing_on(home, claimed, provider, SessionGates(load_hooks(), Host(home)))
    account_id, logs = ClaimedAccounts(claimed).named("acme"), AccessLogs(home.state)
    vouched = {"email_verified": True, "org": "acme"}

    def entry(id_: str) -> AccessLog:
        return AccessLog(log_id=id_, account_id=account_id, host="secret.px.test")

    assert await sign_on.bearer(token(sub="f", email="f@acme.test", **vouched)) is not None
    logs.take([entry("old")])
    await logs.flush()
    assert (await access_log_page(home.state, account_id, page=1, page_size=10))[1] == 1
    logs.take([entry("waiting")])
    await delete_account(home.state, account_id)
    await logs.flush()
    assert await sign_on.bearer(token(sub="g", email="g@acme.test", **vouched)) is not None
    assert await access_log_page(home.state, account_id, page=1, page_size=10) == ([], 0)
