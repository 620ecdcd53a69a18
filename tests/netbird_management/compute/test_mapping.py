"""From a service to what proxies are told: targets, ports, hosts, options."""

from dataclasses import fields, replace
from typing import Any

import pytest

from netbird_management.compute.mapping import build
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId, ServiceId
from netbird_management.model.services import (
    AccessRestrictions,
    AuthConfig,
    BearerAuth,
    Capabilities,
    HeaderAuth,
    SecretAuth,
    Service,
    ServiceMeta,
    Target,
    TargetOptions,
    TargetType,
)
from netbird_management.store import service_rows as rows
from netbird_management.store.models import ServiceRow
from netbird_wire.proxy_service_pb2 import PathMapping
from tests.netbird_management.conftest import Home, context_for


def service(*targets: Target, **given: Any) -> Service:
    return Service(
        id=ServiceId("s"),
        account_id=AccountId("a"),
        name="s",
        domain="s.px.test",
        proxy_cluster="px.test",
        meta=ServiceMeta(created_at=now()),
        targets=targets,
        **given,
    )


def target(host: str = "10.0.0.1", port: int = 8080, protocol: str = "http", **given: Any) -> Target:
    options = given.pop("options", TargetOptions(direct_upstream=True))
    return Target("px.test", TargetType.CLUSTER, protocol, port, host=host, options=options, **given)


def paths(home: Home, given: Service) -> list[PathMapping]:
    return list(build(given, home.snapshot, context_for(home).hooks).mapping.path)


@pytest.mark.parametrize(
    ("protocol", "host", "port", "wanted"),
    [
        ("http", "10.0.0.1", 80, "http://10.0.0.1/"),
        ("https", "10.0.0.1", 443, "https://10.0.0.1/"),
        ("http", "10.0.0.1", 443, "http://10.0.0.1:443/"),
        ("https", "10.0.0.1", 80, "https://10.0.0.1:80/"),
        ("http", "10.0.0.1", 0, "http://10.0.0.1/"),
        ("http", "10.0.0.1", 8080, "http://10.0.0.1:8080/"),
        ("http", "::1", 8080, "http://[::1]:8080/"),
        ("http", "[::1]", 8080, "http://[::1]:8080/"),
        ("http", "::1", 80, "http://[::1]/"),
        ("http", "2001:db8:0:0:0:0:0:1", 1, "http://[2001:db8::1]:1/"),
        ("http", "::ffff:10.0.0.1", 1, "http://[::ffff:10.0.0.1]:1/"),
    ],
)
async def test_where_a_target_is(home: Home, protocol: str, host: str, port: int, wanted: str) -> None:
    """Default ports are left out, others kept; IPv6 is in brackets exactly once."""
    (path,) = paths(home, service(target(host, port, protocol)))
    assert path.target == wanted


async def test_options_are_there_when_set(home: Home) -> None:
    """Each by itself, and none at all where nothing differs from the default."""
    plain = TargetOptions(direct_upstream=True)
    for options, name in (
        (replace(plain, skip_tls_verify=True), "skip_tls_verify"),
        (replace(plain, request_timeout=1.5), "request_timeout"),
        (replace(plain, path_rewrite="preserve"), "path_rewrite"),
        (replace(plain, custom_headers=(("X-A", "b"),)), "custom_headers"),
    ):
        (path,) = paths(home, service(target(options=options)))
        assert name in {field.name for field, _ in path.options.ListFields()}
    peer = Target("p", TargetType.PEER, "http", 80)
    (path,) = paths(home, service(peer))
    assert not path.HasField("options")
    assert path.path == "/"


async def test_disabled_targets_are_left_out(home: Home) -> None:
    """The others stay in their order."""
    given = service(target(path="/a"), target(path="/b", enabled=False), target(path="/c"))
    assert [path.path for path in paths(home, given)] == ["/a", "/c"]


async def test_a_stream_has_an_address_and_no_path(home: Home) -> None:
    """`host:port`, with the options that are for streams."""
    options = TargetOptions(proxy_protocol=True, session_idle_timeout=120)
    given = service(target("::1", 5432, "tcp", options=options), mode="tcp", listen_port=15432)
    built = build(given, home.snapshot, context_for(home).hooks).mapping
    (path,) = built.path
    assert (path.path, path.target, built.mode, built.listen_port) == ("", "[::1]:5432", "tcp", 15432)
    assert (path.options.proxy_protocol, path.options.session_idle_timeout.seconds) == (True, 120)


async def test_custom_ports_go_where_they_are_known(home: Home) -> None:
    """A proxy that says nothing of custom ports gets no stream on one; it gets TLS, which is told apart by name."""
    silent, unable, able = (Capabilities(supports_custom_ports=said) for said in (None, False, True))
    for mode, withheld in (("tcp", True), ("udp", True), ("tls", False)):
        given = service(target(protocol="tcp"), mode=mode, listen_port=15432)
        built = build(given, home.snapshot, context_for(home).hooks)
        assert bool(built.withheld_from(silent)) is withheld, mode
        assert (built.withheld_from(unable), built.withheld_from(able)) == ("", ""), mode


async def test_a_service_survives_the_store(home: Home) -> None:
    """Every field of it, the order of its groups too."""
    given = service(
        target(path="/a", options=TargetOptions(True, 1.5, 2.0, "preserve", (("X-A", "b"),), False, True)),
        enabled=False,
        terminated=True,
        pass_host_header=True,
        rewrite_redirects=True,
        auth=AuthConfig(
            SecretAuth(True, "h"),
            SecretAuth(False, ""),
            BearerAuth(True, (GroupId("g"),)),
            (HeaderAuth("X", True, "v"),),
        ),
        access_restrictions=AccessRestrictions(("10.0.0.0/8",), (), ("DE",), (), "observe"),
        private=True,
        access_groups=(GroupId("z"), GroupId("a"), GroupId("m")),
        session_public_key="key",
        source="permanent",
        source_peer="p",
    )
    row = ServiceRow(
        id=given.id,
        account_id=given.account_id,
        session_private_key=b"",
        session_public_key="key",
        created_at=given.meta.created_at,
        **rows.columns(given),
    )
    read = rows.service_of(row)
    for field in fields(Service):
        assert getattr(read, field.name) == getattr(given, field.name), field.name
