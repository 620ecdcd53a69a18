"""What services say to plugins: judged when they are saved, kept, and sent to the proxies that may have it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Self

import httpx
import pytest
import trustme

from netbird_management import Capabilities, Claim, PluginInfo, always, hookimpl
from netbird_management.compute.mapping import BuiltMapping, build
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.services import Service
from netbird_management.operations.proxies import Registration
from netbird_management.operations.services import get_service
from netbird_management.operations.users import create_token
from netbird_management.plugins.hooks import Hooks, load_hooks
from netbird_management.rest.app import create_app
from netbird_management.rest.context import Context
from netbird_wire.core_settings import ASK_FOR_BOTH
from netbird_wire.plugin_settings import read_settings
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping
from tests.netbird_management.conftest import Api, Home
from tests.netbird_management.rest.test_services import SERVICES, body, target

CA = trustme.CA().cert_pem.bytes().decode()
SHOP = {"shop": {"price": 3, "tags": ["a", 1.5]}}


@dataclass(frozen=True)
class Price:
    """What a service says to the plugin `shop`."""

    price: int

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        price = read_settings(mapping, "shop").get("price", 0)
        if price == "boom":
            raise RuntimeError("hunter2")
        if not isinstance(price, int):
            raise ValueError("price is not a whole number")
        return cls(price)


@dataclass(frozen=True)
class Shelf:
    """What a target says to it."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self:
        if "broken" in read_settings(path, "shop"):
            raise ValueError("the shelf is broken")
        return cls()


class Shop:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            claims=(Claim("plugin_settings.shop", always), Claim("path.plugin_settings.shop")),
            settings=(Price,),
            target_settings=(Shelf,),
        )


class Fallible:
    """A plugin that cannot say whether its settings guard."""

    @hookimpl
    def describe(self) -> PluginInfo:
        def judge(_value: object) -> bool:
            raise RuntimeError("who knows")

        return PluginInfo(claims=(Claim("plugin_settings.fallible", judge),))


@pytest.fixture
def hooks() -> Hooks:
    by_name = ("private_service", "direct_upstream", "identity_headers", "response_headers", "load_balancing")
    return load_hooks([*by_name, ("shop", Shop()), ("fallible", Fallible())])


@pytest.fixture
async def shop(home: Home, hooks: Hooks, proxy: Registration) -> AsyncIterator[Api]:
    """The API of a management with the shop."""
    _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(Context(home.state, hooks, NetworkMaps(hooks)))),
        base_url="http://localhost",
        headers={"authorization": f"Token {token}"},
    ) as client:
        yield Api(client, home)


def stored(api: Api, shown: dict[str, Any]) -> Service:
    return get_service(api.home.state, api.home.account_id, shown["id"])


def built(api: Api, shown: dict[str, Any], hooks: Hooks) -> BuiltMapping:
    return build(stored(api, shown), api.home.snapshot, hooks)


async def test_they_are_stored_shown_and_sent(shop: Api, hooks: Hooks) -> None:
    """Of the service and of each target, value for value; nothing is shown where nothing was said."""
    secure = target(path="/s", protocol="https", extensions={"core": {"ca": CA, "server_name": "db.internal"}})
    shown = await shop.ok("POST", SERVICES, body(extensions=SHOP, targets=[target(), secure]))

    assert shown == await shop.ok("GET", f"{SERVICES}/{shown['id']}")
    assert shown["extensions"] == SHOP
    assert "extensions" not in shown["targets"][0]
    assert shown["targets"][1]["extensions"]["core"]["server_name"] == "db.internal"
    mapping = built(shop, shown, hooks).mapping
    assert read_settings(mapping, "shop") == SHOP["shop"]
    assert read_settings(mapping.path[1], "core") == {"ca": CA, "server_name": "db.internal"}
    plain = await shop.ok("POST", SERVICES, body(domain="plain.px.test"))
    assert "extensions" not in plain
    assert built(shop, plain, hooks).mapping.plugin_settings == {}


async def test_a_target_that_is_switched_off_is_judged_and_not_sent(shop: Api, hooks: Hooks) -> None:
    """Its settings wait with it, and go to no other target."""
    off = target(path="/off", enabled=False, extensions={"shop": {"size": 1}})
    shown = await shop.ok("POST", SERVICES, body(targets=[off, target()]))

    (path,) = built(shop, shown, hooks).mapping.path
    assert path.plugin_settings == {}
    broken = target(path="/off", enabled=False, extensions={"shop": {"broken": True}})
    status, why = await shop.refused("PUT", f"{SERVICES}/{shown['id']}", body(targets=[target(), broken]))
    assert (status, why) == (422, "target 1: extensions.shop: the shelf is broken")


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"extensions": {"nobody": {}}}, 422, "no plugin of this management supports plugin_settings.nobody"),
        ({"targets": [target(extensions={"nobody": {}})]}, 422, "supports path.plugin_settings.nobody"),
        ({"extensions": {"shop": {"price": "hunter2"}}}, 422, "extensions.shop: price is not a whole number"),
        ({"extensions": {"shop": {"price": "boom"}}}, 500, ""),
        ({"extensions": {"core": {"ambiguous_path": "maybe"}}}, 422, "extensions.core: ambiguous_path: "),
        ({"extensions": {"core": {"hunter2": 1}}}, 422, "extensions.core: "),
        ({"extensions": {"core": {"same_origin": "no"}}}, 422, "extensions.core: same_origin: "),
        ({"extensions": {"core": {"ask_for_both": 1}}}, 422, "extensions.core: ask_for_both: "),
        ({"extensions": {"identity_headers": {"groups": "few"}}}, 422, "extensions.identity_headers: groups: "),
        ({"extensions": {"load_balancing": {"policy": "hunter2"}}}, 422, "extensions.load_balancing: policy: "),
        (
            {"targets": [target(extensions={"load_balancing": {"weight": 0}})]},
            422,
            "target 0: extensions.load_balancing: weight: ",
        ),
        (
            {"extensions": {"response_headers": {"cors": {"origins": ["*"], "credentials": True}}}},
            422,
            "extensions.response_headers: cors: ",
        ),
        (
            {"extensions": {"response_headers": {"fixed": {"Content-Length": "hunter2"}}}},
            422,
            "Content-Length cannot be set or removed here: the proxy itself decides it",
        ),
        ({"targets": [target(extensions={"core": {"ca": CA}})]}, 422, "ca and server_name need an https target"),
        (
            {"targets": [target(protocol="https", extensions={"core": {"ca": "hunter2"}})]},
            422,
            "target 0: extensions.core: ca: ",
        ),
        (
            {
                "targets": [
                    target(
                        protocol="https",
                        options={"skip_tls_verify": True},
                        extensions={"core": {"ca": CA}},
                    )
                ]
            },
            422,
            "ca cannot be combined with skip_tls_verify",
        ),
        ({"extensions": {"shop": {"price": 1, "much": "x" * 300_000}}}, 422, "at most 262144 bytes"),
        ({"extensions": {"shop": 3}}, 400, "extensions.shop"),
        ({"extensions": "all"}, 400, "extensions"),
    ],
)
async def test_what_cannot_be_used_is_not_stored(shop: Api, change: dict[str, Any], status: int, sentence: str) -> None:
    """On create and on update; and no answer repeats a value."""
    first = await shop.ok("POST", SERVICES, body(domain="first.px.test", extensions=SHOP))
    for method, path in (("POST", SERVICES), ("PUT", f"{SERVICES}/{first['id']}")):
        if status == 500:
            with pytest.raises(Exception, match="from_wire raised RuntimeError"):
                await shop.call(method, path, body(**change))
            continue
        answered, why = await shop.refused(method, path, body(**change))
        assert answered == status
        assert sentence in why
        assert "hunter2" not in why.replace("extensions.core: hunter2: Extra", "")
    assert await shop.ok("GET", SERVICES) == [first]


async def test_an_older_client_takes_nothing_off(shop: Api, hooks: Hooks) -> None:
    """Leaving them out keeps them, on the service and on a target that is still the same one; saying `{}` ends them."""
    ours = target(path="/a", extensions={"shop": {"size": 1}})
    shown = await shop.ok("POST", SERVICES, body(extensions=SHOP, targets=[ours, target(path="/b")]))
    url = f"{SERVICES}/{shown['id']}"

    kept = await shop.ok("PUT", url, body(name="renamed", targets=[target(path="/b"), target(path="/a")]))
    assert (kept["name"], kept["extensions"]) == ("renamed", SHOP)
    assert [one.get("extensions") for one in kept["targets"]] == [None, {"shop": {"size": 1}}]
    moved = await shop.ok("PUT", url, body(targets=[target(path="/c")]))
    assert "extensions" not in moved["targets"][0]
    ended = await shop.ok("PUT", url, body(extensions={}, targets=[target(path="/a", extensions={})]))
    assert "extensions" not in ended
    assert stored(shop, ended).extensions == {}


async def test_guarding_settings_go_only_to_proxies_that_enforce_them(shop: Api, hooks: Hooks) -> None:
    """A proxy that says nothing of them, and NetBird's, which knows no claims, must not serve without."""
    shown = await shop.ok("POST", SERVICES, body(extensions=SHOP))
    bare = Capabilities(supports_private_service=True)

    one = built(shop, shown, hooks)

    assert one.withheld_from(bare) == "the proxy does not enforce plugin_settings.shop"
    assert one.withheld_from(replace(bare, claims=frozenset({"private"}))) != ""
    assert one.withheld_from(replace(bare, claims=frozenset({"plugin_settings.shop"}))) == ""
    harmless = await shop.ok(
        "PUT", f"{SERVICES}/{shown['id']}", body(extensions={"core": {"same_origin": False}}, targets=[target()])
    )
    assert built(shop, harmless, hooks).withheld_from(bare) == ""


async def test_a_service_that_asks_for_both_goes_only_to_proxies_that_do(shop: Api, hooks: Hooks) -> None:
    """The one setting of the core's that guards; it needs a login to ask for."""
    both = {"extensions": {"core": {"ask_for_both": True}}}
    auth = {"auth": {"pin_auth": {"enabled": True, "pin": "1234"}}}
    shown = await shop.ok("POST", SERVICES, body(**both, **auth))
    bare = Capabilities(supports_private_service=True)

    one = built(shop, shown, hooks)

    assert one.withheld_from(bare) == "the proxy does not enforce plugin_settings.core.ask_for_both"
    assert one.withheld_from(replace(bare, claims=frozenset({ASK_FOR_BOTH}))) == ""
    status, why = await shop.refused("POST", SERVICES, body(name="no login", domain="b.px.test", **both))
    assert (status, why) == (422, "extensions.core: ask_for_both is only supported for public services with a login")


async def test_a_plugin_that_cannot_say_whether_it_guards_guards(shop: Api, hooks: Hooks) -> None:
    """Nobody has said that the settings are harmless."""
    shown = await shop.ok("POST", SERVICES, body(extensions={"fallible": {}}))

    assert "plugin_settings.fallible" in built(shop, shown, hooks).withheld_from(Capabilities())


async def test_settings_whose_plugin_is_gone_withhold_the_service(shop: Api) -> None:
    """A service that was guarded by it must not be served as if nothing had been asked."""
    shown = await shop.ok("POST", SERVICES, body(extensions=SHOP))
    without = load_hooks(["private_service", "direct_upstream"])

    assert built(shop, shown, without).withheld == "no plugin of management claims plugin_settings.shop"
