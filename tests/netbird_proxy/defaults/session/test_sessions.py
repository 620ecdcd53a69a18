"""Sessions: what makes one, and everything that makes none."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any

import pytest
from nacl.signing import SigningKey

from netbird_proxy import Claim, PluginInfo, always, hookimpl
from netbird_proxy.api.model import AccountId
from netbird_proxy.defaults.session.settings import SessionSettings
from netbird_proxy.defaults.session.tokens import Tokens
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.fakes import FakeTunnel
from netbird_proxy.testing.makers import HOST, peer, tunnel_origin
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import ValidateSessionResponse, ValidateTunnelPeerResponse
from tests.netbird_proxy.defaults.session.service import BROWSER, Service, Vouched, Vouching, url64

COOKIE = b"__Host-nb_session="


async def test_a_session_opens_the_route_and_stays_here(password: Service) -> None:
    """Its cookie is known, and neither it nor an old one of NetBird's is seen upstream."""
    token = password.token()

    answer = await password.get("/a?b=c", cookie=b"a=1; " + COOKIE + token + b"; nb_session=x; b=2")

    assert answer.status == 200
    sent = password.play.upstreams.last
    assert sent.get(b"cookie") == [b"a=1; b=2"]
    assert token not in sent.head
    identity = password.play.exchange.identity
    assert identity is not None
    assert (identity.user_id, identity.method, identity.by) == ("password-user", "password", "session")
    assert password.asked == []


WRONG: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time.time()) - 1},
    "without an end": {"exp": None},
    "an end that is text": {"exp": "9999999999"},
    "an end that is a fraction": {"exp": 9999999999.5},
    "issued in the future": {"iat": int(time.time()) + 3600},
    "without a time of issue": {"iat": None, "nbf": None},
    "not yet": {"nbf": int(time.time()) + 3600},
    "too old for the service": {"iat": int(time.time()) - 90_000, "nbf": int(time.time()) - 90_000},
    "another host's": {"aud": ["other.example.com"]},
    "an audience that is text": {"aud": "app.example.com"},
    "without an audience": {"aud": []},
    "another issuer's": {"iss": "somebody"},
    "nobody's": {"subject": ""},
    "a subject that is a number": {"subject": 7},
    "a scheme that the service has not": {"method": "pin"},
    "a scheme that sets no cookie": {"method": "header"},
    "without a scheme": {"method": None},
    "groups that are text": {"groups": "admins"},
    "another key's": {"key": SigningKey.generate()},
    "alg none": {"head": {"alg": "none", "typ": "JWT"}},
    "alg HS256": {"head": {"alg": "HS256", "typ": "JWT"}},
    "alg in small letters": {"head": {"alg": "eddsa"}},
    "a key of its own": {"head": {"alg": "EdDSA", "jwk": {"kty": "OKP"}}},
    "critical extensions": {"head": {"alg": "EdDSA", "crit": ["x"]}},
    "another type": {"head": {"alg": "EdDSA", "typ": "JWE"}},
    "a header that is a list": {"head": ["EdDSA"]},
}


@pytest.mark.parametrize("case", WRONG)
async def test_no_session(case: str, password: Service) -> None:
    """A token with anything wrong makes nobody known: the login is offered, nothing is dialed, management not asked."""
    answer = await password.get(cookie=COOKIE + password.token(**WRONG[case]))

    assert answer.status == 401
    assert not password.play.upstreams.dialed
    assert password.asked == []


async def test_no_session_by_spelling(password: Service) -> None:
    """Cut, padded, signed with nothing, spelled otherwise, twice in one request, or with a key twice: no session."""
    token = password.token()
    head, payload, signature = token.split(b".")
    last = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = signature[:-1] + last[last.index(signature[-1:]) ^ 1 :][:1]  # the same bits, but for those nobody reads
    assert base64.urlsafe_b64decode(other + b"==") == base64.urlsafe_b64decode(signature + b"==")
    twice = b'{"sub":"a",' + json.dumps(json.loads(base64.urlsafe_b64decode(payload + b"=="))).encode()[1:]
    signed = head + b"." + url64(twice)
    wrong = [
        b"",
        token[:-1],
        token + b"=",
        token + b".",
        head + b"." + payload + b".",
        head + b"." + payload,
        head + b"." + payload + b"." + other,
        signed + b"." + url64(password.key.sign(signed).signature),
        b"\xff\xfe",
        b"." * 9000,
    ]
    for one in wrong:
        assert (await password.get(cookie=COOKIE + one)).status == 401, one
    assert (await password.get(cookie=COOKIE + token + b"; " + COOKIE + token)).status == 401
    assert (await password.get(cookie=b"nb_session=" + token)).status == 401
    assert (await password.get(cookie=b"__host-nb_session=" + token)).status == 401
    two_lines = [*BROWSER, (b"cookie", COOKIE + token), (b"cookie", COOKIE + b"x")]
    assert (await password.get(headers=two_lines)).status == 401
    assert (await password.get(cookie=COOKIE + token)).status == 200


def test_a_remembered_line_says_what_its_token_says() -> None:
    """Of its service's key and host alone, and not a second longer than the token lives."""
    now = time.time()
    service = Service(password=True)
    public = bytes(service.key.verify_key)
    tokens = Tokens(clock=lambda: now)
    session = tokens.verify(service.token(), public, HOST)
    assert session is not None
    tokens.remember(b"a=1; b=2", public, HOST, session)

    assert tokens.recall(b"a=1; b=2", public, HOST) is session
    assert tokens.recall(b"a=1; b=3", public, HOST) is None
    assert tokens.recall(b"a=1; b=2", public, "other.example.com") is None
    assert tokens.recall(b"a=1; b=2", bytes(32), HOST) is None
    now = session.expires_at
    assert tokens.recall(b"a=1; b=2", public, HOST) is None


async def test_revoked_sessions(password: Service) -> None:
    """A session that management ended is over here, though it was verified before; a later one is not."""
    token, other = password.token(), password.token("somebody")
    assert (await password.get(cookie=COOKIE + token)).status == 200

    account = AccountId("acct-1")
    password.proxy.revocations.add(account, token_hash=hashlib.sha256(token).digest(), not_before=time.time())
    assert (await password.get(cookie=COOKIE + token)).status == 401
    assert (await password.get(cookie=COOKIE + other)).status == 200
    password.proxy.revocations.add(account, subject="somebody", not_before=time.time() + 1)
    assert (await password.get(cookie=COOKIE + other)).status == 401


async def test_without_tls_nobody_is_asked_or_known(password: Service) -> None:
    """What may be repeated is sent to the same place over TLS, the rest is refused; a cookie counts for nothing."""
    cookie = [(b"cookie", COOKIE + password.token())]

    safe = await password.play.request("GET", "/a%20b?c=d", headers=cookie, host="App.Example.com:8080")
    assert (safe.status, safe.get(b"location")) == (308, b"https://app.example.com/a%20b?c=d")
    unsafe = await password.play.request("POST", "/a", headers=cookie)
    assert (unsafe.status, unsafe.get(b"location")) == (403, None)
    login = await password.post(b"password=right", scheme="http")
    assert login.status == 403
    assert not password.play.upstreams.dialed
    assert password.asked == []


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", [(b"sec-fetch-site", b"same-origin")], 200),
        ("POST", [(b"sec-fetch-site", b"none")], 200),
        ("POST", [(b"sec-fetch-site", b"cross-site")], 403),
        ("POST", [(b"sec-fetch-site", b"same-site")], 403),
        ("POST", [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"cross-site")], 403),
        ("DELETE", [(b"origin", b"https://evil.example")], 403),
        ("DELETE", [(b"origin", b"null")], 403),
        ("DELETE", [(b"origin", b"http://app.example.com")], 403),
        ("DELETE", [(b"origin", b"https://app.example.com:8443")], 403),
        ("DELETE", [(b"origin", b"https://app.example.com")], 200),
        ("DELETE", [], 200),
        ("GET", [(b"sec-fetch-site", b"cross-site")], 200),
    ],
)
async def test_other_sites_change_nothing(
    method: str, headers: list[tuple[bytes, bytes]], status: int, password: Service
) -> None:
    """What may change something is not done on a session that another site's page sent along."""
    cookie = (b"cookie", COOKIE + password.token())

    answer = await password.get(method=method, headers=[*headers, cookie])

    assert answer.status == status
    assert password.play.upstreams.dialed == (status == 200)


async def test_a_service_may_ask_for_both() -> None:
    """Whom somebody else names logs in as well, and stays who they are; whom nobody names logs in as ever."""
    service = Service(Vouched(), accept=("extra0",), password=True, ask_for_both=True)
    service.accepts("right")
    known, session = [(b"x-vouched", b"user-1")], COOKIE + service.token()

    page = await service.get("/a", headers=[*BROWSER, *known])
    assert (page.status, b'name="password"' in page.body) == (401, True)
    assert not service.play.upstreams.dialed
    assert (await service.get("/a", headers=[*BROWSER, *known], cookie=session)).status == 200
    assert service.play.exchange.identity is not None
    assert (service.play.exchange.identity.user_id, service.play.exchange.identity.by) == ("user-1", "extra0")
    assert (await service.get("/a", cookie=session)).status == 200
    assert service.play.exchange.identity.by == "session"
    assert (await service.get("/a")).status == 401
    enough = Service(Vouched(), accept=("extra0",), password=True)
    assert (await enough.get("/a", headers=[*BROWSER, *known])).status == 200


async def test_both_the_tunnel_and_a_login() -> None:
    """A peer that management lets in is asked for the password, and stays who the tunnel says; outside, as ever."""
    service = Service("private_service", password=True, ask_for_both=True)
    laptop = peer("100.64.0.9")
    service.proxy.tunnels["acct-1"] = FakeTunnel({"100.64.0.9": laptop})
    grant = ValidateTunnelPeerResponse(valid=True, user_id="alice", user_email="a@x.example", session_token="t")
    service.management.answers["ValidateTunnelPeer"] = grant
    inside, session = tunnel_origin("100.64.0.9"), COOKIE + service.token()
    async with service.hooks.running(service.proxy):
        asked = await service.get("/a", origin=inside)
        assert (asked.status, b'name="password"' in asked.body, service.play.upstreams.dialed) == (401, True, 0)
        assert (await service.get("/a", origin=inside, cookie=session)).status == 200
        who = service.play.exchange.identity
        assert who is not None
        assert (who.user_id, who.by) == ("alice", "private_service")
        assert (await service.get("/a", cookie=session)).status == 200
        # Whom management does not let in there logs in as those outside do.
        service.management.answers["ValidateTunnelPeer"] = ValidateTunnelPeerResponse(denied_reason="not_in_group")
        service.proxy.generations["acct-1"] += 1
        assert (await service.get("/a", origin=inside)).status == 401
        assert (await service.get("/a", origin=inside, cookie=session)).status == 200


async def test_both_are_one_person() -> None:
    """A session of somebody else does not complete what a device began; its own person's does."""
    service = Service(Vouched(), accept=("extra0",), oidc=True, ask_for_both=True)
    known = [(b"x-vouched", b"user-1")]
    for subject, status in (("user-1", 200), ("user-2", 403)):
        answer = ValidateSessionResponse(valid=True, user_id=subject)
        service.management.answers["ValidateSession"] = answer
        cookie = COOKIE + service.token(subject, "oidc")
        assert (await service.get("/", headers=[*BROWSER, *known], cookie=cookie)).status == status


@pytest.mark.parametrize("fields", [{"password": True, "private": True}, {}])
def test_asking_for_both_needs_both(fields: dict[str, Any]) -> None:
    """A service that nobody logs in to, or that the tunnel alone opens, is not said to ask for more."""

    class Private:
        @hookimpl
        def describe(self) -> PluginInfo:
            return PluginInfo(claims=(Claim("private", guards=always),))

    service = Service(Private(), **fields)
    write_settings(service.wire, "core", {"ask_for_both": True})

    refused = Codec(service.hooks).decode(service.wire, source="management").mapping.refused

    assert refused is not None
    assert "ask_for_both" in refused


async def test_a_private_service_has_no_sessions() -> None:
    """Where the tunnel alone says who calls, a cookie opens nothing and nobody is offered a login."""
    service = Service(private=True, password=True)
    answer = await service.get(cookie=COOKIE + service.token(), origin=tunnel_origin())
    assert answer.status == 503


async def test_only_the_words_of_some_count() -> None:
    """A route with schemes takes nobody's word on a caller but its own, unless the operator names the plugin."""
    service = Service(Vouching(), password=True)

    answer = await service.get()

    assert (answer.status, service.play.upstreams.dialed) == (403, False)


@pytest.mark.parametrize("key", ["", "AAAA", "not base64!", base64.b64encode(b"x" * 31).decode()])
async def test_a_key_that_is_none_refuses_the_service(key: str) -> None:
    """A service with schemes whose sessions nobody could verify is closed; one without schemes needs no key."""
    wire = Service(password=True).wire
    wire.auth.session_key = key
    with pytest.raises(ValueError, match="session_key"):
        SessionSettings.from_wire(wire)

    wire.auth.password = False
    assert not SessionSettings.from_wire(wire).guards


@pytest.mark.parametrize("header", ["Cookie", "Host", "X-NetBird-User", "x_netbird_user", "a b", "", "Content-Length"])
def test_a_header_that_can_hold_no_credential(header: str) -> None:
    """It refuses the service: what frames, routes or is reserved never reaches a step."""
    wire = Service(password=True).wire
    wire.auth.header_auths.add(header=header)

    with pytest.raises(ValueError, match="can hold no credential"):
        SessionSettings.from_wire(wire)
