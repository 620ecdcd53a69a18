"""Every field of every body: what is sent is answered back, or refused by name. Nothing is dropped without a word."""
# Over 500 lines: one walk over every field of every body, with its tables.

import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Final, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from netbird_management.model.accounts import Role
from netbird_management.model.domains import fold
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration
from netbird_management.operations.users import create_user
from netbird_management.rest import (
    accounts,
    clusters,
    dns,
    groups,
    networks,
    peers,
    policies,
    proxy_tokens,
    service_json,
    setup,
    setup_keys,
    users,
)
from netbird_management.rest.bodies import Body, Only
from netbird_wire.go_duration import parse_duration
from tests.netbird_management.conftest import Api
from tests.netbird_management.rest import test_services

Path = tuple[str | int, ...]
WRITE_ONLY: Final = {"password", "pin", "value", "confirm_public", "public_key", "create_pat", "extensions"}
"""Secrets, and words about the request itself: answers do not show them."""
ELSEWHERE: Final = {"expires_in": ("expires", "expires_at", "expiration_date"), "group_ids": ("groups",)}
"""Members that answers show under another name."""


@dataclass(frozen=True)
class Case:
    """One operation with a body: what it needs first, and a body that it takes.

    `make` gets the API and answers the path and the body; `shown` is the part of the answer that is the resource.
    """

    method: str
    model: type[BaseModel]
    make: Callable[["Scene"], Any]
    shown: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda answer: answer)


@dataclass
class Scene:
    """The account's own things, and a number that no other body of the test has used."""

    api: Api
    user: str
    peer: str
    group: str
    number: int = 0

    async def post(self, path: str, body: dict[str, Any]) -> str:
        return str((await self.api.ok("POST", path, body))["id"])

    @property
    def name(self) -> str:
        self.number += 1
        return f"n{self.number}"


def rule(scene: Scene) -> dict[str, Any]:
    return {
        "name": "r",
        "enabled": True,
        "action": "accept",
        "bidirectional": False,
        "protocol": "tcp",
        "sources": [scene.group],
        "destinations": [scene.group],
        "ports": ["80"],
    }


def _service(scene: Scene) -> dict[str, Any]:
    name = scene.name
    return test_services.body(
        name=name,
        domain=f"{name}.px.test",
        auth={"bearer_auth": {"enabled": True, "distribution_groups": [scene.group]}},
        access_restrictions={"allowed_cidrs": ["192.0.2.0/24"]},
    )


def _nameservers(scene: Scene) -> dict[str, Any]:
    return {
        "name": scene.name,
        "description": "d",
        "nameservers": [{"ip": "192.0.2.53", "ns_type": "udp", "port": 53}],
        "enabled": True,
        "groups": [scene.group],
        "primary": False,
        "domains": [f"{scene.name}.test"],
        "search_domains_enabled": False,
    }


SETTINGS: Final = {
    "peer_login_expiration_enabled": False,
    "peer_login_expiration": 86400,
    "peer_inactivity_expiration_enabled": False,
    "peer_inactivity_expiration": 600,
    "regular_users_view_blocked": True,
    "peer_expose_enabled": False,
    "peer_expose_groups": [],
    "extra": {},
}


async def _network(scene: Scene) -> str:
    return await scene.post("/api/networks", {"name": scene.name, "description": ""})


async def _zone(scene: Scene) -> str:
    name = scene.name
    body = {"name": name, "domain": f"{name}.test", "enable_search_domain": False, "distribution_groups": [scene.group]}
    return await scene.post("/api/dns/zones", body)


async def post_user(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/users", {
        "role": "user",
        "auto_groups": [],
        "email": f"{scene.name}@lab.test",
        "is_service_user": False,
    }


async def put_user(scene: Scene) -> tuple[str, dict[str, Any]]:
    return f"/api/users/{scene.user}", {"role": "user", "auto_groups": [], "is_blocked": False}


async def post_token(scene: Scene) -> tuple[str, dict[str, Any]]:
    return f"/api/users/{scene.api.home.owner.id}/tokens", {"name": "t", "expires_in": 1}


async def put_account(scene: Scene) -> tuple[str, dict[str, Any]]:
    return f"/api/accounts/{scene.api.home.account_id}", {"settings": deepcopy(SETTINGS)}


async def post_group(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/groups", {"name": scene.name, "peers": [scene.peer]}


async def put_group(scene: Scene) -> tuple[str, dict[str, Any]]:
    return f"/api/groups/{scene.group}", {"name": scene.name, "peers": [scene.peer]}


async def post_peer(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/peers", {"name": scene.name, "user_id": scene.user, "group_ids": [scene.group]}


async def put_peer(scene: Scene) -> tuple[str, dict[str, Any]]:
    return f"/api/peers/{scene.peer}", {"name": scene.name}


async def post_key(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/setup-keys", {
        "name": "k",
        "type": "reusable",
        "expires_in": 86400,
        "auto_groups": [],
        "usage_limit": 0,
    }


async def put_key(scene: Scene) -> tuple[str, dict[str, Any]]:
    path, body = await post_key(scene)
    return f"{path}/{await scene.post(path, body)}", {"revoked": False, "auto_groups": []}


async def post_policy(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/policies", {"name": scene.name, "enabled": True, "rules": [rule(scene)]}


async def put_policy(scene: Scene) -> tuple[str, dict[str, Any]]:
    path, body = await post_policy(scene)
    return f"{path}/{await scene.post(path, body)}", body


async def post_network(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/networks", {"name": scene.name, "description": "d"}


async def post_resource(scene: Scene) -> tuple[str, dict[str, Any]]:
    body = {"name": scene.name, "address": "192.0.2.7/32", "enabled": True, "groups": [scene.group], "description": ""}
    return f"/api/networks/{await _network(scene)}/resources", body


async def post_router(scene: Scene) -> tuple[str, dict[str, Any]]:
    body = {"metric": 100, "masquerade": True, "enabled": True, "peer": scene.peer}
    return f"/api/networks/{await _network(scene)}/routers", body


async def put_dns(_scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/dns/settings", {"disabled_management_groups": []}


async def post_nameservers(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/dns/nameservers", _nameservers(scene)


async def post_zone(scene: Scene) -> tuple[str, dict[str, Any]]:
    name = scene.name
    body = {"name": name, "domain": f"{name}.test", "enable_search_domain": False, "distribution_groups": [scene.group]}
    return "/api/dns/zones", body


async def post_record(scene: Scene) -> tuple[str, dict[str, Any]]:
    body = {"name": f"{scene.name}.n{scene.number + 1}.test", "type": "A", "content": "192.0.2.1", "ttl": 60}
    return f"/api/dns/zones/{await _zone(scene)}/records", body


async def post_service(scene: Scene) -> tuple[str, dict[str, Any]]:
    return test_services.SERVICES, _service(scene)


async def put_service(scene: Scene) -> tuple[str, dict[str, Any]]:
    body = _service(scene)
    return f"{test_services.SERVICES}/{await scene.post(test_services.SERVICES, body)}", {
        **body,
        "confirm_public": True,
    }


async def post_domain(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/reverse-proxies/domains", {"domain": f"{scene.name}.example.org", "target_cluster": "px.test"}


async def post_proxy_token(scene: Scene) -> tuple[str, dict[str, Any]]:
    return "/api/reverse-proxies/proxy-tokens", {"name": "t", "expires_in": 86400}


CASES: Final = {
    "post user": Case("POST", users.UserRequest, post_user),
    "put user": Case("PUT", users.UserUpdate, put_user),
    "post token": Case("POST", users.TokenRequest, post_token, lambda answer: answer["personal_access_token"]),
    "put account": Case("PUT", accounts.AccountBody, put_account),
    "post group": Case("POST", groups.GroupRequest, post_group),
    "put group": Case("PUT", groups.GroupRequest, put_group),
    "post peer": Case("POST", peers.PeerBody, post_peer),
    "put peer": Case("PUT", peers.PeerUpdate, put_peer),
    "post setup key": Case("POST", setup_keys.NewSetupKey, post_key),
    "put setup key": Case("PUT", setup_keys.SetupKeyUpdate, put_key),
    "post policy": Case("POST", policies.PolicyBody, post_policy),
    "put policy": Case("PUT", policies.PolicyBody, put_policy),
    "post network": Case("POST", networks.NetworkBody, post_network),
    "post resource": Case("POST", networks.NetworkResourceBody, post_resource),
    "post router": Case("POST", networks.NetworkRouterBody, post_router),
    "put dns settings": Case("PUT", dns.DnsSettingsBody, put_dns),
    "post name servers": Case("POST", dns.NameserverGroupBody, post_nameservers),
    "post zone": Case("POST", dns.ZoneBody, post_zone),
    "post record": Case("POST", dns.RecordBody, post_record),
    "post service": Case("POST", service_json.ServiceBody, post_service),
    "put service": Case("PUT", service_json.ServiceBody, put_service),
    "post domain": Case("POST", clusters.DomainBody, post_domain),
    "post proxy token": Case("POST", proxy_tokens.ProxyTokenBody, post_proxy_token),
}
APART: Final = {setup.SetupRequest}
"""Setup works once and has its own test of each field: `test_setup_wants_usable_values`."""


def leaves(model: type[BaseModel], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field without fields of its own, with its type; of lists the first item stands for all."""
    for name, info in model.model_fields.items():
        yield from _leaves(info.annotation, (*above, name))


def _leaves(kind: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from leaves(kind, path)
    elif get_origin(kind) is list and issubclass(inner := get_args(kind)[0], BaseModel):
        yield from leaves(inner, (*path, 0))
    else:
        yield path, get_origin(kind) or kind


def values(kind: Any, scene: Scene) -> tuple[Any, ...]:
    """Values that stand for all of a type; the odd ones are those that a store or a client chokes on."""
    match kind:
        case _ if kind is bool:
            return True, False
        case _ if kind is int:
            return 0, 1, -1, 1 << 63
        case _ if kind is list:
            return [], [scene.group], ["nope"], ["a\0b"], ["x" * 300]
        case _ if kind is dict:
            return {}, {"x-a": "b"}, {"x-a": "b\0"}, {"private_service": {"x": "y"}}
        case _:
            return "", "x", " x ", "a\0b", "é", "x" * 300, "X.test."


def put(body: dict[str, Any], path: Path, value: object) -> None:
    at: Any = body
    for step, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(step, int):
            if step == len(at):
                at.append(empty)
        elif at.get(step) is None:
            at[step] = empty
        at = at[step]
    at[path[-1]] = value


def get(answer: Any, path: Path) -> Any:
    with suppress(KeyError, IndexError, TypeError):
        for step in path:
            answer = answer[step]
        return answer
    return None


def same(sent: Any, shown: Any) -> bool:
    """Whether an answer says what was sent: unset is left out, groups are shown whole, names are folded and durations
    written anew."""
    if sent == "":
        return True  # the default, or what is stored
    if isinstance(shown, list) and shown and isinstance(shown[0], dict) and "id" in shown[0]:
        shown = [item["id"] for item in shown]
    if sent == shown or (not sent and not shown):
        return True
    if isinstance(sent, list) and isinstance(shown, list):
        return len(sent) == len(shown) and all(map(same, sent, shown))
    if isinstance(sent, str) and isinstance(shown, str):
        with suppress(ValueError):
            if parse_duration(sent) == parse_duration(shown):
                return True
        with suppress(ValueError):
            return fold(sent) == shown
    return False


def judge(case: Case, path: Path, sent: object, status: int, answer: dict[str, Any]) -> None:
    """Fails where a value was neither shown nor refused by name."""
    name = str(next(step for step in reversed(path) if isinstance(step, str)))
    assert status < 500, (path, sent, answer)
    if status >= 400:
        words = answer["message"].lower()
        steps = [step.lower().removeprefix("is_").removeprefix("auto_") for step in path if isinstance(step, str)]
        stems = [step.removesuffix("s").removesuffix("resource") for step in steps]
        texts = [sent] if isinstance(sent, str) else list(sent) if isinstance(sent, list | dict) else []
        quoted = any(str(text).strip().lower()[:32] in words for text in texts if text)
        shown = any(stem in words or stem.replace("_", " ") in words for stem in stems)
        assert shown or quoted or "not found" in words or status in (403, 409, 412), (path, sent, answer)
        return
    assert status == 200, (path, sent, answer)
    if name in WRITE_ONLY:
        return
    resource = case.shown(answer)
    places = ELSEWHERE.get(name, (name,))
    found = [get(resource, (*path[:-1], place)) for place in places]
    if name == "expires_in":
        assert bool(sent) == any(value not in (None, "0001-01-01T00:00:00Z") for value in found), (path, sent, answer)
    elif name == "group_ids":
        assert isinstance(sent, list)
        assert set(sent) <= {group["id"] for group in found[0]}, (path, sent, answer)
    else:
        assert any(same(sent, value) for value in found), (path, sent, found)


@pytest.fixture
async def scene(api: Api, proxy: Registration) -> Scene:
    home = api.home
    user = await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")
    peer, _ = await create_stock_peer(home.state, home.account_id, name="phone", user_id=user.id)
    group = await create_group(home.state, home.account_id, name="engineering")
    return Scene(api, user.id, peer.id, group.id)


async def send(case: Case, scene: Scene, path: Path, value: object) -> None:
    where, body = await case.make(scene)
    put(body, path, value)
    answer = await scene.api.call(case.method, where, body)
    judge(case, path, value, answer.status_code, answer.json())


@pytest.mark.timeout(180)  # hundreds of requests, each of which commits: slow on PostgreSQL on a busy machine
@pytest.mark.parametrize("name", CASES)
async def test_every_field_is_answered_back_or_refused_by_name(name: str, scene: Scene) -> None:
    """For each field of the body, values of its type that are plain, empty, and none that a store takes."""
    case = CASES[name]
    where, body = await case.make(scene)
    answer = await scene.api.call(case.method, where, deepcopy(body))
    assert answer.status_code == 200, answer.text
    for path, kind in leaves(case.model):
        for value in values(kind, scene):
            await send(case, scene, path, value)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@seed(1)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
async def test_any_value_is_answered_back_or_refused_by_name(name: str, data: st.DataObject, scene: Scene) -> None:
    """The same for whatever text and number there is."""
    case = CASES[name]
    path, kind = data.draw(st.sampled_from(list(leaves(case.model))))
    strategies: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(1 << 70), 1 << 70),
        list: st.lists(st.text(max_size=12), max_size=3),
        dict: st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3),
    }
    await send(case, scene, path, data.draw(strategies.get(kind, st.text(max_size=300))))


@pytest.mark.parametrize("name", CASES)
async def test_members_that_nobody_declared_are_refused_by_name(name: str, scene: Scene) -> None:
    """Set to something they are refused, at every depth; unset they ask for nothing."""
    case = CASES[name]
    depths = {path[:-1] for path, _ in leaves(case.model)}
    for above in depths:
        for value, refused in ((True, True), ({"x": ["y"]}, True), (None, False), (False, False), ({"x": []}, False)):
            where, body = await case.make(scene)
            put(body, (*above, "of_another_version"), value)
            answer = await scene.api.call(case.method, where, body)
            if refused:
                assert (answer.status_code, "of_another_version" in answer.text) == (422, True), (above, answer.text)
            else:
                assert "of_another_version" not in answer.text, (above, answer.text)


@pytest.mark.parametrize("name", CASES)
async def test_what_can_only_have_one_value_says_which(name: str, scene: Scene) -> None:
    """A member that NetBird's clients send and that nothing here acts on is 422 with its name and the value it has."""
    case = CASES[name]
    for path, only in _only(case.model):
        where, body = await case.make(scene)
        put(body, path, only)
        assert (await scene.api.call(case.method, where, body)).status_code == 200
        where, body = await case.make(scene)
        put(body, path, {bool: not only, str: "other", list: [scene.group]}[type(only)])
        answer = await scene.api.call(case.method, where, body)
        assert (answer.status_code, str(path[-1]) in answer.text) == (422, True), (path, answer.text)


def _only(model: type[BaseModel], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for path, _ in leaves(model):
        at: Any = model
        for step in path[:-1]:
            if isinstance(step, str):
                inner = at.model_fields[step].annotation
                at = next(kind for kind in _models(inner))
        for entry in at.model_fields[path[-1]].metadata:
            if isinstance(entry, Only):
                yield (*above, *path), entry.value


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _models(part)


def test_every_body_is_walked() -> None:
    """A new body must be in one of the cases."""

    def parts(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for info in model.model_fields.values():
            for inner in _models(info.annotation):
                yield from parts(inner)

    def bodies(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for body in model.__subclasses__():
            yield body
            yield from bodies(body)

    walked = {part for case in CASES.values() for part in parts(case.model)}
    assert {body for body in bodies(Body) if body.__module__.startswith("netbird_management.")} == walked | APART


async def test_long_texts_have_the_room_that_they_need(scene: Scene) -> None:
    """Descriptions have lines and 1024 characters, names 255 and one line."""
    where, body = await post_policy(scene)
    described = await scene.api.ok("POST", where, {**body, "description": "a\nb" + "x" * 1021})
    assert len(described["description"]) == 1024
    for change in ({"description": "x" * 1025}, {"name": "x" * 256}, {"name": "a\nb"}):
        status, message = await scene.api.refused("POST", where, {**body, **change})
        assert (status, next(iter(change)) in message) == (422, True)
