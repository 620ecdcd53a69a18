"""Logging in by password, PIN and header: what is asked, what is remembered, and where one ends up."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import pytest

from netbird_proxy import ManagementTimeout
from netbird_proxy.defaults.session.authenticators import over_tls
from netbird_proxy.defaults.session.return_paths import requested_path
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.makers import HOST, exchange, host_origin
from netbird_wire.proxy_service_pb2 import AuthenticateResponse, ValidateSessionResponse
from tests.netbird_proxy.defaults.session.service import BROWSER, FORM, Service, cookies_of

COOKIE = b"__Host-nb_session"


async def test_password_login_ends_where_it_began(password: Service) -> None:
    """The form carries the wanted path and query; a right password is a cookie and a redirect there; the page opens."""
    password.accepts("right horse")
    page = await password.get("/reports/a%20b?year=2026&x=%3C")
    assert page.status == 401
    assert b'action="/__netbird__/session/login"' in page.body
    assert b'value="/reports/a%20b?year=2026&amp;x=%3C"' in page.body

    to = quote("/reports/a%20b?year=2026&x=%3C", safe="")
    login = await password.post(f"password=right+horse&to={to}".encode())

    assert (login.status, login.get(b"location")) == (303, b"/reports/a%20b?year=2026&x=%3C")
    assert login.get(b"referrer-policy") == b"no-referrer"
    value, _, attributes = cookies_of(login)[COOKIE].partition(b"; ")
    assert attributes == b"Max-Age=86400; Path=/; HttpOnly; Secure; SameSite=Lax"
    opened = await password.get("/reports/a%20b?year=2026&x=%3C", cookie=COOKIE + b"=" + value)
    assert opened.status == 200
    assert password.asked == ["Authenticate"]
    request = password.management.calls[0][1]
    assert (request.id, request.account_id, request.password.password) == ("svc-1", "acct-1", "right horse")
    assert request.client_address == ""


async def test_pin_login() -> None:
    """A PIN is another scheme: its session is its own, and on a service without passwords a password is none."""
    service = Service(pin=True)
    service.accepts("1234", method="pin", subject="pin-user")

    login = await service.post(b"pin=1234&to=/")
    value = cookies_of(login)[COOKIE].partition(b";")[0]
    assert (await service.get(cookie=COOKIE + b"=" + value)).status == 200
    assert (await service.post(b"password=1234")).status == 400
    assert service.asked == ["Authenticate"]


async def test_wrong_password_shows_the_form_again(password: Service) -> None:
    """401, no cookie, the place is kept, and neither the password nor anything internal is on the page."""
    password.accepts("right")

    answer = await password.post(b"password=wr0ng-one&to=/a?b")

    assert (answer.status, cookies_of(answer)) == (401, {})
    assert b"That was not right" in answer.body
    assert b'value="/a?b"' in answer.body
    assert b"wr0ng-one" not in answer.body
    assert password.play.exchange.id.encode() in answer.body


@pytest.mark.parametrize(
    "to",
    [
        "//evil.example/p",
        "https://evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "evil",
        "",
        "/%0d%0a ",
        "/__netbird__/session/logout",
        "/é",
        "/" + "a" * 5000,
    ],
)
async def test_a_login_leads_to_no_other_place(to: str, password: Service) -> None:
    """Whatever the form says, the redirect is to this host; `//x` is a path of it, and comes back as it was."""
    password.accepts("right")

    answer = await password.post(f"password=right&to={quote(to, safe='')}".encode())

    location = answer.get(b"location")
    assert answer.status == 303
    assert location in (b"/", b"https://app.example.com//evil.example/p")


@pytest.mark.parametrize(
    "body", [b"", b"password=a&pin=b", b"other=1", b"password=a&password=b", b"pin=1", b"\xff=\xfe"]
)
async def test_what_is_no_login_is_not_asked_about(body: bytes, password: Service) -> None:
    """Management hears of exactly one credential of a scheme that the service has, or of none."""
    answer = await password.post(body)

    assert answer.status in (400, 415)
    assert password.asked == []


async def test_logins_take_forms_of_this_site_only(password: Service) -> None:
    """Other sites' forms, other types and other methods log nobody in; a large body is not read."""
    password.accepts("right")
    cross = [FORM, (b"sec-fetch-site", b"cross-site")]
    assert (await password.post(b"password=right", headers=cross)).status == 403
    foreign = [FORM, (b"origin", b"https://evil.example")]
    assert (await password.post(b"password=right", headers=foreign)).status == 403
    json_type = [(b"content-type", b"application/json"), (b"sec-fetch-site", b"same-origin")]
    assert (await password.post(b'{"password":"right"}', headers=json_type)).status == 415
    assert (await password.post(b"password=right&x=" + b"a" * 20_000)).status == 413
    assert (await password.get("/__netbird__/session/login?password=right")).status == 200
    assert (await password.get("/__netbird__/session/login", method="PUT")).status == 404
    assert password.asked == []


async def test_a_password_elsewhere_is_the_upstreams_business(password: Service) -> None:
    """A field of that name in the service's own query or form is no login, and goes upstream untouched."""
    cookie = COOKIE + b"=" + password.token()

    assert (await password.get("/?password=x&pin=y")).status == 401
    assert password.asked == []
    await password.get("/?password=x&pin=y", cookie=cookie)
    assert b"/?password=x&pin=y" in password.play.upstreams.last.head


@pytest.mark.parametrize("how", ["unreachable", "late", "nonsense", "foreign token", "no token", "another scheme"])
async def test_no_login_without_managements_word(how: str, password: Service) -> None:
    """503 and no cookie where management cannot be asked, or where what it gives is no session of this service."""
    foreign = Service(password=True)
    answers = {
        "late": ManagementTimeout("late"),
        "nonsense": object(),
        "foreign token": AuthenticateResponse(success=True, session_token=foreign.token().decode()),
        "no token": AuthenticateResponse(success=True),
        "another scheme": AuthenticateResponse(success=True, session_token=password.token(method="oidc").decode()),
    }
    if how in answers:
        password.management.answers["Authenticate"] = answers[how]

    answer = await password.post(b"password=right")

    assert (answer.status, cookies_of(answer)) == (503, {})
    assert answer.get(b"retry-after") is not None


async def test_guessing_is_slowed_down_by_source(password: Service) -> None:
    """After five wrong tries a source waits, and management is not asked; others are let try."""
    password.accepts("right")
    tries = await asyncio.gather(*(password.post(b"password=wrong") for _ in range(9)))

    assert [answer.status for answer in tries] == [401] * 5 + [429] * 4
    assert tries[-1].get(b"retry-after") == b"1"
    assert len(password.asked) == 5
    other = await password.post(b"password=right", origin=host_origin("198.51.100.7"))
    assert other.status == 303


async def test_leaving_before_the_answer_is_a_try(password: Service) -> None:
    """Management has the work of it, so whoever goes on like that waits as one who is wrong does."""
    asked = asyncio.Event()

    async def hangs(_request: object) -> object:
        asked.set()
        return await asyncio.get_running_loop().create_future()

    password.management.answers["Authenticate"] = hangs
    for _ in range(12):  # each wait is twice the last: on however slow a machine, one is met
        asked.clear()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            leaving, answered = group.create_task(password.post(b"password=guess")), group.create_task(asked.wait())
            await asyncio.wait((leaving, answered), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            answered.cancel()
        if not leaving.cancelled():
            break

    assert leaving.result().status == 429


async def test_the_clients_address_is_told_where_it_is_understood() -> None:
    """An extension of our management's: NetBird's gets nothing that it does not know."""
    service = Service(password=True)
    service.management.extensions = frozenset({"client_address"})
    service.accepts("right")

    await service.post(b"password=right", origin=host_origin("198.51.100.7"))

    assert service.management.calls[0][1].client_address == "198.51.100.7"


async def test_header_credentials_are_asked_about_once() -> None:
    """The first use is an RPC; later ones are not; no cookie is set, and the credential goes no further."""
    service = Service(headers=["X-Api-Key"])
    service.accepts("s3cret", method="header", subject="header-user")
    key = (b"x-api-key", b"s3cret")

    for _ in range(3):
        answer = await service.get(headers=[key])
        assert (answer.status, cookies_of(answer)) == (200, {})
        assert b"s3cret" not in service.play.upstreams.last.head
    assert service.asked == ["Authenticate"]
    request = service.management.calls[0][1]
    assert (request.header_auth.header_name, request.header_auth.header_value) == ("X-Api-Key", "s3cret")

    service.proxy.generations["acct-1"] += 1
    await service.get(headers=[key])
    assert service.asked == ["Authenticate"] * 2


async def test_many_connections_with_one_credential_are_one_question() -> None:
    """A program opens them all at once: none of them counts as a guess of another. A wrong one is one wrong try."""
    service = Service(headers=["X-Api-Key"])
    service.accepts("s3cret", method="header", subject="header-user")

    judged = service.management.answers["Authenticate"]
    assert callable(judged)
    released = asyncio.Event()

    async def slowly(request: object) -> object:
        await released.wait()
        return judged(request)

    service.management.answers["Authenticate"] = slowly

    async def at_once(key: bytes) -> set[int]:
        released.clear()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            tasks = [group.create_task(service.get(headers=[(b"x-api-key", key)])) for _ in range(20)]
            for _ in range(50):
                await asyncio.sleep(0)
            released.set()
        return {task.result().status for task in tasks}

    assert await at_once(b"s3cret") == {200}
    assert service.asked == ["Authenticate"]
    assert await at_once(b"wrong") == {401}
    assert service.asked == ["Authenticate"] * 2


async def test_another_source_is_not_held_up_by_the_same_credential() -> None:
    """One that guessed too often has no answer for those who come from elsewhere with what it tries."""
    service = Service(headers=["X-Api-Key"])
    service.accepts("s3cret", method="header", subject="header-user")
    guesses = [(await service.get(headers=[(b"x-api-key", b"guess-%d" % i)])).status for i in range(12)]
    assert 429 in guesses

    key = [(b"x-api-key", b"s3cret")]
    answers = await asyncio.gather(service.get(headers=key), service.get(headers=key, origin=host_origin("192.0.2.9")))

    assert answers[1].status == 200


@pytest.mark.parametrize("custom", [b"Basic inner", None], ids=["another for the upstream", "none"])
@pytest.mark.parametrize("alias", [b"authorization", b"Authorization", b"AUTHORIZATION"])
async def test_the_upstream_has_its_own_credential_or_none(custom: bytes | None, alias: bytes) -> None:
    """The client's stays here; a custom header of that name is the operator's word to the upstream."""
    service = Service(headers=["Authorization"])
    service.accepts("Bearer right", method="header", subject="header-user")
    if custom is not None:
        service.wire.path[0].options.custom_headers["Authorization"] = custom.decode()
        mapping = Codec(service.hooks).decode(service.wire, source="management").mapping
        service.play.routing.apply("management", [mapping])

    answer = await service.get(headers=[(alias, b"Bearer right"), (b"accept", b"application/json")])

    assert answer.status == 200
    assert service.play.upstreams.last.get(b"authorization") == ([custom] if custom else [])
    assert b"right" not in service.play.upstreams.last.head


async def test_wrong_and_missing_header_credentials() -> None:
    """401, nothing dialed; two lines of the header are none; over the bound it is 429; without TLS none is read."""
    service = Service(headers=["Authorization"])
    service.accepts("Bearer right", method="header", subject="header-user")
    program = [(b"accept", b"application/json")]

    missing = await service.get(headers=program)
    assert (missing.status, json.loads(missing.body)["code"]) == (401, "credentials_required")
    wrong = await service.get(headers=[*program, (b"authorization", b"Bearer wrong")])
    assert (wrong.status, json.loads(wrong.body)["code"]) == (401, "wrong_credentials")
    two = [(b"authorization", b"Bearer right"), (b"authorization", b"Bearer right")]
    assert (await service.get(headers=two)).status == 401
    assert (await service.get(headers=[(b"authorization", b"\xff\xfe")])).status == 401
    plain = await service.play.request("POST", headers=[(b"authorization", b"Bearer right")])
    assert plain.status == 403
    assert len(service.asked) == 1
    for _ in range(4):
        await service.get(headers=[(b"authorization", b"Bearer wrong")])
    assert (await service.get(headers=[(b"authorization", b"Bearer right")])).status == 429
    assert not service.play.upstreams.dialed


async def test_several_schemes_stand_on_one_page() -> None:
    """Password and PIN are two forms of one page; JSON names both; a header is asked of programs only."""
    service = Service(password=True, pin=True, headers=["X-Api-Key"])

    page = await service.get("/x")
    assert (page.status, page.body.count(b"<form")) == (401, 2)
    named = await service.get("/x", headers=[(b"accept", b"application/json")])
    assert set(json.loads(named.body)["methods"]) == {"password", "pin", "header"}
    only = await Service(headers=["X-Api-Key"]).get("/x")
    assert (only.status, b"<form" in only.body, b"credential in a header" in only.body) == (401, False, True)


@pytest.mark.parametrize("given", [[], [(b"authorization", b"Bearer wrong")]])
async def test_programs_are_asked_for_what_they_have(given: list[tuple[bytes, bytes]]) -> None:
    """A header credential in `Authorization` is asked for in its own way, but for browsers; others have no such way."""
    service = Service(password=True, headers=["authorization"])
    service.accepts("Bearer right", method="header", subject="header-user")

    asked = await service.get(headers=[(b"accept", b"*/*"), *given])
    values = [value for name, value in asked.headers if name == b"www-authenticate"]
    realm = HOST.encode()
    assert (asked.status, values) == (401, [b'Basic realm="%b", charset="UTF-8"' % realm, b'Bearer realm="%b"' % realm])
    page = await service.get(headers=[*BROWSER, *given])
    assert (page.status, page.get(b"www-authenticate")) == (401, None)
    other = Service(password=True, headers=["X-Api-Key"])
    assert (await other.get(headers=[])).get(b"www-authenticate") is None


async def test_a_wrong_try_leaves_the_caret_where_it_was() -> None:
    """Of two forms, the one that was tried goes on; what is only good news is no alarm."""
    service = Service(password=True, pin=True)
    service.accepts("right")

    wrong = await service.post(b"pin=0000")
    (field,) = [one for one in wrong.body.split(b"<input")[1:] if b"autofocus" in one]
    assert b'name="pin"' in field
    assert b'role="alert"' in wrong.body
    left = await service.get("/__netbird__/session/login?notice=logged_out")
    assert (b'role="alert"' in left.body, b'role="status"' in left.body) == (False, True)


async def test_pages_are_shut_against_everything(password: Service) -> None:
    """No scripts, nothing from elsewhere, no framing, no storing; and what a path holds is text."""
    page = await password.get('/"><script>alert(1)</script>?<b>')

    policy = page.get(b"content-security-policy") or b""
    assert policy.startswith(b"default-src 'none'; style-src 'sha256-")
    assert b"frame-ancestors 'none'" in policy
    assert b"<script" not in page.body
    assert (page.get(b"cache-control"), page.get(b"x-content-type-options")) == (b"no-store", b"nosniff")


async def test_logout_needs_a_form_of_this_site(password: Service) -> None:
    """The cookie goes with a POST of our own page, and with nothing else."""
    cookie = (b"cookie", COOKIE + b"=" + password.token())
    page = await password.get("/__netbird__/session/logout", headers=[*BROWSER, cookie])
    assert (page.status, cookies_of(page)) == (200, {})
    cross = [FORM, (b"sec-fetch-site", b"cross-site"), cookie]
    refused = await password.post(b"", "/__netbird__/session/logout", headers=cross)
    assert (refused.status, cookies_of(refused)) == (403, {})

    own = [FORM, (b"sec-fetch-site", b"same-origin"), cookie]
    left = await password.post(b"", "/__netbird__/session/logout", headers=own)
    assert left.status == 303
    assert cookies_of(left)[COOKIE].startswith(b"; Max-Age=0")


async def test_logout_is_told_where_it_is_understood(password: Service) -> None:
    """Our management ends the session everywhere; where it is out of reach the person is told, and keeps the cookie."""
    token = password.token()
    own = [FORM, (b"sec-fetch-site", b"same-origin"), (b"cookie", COOKIE + b"=" + token)]
    password.management.extensions = frozenset({"revocations"})

    failed = await password.post(b"", "/__netbird__/session/logout", headers=own)
    assert (failed.status, cookies_of(failed)) == (503, {})
    password.management.answers["ValidateSession"] = ValidateSessionResponse(denied_reason="session_ended")
    left = await password.post(b"", "/__netbird__/session/logout", headers=own)
    assert (left.status, list(cookies_of(left))) == (303, [COOKIE])
    request = password.management.calls[-1][1]
    assert (request.session_token.encode(), request.end_session) == (token, True)


async def test_management_counts_too(password: Service) -> None:
    """Where it has seen too many tries by way of other proxies, the wait is what it says."""
    password.management.answers["Authenticate"] = AuthenticateResponse(retry_after_seconds=7)

    for _ in range(8):
        slowed = await password.post(b"password=right")
        assert (slowed.status, slowed.get(b"retry-after")) == (429, b"7")


async def test_a_right_credential_may_open_nothing() -> None:
    """A plugin of management's says no: 403 and no session, which is no wrong guess, and no reason is shown."""
    service = Service(password=True, headers=["X-Api-Key"])
    service.management.answers["Authenticate"] = AuthenticateResponse(denied_reason="no_mondays")

    for _ in range(8):
        page = await service.post(b"password=right&to=/a")
        assert (page.status, cookies_of(page)) == (403, {})
    assert b"You are not allowed to use this service." in page.body
    assert b"no_mondays" not in page.body
    assert b'href="/__netbird__/session/login?to=/a"' in page.body
    assert (await service.get(headers=[(b"x-api-key", b"right")])).status == 403
    assert not service.play.upstreams.dialed


async def test_programs_get_no_pages_of_the_login(password: Service) -> None:
    """Text for who asks for nothing in particular, JSON for who asks for it: as everywhere else."""
    password.accepts("right")

    for accept, kind in ((b"*/*", b"text/plain; charset=utf-8"), (b"application/json", b"application/json")):
        headers = [FORM, (b"accept", accept)]
        wrong = await password.post(b"password=wrong", headers=headers)
        assert (wrong.status, wrong.get(b"content-type")) == (401, kind)
        assert b"wrong_credentials" in wrong.body
        nothing = await password.get("/__netbird__/session/nothing", headers=[(b"accept", accept)])
        assert (nothing.status, nothing.get(b"content-type")) == (404, kind)
        assert b"<" not in wrong.body + nothing.body


async def test_browsers_get_pages_for_refusals_and_unknown_hosts() -> None:
    """Status and id on the page, nothing internal; programs get text or JSON."""
    service = Service(password=True)

    unknown = await service.get("/", host="nowhere.example.com")
    assert (unknown.status, b"<h1>Not found</h1>" in unknown.body) == (404, True)
    program = await service.get("/", host="nowhere.example.com", headers=[])
    assert program.get(b"content-type") == b"text/plain; charset=utf-8"


def ways(answer: Answer) -> list[bytes]:
    return [value for name, value in answer.headers if name == b"www-authenticate"]


async def test_a_browser_is_asked_for_basic_where_it_is_the_only_way_in() -> None:
    """In a window of its own, as no page could ask; where there is a page, or another header, it is not."""
    alone = Service(headers=["Authorization"])
    asked = await alone.get("/")
    assert (asked.status, ways(asked)) == (
        401,
        [b'Basic realm="app.example.com", charset="UTF-8"'],
    )
    alone.accepts("Basic right", method="header")
    wrong = await alone.get("/", headers=[*BROWSER, (b"authorization", b"Basic wrong")])
    assert (wrong.status, ways(wrong)) == (
        401,
        [b'Basic realm="app.example.com", charset="UTF-8"'],
    )
    program = await alone.get("/", headers=[(b"accept", b"application/json")])
    assert len(ways(program)) == 2
    for other in (Service(headers=["Authorization"], password=True), Service(headers=["Authorization", "X-Key"])):
        assert ways(await other.get("/")) == []


@pytest.mark.parametrize(
    ("right", "sent"), [("Basic abc", "basic abc"), ("Basic abc", "BASIC abc"), ("bearer x", "bearer x")]
)
async def test_a_scheme_has_no_case(right: str, sent: str) -> None:
    """However a client spells it; a credential that was stored in an unusual spelling is right in that one still."""
    service = Service(headers=["Authorization"])
    service.accepts(right, method="header")
    assert (await service.get("/", headers=[(b"authorization", sent.encode())])).status == 200
    assert (await service.get("/", headers=[(b"authorization", sent.encode() + b"d")])).status == 401


@pytest.mark.parametrize(("host", "shown"), [("[::1]", b"[::1]"), ("::1", b"[::1]"), ("a.example", b"a.example")])
async def test_the_way_to_https_has_an_ipv6_host_in_one_pair_of_brackets(host: str, shown: bytes) -> None:
    """However the host came to us."""
    challenge = over_tls(exchange("/x?y", host=host))
    assert challenge.headers == ((b"location", b"https://" + shown + b"/x?y"),)


async def test_an_empty_query_survives_the_way_to_https_and_a_login() -> None:
    """Signed addresses are compared to the byte."""
    asked = exchange("/posts/1")
    asked.empty_query = True
    assert over_tls(asked).headers == ((b"location", b"https://" + asked.host.encode() + b"/posts/1?"),)
    assert requested_path(asked) == "/posts/1?"


async def test_twenty_people_behind_one_address_all_get_in() -> None:
    """At the same moment, with management taking its time over each."""
    service = Service(password=True)
    token = service.token().decode()

    async def judged(request: object) -> AuthenticateResponse:
        for _ in range(5):
            await asyncio.sleep(0)
        return AuthenticateResponse(success=True, session_token=token)

    service.management.answers["Authenticate"] = judged
    answers = await asyncio.gather(*(service.post(b"password=right") for _ in range(20)))
    assert [answer.status for answer in answers] == [303] * 20
