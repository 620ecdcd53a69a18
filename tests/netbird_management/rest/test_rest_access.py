"""Who may call what: fail closed, for every resource."""

import re
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import update

from netbird_management.model.accounts import Role, User
from netbird_management.model.clock import now
from netbird_management.model.ids import GroupId
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration
from netbird_management.operations.users import create_token, create_user, update_user
from netbird_management.rest import app as rest_app
from netbird_management.rest import unsupported
from netbird_management.rest.app import create_app
from netbird_management.rest.context import LOGIN_BURST as BURST
from netbird_management.rest.setup import HEADER
from netbird_management.store.models import PersonalTokenRow
from netbird_management.store.state import State
from tests.netbird_management.conftest import Api, Home, context_for
from tests.netbird_management.rest import test_services

ADMIN_ONLY = [
    ("GET", "/api/users"),
    ("POST", "/api/users"),
    ("PUT", "/api/users/x"),
    ("DELETE", "/api/users/x"),
    ("GET", "/api/accounts"),
    ("GET", "/api/groups"),
    ("POST", "/api/groups"),
    ("GET", "/api/groups/x"),
    ("PUT", "/api/groups/x"),
    ("DELETE", "/api/groups/x"),
    ("GET", "/api/policies"),
    ("GET", "/api/reverse-proxies/services"),
    ("POST", "/api/reverse-proxies/services"),
    ("GET", "/api/reverse-proxies/services/x"),
    ("PUT", "/api/reverse-proxies/services/x"),
    ("DELETE", "/api/reverse-proxies/services/x"),
    ("GET", "/api/reverse-proxies/services/x/proxies"),
    ("GET", "/api/reverse-proxies/clusters"),
    ("DELETE", "/api/reverse-proxies/clusters/x"),
    ("GET", "/api/reverse-proxies/domains"),
    ("GET", "/api/reverse-proxies/proxy-tokens"),
    ("POST", "/api/reverse-proxies/proxy-tokens"),
    ("DELETE", "/api/reverse-proxies/proxy-tokens/x"),
    ("GET", "/api/events/proxy"),
    ("GET", "/api/events"),
    ("GET", "/api/events/audit"),
    ("POST", "/api/users/x/approve"),
    ("DELETE", "/api/users/x/reject"),
    ("PUT", "/api/accounts/x"),
    ("DELETE", "/api/accounts/x"),
    ("POST", "/api/policies"),
    ("GET", "/api/policies/x"),
    ("PUT", "/api/policies/x"),
    ("DELETE", "/api/policies/x"),
    ("POST", "/api/reverse-proxies/domains"),
    ("DELETE", "/api/reverse-proxies/domains/x"),
    ("GET", "/api/reverse-proxies/domains/x/validate"),
    ("GET", "/api/dns/settings"),
    ("PUT", "/api/dns/settings"),
    *(
        (method, path + suffix)
        for path in (
            "/api/setup-keys",
            "/api/dns/nameservers",
            "/api/dns/zones",
            "/api/dns/zones/x/records",
            "/api/networks",
            "/api/networks/x/resources",
            "/api/networks/x/routers",
        )
        for suffix, methods in (("", ("GET", "POST")), ("/x", ("GET", "PUT", "DELETE")))
        for method in methods
    ),
    ("GET", "/api/networks/resources"),
    ("GET", "/api/networks/routers"),
]
OWN = [
    ("GET", "/api/users/current"),
    ("GET", "/api/peers"),
    ("POST", "/api/peers"),
    ("GET", "/api/peers/x"),
    ("PUT", "/api/peers/x"),
    ("DELETE", "/api/peers/x"),
    ("GET", "/api/peers/x/wireguard"),
    ("GET", "/api/peers/x/accessible-peers"),
    ("GET", "/api/users/x/tokens"),
    ("POST", "/api/users/x/tokens"),
    ("GET", "/api/users/x/tokens/y"),
    ("DELETE", "/api/users/x/tokens/y"),
]
EMPTY = {("GET", f"/api{path}") for path in unsupported.EMPTY}
UNSUPPORTED = {
    *((method, f"/api{path}") for path in unsupported.EMPTY for method in ("POST", "PUT", "DELETE")),
    *(
        (method, re.sub(r"\{[\w:]+\}", "x", f"/api{path}"))
        for path in (*(f"{path}/x" for path in unsupported.EMPTY), *unsupported.REFUSED)
        for method in ("GET", "POST", "PUT", "DELETE")
    ),
}
OPEN = {
    ("GET", "/api/instance"),
    ("GET", "/api/agent-login"),
    ("POST", "/api/setup"),
    ("GET", "/api/reverse-proxy/callback"),
}


@pytest.fixture
async def alice(home: Home) -> User:
    return await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")


async def _header(home: Home, user: User) -> dict[str, str]:
    _, token = await create_token(home.state, user, name="t", days=1, created_by=user.id)
    return {"authorization": f"Bearer {token}"}


def test_every_route_is_in_one_of_the_lists(home: Home) -> None:
    """A new route must say here who may call it."""
    found = set()
    for router in rest_app.OWN:
        for route in router.routes:
            path = "/api" + route.path
            path = path.replace("{token_id}", "y" if "/users/" in path else "x")
            path = re.sub(r"\{[\w:]+\}", "x", path)
            found |= {(method, path) for method in route.methods}
    assert found == {*ADMIN_ONLY, *OWN, *OPEN, *EMPTY, *UNSUPPORTED}


async def test_nobody_comes_in_without_a_token(api: Api) -> None:
    """Without a header, with a cookie, with another scheme: 401 everywhere, and not a word more."""
    for method, path in (*ADMIN_ONLY, *OWN, *EMPTY, *UNSUPPORTED):
        for headers in ({"authorization": ""}, {"authorization": "Basic x", "cookie": "nb_session=x"}):
            refused = await api.refused(method, path, {}, headers=headers)
            assert refused == (401, "no valid authentication provided"), (method, path)


async def test_users_may_not_do_what_admins_may(api: Api, alice: User) -> None:
    """The role is judged before anything is looked up, so that nobody learns what exists."""
    headers = await _header(api.home, alice)
    for method, path in ADMIN_ONLY:
        assert await api.refused(method, path, {}, headers=headers) == (403, "permission denied"), (method, path)


async def test_bad_tokens_are_refused(api: Api, alice: User) -> None:
    """A wrong check sum, an unknown token, one that expired, a proxy's token, two headers."""
    state = api.home.state
    good = (await _header(api.home, alice))["authorization"].removeprefix("Bearer ")
    for token in (good[:-1] + ("0" if good[-1] != "0" else "1"), "nbp_" + "0" * 36, "nbx_" + good[4:]):
        answer = await api.refused("GET", "/api/peers", headers={"authorization": f"Token {token}"})
        assert answer == (401, "token invalid")
    doubled = [("authorization", f"Token {good}"), ("authorization", f"Token {good}")]
    async with httpx.AsyncClient(transport=api.client._transport, base_url="http://localhost") as client:
        assert (await client.get("/api/peers", headers=doubled)).status_code == 401
        assert (await client.get("/api/peers", headers=doubled[:1])).status_code == 200
    async with state.write() as session:
        await session.execute(update(PersonalTokenRow).values(expires_at=now() - timedelta(seconds=1)))
    answer = await api.refused("GET", "/api/peers", headers={"authorization": f"Token {good}"})
    assert answer == (401, "token invalid")


async def test_blocked_users_stay_out(api: Api, alice: User) -> None:
    """A token outlives its user's good standing, and opens nothing."""
    headers = await _header(api.home, alice)
    await api.ok("GET", "/api/peers", headers=headers)
    await update_user(api.home.state, api.home.account_id, alice.id, role=Role.USER, auto_groups=(), blocked=True)
    assert await api.refused("GET", "/api/peers", headers=headers) == (403, "user is blocked")


async def test_users_see_and_make_their_own_peers_only(api: Api, alice: User) -> None:
    """A user cannot name another user, nor a group: groups are what access is given to."""
    home = api.home
    headers = await _header(home, alice)
    group = await create_group(home.state, home.account_id, name="engineering")
    other, _ = await create_stock_peer(home.state, home.account_id, name="other", user_id=home.owner.id)
    for body in ({"name": "p", "group_ids": [group.id]}, {"name": "p", "user_id": home.owner.id}):
        assert (await api.refused("POST", "/api/peers", body, headers=headers))[0] == 403
    mine = await api.ok("POST", "/api/peers", {"name": "phone"}, headers=headers)
    assert mine["user_id"] == alice.id
    assert [peer["id"] for peer in await api.ok("GET", "/api/peers", headers=headers)] == [mine["id"]]
    for method, path in (
        ("GET", ""),
        ("GET", "/wireguard"),
        ("GET", "/accessible-peers"),
        ("PUT", ""),
        ("DELETE", ""),
    ):
        refused = await api.refused(method, f"/api/peers/{other.id}{path}", {"name": "x"}, headers=headers)
        assert refused == (404, f"peer: {other.id} not found")
    assert await api.ok("DELETE", f"/api/peers/{mine['id']}", headers=headers) == {}


async def test_nobody_makes_tokens_for_another_person(api: Api, alice: User) -> None:
    """Not even the owner: a token is its user's identity. Service users' tokens are made by admins."""
    headers = await _header(api.home, alice)
    body = {"name": "t", "expires_in": 1}
    assert (await api.refused("POST", f"/api/users/{alice.id}/tokens", body))[0] == 403
    owner = api.home.owner.id
    assert (await api.refused("POST", f"/api/users/{owner}/tokens", body, headers=headers))[0] == 403
    made = await api.ok("POST", f"/api/users/{alice.id}/tokens", body, headers=headers)
    assert made["plain_token"].startswith("nbp_")
    robot = await api.ok(
        "POST", "/api/users", {"role": "user", "auto_groups": [], "is_service_user": True, "name": "robot"}
    )
    token = await api.ok("POST", f"/api/users/{robot['id']}/tokens", body)
    path = f"/api/users/{robot['id']}/tokens"
    assert [one["id"] for one in await api.ok("GET", path)] == [token["personal_access_token"]["id"]]
    assert await api.ok("DELETE", f"{path}/{token['personal_access_token']['id']}") == {}
    assert await api.ok("GET", path) == []


async def test_the_owner_stays_the_owner(api: Api, alice: User) -> None:
    """Nobody is made owner, and the owner is neither blocked nor deleted."""
    owner = api.home.owner.id
    body = {"role": "owner", "auto_groups": [], "is_blocked": False}
    assert (await api.refused("PUT", f"/api/users/{alice.id}", body))[0] == 403
    assert (await api.refused("POST", "/api/users", {**body, "email": "x@y.test"}))[0] == 422
    assert (await api.refused("PUT", f"/api/users/{owner}", {**body, "is_blocked": True}))[0] == 403
    assert (await api.refused("DELETE", f"/api/users/{owner}"))[0] == 403
    assert (await api.refused("PUT", f"/api/users/{alice.id}", {"role": "user"}))[0] == 400
    assert (await api.refused("PUT", f"/api/users/{alice.id}", {**body, "role": "god"}))[0] == 422
    assert await api.ok("DELETE", f"/api/users/{alice.id}") == {}


async def test_unreadable_bodies_are_400(api: Api) -> None:
    """No JSON, no object, a wrong type, a member twice, a body that never ends: told, and never guessed at."""
    headers = {"content-type": "application/json"}
    for content in (b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a", "name": "b"}', b'{"a": NaN}', b"[" * 100_000):
        answer = await api.client.post("/api/groups", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, 400), content[:20]
    large = await api.client.post("/api/groups", content=b" " * (1 << 20) + b"{}", headers=headers)
    assert large.json() == {"message": "the request body is too large", "code": 400}


async def test_unknown_paths_answer_in_the_same_form(api: Api) -> None:
    """Errors of the framework look like ours, and each answer has an id."""
    assert await api.refused("GET", "/api/nothing") == (404, "not found")
    assert await api.refused("PATCH", "/api/groups") == (405, "method not allowed")
    answer = await api.call("GET", "/api/instance")
    assert len(answer.headers["x-request-id"]) == 20
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"


async def test_a_group_of_a_service_stays(api: Api, proxy: Registration) -> None:
    """Whether it is let in by membership or by its sign-in; the service is named by its domain."""
    group = await create_group(api.home.state, api.home.account_id, name="engineering")
    bearer = {"enabled": True, "distribution_groups": [group.id]}
    for name, given in (
        ("private", {"private": True, "access_groups": [group.id]}),
        ("sign-in", {"auth": {"bearer_auth": bearer}}),
    ):
        made = await api.ok("POST", test_services.SERVICES, test_services.body(domain=f"{name}.px.test", **given))
        assert await api.refused("DELETE", f"/api/groups/{group.id}") == (
            400,
            f"group has been linked to reverse proxy service: {name}.px.test",
        )
        await api.ok("DELETE", f"{test_services.SERVICES}/{made['id']}")
    await api.ok("DELETE", f"/api/groups/{group.id}")


SETUP = {"email": "admin@lab.test", "name": "Admin"}
SECRET = {HEADER: "the secret"}


def _client(state: State, peer: str, host: str = "localhost") -> httpx.AsyncClient:
    context = context_for(Home(state, None, None), setup_secret="the secret")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(create_app(context), client=(peer, 1))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


async def test_setup_makes_the_first_user_once(state: State) -> None:
    """The first call with the secret makes an owner whose token works, the second is refused."""
    async with _client(state, "192.0.2.1") as client:
        assert (await client.get("/api/instance")).json() == {"setup_required": True}
        made = await client.post("/api/setup", json=SETUP, headers=SECRET)
        assert made.status_code == 200
        headers = {"authorization": f"Token {made.json()['personal_access_token']}"}
        assert (await client.get("/api/users/current", headers=headers)).json()["role"] == "owner"
        assert (await client.get("/api/instance")).json() == {"setup_required": False}
        assert (await client.post("/api/setup", json=SETUP, headers=SECRET)).status_code == 412
    assert len(state.snapshots.all()) == 1


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "192.0.2.1"])
@pytest.mark.parametrize("headers", [{}, {HEADER: "guess"}, {HEADER: ""}, {HEADER: "th\xe9"}])
async def test_setup_needs_the_secret(state: State, peer: str, headers: dict[str, str]) -> None:
    """From loopback too: a reverse proxy on the same machine forwards strangers from there."""
    async with _client(state, peer, host="127.0.0.1:8080") as client:
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        assert (await client.post("/api/setup", json=SETUP, headers=raw)).status_code == 403  # type: ignore[arg-type]
    assert state.snapshots.all() == ()


async def test_without_a_secret_nobody_sets_up(state: State) -> None:
    """A host that has none to compare with refuses everybody."""
    context = context_for(Home(state, None, None))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(context)), base_url="http://x") as client:
        assert (await client.post("/api/setup", json=SETUP, headers={HEADER: ""})).status_code == 403


async def test_wrong_secrets_are_limited_by_address(state: State) -> None:
    """After 15 an address is answered 429 even with the right one; another address is not held up."""
    async with _client(state, "192.0.2.1") as client:
        answers = [await client.post("/api/setup", json=SETUP, headers={HEADER: f"guess {i}"}) for i in range(40)]
        assert [answer.status_code for answer in answers] == [403] * BURST + [429] * (40 - BURST)
        assert (await client.post("/api/setup", json=SETUP, headers=SECRET)).status_code == 429
    assert state.snapshots.all() == ()


async def test_setup_wants_usable_values(state: State) -> None:
    """Each bad value is 422, names its field and makes nothing."""
    async with _client(state, "::1") as client:
        for change in (
            {"email": "x"},
            {"password": "correct horse"},
            {"create_pat": False},
            {"name": ""},
            {"pat_expire_in": 0},
            {"pat_expire_in": 366},
        ):
            answer = await client.post("/api/setup", json={**SETUP, **change}, headers=SECRET)
            assert answer.status_code == 422, change
            assert next(iter(change)) in answer.json()["message"]
    assert state.snapshots.all() == ()


async def test_group_rules(api: Api) -> None:
    """All is untouchable, names are unique, members must exist, and a group in use stays."""
    all_id = api.home.snapshot.group_all.id
    for method in ("PUT", "DELETE"):
        assert (await api.refused(method, f"/api/groups/{all_id}", {"name": "x"}))[0] == 422
    group = await api.ok("POST", "/api/groups", {"name": "engineering"})
    assert (group["peers"], group["peers_count"]) == (None, 0)
    assert await api.refused("POST", "/api/groups", {"name": "engineering"}) == (
        409,
        "group with name engineering already exists",
    )
    for body in ({"name": ""}, {"name": "a,b"}, {"name": "x\n"}, {"name": "x", "peers": ["nobody"]}):
        assert (await api.refused("POST", "/api/groups", body))[0] == 422
    user = {"role": "user", "auto_groups": [group["id"]], "is_service_user": False, "email": "a@b.test"}
    made = await api.ok("POST", "/api/users", user)
    assert await api.refused("DELETE", f"/api/groups/{group['id']}") == (
        400,
        f"group has been linked to user: {made['id']}",
    )
    assert (await api.refused("GET", "/api/groups/nothing"))[0] == 404
    assert (await api.ok("GET", "/api/groups?name=engineering"))[0]["id"] == group["id"]
    assert (await api.refused("GET", "/api/groups?name=no"))[0] == 404
    peer, _ = await create_stock_peer(api.home.state, api.home.account_id, name="p", user_id=None)
    changed = await api.ok("PUT", f"/api/groups/{group['id']}", {"name": "eng", "peers": [peer.id]})
    assert changed["peers"] == [{"id": peer.id, "name": "p"}]
    assert GroupId(group["id"]) in {held.id for held in api.home.snapshot.groups_of(peer.id)}
