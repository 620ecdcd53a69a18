"""The doors that plugins open beside the host's own, and those of the host's own that are plugins."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from fastapi import APIRouter
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from pydantic import BaseModel
from starlette.responses import PlainTextResponse

from netbird_host.settings import SettingsError
from netbird_management import AccessLogEntry, AccountId, Group, PluginInfo, Role, RpcService, hookimpl
from netbird_management.defaults import DEFAULTS
from netbird_management.defaults.access_export import WAITING_ENTRIES, AccessExport, Options
from netbird_management.model.clock import now
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.users import create_token, create_user
from netbird_management.plugins.hooks import HookError, load_hooks
from netbird_management.rest.app import create_app
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener, read_settings
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceServicer, add_ProxyServiceServicer_to_server
from tests.netbird_management.conftest import Api, Home, context_for
from tests.netbird_management.grpc.conftest import lab_for
from tests.netbird_management.rest.test_services import SERVICES, body


class Doors:
    """Answers with what a test gives it."""

    def __init__(self, *, routes: Any = None, rpc: Any = None, options: type[BaseModel] | None = None) -> None:
        self._routes, self._rpc, self._options = routes, rpc, options

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(options=self._options)

    @hookimpl
    def routes(self) -> Any:
        return self._routes

    @hookimpl
    def rpc(self) -> Any:
        return self._rpc


def router(*paths: str, method: str = "GET") -> APIRouter:
    made = APIRouter()
    for path in paths:
        made.add_api_route(path, lambda: {"who": "the plugin"}, methods=[method])
    return made


def app_with(home: Home, *plugins: Doors) -> Any:
    hooks = load_hooks([(f"plugin{i}", plugin) for i, plugin in enumerate(plugins)])
    return create_app(context_for(home), hooks.routes(ManagementServer(ManagementSettings(), hooks, home.state)))


@pytest.mark.parametrize(
    "path",
    [
        "/groups",
        "/groups/{anything}",
        "/{anything}",
        "/groups/mine",
        "/reverse-proxies/services/{id}/proxies",
        "/reverse-proxies/{what}/x/proxies",
        "/{everything:path}",
        "/dns/{rest:path}",
        "/openapi.json",
    ],
)
async def test_a_route_over_one_of_ours_is_refused(home: Home, path: str) -> None:
    """Whatever the method: what the host refuses today, a plugin must not answer tomorrow."""
    for method in ("GET", "PATCH"):
        with pytest.raises(HookError, match=r"plugin plugin0: routes: .* the host"):
            app_with(home, Doors(routes=router(path, method=method)))


async def test_two_plugins_do_not_share_a_path(home: Home) -> None:
    """Both are named; one plugin's own paths may overlap, in the order in which it wrote them."""
    with pytest.raises(HookError, match=r"plugin plugin1: routes: /shop/open .* plugin0"):
        app_with(home, Doors(routes=router("/shop/{id}")), Doors(routes=router("/shop/open")))
    app_with(home, Doors(routes=router("/shop/open", "/shop/{id}")), Doors(routes=router("/other")))


async def test_only_plain_operations_are_routes(home: Home) -> None:
    """A mount, a websocket or a router in a router would hide what it answers for."""
    mounted, nested = APIRouter(), APIRouter()
    mounted.mount("/x", PlainTextResponse("x"))
    nested.include_router(router("/y"))
    for bad in (mounted, nested):
        with pytest.raises(HookError, match="is not supported"):
            app_with(home, Doors(routes=bad))
    with pytest.raises(HookError, match="routes: returned str"):
        app_with(home, Doors(routes="/x"))


async def test_a_route_that_asks_for_nothing_asks_for_a_token(home: Home) -> None:
    """Forgetting to ask for a role opens it to the account's people, never to strangers, and not to the blocked."""
    app = app_with(home, Doors(routes=router("/shop")))
    user = await create_user(home.state, home.account_id, role=Role.USER, email="alice@lab.test")
    _, token = await create_token(home.state, user, name="t", days=1, created_by=user.id)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        stranger = await client.get("/api/shop")
        known = await client.get("/api/shop", headers={"authorization": f"Token {token}"})
    assert (stranger.status_code, stranger.json()["message"]) == (401, "no valid authentication provided")
    assert known.json() == {"who": "the plugin"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("text", "returned str"),
        ([1], "returned int"),
        ([RpcService(object(), lambda _servicer, _server: None)], "add registered nothing"),
        ([RpcService(object(), lambda _servicer, server: server.start())], "add raised AttributeError"),
        (
            [RpcService(ProxyServiceServicer(), add_ProxyServiceServicer_to_server)],
            "service management.ProxyService is already served by the host",
        ),
        (
            [RpcService(object(), lambda _servicer, server: server.add_generic_rpc_handlers((Everything(),)))],
            "Everything is not supported: a handler must name its service",
        ),
    ],
)
async def test_a_service_that_is_not_one_stops_the_start(home: Home, tmp_path: Path, answer: Any, why: str) -> None:
    """Nothing listens by then."""
    settings = ManagementSettings(state_directory=tmp_path / "other", rest=RestListener(listen="127.0.0.1:0"))
    told = ""
    try:
        async with serve(settings, load_hooks([("plugin0", Doors(rpc=answer))])):
            pytest.fail("it started")
    except* HookError as errors:
        told = str(errors.exceptions)
    assert why in told


class Everything(grpc.GenericRpcHandler):
    """Would answer for every method there is."""

    def service(self, handler_call_details: Any) -> None:
        return None


async def test_anybody_may_ask_for_health_and_nothing_else(home: Home, tmp_path: Path) -> None:
    """Load balancers have no token; what they learn is that the process answers."""
    async with lab_for(home, tmp_path, plugins=(("health", DEFAULTS["health"]),)) as lab:
        stub = HealthStub(lab.channel)
        for service in ("", "management.ProxyService"):
            answer = await stub.Check(HealthCheckRequest(service=service), timeout=10)
            assert answer.status == HealthCheckResponse.SERVING
        for call, code in (
            (stub.Check(HealthCheckRequest(service="other"), timeout=10), grpc.StatusCode.NOT_FOUND),
            (stub.Watch(HealthCheckRequest(), timeout=10).read(), grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is code


class _Recording:
    def __init__(self, told: Callable[[list[str]], None]) -> None:
        self._told = told

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def record_access(self, entries: Any) -> None:
        self._told([entry.id for entry in entries])


def entry(id_: str, account_id: AccountId) -> AccessLogEntry:
    return AccessLogEntry(id_, account_id, "s", now(), "192.0.2.1", "GET", "h", "/", 1, 200, 0, 1, user_id="u")


async def test_a_plugin_that_fails_to_hear_costs_the_others_nothing(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, and the next one hears."""
    heard: list[str] = []

    def fail(_ids: list[str]) -> None:
        raise ZeroDivisionError

    hooks = load_hooks([("bad", _Recording(fail)), ("good", _Recording(heard.extend))])
    with caplog.at_level(logging.ERROR):
        hooks.record_access([entry("1", home.account_id)])
    assert heard == ["1"]
    assert [record.__dict__["plugin"] for record in caplog.records] == ["bad"]


async def test_the_access_log_is_exported(home: Home, tmp_path: Path) -> None:
    """A line an entry in a file that only its owner reads; anew where it was moved away; whole at the end."""
    file, plugin = tmp_path / "access.jsonl", AccessExport()
    hooks = load_hooks([("access_export", plugin)])
    server = ManagementServer(ManagementSettings(), hooks, home.state, [Options(file=file)])
    async with hooks.lifespan(server):
        assert file.stat().st_mode & 0o777 == 0o600
        file.rename(tmp_path / "old.jsonl")
        hooks.record_access([entry("1", home.account_id), entry("2", home.account_id)])
    hooks.record_access([entry("3", home.account_id)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["id"], line["account_id"], line["user_id"]) for line in lines] == [
        ("1", home.account_id, "u"),
        ("2", home.account_id, "u"),
    ]
    assert lines[0]["timestamp"].endswith("+00:00")


async def test_a_full_export_leaves_out_and_says_so(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that does not keep up costs lines of the export, not memory."""
    plugin = AccessExport()
    hooks = load_hooks([("access_export", plugin)])
    server = ManagementServer(ManagementSettings(), hooks, home.state, [Options(file=tmp_path / "f")])
    with caplog.at_level(logging.WARNING):
        async with hooks.lifespan(server):
            hooks.record_access([entry("1", home.account_id)] * (WAITING_ENTRIES + 5))
    assert len((tmp_path / "f").read_text().splitlines()) == WAITING_ENTRIES
    assert [record.__dict__["entries"] for record in caplog.records] == [5]


async def test_an_export_that_cannot_be_written_stops_the_start(home: Home, tmp_path: Path) -> None:
    """And without the setting there is none."""
    hooks = load_hooks([("access_export", AccessExport())])
    server = ManagementServer(ManagementSettings(), hooks, home.state, [Options(file=tmp_path / "no" / "f")])
    with pytest.raises(OSError, match="No such file"):
        async with hooks.lifespan(server):
            pytest.fail("it started")
    silent = load_hooks([("access_export", AccessExport())])
    async with silent.lifespan(ManagementServer(ManagementSettings(), silent, home.state)):
        silent.record_access([entry("1", home.account_id)])
    assert not (tmp_path / "no").exists()


def test_a_plugins_section_is_judged_with_the_rest(tmp_path: Path) -> None:
    """Its values are read, unknown ones refused with their place, and a section of nobody's too."""
    file = tmp_path / "m.toml"
    file.write_text('[access_export]\nfile = "/var/log/access.jsonl"\n')
    settings, _ = read_settings(file, {})
    assert settings.options["access_export"] == Options(file=Path("/var/log/access.jsonl"))
    for wrong in ('[access_export]\nfiles = "x"\n', '[export]\nfile = "x"\n'):
        file.write_text(wrong)
        with pytest.raises(SettingsError, match=r"export"):
            read_settings(file, {})


async def test_options_are_for_loaded_plugins(home: Home) -> None:
    """A section that was not given is as if it were empty; a model that nobody describes has none."""
    server = ManagementServer(ManagementSettings(), load_hooks([("a", Doors(options=Options))]), home.state)
    assert server.options(Options) == Options()
    with pytest.raises(LookupError, match="Listener"):
        server.options(Listener)


async def test_the_members_of_a_private_service(api: Api, proxy: object) -> None:
    """The peers of its access groups with the groups that count; what is not private has none."""
    home = api.home
    alice, _ = await create_stock_peer(home.state, home.account_id, name="alice", user_id=home.owner.id)
    await create_stock_peer(home.state, home.account_id, name="bob", user_id=None)
    group: Group = await create_group(home.state, home.account_id, name="engineering", peers=[alice.id])
    private = await api.ok("POST", SERVICES, body(private=True, access_groups=[group.id]))
    public = await api.ok("POST", SERVICES, body(domain="public.px.test"))
    hooks = load_hooks(["private_service", "direct_upstream"])
    app = create_app(context_for(home), hooks.routes(ManagementServer(ManagementSettings(), hooks, home.state)))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x", headers=api.client.headers
    ) as client:

        async def asked(id_: str) -> Any:
            return (await client.get(f"{SERVICES}/{id_}/members")).json()

        assert await asked(private["id"]) == [
            {
                "connected": False,
                "groups": [{"id": group.id, "name": "engineering"}],
                "id": alice.id,
                "ip": str(alice.ip),
                "name": "alice",
                "user_id": home.owner.id,
            }
        ]
        assert (await asked(public["id"]))["code"] == 409
        assert (await asked("nothing"))["code"] == 404
