"""Sessions of NetBird's own proxy: exchanged once for ours, and only if the operator accepts them."""

from __future__ import annotations

import time

import pytest
from nacl.signing import SigningKey

from netbird_proxy import AccountId
from netbird_proxy.testing.makers import HOST
from tests.netbird_proxy.defaults.session.service import FORM, Service, cookies_of

OURS, THEIRS = b"__Host-nb_session", b"nb_session"


@pytest.fixture
def replaced() -> Service:
    return Service(password=True, accept_netbird_sessions=True)


async def test_a_session_of_netbirds_proxy_is_exchanged_once(replaced: Service) -> None:
    """The browser returns to the same address with our cookie instead of NetBird's, and is let in by it."""
    token = replaced.token()

    answer = await replaced.get("/reports?year=2026", cookie=b"a=1; nb_session=" + token)

    assert (answer.status, answer.get(b"location")) == (303, b"/reports?year=2026")
    cookies = cookies_of(answer)
    value, _, attributes = cookies[OURS].partition(b"; ")
    assert value == token
    assert attributes.endswith(b"Path=/; HttpOnly; Secure; SameSite=Lax")
    assert cookies[THEIRS].startswith(b"; Max-Age=0;")
    opened = await replaced.get("/reports?year=2026", cookie=OURS + b"=" + token)
    assert opened.status == 200
    both = await replaced.get("/", cookie=b"nb_session=" + token + b"; " + OURS + b"=" + token)
    assert both.status == 200


async def test_the_exchanged_session_ends_when_the_first_one_did(replaced: Service) -> None:
    """The exchange gives no time past the token's end."""
    token = replaced.token(exp=int(time.time()) + 60)

    age = cookies_of(await replaced.get(cookie=b"nb_session=" + token))[OURS].partition(b"Max-Age=")[2]

    assert 0 < int(age.partition(b";")[0]) <= 60


async def test_nothing_is_exchanged_unless_the_operator_says_so(password: Service) -> None:
    answer = await password.get(cookie=b"nb_session=" + password.token())

    assert (answer.status, cookies_of(answer)) == (401, {})


@pytest.mark.parametrize("case", ["foreign key", "other host", "expired", "other scheme", "two", "nonsense", "empty"])
async def test_only_a_valid_session_of_this_service_is_exchanged(case: str, replaced: Service) -> None:
    cookie = {
        "foreign key": b"nb_session=" + replaced.token(key=SigningKey.generate()),
        "other host": b"nb_session=" + replaced.token(aud=["other.example.com"]),
        "expired": b"nb_session=" + replaced.token(exp=int(time.time()) - 1),
        "other scheme": b"nb_session=" + replaced.token(method="pin"),
        "two": b"nb_session=" + replaced.token() + b"; nb_session=" + replaced.token(sub="mallory"),
        "nonsense": b"nb_session=..",
        "empty": b"nb_session=",
    }[case]

    answer = await replaced.get(cookie=cookie)

    assert (answer.status, cookies_of(answer)) == (401, {})


async def test_a_revoked_session_is_not_exchanged(replaced: Service) -> None:
    token = replaced.token(iat=int(time.time()) - 60)
    replaced.proxy.revocations.add(AccountId("acct-1"), subject="password-user", not_before=time.time())

    assert (await replaced.get(cookie=b"nb_session=" + token)).status == 401


async def test_a_request_with_a_body_is_not_redirected(replaced: Service) -> None:
    """Its body would be lost; it is not let in either."""
    answer = await replaced.post(b"a=b", "/save", headers=[FORM, (b"cookie", b"nb_session=" + replaced.token())])

    assert (answer.status, cookies_of(answer)) == (401, {})


async def test_without_tls_nothing_is_exchanged(replaced: Service) -> None:
    cookie = (b"cookie", b"nb_session=" + replaced.token())
    answer = await replaced.play.request("GET", "/", headers=[cookie], scheme="http")

    assert (answer.status, answer.get(b"location")) == (308, f"https://{HOST}/".encode())
    assert cookies_of(answer) == {}
