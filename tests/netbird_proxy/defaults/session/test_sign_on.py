"""Single sign-on at the proxy: begun and finished by the same browser, asked about again, never offered in vain."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from netbird_proxy import Deny, Group, ManagementRefused, ManagementUnavailable
from netbird_proxy.defaults.session.confirmations import Confirmations
from netbird_proxy.defaults.session.sign_on import STARTS
from netbird_proxy.defaults.session.site import Site
from netbird_proxy.defaults.session.tokens import Tokens
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.makers import host_origin
from netbird_wire.proxy_service_pb2 import GetOIDCURLResponse, ValidateSessionResponse
from tests.netbird_proxy.defaults.session.service import Refusing, Service, cookies_of

PROVIDER = "https://login.example.net/auth?state=x%7Cy"
START = "/__netbird__/session/start"
RETURN = "/__netbird__/session/return"
SESSION = b"__Host-nb_session"
GOOD = ValidateSessionResponse(
    valid=True, user_id="user-1", user_email="a@x.example", peer_group_ids=["g1", "g2"], peer_group_names=["one", "two"]
)


@pytest.fixture
def service() -> Service:
    service = Service(oidc=True)
    service.management.answers |= {
        "GetOIDCURL": GetOIDCURLResponse(url=PROVIDER),
        "ValidateSession": GOOD,
    }
    return service


async def begin(service: Service, to: str = "/a?b=c", **fields: Any) -> tuple[str, bytes]:
    """What the provider will send back in `f`, and the cookie of this login."""
    answer = await service.get(f"{START}?to={quote(to, safe='')}", **fields)
    assert (answer.status, answer.get(b"location")) == (302, PROVIDER.encode())
    ((name, rest),) = [one for one in cookies_of(answer).items() if b"Max-Age=600" in one[1]]
    redirect = service.management.calls[-1][1].redirect_url
    return parse_qs(urlsplit(redirect).query)["f"][0], name + b"=" + rest.partition(b";")[0]


async def come_back(service: Service, proof: str, cookie: bytes | None, token: bytes) -> Answer:
    return await service.get(f"{RETURN}?f={proof}&session_token={token.decode()}", cookie=cookie)


async def test_promise_10_a_source_starts_a_bounded_number_of_logins(service: Service) -> None:
    """Each start is a question to management, so a flood of them ends at 429; another source can still start."""
    service.proxy.client_addresses_trusted = True
    flooding, other = host_origin("203.0.113.9"), host_origin("198.51.100.7")
    for _ in range(STARTS):
        assert (await service.get(START, origin=flooding)).status == 302

    refused = await service.get(f"{START}?to=/a", origin=flooding)

    assert (refused.status, refused.get(b"retry-after")) == (429, b"1")
    assert service.asked.count("GetOIDCURL") == STARTS
    assert (await service.get(START, origin=other)).status == 302


async def test_the_only_way_in_is_taken_by_itself(service: Service) -> None:
    """A browser on its way to a page is sent to log in, with where it wanted to go; a program is told 401."""
    answer = await service.get("/reports?year=2026&x=%2F")
    assert answer.status == 302
    assert answer.get(b"location") == b"/__netbird__/session/start?to=/reports%3Fyear%3D2026%26x%3D%252F"

    program = await service.get("/reports", headers=[(b"accept", b"application/json")])
    assert (program.status, set(json.loads(program.body)["methods"])) == (401, {"oidc"})
    fetched = await service.get("/x", headers=[(b"accept", b"*/*"), (b"sec-fetch-mode", b"cors")])
    assert fetched.status == 401
    assert not service.play.upstreams.dialed


async def test_a_login_ends_where_it_began(service: Service) -> None:
    """Path and query survive, the address is clean, the provider saw a hash, and the person is known with groups."""
    proof, cookie = await begin(service, "/a%20b?b=c&d=%26")
    redirect = service.management.calls[-1][1].redirect_url
    assert redirect.startswith(f"https://app.example.com{RETURN}?f={proof}&to=")
    secret = cookie.partition(b"=")[2].partition(b".")[0]
    assert base64.urlsafe_b64encode(hashlib.sha256(secret).digest()).rstrip(b"=").decode() == proof

    token = service.token("user-1", "oidc", email="a@x.example")
    back = await come_back(service, proof, cookie, token)

    assert (back.status, back.get(b"location")) == (303, b"/a%20b?b=c&d=%26")
    assert back.get(b"referrer-policy") == b"no-referrer"
    set_now = cookies_of(back)
    assert set_now[SESSION].startswith(token + b"; Max-Age=86400")
    assert set_now[cookie.partition(b"=")[0]].startswith(b"; Max-Age=0")
    opened = await service.get("/a", cookie=SESSION + b"=" + token)
    assert opened.status == 200
    identity = service.play.exchange.identity
    assert identity is not None
    assert [group.name for group in identity.groups] == ["one", "two"]
    assert service.asked.count("ValidateSession") == 1


async def test_another_member_of_the_cluster_finishes_it(service: Service) -> None:
    """Everything that is needed came with the browser."""
    proof, cookie = await begin(service)
    other = Service(oidc=True)
    other.management.answers["ValidateSession"] = GOOD

    back = await come_back(other, proof, cookie, other.token("user-1", "oidc"))

    assert (back.status, back.get(b"location")) == (303, b"/a?b=c")


async def test_nobody_is_logged_in_by_another_browsers_login(service: Service) -> None:
    """A return without this browser's cookie, with another login's, or with a forged one sets no session."""
    token = service.token("mallory", "oidc")
    proof, cookie = await begin(service)
    other_proof, other_cookie = await begin(service)
    name = cookie.partition(b"=")[0]

    for given in (None, other_cookie, name + b"=AAAA.L2E", name + b"=" + b"\xff", cookie + b"; " + cookie):
        back = await come_back(service, proof, given, token)
        assert back.status == 303
        assert (back.get(b"location") or b"").startswith(b"/__netbird__/session/login?notice=login_expired")
        assert SESSION not in cookies_of(back)
    assert other_proof != proof
    assert "ValidateSession" not in service.asked


@pytest.mark.parametrize(
    ("changes", "answer", "notice"),
    [
        ({"method": "password"}, GOOD, b"login_failed"),
        ({"aud": ["other.example.com"]}, GOOD, b"login_failed"),
        ({"exp": 1}, GOOD, b"login_failed"),
        ({}, ValidateSessionResponse(denied_reason="invalid_token"), b"login_failed"),
        ({}, ValidateSessionResponse(denied_reason="not_in_group"), b"not_in_group"),
        ({}, ValidateSessionResponse(denied_reason="user_blocked"), b"user_blocked"),
        ({}, ManagementUnavailable("away"), b"management_unavailable"),
        ({}, object(), b"management_unavailable"),
    ],
)
async def test_returns_that_fail(service: Service, changes: dict[str, Any], answer: object, notice: bytes) -> None:
    """Each goes to a clean address that says what is wrong, without a session."""
    service.management.answers["ValidateSession"] = answer
    proof, cookie = await begin(service)
    token = service.token("user-1", **{"method": "oidc", **changes})

    back = await come_back(service, proof, cookie, token)

    assert back.status == 303
    assert (back.get(b"location") or b"").startswith(b"/__netbird__/session/login?notice=" + notice)
    assert SESSION not in cookies_of(back)
    page = await service.get((back.get(b"location") or b"").decode())
    assert page.status == (403 if notice in (b"not_in_group", b"user_blocked") else 200)
    assert token not in page.body


async def test_what_the_provider_says_is_not_shown(service: Service) -> None:
    """An error is a fixed sentence; a service's own `error` and `session_token` are no business of the login's."""
    proof, cookie = await begin(service)
    back = await service.get(f"{RETURN}?f={proof}&error=access_denied&error_description=%3Cb%3EHi", cookie=cookie)
    assert (back.get(b"location") or b"").startswith(b"/__netbird__/session/login?notice=login_canceled&to=")
    page = await service.get((back.get(b"location") or b"").decode())
    assert b"Hi" not in page.body

    proof, cookie = await begin(service)
    waits = quote("Your account is pending approval by an administrator")
    back = await service.get(f"{RETURN}?f={proof}&error=access_denied&error_description={waits}", cookie=cookie)
    page = await service.get((back.get(b"location") or b"").decode())
    assert (page.status, b"approval" in page.body) == (403, True)

    session = SESSION + b"=" + service.token("user-1", "oidc")
    served = await service.get("/cb?error=x&session_token=y&z=1", cookie=session)
    assert served.status == 200
    assert b"/cb?error=x&z=1" in service.play.upstreams.last.head
    token = service.token("user-1", "oidc").decode()
    assert (await service.get(f"/?session_token={token}")).status == 302


async def test_a_browser_keeps_few_logins(service: Service) -> None:
    """The oldest is dropped for a sixth tab."""
    held = [(await begin(service))[1] for _ in range(5)]
    answer = await service.get(START, cookie=b"; ".join(held))

    dropped = [name for name, rest in cookies_of(answer).items() if b"Max-Age=0" in rest]
    assert dropped == [held[0].partition(b"=")[0]]


async def test_without_a_provider_it_is_not_offered() -> None:
    """Beside a password the page shows the password alone; as the only way in it is 503."""
    both = Service(oidc=True, password=True)
    both.management.answers["GetOIDCURL"] = ManagementRefused("no identity provider")
    for _ in range(3):
        page = await both.get("/")
        assert (page.status, b"session/start" in page.body, page.body.count(b"<form")) == (401, False, 1)
    assert both.asked == ["GetOIDCURL"]

    silent = Service(oidc=True, password=True)
    for _ in range(3):
        assert b"session/start" not in (await silent.get("/")).body
    assert silent.asked == ["GetOIDCURL"]  # it may have hung, and the page with it

    alone = Service(oidc=True)
    alone.management.answers["GetOIDCURL"] = ManagementRefused("no identity provider")
    assert (await alone.get("/")).status == 503
    away = Service(oidc=True)
    answer = await away.get("/")
    assert (answer.status, answer.get(b"retry-after")) == (503, b"2")


async def test_an_address_that_is_none_is_not_gone_to(service: Service) -> None:
    """Whatever management names must be a place of the web."""
    for url in ("javascript:alert(1)", "https://", "/relative", "https://x/\r\nSet-Cookie: a=b", ""):
        service.management.answers["GetOIDCURL"] = GetOIDCURLResponse(url=url)
        answer = await service.get(START)
        assert (answer.status, answer.get(b"location")) == (503, None)


async def test_a_session_is_asked_about_again_when_something_changed(service: Service) -> None:
    """A block counts with the next request; while management is away what it said before the change counts no more."""
    cookie = SESSION + b"=" + service.token("user-1", "oidc")
    assert (await service.get("/", cookie=cookie)).status == 200
    assert (await service.get("/", cookie=cookie)).status == 200
    assert service.asked.count("ValidateSession") == 1

    service.management.answers["ValidateSession"] = ValidateSessionResponse(denied_reason="user_blocked")
    service.proxy.generations["acct-1"] += 1
    blocked = await service.get("/", cookie=cookie, headers=[(b"accept", b"application/json")])
    assert (blocked.status, json.loads(blocked.body)["code"]) == (403, "user_blocked")
    service.management.answers["ValidateSession"] = ManagementUnavailable("away")
    service.proxy.generations["acct-1"] += 1
    assert (await service.get("/", cookie=cookie)).status == 503


async def test_a_no_about_somebody_is_told_to_them(service: Service) -> None:
    """Whatever a plugin of management calls it: logging in again would change nothing."""
    cookie = SESSION + b"=" + service.token("user-1", "oidc")
    no = ValidateSessionResponse(denied_reason="no_mondays", user_id="user-1", user_email="a@x.example")
    service.management.answers["ValidateSession"] = no

    refused = await service.get("/", cookie=cookie, headers=[(b"accept", b"application/json")])

    assert (refused.status, json.loads(refused.body)["code"]) == (403, "not_allowed")
    assert b"no_mondays" not in refused.body


async def test_who_is_refused_can_log_in_as_somebody_else(service: Service) -> None:
    """The page of a refusal of this login's leads there; another's refusal, which no login changes, does not."""
    cookie = SESSION + b"=" + service.token("user-1", "oidc")
    no = ValidateSessionResponse(denied_reason="not_in_group", user_id="user-1")
    service.management.answers["ValidateSession"] = no
    page = await service.get("/", cookie=cookie)
    assert (page.status, b'href="/__netbird__/session/logout"' in page.body) == (403, True)

    other = Service(Refusing(), password=True)
    page = await other.get("/", cookie=SESSION + b"=" + other.token())
    assert (page.status, b"not_in_group" in page.body, b"/logout" in page.body) == (403, True, False)


async def test_an_answer_from_before_a_change_opens_nothing(service: Service) -> None:
    """It was asked for while they could still come in: it is asked again, and not for ever."""
    cookie = SESSION + b"=" + service.token("user-1", "oidc")
    times = 0

    def judged(_request: object) -> ValidateSessionResponse:
        nonlocal times
        times += 1
        if times == 1:
            service.proxy.generations["acct-1"] += 1  # the block comes while the answer is on its way
            return GOOD
        return ValidateSessionResponse(denied_reason="user_blocked", user_id="user-1")

    service.management.answers["ValidateSession"] = judged
    assert (await service.get("/", cookie=cookie)).status == 403
    assert not service.play.upstreams.dialed

    def changing(_request: object) -> ValidateSessionResponse:
        service.proxy.generations["acct-1"] += 1
        return GOOD

    service.proxy.generations["acct-1"] += 1
    service.management.answers["ValidateSession"] = changing
    answer = await service.get("/", cookie=cookie)
    assert (answer.status, answer.get(b"retry-after")) == (503, b"1")
    assert not service.play.upstreams.dialed


async def test_a_session_goes_on_while_management_is_away(service: Service) -> None:
    """On its last word, for an hour; it is not asked with each request meanwhile, as each question may hang."""
    now = 1000.0
    site = Site.of(Codec(service.hooks).decode(service.wire, source="management").mapping.routes[0])
    token = service.token("user-1", "oidc")
    session = Tokens().verify(token, site.settings.key, site.host)
    assert session is not None
    confirmations = Confirmations(lambda: now, fresh=60, stale=3600)

    async def groups() -> object:
        return await confirmations.groups(site, service.proxy, token, session)

    known = (Group("g1", "one"), Group("g2", "two"))
    assert await groups() == known
    service.management.answers["ValidateSession"] = ManagementUnavailable("away")
    now += 61
    asked = len(service.asked)
    assert await asyncio.gather(*(groups() for _ in range(20))) == [known] * 20
    assert len(service.asked) == asked + 1
    now += 4
    assert await groups() == known
    assert len(service.asked) == asked + 1
    now += 2
    assert await groups() == known
    assert len(service.asked) == asked + 2
    now += 3600
    refused = await groups()
    assert isinstance(refused, Deny)
    assert refused.status == 503


async def test_pages_of_the_login_are_for_this_service_only() -> None:
    """Without the scheme its places are not there."""
    service = Service(password=True)
    for place in (START, RETURN):
        assert (await service.get(place)).status == 404


async def opened_tabs(service: Service, number: int) -> list[tuple[str, str, bytes]]:
    """Tabs that wait for the provider: the query of each return address, where each wanted to go, and its cookie."""
    tabs: list[tuple[str, str, bytes]] = []
    for tab in range(number):
        _, cookie = await begin(service, f"/tab/{tab}?x={tab}")
        tabs.append((urlsplit(service.management.calls[-1][1].redirect_url).query, f"/tab/{tab}?x={tab}", cookie))
    return tabs


async def test_ten_tabs_that_wait_for_the_provider_all_end_well(service: Service) -> None:
    """A browser keeps five logins: of the other tabs the first begins anew, those after a login go to their link."""
    tabs = await opened_tabs(service, 10)
    token = service.token("user-1", "oidc").decode()
    kept = b"; ".join(cookie for _, _, cookie in tabs[5:])

    first = await service.get(f"{RETURN}?{tabs[0][0]}&session_token={token}", cookie=kept)
    assert first.get(b"location") == b"/__netbird__/session/start?to=/tab/0%3Fx%3D0&again=1"
    assert SESSION not in cookies_of(first)
    anew = await service.get((first.get(b"location") or b"").decode(), cookie=kept)
    assert (anew.status, anew.get(b"location")) == (302, PROVIDER.encode())

    for query, to, cookie in tabs[5:]:
        back = await service.get(f"{RETURN}?{query}&session_token={token}", cookie=cookie)
        assert (back.status, (back.get(b"location") or b"").decode()) == (303, to)
    session = SESSION + b"=" + token.encode()
    for query, to, _ in tabs[:5]:
        back = await service.get(f"{RETURN}?{query}&session_token={token}", cookie=session)
        assert (back.status, (back.get(b"location") or b"").decode()) == (303, to)
        assert not cookies_of(back)


async def test_a_browser_without_cookies_is_not_sent_round(service: Service) -> None:
    """A login that was begun anew and finds no cookie again ends on a page."""
    ((query, _, _),) = await opened_tabs(service, 1)
    back = await service.get(f"{RETURN}?{query}&session_token=x")
    await service.get((back.get(b"location") or b"").decode())
    again = urlsplit(service.management.calls[-1][1].redirect_url).query

    last = await service.get(f"{RETURN}?{again}&session_token=x")

    assert (last.get(b"location") or b"").startswith(b"/__netbird__/session/login?notice=login_expired&to=/tab/0")


async def test_a_link_that_this_proxy_did_not_write_is_not_followed(service: Service) -> None:
    """Neither another path, nor another login's, nor one of another service; with a session the way leads to `/`."""
    ((query, _, _), (other, _, _)) = await opened_tabs(service, 2)
    session = SESSION + b"=" + service.token("user-1", "oidc")
    given, others = parse_qs(query), parse_qs(other)
    link = base64.urlsafe_b64encode(b"/elsewhere").rstrip(b"=").decode()
    for changes in ({"to": [link]}, {"f": others["f"]}, {"m": [""]}, {"m": ["é"]}, {"to": ["*"]}, {"again": ["1"]}):
        forged = "&".join(f"{name}={quote(values[0])}" for name, values in {**given, **changes}.items())
        back = await service.get(f"{RETURN}?{forged}", cookie=session)
        assert (back.status, back.get(b"location")) == (303, b"/"), changes


@pytest.mark.parametrize("length", [1000, 1025, 2900, 3100, 4096, 5000])
async def test_a_long_link_fits_into_a_cookie_that_browsers_keep(service: Service, length: int) -> None:
    """What does not fit is kept here, or given up where it is longer than any that is kept; the login goes on."""
    to = "/" + "a" * (length - 1)
    answer = await service.get(f"{START}?to={to}")
    assert answer.status == 302
    assert all(len(name) + 1 + len(rest) <= 4096 for name, rest in cookies_of(answer).items())
    redirect = service.management.calls[-1][1].redirect_url
    assert len(redirect) <= 2048
    ((name, rest),) = cookies_of(answer).items()
    cookie = name + b"=" + rest.partition(b";")[0]
    token = service.token("user-1", "oidc")

    back = await come_back(service, parse_qs(urlsplit(redirect).query)["f"][0], cookie, token)

    assert (back.status, (back.get(b"location") or b"").decode()) == (303, to if length <= 4096 else "/")
    assert SESSION in cookies_of(back)


async def test_a_path_of_two_slashes_comes_back_as_it_was(service: Service) -> None:
    """As an address of this very host: browsers would read it as another one's."""
    proof, cookie = await begin(service, "//evil.example/x?y")
    back = await come_back(service, proof, cookie, service.token("user-1", "oidc"))
    assert back.get(b"location") == b"https://app.example.com//evil.example/x?y"


async def test_strangers_cost_management_few_questions(service: Service) -> None:
    """Those who come while one question is under way share it, and a failure is remembered for a moment."""
    waiting = asyncio.Event()

    async def slow(_request: object) -> GetOIDCURLResponse:
        await waiting.wait()
        return GetOIDCURLResponse(url=PROVIDER)

    service.management.answers["GetOIDCURL"] = slow
    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(service.get("/"))
        await asyncio.sleep(0)
        while not service.asked:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        waiting.set()
    assert service.asked.count("GetOIDCURL") == 1

    service.management.answers["GetOIDCURL"] = ManagementUnavailable("away")
    for _ in range(30):
        assert (await service.get(START)).status == 503
    assert service.asked.count("GetOIDCURL") == 2
