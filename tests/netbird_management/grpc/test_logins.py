"""Logins at management, over real gRPC: what is right, what is wrong, what it makes, and what ends it."""

import asyncio
import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import grpc.aio
import pytest

from netbird_host.login_throttle import FREE, SERVICE_FAILURES, LoginThrottle, Source
from netbird_management import ALLOW, AccountSnapshot, Decision, Deny, Login, PluginInfo, hookimpl
from netbird_management.grpc.interceptors import AuthenticatedProxy
from netbird_management.grpc.login_service import HASHES_WAITING, Logins
from netbird_management.login.gates import SessionGates
from netbird_management.login.guess_store import load_source
from netbird_management.model.accounts import Role, User
from netbird_management.model.clock import now
from netbird_management.model.ids import GroupId, ServiceId
from netbird_management.model.services import AuthConfig, BearerAuth, HeaderAuth, SecretAuth, Service
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.revocations import TOKENS_REVOKED
from netbird_management.operations.sessions import mint_session_token
from netbird_management.operations.users import update_user
from netbird_management.secrets import passwords
from netbird_management.secrets.passwords import HASHED_AT_ONCE
from netbird_management.store.models import RevocationRow
from netbird_wire.proxy_service_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    GetOIDCURLRequest,
    HeaderAuthRequest,
    PasswordRequest,
    PinRequest,
    ValidateSessionRequest,
    ValidateSessionResponse,
)
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import FakeProxy, Lab, lab_for

HERE = "198.51.100.7"
EVERYTHING = AuthConfig(
    password_auth=SecretAuth(True, "right horse"),
    pin_auth=SecretAuth(True, "1234"),
    bearer_auth=BearerAuth(True),
    header_auths=(HeaderAuth("X-Api-Key", True, "key-1"), HeaderAuth("X-Api-Key", True, "key-2")),
)


@pytest.fixture
async def service(lab: Lab) -> Service:
    return await lab.service("app", auth=EVERYTHING)


@pytest.fixture
async def proxy(lab: Lab) -> FakeProxy:
    proxy = lab.proxy()
    await proxy.connect()
    return proxy


async def attempt(proxy: FakeProxy, service: Service, address: str = HERE, **credential: Any) -> AuthenticateResponse:
    request = AuthenticateRequest(id=service.id, account_id=service.account_id, client_address=address, **credential)
    answer = await proxy.unary("Authenticate", request)
    assert isinstance(answer, AuthenticateResponse)
    return answer


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


@pytest.mark.parametrize(
    ("credential", "subject", "method"),
    [
        ({"password": PasswordRequest(password="right horse")}, "password-user", "password"),
        ({"pin": PinRequest(pin="1234")}, "pin-user", "pin"),
        ({"header_auth": HeaderAuthRequest(header_name="x-api-key", header_value="key-2")}, "header-user", "header"),
        ({"header_auth": HeaderAuthRequest(header_value="key-1")}, "header-user", "header"),
    ],
)
async def test_right_credentials_make_a_session(
    proxy: FakeProxy, service: Service, credential: dict[str, Any], subject: str, method: str
) -> None:
    """The token is for this service's host and a day, and names nobody but the scheme."""
    answer = await attempt(proxy, service, **credential)

    assert answer.success
    said = claims(answer.session_token)
    assert (said["sub"], said["method"], said["aud"]) == (subject, method, [service.domain])
    assert said["exp"] - said["iat"] == 86400
    assert not {"email", "groups"} & said.keys()


@pytest.mark.parametrize(
    "credential",
    [
        {"password": PasswordRequest(password="wrong")},
        {"password": PasswordRequest(password="1234")},
        {"password": PasswordRequest(password="")},
        {"password": PasswordRequest(password="x" * 5000)},
        {"pin": PinRequest(pin="right horse")},
        {"header_auth": HeaderAuthRequest(header_name="x-api-key", header_value="1234")},
        {"header_auth": HeaderAuthRequest(header_name="authorization", header_value="key-1")},
        {},
    ],
)
async def test_wrong_credentials_make_none(proxy: FakeProxy, service: Service, credential: dict[str, Any]) -> None:
    """No is an answer, not an error, and carries nothing."""
    assert await attempt(proxy, service, **credential) == AuthenticateResponse()


async def test_other_services_and_accounts(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """A scheme that is switched off is none, and a service that is not there is an error."""
    closed = await lab.service("closed", auth=AuthConfig(password_auth=SecretAuth(False, "right horse")))
    assert not (await attempt(proxy, closed, password=PasswordRequest(password="right horse"))).success
    for wrong in (replace(service, id=ServiceId("none")), replace(service, account_id="none")):  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await attempt(proxy, wrong, password=PasswordRequest(password="right horse"))
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_guesses_are_counted_by_source(proxy: FakeProxy, service: Service) -> None:
    """After five wrong tries a source is told to wait, whichever scheme it tries; others are judged."""
    wrong = PasswordRequest(password="wrong")
    tries = await asyncio.gather(*(attempt(proxy, service, password=wrong) for _ in range(9)))

    assert sorted(one.retry_after_seconds > 0 for one in tries) == [False] * FREE + [True] * 4
    assert (await attempt(proxy, service, pin=PinRequest(pin="1234"))).retry_after_seconds > 0
    assert (await attempt(proxy, service, "2001:db8::1", pin=PinRequest(pin="1234"))).success


async def test_guesses_outlive_the_process(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """Who has to wait still has to after a restart, and who was right before is still trusted."""
    wrong = PasswordRequest(password="wrong")
    for _ in range(FREE):
        await attempt(proxy, service, password=wrong)
    assert (await attempt(proxy, service, "192.0.2.9", pin=PinRequest(pin="1234"))).success

    state = lab.home.state
    assert (await load_source(state, service.id, HERE)).failures == FREE
    assert (await load_source(state, service.id, "192.0.2.9")).right_at is not None
    assert await load_source(state, service.id, "192.0.2.10") == Source()
    later = LoginThrottle(lambda: now().timestamp())
    kept = await load_source(state, service.id, HERE)
    later.recall(service.id, HERE, replace(kept, blocked_until=now().timestamp() + 60))
    assert later.reserve(service.id, HERE) > 0


async def test_a_try_that_is_cancelled_is_a_try(lab: Lab, service: Service) -> None:
    """Its hash is made all the same: leaving early is no way to try, or to keep us busy, for nothing."""
    logins = Logins(lab.home.state, SessionGates(lab.hooks, lab.host))
    request = AuthenticateRequest(
        id=service.id, account_id=service.account_id, client_address=HERE, pin=PinRequest(pin="0000")
    )
    token, _ = await create_proxy_token(lab.home.state, name="cancels", account_id=None, created_by="test")
    caller = AuthenticatedProxy(token, "", "", None)
    for tries in range(1, FREE + 1):
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            leaving = group.create_task(logins.authenticate(request, caller))
            # Nothing tells that a try is counted.
            while (known := logins._throttle.find(service.id, HERE)) is None or known.failures < tries:  # noqa: ASYNC110
                await asyncio.sleep(0)
            leaving.cancel()
        assert leaving.cancelled()

    known = logins._throttle.find(service.id, HERE)
    assert known is not None
    assert known.failures == FREE
    assert known.blocked_until > 0


async def test_who_is_let_in_again_is_let_in_at_once(lab: Lab, service: Service) -> None:
    """A session from the very second in which the person was blocked and unblocked is none of those that ended."""
    state, user = lab.home.state, await person(lab)
    for blocked in (True, False):
        await update_user(state, lab.home.account_id, user.id, role=Role.USER, auto_groups=[], blocked=blocked)
    token = await mint_session_token(state, service, user.id, "oidc")
    ended = [one.not_before.timestamp() for one in lab.home.snapshot.revocations if one.subject == user.id]
    assert claims(token)["iat"] >= max(ended)


async def test_nobody_waits_long_for_a_place(proxy: FakeProxy, service: Service) -> None:
    """Over the bound a login is answered at once as an error that says so, and does not count as a guess."""
    wrong = PasswordRequest(password="wrong")
    sources = [f"192.0.2.{i}" for i in range(HASHES_WAITING + 3)]
    served: list[AuthenticateResponse] = []
    refused: list[grpc.StatusCode] = []

    async def guess(source: str) -> None:
        try:
            served.append(await attempt(proxy, service, source, password=wrong))
        except grpc.aio.AioRpcError as exc:
            refused.append(exc.code())
        if len(refused) == 3:
            hashing.set()

    hashing = Event()  # until then, both threads are busy
    for _ in range(HASHED_AT_ONCE):
        passwords._THREADS.submit(hashing.wait, 30)
    async with asyncio.timeout(20), asyncio.TaskGroup() as guesses:
        for source in sources:
            guesses.create_task(guess(source))

    assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert len(served) == HASHES_WAITING


@pytest.mark.parametrize(
    ("auth", "rotates"),
    [
        (replace(EVERYTHING, password_auth=SecretAuth(True, "another")), True),
        (replace(EVERYTHING, pin_auth=None), True),
        (replace(EVERYTHING, pin_auth=SecretAuth(False, "")), True),
        (replace(EVERYTHING, bearer_auth=None), True),
        (replace(EVERYTHING, header_auths=(HeaderAuth("X-Api-Key", True, ""),)), True),
        (EVERYTHING, False),
        (replace(EVERYTHING, header_auths=(*EVERYTHING.header_auths, HeaderAuth("X-Other", True, "new"))), False),
    ],
)
async def test_what_loses_a_credential_changes_its_key(
    lab: Lab, proxy: FakeProxy, service: Service, auth: AuthConfig, rotates: bool
) -> None:
    """One modification carries the new scheme and the new key: who came in by what is gone must not stay in."""

    def kept(scheme: SecretAuth | None, old: SecretAuth | None) -> SecretAuth | None:
        return replace(scheme, secret="") if scheme is not None and scheme == old else scheme

    sent = replace(
        auth,
        password_auth=kept(auth.password_auth, EVERYTHING.password_auth),
        pin_auth=kept(auth.pin_auth, EVERYTHING.pin_auth),
        header_auths=tuple(
            replace(one, value="") if one in EVERYTHING.header_auths else one for one in auth.header_auths
        ),
    )
    await proxy.connect()
    before = proxy.mappings[service.id].auth.session_key

    await lab.change(service, auth=sent, name="renamed")
    message = await proxy.next()

    assert [mapping.id for mapping in message.mapping] == [service.id]
    assert (proxy.mappings[service.id].auth.session_key != before) == rotates
    if auth.pin_auth == EVERYTHING.pin_auth:
        assert (await attempt(proxy, service, pin=PinRequest(pin="1234"))).success


# Sessions


async def person(lab: Lab, *groups: str) -> User:
    user = await lab.user("alice@lab.test")
    return await update_user(
        lab.home.state,
        lab.home.account_id,
        user.id,
        role=Role.USER,
        auto_groups=[GroupId(id_) for id_ in groups],
        blocked=False,
    )


async def ask(proxy: FakeProxy, domain: str, token: str, *, end: bool = False) -> ValidateSessionResponse:
    request = ValidateSessionRequest(domain=domain, session_token=token, end_session=end)
    answer = await proxy.unary("ValidateSession", request)
    assert isinstance(answer, ValidateSessionResponse)
    return answer


async def test_a_persons_session_is_good_until_something_is_wrong(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """The answer tells the person's groups as they are; blocking them, or another group, is a no with their name."""
    group = await lab.group("engineering")
    user = await person(lab, group.id)
    token = await mint_session_token(lab.home.state, service, user.id, "oidc", email=user.email)

    answer = await ask(proxy, service.domain.upper(), token)
    assert (answer.valid, answer.user_id, answer.user_email) == (True, user.id, "alice@lab.test")
    assert (list(answer.peer_group_ids), list(answer.peer_group_names)) == ([group.id], ["engineering"])

    other = await lab.group("sales")
    narrowed = replace(EVERYTHING, bearer_auth=BearerAuth(True, (other.id,)))
    narrowed = replace(narrowed, password_auth=SecretAuth(True), pin_auth=SecretAuth(True))
    narrowed = replace(narrowed, header_auths=tuple(replace(one, value="") for one in EVERYTHING.header_auths))
    await lab.change(service, auth=narrowed)
    answer = await ask(proxy, service.domain, token)
    assert (answer.valid, answer.denied_reason, answer.user_id) == (False, "not_in_group", user.id)

    state, account_id = lab.home.state, lab.home.account_id
    await update_user(state, account_id, user.id, role=Role.USER, auto_groups=[GroupId(other.id)], blocked=True)
    assert (await ask(proxy, service.domain, token)).denied_reason == "invalid_token"  # revoked with the block
    assert (await attempt(proxy, service, pin=PinRequest(pin="1234"))).success


class _Gate:
    """A plugin whose gate does what a test wants; it claims nothing."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="for tests")

    @hookimpl
    def session_gate(self) -> Any:
        return self.gate


def _gate(answer: Any) -> Any:
    async def gate(*, login: Login, account: AccountSnapshot) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return gate


async def _hangs(*, login: Login, account: AccountSnapshot) -> Decision:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (_gate(RuntimeError("broken")), "gate_failed"),
        (_gate(asyncio.CancelledError()), "gate_failed"),
        (_hangs, "gate_failed"),
        (_gate(True), "gate_failed"),
        (_gate(None), "gate_failed"),
        (lambda **_: ALLOW, "gate_failed"),
        (lambda: ALLOW, "gate_failed"),
        ("not callable", "gate_failed"),
        (_gate(Deny("no_mondays")), "no_mondays"),
        (_gate(Deny("")), "denied"),
    ],
    ids=[
        "raises",
        "makes up a cancellation",
        "hangs",
        "true",
        "nothing",
        "not async",
        "wrong arguments",
        "no gate",
        "denies",
        "denies without a reason",
    ],
)
async def test_a_gate_that_does_not_allow_denies(home: Home, tmp_path: Path, gate: Any, reason: str) -> None:
    """Whatever a plugin answers instead of ALLOW: a right password makes no session, and one that is there is over."""
    async with lab_for(home, tmp_path, plugins=("direct_upstream", ("gate", _Gate(gate)))) as lab:
        service = await lab.service("app", auth=EVERYTHING)
        user = await person(lab)
        token = await mint_session_token(lab.home.state, service, user.id, "oidc")
        proxy = lab.proxy()
        await proxy.connect()

        answer = await attempt(proxy, service, pin=PinRequest(pin="1234"))
        asked = await ask(proxy, service.domain, token)

    assert answer == AuthenticateResponse(denied_reason=reason)
    assert (asked.valid, asked.denied_reason, asked.user_id) == (False, reason, user.id)


async def test_all_gates_are_asked_what_is_there_to_know(home: Home, tmp_path: Path) -> None:
    """After the credential and core's own rules: a wrong one, and a blocked person, come to no plugin."""
    heard: list[Login] = []

    async def hears(*, login: Login, account: AccountSnapshot) -> Decision:
        heard.append(login)
        return ALLOW

    plugins = ("direct_upstream", ("one", _Gate(hears)), ("none", _Gate(None)), ("two", _Gate(hears)))
    async with lab_for(home, tmp_path, plugins=plugins) as lab:
        service = await lab.service("app", auth=EVERYTHING)
        group = await lab.group("crew")
        user = await person(lab, group.id)
        token = await mint_session_token(lab.home.state, service, user.id, "oidc")
        proxy = lab.proxy()
        await proxy.connect()

        await attempt(proxy, service, pin=PinRequest(pin="wrong"))
        assert heard == []
        assert (await attempt(proxy, service, pin=PinRequest(pin="1234"))).success
        assert heard == [Login("pin", "pin-user", client_address=HERE)] * 2
        heard.clear()
        assert (await ask(proxy, service.domain, token)).valid
        assert [(one.subject, one.again, [g.name for g in one.groups]) for one in heard] == [
            (user.id, True, ["crew"])
        ] * 2


async def test_a_private_service_has_no_sessions(lab: Lab, proxy: FakeProxy) -> None:
    """Not even by the token that a proxy is given with a tunnel answer: the tunnel says each time who calls."""
    user = await person(lab)
    service = await lab.service("inner", await lab.group("crew"))
    token = await mint_session_token(lab.home.state, service, user.id, "oidc")

    answer = await ask(proxy, service.domain, token)

    assert (answer.valid, answer.denied_reason) == (False, "tunnel_required")


async def test_what_is_no_session(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """The order of the checks, and nothing about anybody in a no."""
    user = await person(lab)
    other = await lab.service("other", auth=EVERYTHING)
    state = lab.home.state
    token = await mint_session_token(state, service, user.id, "oidc")
    foreign = await mint_session_token(state, other, user.id, "oidc")
    shared = await mint_session_token(state, service, "password-user", "password")

    for domain, given, reason in (
        ("", token, "missing domain or session_token"),
        (service.domain, "", "missing domain or session_token"),
        ("nowhere.px.test", token, "service_not_found"),
        (service.domain, "x.y.z", "invalid_token"),
        (service.domain, foreign, "invalid_token"),
        (service.domain, shared, "user_not_found"),
    ):
        assert await ask(proxy, domain, given) == ValidateSessionResponse(denied_reason=reason)


async def test_a_logout_ends_the_session_everywhere(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """Proxies are told of the token's hash at once, and management knows it no more; another session goes on."""
    user = await person(lab)
    token = await mint_session_token(lab.home.state, service, "password-user", "password")
    other = await mint_session_token(lab.home.state, service, user.id, "oidc")
    proxy.capabilities.claims.append("auth.password")  # a proxy of ours, which understands what is told beside mappings
    await proxy.connect()

    assert not (await ask(proxy, service.domain, token, end=True)).valid
    message = await proxy.next()

    assert [one.token_hash for one in message.revocations] == [hashlib.sha256(token.encode()).digest()]
    assert (await ask(proxy, service.domain, token)).denied_reason == "invalid_token"
    assert (await ask(proxy, service.domain, other)).valid
    forged = other[:-4] + "AAAA"
    assert (await ask(proxy, service.domain, forged, end=True)).denied_reason == "invalid_token"


async def test_promise_10_too_many_logouts_of_one_service_end_its_sessions_alone(
    lab: Lab, proxy: FakeProxy, service: Service
) -> None:
    """A person who knows one PIN and logs in and out all day ends the sessions of that service, and no other one's."""
    busy, state = await lab.service("busy", auth=EVERYTHING), lab.home.state
    async with state.change(lab.home.account_id) as transaction:
        for number in range(TOKENS_REVOKED):
            row = RevocationRow(id=f"r{number}", account_id=lab.home.account_id, service_id=busy.id, not_before=now())
            row.token_hash = hashlib.sha256(str(number).encode()).digest()
            transaction.session.add(row)
        transaction.touch(revocations=True)
    user = await person(lab)
    theirs = await mint_session_token(state, busy, user.id, "oidc")
    mine = await mint_session_token(state, service, user.id, "oidc")
    pin = await mint_session_token(state, service, "pin-user", "pin")

    assert (await ask(proxy, service.domain, pin, end=True)).denied_reason == "session_ended"

    assert (await ask(proxy, service.domain, pin)).denied_reason == "invalid_token"
    assert (await ask(proxy, service.domain, mine)).valid
    assert (await ask(proxy, busy.domain, theirs)).denied_reason == "invalid_token"
    assert state.counters["logouts_widened"] == 1
    assert len(lab.home.snapshot.revocations) == 1


async def test_a_service_that_is_gone_leaves_no_guesses(lab: Lab, service: Service) -> None:
    """The failures that were counted for it are forgotten with it, and an account's rules with the account."""
    throttle = LoginThrottle(lambda: 1000.0)
    throttle.reserve(service.id, "192.0.2.1")
    throttle.forget(service.id)
    assert service.id not in throttle._failures


async def test_without_a_provider_there_is_no_sign_on(proxy: FakeProxy, service: Service) -> None:
    """An error that says so: a proxy then offers none."""
    request = GetOIDCURLRequest(id=service.id, account_id=service.account_id, redirect_url=f"https://{service.domain}/")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await proxy.unary("GetOIDCURL", request)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_sources_that_nobody_tells_are_held_up_together() -> None:
    """Behind a proxy that tells no addresses one guest's guesses do not lock out the next; all of them have a bound."""
    throttle, service = LoginThrottle(lambda: 1000.0), ServiceId("s")

    assert [throttle.reserve(service, "") for _ in range(SERVICE_FAILURES)] == [0.0] * SERVICE_FAILURES
    assert throttle.reserve(service, "") > 0
