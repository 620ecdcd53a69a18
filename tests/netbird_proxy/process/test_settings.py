"""The proxy's settings: a whole file, NetBird's environment, and what does not start."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from netbird_host.setting_types import Section
from netbird_host.settings import Given
from netbird_proxy import Address, PluginInfo, hookimpl
from netbird_proxy.api.errors import PluginFailed, SettingsError
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.process.settings import (
    DROP_IN_PLUGINS,
    RESERVED_SECTIONS,
    Limits,
    Management,
    ProxySettings,
    read_settings,
)
from netbird_proxy.routing.hooks import load_hooks

LEAST = {
    "NB_PROXY_MANAGEMENT_ADDRESS": "https://netbird.example.com:443",
    "NB_PROXY_DOMAIN": "Proxy.Example.com.",
    "NB_PROXY_TOKEN": "nbx_secret",
    "NB_PROXY_PRIVATE": "true",
}
WHOLE = """
plugins = ["private_service", "direct_upstream"]
state_directory = "/var/lib/p"
private = true

[management]
url = "http://127.0.0.1:9000"
token_file = "{token}"
domain = "proxy.example.com"
allow_insecure = true

[[listen]]
address = "127.0.0.1:8080"

[[listen]]
address = "[::1]:8443"
tls = true

[[tls.certificates]]
cert = "/etc/c.pem"
key = "/etc/k.pem"

[tunnel]
ports = [51820]

[admin]
socket = "/run/p.sock"

[limits]
head_timeout = "5s"
"""


class Tunnel(Section):
    section: ClassVar[str] = "tunnel"

    ports: tuple[int, ...] = ()


class TunnelPlugin:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(options=Tunnel)


def read(**environment: str) -> ProxySettings:
    return read_settings(environment=environment).settings().value


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    """The file as documented, a plugin's section included, which may have a name of its own."""
    (tmp_path / "token").write_text("nbx_from_file\n")
    file = tmp_path / "proxy.toml"
    file.write_text(WHOLE.format(token=tmp_path / "token"))

    sources = read_settings(file, environment={})
    settings = sources.settings(load_hooks([("netstack", TunnelPlugin)]).options)

    proxy = settings.value
    assert sources.plugins == proxy.plugins == ("private_service", "direct_upstream")
    assert [one.address for one in proxy.listen] == [Address("127.0.0.1", 8080), Address("::1", 8443)]
    assert proxy.management.read_token() == "nbx_from_file"
    assert proxy.limits == Limits(head_timeout=5)
    assert settings.options == {"tunnel": Tunnel(ports=(51820,))}


def test_the_numbers_are_the_documented_ones() -> None:
    """Defaults that documentation and other parts rely on."""
    limits = Limits()

    assert (limits.head_timeout, limits.head_bytes, limits.head_lines) == (10, 65_536, 100)
    assert (limits.body_idle, limits.min_rate, limits.min_rate_grace) == (30, 240, 10)
    assert (limits.upstream_head, limits.in_flight, limits.dial_timeout) == (300, 512, 10)
    assert (limits.step_deadline, limits.step_grace, limits.rpc_timeout, limits.revalidate) == (5, 0.5, 2, 60)


def test_netbirds_environment_is_enough_to_start() -> None:
    """A container set up for NetBird's proxy means the same here, as far as we have it."""
    sources = read_settings(
        environment={
            **LEAST,
            "NB_PROXY_ADDRESS": ":8443",
            "NB_PROXY_CERTIFICATE_DIRECTORY": "/certs",
            "NB_PROXY_CERTIFICATE_KEY_FILE": "key.pem",
            "NB_PROXY_LOG_LEVEL": "warn",
            "NB_PROXY_MAX_DIAL_TIMEOUT": "1m30s",
            "NB_PROXY_MAX_INFLIGHT": "0",
            "NB_PROXY_ACME_CERTIFICATES": "true",
            "NB_PROXY_GEO_DATA_DIR": "",
        }
    )

    proxy = sources.settings().value
    assert proxy.management.domain == "proxy.example.com"
    assert proxy.private is True
    assert (proxy.listen[0].address, proxy.listen[0].tls) == (Address("", 8443), True)
    assert (proxy.tls.certificates[0].cert, proxy.tls.certificates[0].key) == (
        Path("/certs/tls.crt"),
        Path("/certs/key.pem"),
    )
    assert (proxy.log.level, proxy.limits.max_dial_timeout, proxy.limits.in_flight) == ("warning", 90, 512)
    assert sources.ignored == ("NB_PROXY_ACME_CERTIFICATES",)


def test_a_deployment_of_netbirds_proxy_starts_unchanged() -> None:
    """Its environment, without any file of ours, brings the plugins that `private` needs, and its health page."""
    sources = read_settings(
        environment={
            **LEAST,
            "NB_PROXY_FORWARDED_PROTO": "https",
            "NB_PROXY_GEO_DATA_DIR": "/geo",
            "NB_PROXY_PRESHARED_KEY": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            "NB_PROXY_REQUIRE_SUBDOMAIN": "true",
        }
    )

    hooks = load_hooks(sources.plugins, defaults=DEFAULTS)
    settings = sources.settings(hooks.options)
    proxy = settings.value
    assert sources.plugins == proxy.plugins == DROP_IN_PLUGINS
    assert any(plugin.id == "tunnel_netstack" for plugin in hooks.plugins)
    assert (proxy.health.listen, proxy.health.metrics) == (Address("localhost", 8080), True)
    assert proxy.management is not None
    assert proxy.management.require_subdomain
    assert settings.options["tunnel"].model_dump()["preshared_key"].get_secret_value().startswith("AQEB")
    assert settings.options["forwarding"].model_dump()["proto"] == "https"
    assert settings.options["access_restrictions"].model_dump()["geo_directory"] == Path("/geo")
    assert sources.ignored == ()


@pytest.mark.parametrize(
    ("environment", "plugins", "listen"),
    [
        ({"NB_PROXY_HEALTH_ADDRESS": ":9000"}, DROP_IN_PLUGINS, Address("", 9000)),
        ({"NB_PROXY_HEALTH_ADDRESS": ""}, DROP_IN_PLUGINS, None),
        ({"NETBIRD_PROXY_PLUGINS": "direct_upstream"}, ("direct_upstream",), Address("localhost", 8080)),
        ({"NETBIRD_PROXY_HEALTH__LISTEN": "127.0.0.1:1"}, DROP_IN_PLUGINS, Address("127.0.0.1", 1)),
    ],
)
def test_an_operators_word_beats_netbirds_defaults(
    environment: dict[str, str], plugins: tuple[str, ...], listen: Address | None
) -> None:
    proxy = read(**LEAST, **environment)

    assert (proxy.plugins, proxy.health.listen) == (plugins, listen)


def test_a_settings_file_brings_no_defaults_of_netbirds(tmp_path: Path) -> None:
    """Files of ours mean the same as before, whatever variables of NetBird's stand beside them."""
    file = tmp_path / "proxy.toml"
    file.write_text("private = true\n")

    proxy = read_settings(file, environment=LEAST).settings().value

    assert (proxy.plugins, proxy.health.listen, proxy.health.metrics) == ((), None, False)


def test_our_name_beats_netbirds_and_a_flag_beats_both() -> None:
    """One order for all names."""
    environment = {**LEAST, "NETBIRD_PROXY_MANAGEMENT__DOMAIN": "ours.example"}
    flag = Given(("management", "domain"), "flag.example", "--domain")

    assert read(**environment).management.domain == "ours.example"
    assert read_settings(environment=environment, flags=[flag]).settings().value.management.domain == "flag.example"


def test_the_token_is_never_shown() -> None:
    """Not in the listing, not in a repr."""
    settings = read_settings(environment=LEAST).settings()

    assert "nbx_secret" not in f"{settings!r} {settings.show()} {settings.value.management!r}"
    assert settings.value.management.read_token() == "nbx_secret"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"NB_PROXY_TOKEN": ""}, "token_file, or the token itself in NB_PROXY_TOKEN, is required"),
        ({"NB_PROXY_TOKEN": " "}, "token is empty"),
        ({"NB_PROXY_DOMAIN": ""}, "management.domain: this setting is required"),
        ({"NB_PROXY_DOMAIN": "https://x"}, "management.domain: expected the cluster's address"),
        ({"NB_PROXY_MANAGEMENT_ADDRESS": "http://x:1"}, "use https:// or set allow_insecure"),
        ({"NB_PROXY_MANAGEMENT_ADDRESS": "x:1"}, "management.url: expected https://host:port"),
        ({"NB_PROXY_MANAGEMENT_ADDRESS": "https://x/api"}, "management.url: expected https://host:port"),
        ({"NB_PROXY_PRIVATE": "maybe"}, "private: expected true or false, not 'maybe' (environment NB_PROXY_PRIVATE)"),
        ({"NB_PROXY_PRIVATE": "false"}, "nothing to listen on: add a [[listen]] section or set private"),
        ({"NB_PROXY_MAX_DIAL_TIMEOUT": "10"}, "limits.max_dial_timeout: '10' is not a duration"),
        ({"NB_PROXY_MAX_INFLIGHT": "-1"}, "limits.in_flight: expected a whole number"),
        ({"NB_PROXY_LOG_LEVEL": "loud"}, "log.level: input should be 'debug', 'info', 'warning' or 'error'"),
        ({"NB_PROXY_ADDRESS": ":443"}, "a listener has tls, but there is no [[tls.certificates]]"),
        ({"NB_PROXY_ADDRESS": "443"}, "listen[0].address: expected an address such as 127.0.0.1:8080"),
        ({"NB_PROXY_ADDRESS": "::1:443"}, "listen[0].address: expected an address such as"),
        ({"NB_PROXY_ADDRESS": ":65536"}, "listen[0].address: expected an address such as"),
        (
            {"NETBIRD_PROXY_LISTEN": '[{address=":1", tls=true, behind_tls_proxy=true}]'},
            "tls and behind_tls_proxy must not both be set",
        ),
        ({"NETBIRD_PROXY_LIMITS__RPC_TIMEOUT": "6s"}, "rpc_timeout must not be longer than step_deadline"),
        ({"NETBIRD_PROXY_LIMITS__STEP_DEADLIN": "6s"}, "did you mean limits.step_deadline?"),
        (
            {"NETBIRD_PROXY_PLUGINS": "direct_upstream", "NETBIRD_PROXY_PRIVATE_SERVICE__X": "1"},
            "private_service: the plugin private_service is installed but not in `plugins`: add it there",
        ),
    ],
)
def test_settings_that_would_not_do_what_they_say_stop_the_start(change: dict[str, str], says: str) -> None:
    """Where NetBird warns and takes a default, we refuse: a default nobody chose is no setting."""
    with pytest.raises(SettingsError) as caught:
        read(**{**LEAST, **change})

    assert says in str(caught.value)
    assert "nbx_secret" not in str(caught.value)


@pytest.mark.parametrize(("text", "says"), [(None, "No such file"), ("", "is empty"), ("é", "is not a token")])
def test_a_token_file_without_a_token_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    """A missing, empty or binary token file stops the start before management refuses us."""
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    settings = read(**{**LEAST, "NB_PROXY_TOKEN": "", "NETBIRD_PROXY_MANAGEMENT__TOKEN_FILE": str(file)})

    with pytest.raises(SettingsError, match=f"management.token_file: {file}.*{says}"):
        settings.management.read_token()


def test_two_plugins_cannot_have_one_section() -> None:
    """Nor can a plugin take a section of the proxy's own."""

    class Other(Section):
        section: ClassVar[str] = "tunnel"

    class Limiting(Section):
        section: ClassVar[str] = "limits"

    def plugin(options: type[Section]) -> object:
        class Plugin:
            @hookimpl
            def describe(self) -> PluginInfo:
                return PluginInfo(options=options)

        return Plugin

    with pytest.raises(PluginFailed, match=r"its section \[tunnel\] belongs to another plugin"):
        load_hooks([("one", TunnelPlugin), ("two", plugin(Other))])
    with pytest.raises(PluginFailed, match="a section of the proxy's own settings"):
        load_hooks([("one", plugin(Limiting))], reserved_ids=RESERVED_SECTIONS)


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    """Some editors write one; anything else outside ASCII is no token."""
    file = tmp_path / "token"
    management = Management(url="https://management.example", domain="proxy.example", token_file=file)

    file.write_text("\ufeffnbx_token\n", encoding="utf-8")
    assert management.read_token() == "nbx_token"
    file.write_text("nbx_tökén\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="is not a token"):
        management.read_token()
