"""Single sign-on at management: a provider in memory, states that cannot be forged, and who people turn out to be."""
# Over 500 lines: one login flow, tried with one scripted provider.

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import SecretStr

from netbird_management import AccountSnapshot, Decision, Deny, Login, PluginInfo, SessionGate, hookimpl
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import FAILED_SECONDS, IdentityProvider, LoginRefused, ProviderFailed
from netbird_management.login.people import WAITING
from netbird_management.login.settings import OidcSettings
from netbird_management.login.sign_on import SignOn
from netbird_management.model.accounts import Role, User
from netbird_management.model.clock import now
from netbird_management.model.errors import BadRequest
from netbird_management.model.ids import AccountId, GroupId, ServiceId, UserId
from netbird_management.model.services import AuthConfig, BearerAuth, SecretAuth, Service, ServiceMeta
from netbird_management.operations.account_settings import SettingsChange, update_account
from netbird_management.operations.accounts import create_account
from netbird_management.operations.events import events_of
from netbird_management.operations.proxies import Registration
from netbird_management.operations.services import create_service, delete_service
from netbird_management.operations.users import approve_user, create_user, forget_waiting, update_user
from netbird_management.plugins.hooks import load_hooks
from netbird_management.secrets.session_tokens import read_session_token
from netbird_management.store.models import UserRow
from tests.netbird_management.conftest import Home, claims_in
from tests.netbird_management.grpc.conftest import direct_target

ISSUER = "https://login.lab.test"
CALLBACK = "https://m.lab.test/api/reverse-proxy/callback"
PLACE = "https://app.px.test:8443/__netbird__/session/return?f=abc"
KEY = RSAKey.generate_key(2048, {"kid": "k1"})


class Provider:
    """The provider's HTTP side. `claims` go into the next ID token, `changes` over all that it says."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"sub": "u-1", "email": "alice@lab.test", "email_verified": True}
        self.description: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/auth",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
        }
        self.sign: Callable[[dict[str, Any]], str] = lambda claims: jwt.encode(
            {"alg": "RS256", "kid": "k1"}, claims, KEY
        )
        self.challenge = self.nonce = ""
        self.down = False
        self.moment = 1000.0

    def handle(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("down")
        if request.url.path.endswith("openid-configuration"):
            return httpx.Response(200, json=self.description)
        if request.url.path == "/keys":
            return httpx.Response(200, json={"keys": [KEY.as_dict(private=False)]})
        form = parse_qs(request.content.decode())
        verifier = hashlib.sha256(form["code_verifier"][0].encode()).digest()
        if base64.urlsafe_b64encode(verifier).rstrip(b"=").decode() != self.challenge or form["code"] != ["c0de"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        when = int(time.time())
        claims = {"iss": ISSUER, "aud": "m", "iat": when, "exp": when + 60, "nonce": self.nonce, **self.claims}
        return httpx.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": self.sign(claims)})

    def came(self, url: str) -> str:
        """A browser comes with what management sent it along; its state."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (query["client_id"], query["response_type"], query["redirect_uri"]) == ("m", "code", CALLBACK)
        assert query["code_challenge_method"] == "S256"
        self.challenge, self.nonce = query["code_challenge"], query["nonce"]
        return query["state"]


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def oidc() -> OidcSettings:
    return OidcSettings.model_validate(
        {"issuer": ISSUER, "client_id": "m", "client_secret": "s", "callback_url": CALLBACK}
    )


@pytest.fixture
def sign_on(home: Home, oidc: OidcSettings, provider: Provider) -> SignOn:
    return signing_on(home, oidc, provider, SessionGates(load_hooks(), Host(home)))


def signing_on(home: Home, oidc: OidcSettings, provider: Provider, gates: SessionGates) -> SignOn:
    transport = httpx.MockTransport(provider.handle)
    return SignOn(home.state, IdentityProvider(oidc, transport=transport, clock=lambda: provider.moment), gates)


class Host:
    """The host as plugins see it."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        return self._home.state.snapshots.get(account_id)


@pytest.fixture
async def service(home: Home, proxy: Registration) -> Service:
    given = Service(
        id="",  # type: ignore[arg-type]
        account_id=home.account_id,
        name="app",
        domain="app.px.test",
        proxy_cluster="",
        meta=ServiceMeta(created_at=now()),
        targets=(direct_target(),),
        auth=AuthConfig(bearer_auth=BearerAuth(True), password_auth=SecretAuth(True, "x")),
    )
    return await create_service(home.state, load_hooks(["direct_upstream"]), given, frozenset())


async def invited(home: Home, email: str = "alice@lab.test") -> User:
    return await create_user(home.state, home.account_id, role=Role.USER, email=email)


async def log_in(sign_on: SignOn, provider: Provider, home: Home) -> str:
    state = provider.came(await sign_on.begin(PLACE, home.account_id))
    return await sign_on.finish(state, code="c0de", error="")


def query_of(place: str) -> dict[str, str]:
    parts = urlsplit(place)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == PLACE.partition("?")[0]
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


async def test_a_person_who_was_invited_comes_in(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """They are the user that was made for their verified address, and stay that user when the address changes."""
    user = await invited(home, "Alice@lab.test")

    query = query_of(await log_in(sign_on, provider, home))

    assert query["f"] == "abc"
    session = read_session_token(query["session_token"], service.session_public_key, "app.px.test")
    assert session is not None
    assert (session.subject, session.method) == (user.id, "oidc")
    assert claims_in(query["session_token"])["email"] == "Alice@lab.test"
    assert home.snapshot.users[user.id].last_login is not None
    provider.claims["email"] = "other@lab.test"
    again = query_of(await log_in(sign_on, provider, home))["session_token"]
    session = read_session_token(again, service.session_public_key, "app.px.test")
    assert session is not None
    assert session.subject == user.id


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "alice@lab.test", "email_verified": False},
        {"email": "alice@lab.test"},
        {"email": "alice@lab.test", "email_verified": "true"},
        {"email": "mallory@lab.test", "email_verified": True},
        {},
    ],
)
async def test_a_stranger_waits_for_approval(
    home: Home, sign_on: SignOn, provider: Provider, service: Service, claims: dict[str, Any]
) -> None:
    """An address that nobody vouches for leads to nobody; who comes waits for an administrator."""
    alice = await invited(home)
    provider.claims = {"sub": "u-9", **claims}

    for _ in range(2):
        query = query_of(await log_in(sign_on, provider, home))
        assert query["error"] == "access_denied"
        assert "pending approval" in query["error_description"]
        assert "session_token" not in query

    (stranger,) = [user for user in home.snapshot.users.values() if user.pending_approval]
    assert stranger.id != alice.id
    assert stranger.email == ("mallory@lab.test" if claims.get("email") == "mallory@lab.test" else "")
    await approve_user(home.state, home.account_id, stranger.id)
    assert "session_token" in query_of(await log_in(sign_on, provider, home))


async def test_the_owner_of_setup_links_by_their_address(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """The first login with the owner's verified address is the owner, and makes nobody else."""
    provider.claims = {"sub": "u-7", "email": home.owner.email, "email_verified": True}

    assert "session_token" in query_of(await log_in(sign_on, provider, home))

    (owner,) = home.snapshot.users.values()
    assert (owner.id, owner.last_login is not None) == (home.owner.id, True)


async def codes(home: Home) -> list[str]:
    """The activities of people, the oldest first."""
    found = [event.activity.value for event in await events_of(home.state, home.account_id)]
    return [code for code in reversed(found) if code.startswith("user.") and code != "user.create"]


async def test_coming_by_the_provider_is_an_event(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """The log says who joined, who linked an invitation, and who logged in, once an hour."""
    await invited(home)
    for _ in range(3):
        await log_in(sign_on, provider, home)
    assert await codes(home) == ["user.link", "user.login"]

    provider.claims = {"sub": "u-9", "email": "new@lab.test", "email_verified": True}
    await log_in(sign_on, provider, home)
    await log_in(sign_on, provider, home)
    assert await codes(home) == ["user.link", "user.login", "user.join"]
    (join,) = [e for e in await events_of(home.state, home.account_id) if e.activity.value == "user.join"]
    assert (join.details["email"], join.details["issuer"]) == ("new@lab.test", ISSUER)


async def test_strangers_come_in_where_the_setting_says_so(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Without required approval a stranger is an ordinary user at once."""
    await update_account(
        home.state,
        home.account_id,
        SettingsChange(replace(home.snapshot.account.settings, user_approval_required=False)),
    )
    provider.claims = {"sub": "u-9"}

    assert "session_token" in query_of(await log_in(sign_on, provider, home))

    (stranger,) = [user for user in home.snapshot.users.values() if user.role is Role.USER]
    assert (stranger.blocked, stranger.pending_approval) == (False, False)


async def test_who_waits_has_a_bound_and_an_end(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """So many strangers wait, the next is refused without a place, and those who stay away are forgotten."""
    async with home.state.change(home.account_id) as transaction:
        for number in range(WAITING - 1):
            row = UserRow(
                id=f"w{number}", account_id=home.account_id, role=Role.USER, email="", name="", auto_groups=[]
            )
            row.blocked, row.pending_approval, row.created_at = True, True, now()
            transaction.session.add(row)
        transaction.touch(users=[UserId(f"w{number}") for number in range(WAITING - 1)])
    for subject, refused in (("u-1", "pending approval"), ("u-2", "Too many users wait"), ("u-1", "pending approval")):
        provider.claims = {"sub": subject}
        assert refused in query_of(await log_in(sign_on, provider, home))["error_description"]
    assert sum(user.pending_approval for user in home.snapshot.users.values()) == WAITING

    await forget_waiting(home.state)
    assert sum(user.pending_approval for user in home.snapshot.users.values()) == WAITING
    await forget_waiting(home.state, kept=timedelta(0))
    assert set(home.snapshot.users) == {home.owner.id}


async def test_nobody_takes_over_a_user_that_has_come(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """A second subject with the same verified address is a stranger."""
    await invited(home)
    assert "session_token" in query_of(await log_in(sign_on, provider, home))

    provider.claims["sub"] = "u-2"
    assert query_of(await log_in(sign_on, provider, home))["error"] == "access_denied"


async def test_a_blocked_user_does_not_come_in(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """The reason is told, and nothing else."""
    user = await invited(home)
    await update_user(home.state, home.account_id, user.id, role=Role.USER, auto_groups=[], blocked=True)

    query = query_of(await log_in(sign_on, provider, home))

    assert query["error_description"] == "Your account is blocked"


async def test_people_are_of_the_account_that_the_provider_says(
    home: Home, oidc: OidcSettings, provider: Provider, service: Service
) -> None:
    """Somebody of another account, or of none, comes in nowhere else, and waits for nobody there; nor does who left."""
    claimed = oidc.model_copy(update={"account_claim": "org", "accounts": {"home-org": home.account_id}})
    sign_on = signing_on(home, claimed, provider, SessionGates(load_hooks(), Host(home)))
    user = await invited(home)
    for org in ("other-org", "", None, 7, ["home-org"]):
        provider.claims["org"] = org
        query = query_of(await log_in(sign_on, provider, home))
        assert query["error_description"] == "You are not allowed to use this service"
        assert "session_token" not in query
    assert not [one for one in home.snapshot.users.values() if one.pending_approval]

    provider.claims["org"] = "home-org"
    session = read_session_token(
        query_of(await log_in(sign_on, provider, home))["session_token"], service.session_public_key, "app.px.test"
    )
    assert session is not None
    assert session.subject == user.id
    provider.claims["org"] = "other-org"
    assert query_of(await log_in(sign_on, provider, home))["error"] == "access_denied"


async def test_a_plugin_may_keep_a_person_out(
    home: Home, oidc: OidcSettings, provider: Provider, service: Service
) -> None:
    """Its gate hears who they are with their groups; the browser goes back with a fixed sentence and no token."""
    user = await invited(home)
    heard: list[Login] = []

    class Gate:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo()

        @hookimpl
        def session_gate(self, service: Service) -> SessionGate:
            async def gate(*, login: Login, account: AccountSnapshot) -> Decision:
                heard.append(login)
                return Deny("no_mondays")

            return gate

    sign_on = signing_on(home, oidc, provider, SessionGates(load_hooks([("gate", Gate())]), Host(home)))
    query = query_of(await log_in(sign_on, provider, home))

    assert query["error_description"] == "You are not allowed to use this service"
    assert "session_token" not in query
    assert [(login.method, login.subject, login.again) for login in heard] == [("oidc", user.id, False)]
    assert heard[0].user is not None


async def test_a_token_fits_into_a_cookie(home: Home, sign_on: SignOn, provider: Provider, service: Service) -> None:
    """However many groups somebody is in: proxies learn those when they ask."""
    from netbird_management.operations.groups import create_group

    user = await invited(home)
    groups = [
        await create_group(home.state, home.account_id, name=f"a group with a long name {i}", peers=[])
        for i in range(60)
    ]
    ids = [GroupId(group.id) for group in groups]
    await update_user(home.state, home.account_id, user.id, role=Role.USER, auto_groups=ids, blocked=False)

    token = query_of(await log_in(sign_on, provider, home))["session_token"]

    assert len(token) < 3800


async def test_a_state_is_good_once_and_only_as_it_was(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Used, forged, and another installation's states lead nowhere, and a forged one does not burn the real one."""
    await invited(home)
    state = provider.came(await sign_on.begin(PLACE, home.account_id))
    place, nonce, mac = state.split("|")
    elsewhere = base64.urlsafe_b64encode(b"https://evil.example/").decode()
    for wrong in (
        "",
        "a|b|c",
        f"{elsewhere}|{nonce}|{mac}",
        f"{place}|{nonce}|{'0' * 64}",
        f"{place}|{nonce}",
        state + "0",
    ):
        with pytest.raises(BadRequest):
            await sign_on.finish(wrong, code="c0de", error="")

    assert "session_token" in query_of(await sign_on.finish(state, code="c0de", error=""))
    with pytest.raises(BadRequest, match="already"):
        await sign_on.finish(state, code="c0de", error="")


async def test_a_canceled_login_goes_back(home: Home, sign_on: SignOn, provider: Provider, service: Service) -> None:
    """With a fixed sentence: what the provider says is not handed on."""
    state = provider.came(await sign_on.begin(PLACE, home.account_id))

    query = query_of(await sign_on.finish(state, code="", error="<script>"))

    assert query == {"f": "abc", "error": "access_denied", "error_description": "The login was canceled"}


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example/",
        "https://px.test/",
        "javascript:alert(1)",
        "https://app.px.test@evil.example/",
        "https://user@app.px.test/",
        "ftp://app.px.test/",
        "//app.px.test/",
        "https://app.px.test/\r\n",
        "https://app.px.test/" + "a" * 3000,
        "",
    ],
)
async def test_only_services_are_gone_back_to(home: Home, sign_on: SignOn, service: Service, place: str) -> None:
    """A place on no service's host, or on another account's, begins no login."""
    with pytest.raises(BadRequest):
        await sign_on.begin(place, home.account_id)
    with pytest.raises(BadRequest):
        await sign_on.begin(PLACE, "another")  # type: ignore[arg-type]


WRONG: dict[str, Callable[[Provider], Any]] = {
    "another audience": lambda provider: provider.claims.update(aud="other"),
    "another issuer": lambda provider: provider.claims.update(iss="https://evil.example"),
    "expired": lambda provider: provider.claims.update(exp=int(time.time()) - 3600),
    "another nonce": lambda provider: provider.claims.update(nonce="other"),
    "no subject": lambda provider: provider.claims.pop("sub"),
    "a subject that is no text": lambda provider: provider.claims.update(sub=7),
    "many audiences": lambda provider: provider.claims.update(aud=["m", "other"]),
    "another key": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: jwt.encode({"alg": "RS256", "kid": "k1"}, claims, RSAKey.generate_key(2048, {"kid": "k1"})),
    ),
    "alg none": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: (
            ".".join(
                base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
                for part in ({"alg": "none"}, claims)
            )
            + "."
        ),
    ),
    "no token": lambda provider: setattr(provider, "sign", lambda _claims: None),
}


@pytest.mark.parametrize("how", WRONG)
async def test_what_is_no_id_token(home: Home, sign_on: SignOn, provider: Provider, service: Service, how: str) -> None:
    """Nobody is known by it, and no user is made."""
    before = len(home.snapshot.users)
    state = provider.came(await sign_on.begin(PLACE, home.account_id))
    WRONG[how](provider)

    with pytest.raises(LoginRefused):
        await sign_on.finish(state, code="c0de", error="")
    assert len(home.snapshot.users) == before


async def test_a_provider_that_is_away_or_another(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """A failure, told as one; it is asked again afterwards."""
    provider.down = True
    with pytest.raises(ProviderFailed):
        await sign_on.begin(PLACE, home.account_id)
    provider.down = False
    provider.moment += FAILED_SECONDS
    provider.description["issuer"] = "https://evil.example"
    with pytest.raises(ProviderFailed):
        await sign_on.begin(PLACE, home.account_id)
    provider.description["issuer"] = ISSUER
    provider.moment += FAILED_SECONDS
    state = provider.came(await sign_on.begin(PLACE, home.account_id))
    with pytest.raises(ProviderFailed):
        await sign_on.finish(state, code="wrong", error="")


def test_the_secret_is_not_shown() -> None:
    """Not by repr, and not in JSON."""
    settings = OidcSettings.model_validate(
        {"issuer": ISSUER, "client_id": "m", "client_secret": "s3cret", "callback_url": CALLBACK}
    )
    assert "s3cret" not in repr(settings)
    assert isinstance(settings.client_secret, SecretStr)
    elsewhere = {**settings.model_dump(), "callback_url": "https://m.lab.test/other", "client_secret": ""}
    with pytest.raises(ValueError, match="callback"):
        OidcSettings.model_validate(elsewhere)


async def test_promise_10_a_login_ends_in_the_account_that_began_it(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Another account that has the domain meanwhile gets neither the person nor a session."""
    await invited(home)
    state = provider.came(await sign_on.begin(PLACE, home.account_id))
    await delete_service(home.state, home.account_id, service.id)
    other, _ = await create_account(home.state, email="b@lab.test", name="B")
    given = replace(service, id=ServiceId(""), account_id=other)
    await create_service(home.state, load_hooks(["direct_upstream"]), given, frozenset())

    query = query_of(await sign_on.finish(state, code="c0de", error=""))

    assert query["error_description"] == "Service configuration error"
    assert "session_token" not in query
    snapshot = home.state.snapshots.get(other)
    assert snapshot is not None
    assert len(snapshot.users) == 1


async def test_promise_10_a_provider_that_fails_is_asked_once_for_all(
    home: Home, sign_on: SignOn, provider: Provider, service: Service
) -> None:
    """Callers share its failure for some seconds, and strangers' tokens do not keep logins waiting."""
    provider.down = True
    answers = await asyncio.gather(
        *(sign_on.bearer("a.b.c") for _ in range(20)), sign_on.begin(PLACE, home.account_id), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {ProviderFailed}
    provider.down = False
    with pytest.raises(ProviderFailed):
        await sign_on.begin(PLACE, home.account_id)
    provider.moment += FAILED_SECONDS
    assert provider.came(await sign_on.begin(PLACE, home.account_id))
