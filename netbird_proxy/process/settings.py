"""The proxy's settings: the models, and the settings that NetBird's environment variables stand for.

Plugins add sections named after them (`PluginInfo.options`). All settings are validated once, before the start, and
are immutable after that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from netbird_host import settings as host
from netbird_host.plugins import not_loaded
from netbird_host.setting_types import Count, Seconds, SecondsOrZero, Secret, Section
from netbird_host.settings import Given, Settings, Sources
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import Address
from netbird_proxy.api.share import Share
from netbird_proxy.routing.hooks import GROUP
from netbird_wire.go_duration import parse_duration

PREFIX = "NETBIRD_PROXY_"
MOST_WORKERS = 128
"""Maximum of `process.workers`. A worker more than the machine has processors gains nothing."""
NOT_SETTINGS = frozenset({"NETBIRD_PROXY_CONFIG", "NETBIRD_PROXY_ADMIN"})
"""Variables with our prefix that the command line reads itself: the settings file, and the process to ask."""


def _address(value: object) -> object:
    """Parse `host:port`. In `:443` the host is empty, which means every address; port 0 lets the system choose."""
    if not isinstance(value, str):
        return value
    host_part, colon, port = value.rpartition(":")
    bare = host_part.removeprefix("[").removesuffix("]")
    if (
        not colon
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
        or (":" in bare) != ("[" in host_part)
    ):
        raise ValueError("expected an address such as 127.0.0.1:8080, [::1]:8080 or :443")
    return Address(bare, int(port))


def _url(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in ("http", "https") or not rest.strip("/") or "/" in rest.rstrip("/"):
        raise ValueError("expected https://host:port, or http://host:port with allow_insecure")
    return value.rstrip("/")


def _domain(value: str) -> str:
    folded = value.strip().rstrip(".").lower()
    if not folded or any(c.isspace() or c in "/:@" for c in folded):
        raise ValueError("expected the cluster's address as a name, such as proxy.example.com")
    return folded


ListenAddress = Annotated[Address, BeforeValidator(_address)]


class Management(Section):
    """The connection to management, the source of mappings."""

    url: Annotated[str, AfterValidator(_url)]
    """Management's address: `https://host:port`, or `http://host:port` with `allow_insecure`."""
    domain: Annotated[str, AfterValidator(_domain)]
    """The cluster's address: services' domains end in it, and clients reach this proxy by it."""
    token: Secret | None = None
    """The proxy's access token, meant for the environment; it beats `token_file`."""
    token_file: Path | None = None
    """A file with the access token that management issued for this proxy."""
    roots: Path | None = None
    """A PEM file of certificate authorities; they replace the system's when management's certificate is verified."""
    allow_insecure: bool = False
    """Allow a `url` with `http://`; the token then travels unencrypted."""
    require_subdomain: bool = False
    """Ask management to refuse services on the cluster's bare address; only names below it are then served."""

    @model_validator(mode="after")
    def _needs_token(self) -> Self:
        if self.token is None and self.token_file is None:
            raise ValueError("token_file, or the token itself in NB_PROXY_TOKEN, is required")
        if self.token is not None and not self.token.get_secret_value().strip():
            raise ValueError("token is empty")
        if self.url.startswith("http://") and not self.allow_insecure:
            raise ValueError("url is http://, which shows the token to the network: use https:// or set allow_insecure")
        return self

    def read_token(self) -> str:
        """The token. SettingsError if its file cannot be read or is empty."""
        if self.token is not None:
            return self.token.get_secret_value().strip()
        file = self.token_file
        assert file is not None  # noqa: S101 - the validator saw to it
        try:
            token = file.read_text("utf-8-sig").strip()
            token.encode("ascii")
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not a token"
            raise SettingsError(f"management.token_file: {file}: {why}") from error
        if not token:
            raise SettingsError(f"management.token_file: {file} is empty")
        return token


class Listen(Section):
    """One socket that clients connect to."""

    older_names: ClassVar[Mapping[str, str]] = MappingProxyType({"tls_ahead": "behind_tls_proxy"})

    address: ListenAddress
    """The address to listen on: `127.0.0.1:8080`, `[::1]:8080`, or `:443` for every address of this machine."""
    tls: bool = False
    """Terminate TLS on this listener; needs `tls.certificates`."""
    behind_tls_proxy: bool = False
    """Treat requests as https, because a proxy in front of this listener terminates TLS."""

    @model_validator(mode="after")
    def _tls_ends_once(self) -> Self:
        if self.tls and self.behind_tls_proxy:
            raise ValueError("tls and behind_tls_proxy must not both be set: TLS ends in one place")
        return self


class Certificate(Section):
    """A certificate chain and its key, in PEM files."""

    cert: Path
    """A PEM file with the certificate chain, leaf first. The first pair serves names that no other pair covers."""
    key: Path
    """A PEM file with the private key, without a pass phrase."""


class Tls(Section):
    certificates: tuple[Certificate, ...] = ()


class Admin(Section):
    socket: Path | None = None
    """The admin socket's path. Default: `<proxy id>.sock` in /run/netbird-proxy as root or if XDG_RUNTIME_DIR is not
    set, else in $XDG_RUNTIME_DIR/netbird-proxy."""


class Health(Section):
    """Health checks for load balancers and supervisors, without authentication."""

    listen: ListenAddress | None = None
    """Address of the health listener (plain HTTP): `/livez` answers 200, `/readyz` 200 or 503. The paths of NetBird's
    proxy, `/healthz` and `/healthz/live`, `/ready` and `/startup` below it, answer beside them. If empty, there is
    none."""
    metrics: bool = False
    """Serve the counters of `/state` at `/metrics` of the same address, in Prometheus' text format."""


class Process(Section):
    workers: Annotated[Count, Field(le=MOST_WORKERS)] = 1
    """Number of processes that serve together on this machine; above 1, a parent process starts and watches them. They
    share the sockets and divide the limits; each is a proxy of its own for management."""
    watchdog: Seconds = 30.0
    """Maximum time without a sign of life from a worker; on expiry the parent kills it and starts another."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of events that are logged. The access log does not depend on it."""
    format: Literal["auto", "json", "console"] = "auto"
    """The format of events. `auto` is JSON, or `console` where standard error is a terminal."""


class Limits(Section):
    """Limits in seconds, bytes and counts. No limit applies to the length of an exchange as a whole."""

    head_timeout: Seconds = 10.0
    """Maximum time for a connection's first byte, for a TLS handshake (on expiry the connection closes), and for a
    request head from its first byte (on expiry 408)."""
    head_bytes: Count = 65_536
    """Maximum size of a request head in bytes; a larger head is refused with 431, or with 414 if its target alone is
    larger."""
    head_lines: Count = 100
    """Maximum number of fields in a request head; a head with more is refused with 431."""
    keep_alive: Seconds = 75.0
    """Maximum time that a client's idle connection stays open; on expiry it is closed."""
    connections: Count = 10_000
    """Maximum number of open connections on one listener; the next one is answered 503 and closed. Divided by
    `process.workers`."""
    connections_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Maximum fraction of `connections` for one client (an IPv6 client is its /64; trusted proxies are exempt); further
    ones are answered 503 and closed. 1 sets no such limit."""
    upgrade_idle: Seconds = 300.0
    """Maximum time without a byte in either direction on an upgraded connection, such as a websocket; on expiry it is
    cut."""
    body_idle: Seconds = 30.0
    """Maximum time between two pieces of a request body; on expiry 408."""
    min_rate: Annotated[float, Field(ge=0)] = 240.0
    """Minimum rate, in bytes a second, at which a client must send a request body (below it 408) and take a response
    (below it the connection is cut). 0 sets no such limit."""
    min_rate_grace: SecondsOrZero = 10.0
    """Head start of a client against `min_rate`: a request body may be late by this time; a client may take nothing of
    a response for this time. After it, a client below `min_rate` is answered 408, or its connection is cut."""
    write_timeout: Seconds = 60.0
    """Maximum time in which a client must take some of the data that waits for it, at `min_rate`; on expiry its
    connection is cut."""
    half_close: Seconds = 10.0
    """Maximum time that a request goes on after its client has shut down its sending side and takes nothing; on expiry
    the connection is cut, because the client may be gone."""
    linger: Seconds = 5.0
    """Maximum time that a closing connection waits, after its last byte is sent, for the client to close too; on expiry
    it is cut."""
    dial_timeout: Seconds = 10.0
    """Maximum time to reach an upstream, TLS included, where its mapping sets none; on expiry 504."""
    max_dial_timeout: Seconds | None = None
    """Upper bound on the dial timeout, whether a mapping or `dial_timeout` sets it; a longer one is shortened to it."""
    upstream_head: Seconds = 300.0
    """Maximum time between the end of the request and an upstream's response head; on expiry 504."""
    services: Count = 100_000
    """Maximum number of mappings that are kept, of all sources together; the next one is refused."""
    in_flight: Count = 512
    """Maximum number of exchanges at once with one upstream; the next one is answered 503. Divided by
    `process.workers`."""
    in_flight_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Maximum fraction of `in_flight` for one client, while no other client uses the upstream; further exchanges are
    answered 503. A client is an address (of IPv6 a /64); behind trusted proxies it is the one that they report. 1 sets
    no such limit."""
    upstream_idle: Seconds = 90.0
    """Maximum time that an idle connection to an upstream is kept; on expiry it is closed."""
    upstream_idle_connections: Count = 100
    """Maximum number of idle connections that are kept to one upstream; further ones are closed. Divided by
    `process.workers`."""
    step_deadline: Seconds = 5.0
    """Maximum time for all deciding steps (restrict, authenticate, authorize) of an exchange together; on expiry they
    are cancelled and the answer is 503."""
    step_grace: SecondsOrZero = 0.5
    """Maximum time that a cancelled step gets to end; on expiry the proxy answers without waiting for it."""
    loop_stall: SecondsOrZero = 2.0
    """Maximum time that code may block the event loop; on expiry the log names the code, and readiness fails. 0
    switches the check off."""
    rpc_timeout: Seconds = 2.0
    """Maximum time for one call to management; on expiry the call fails."""
    management_silence: Seconds = 20.0
    """Maximum time without a message from management; on expiry the proxy sends a keep-alive ping."""
    management_patience: Seconds = 10.0
    """Maximum time for management's reply to that ping; on expiry management counts as silent, and the proxy
    reconnects."""
    batch_watchdog: Seconds = 120.0
    """Maximum time to apply one batch of mappings; on expiry the proxy starts the mapping stream again."""
    revalidate: Seconds = 60.0
    """Interval at which the proxy checks again that the caller of each open exchange may still use the service; if not,
    it cuts the exchange. Changes that management reports cause the check immediately."""
    startup_timeout: SecondsOrZero = 10.0
    """Maximum time at the start that host listeners stay closed until the mappings are in force; on expiry they open,
    and unknown hosts are answered 503."""
    drain: SecondsOrZero = 30.0
    """Maximum time for open exchanges to end after the process is asked to stop, or after a pool has lost its last
    route; on expiry they are cut."""

    def of(self, share: Share) -> Self:
        """The limits of one worker: the numbers of connections and of exchanges are divided by the workers."""
        divided = ("connections", "in_flight", "upstream_idle_connections")
        return self.model_copy(update={name: share.count(getattr(self, name)) for name in divided})

    @model_validator(mode="after")
    def _rpc_within_step(self) -> Self:
        if self.rpc_timeout > self.step_deadline:
            raise ValueError("rpc_timeout must not be longer than step_deadline: guards that call management need it")
        return self


def default_state_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/netbird-proxy")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "netbird-proxy"


class ProxySettings(Section):
    """The proxy as a process, or as several workers."""

    plugins: tuple[str, ...] = ()
    """The plugins to load besides the built-in ones, in this order; no other plugin is imported."""
    state_directory: Path = Field(default_factory=default_state_directory)
    """A directory for keys, ports and the proxy's id; only this process's user may have access to it."""
    private: bool = False
    """Listen inside the accounts' tunnels."""
    management: Management | None = None
    mappings_file: Path | None = None
    """A TOML file of mappings that this proxy serves beside management's, or without any management."""
    listen: tuple[Listen, ...] = ()
    tls: Tls = Tls()
    admin: Admin = Admin()
    health: Health = Health()
    process: Process = Process()
    log: Log = Log()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.management is None and self.mappings_file is None:
            raise ValueError("a source of mappings is required: add a [management] section, or set mappings_file")
        if self.management is None and self.private:
            raise ValueError("private is set, but tunnels need a [management] section")
        if not self.listen and not self.private:
            raise ValueError("nothing to listen on: add a [[listen]] section or set private")
        if any(listen.tls for listen in self.listen) and not self.tls.certificates:
            raise ValueError("a listener has tls, but there is no [[tls.certificates]]")
        return self


RESERVED_SECTIONS = frozenset(ProxySettings.model_fields)
"""Names that a plugin's section cannot have."""


class ProxySources:
    """The settings' sources: file, environment and flags. `plugins` is read first, the rest once plugins are loaded."""

    def __init__(self, sources: Sources, ignored: tuple[str, ...], again: Callable[[], ProxySources]) -> None:
        """
        Args:
            again: gathers all sources once more. SettingsError if any of them cannot be read.
        """
        self.raw = sources
        self.again = again
        self.ignored = ignored
        """Variables that NetBird's proxy reads and this proxy does not support."""

    @property
    def plugins(self) -> tuple[str, ...]:
        """The operator's list. SettingsError if it is not a list of texts."""
        try:
            return self.raw.texts("plugins")
        except host.SettingsError as error:
            raise SettingsError(str(error)) from error

    def settings(self, options: Mapping[str, type[BaseModel]] | None = None) -> Settings[ProxySettings]:
        """Validate all settings. `options` are the sections of the loaded plugins, see `Hooks.options`.

        Raises:
            SettingsError: with every problem on a line of its own.
        """
        try:
            return self.raw.read(ProxySettings, options, absent=not_loaded(GROUP, self.plugins))
        except host.SettingsError as error:
            raise SettingsError(str(error)) from error


def read_settings(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[Given] = (),
) -> ProxySources:
    """Gather the sources. SettingsError if any of them cannot be read."""
    environment = os.environ if environment is None else environment
    try:
        aliases, ignored = netbird_environment(environment)
        if file is None and not any(given.path == ("plugins",) for given in flags):
            aliases += replacing_netbird(environment)
        sources = host.read_sources(
            file=file, environment=environment, prefix=PREFIX, ignored=NOT_SETTINGS, aliases=aliases, flags=flags
        )
    except host.SettingsError as error:
        raise SettingsError(str(error)) from error
    return ProxySources(sources, ignored, lambda: read_settings(file, environment=environment, flags=flags))


def netbird_environment(environment: Mapping[str, str]) -> tuple[list[Given], tuple[str, ...]]:
    """Values from NetBird's own variables, and the names of those that this proxy does not support.

    A value that NetBird's proxy replaces by its default, with a warning, is an error here.
    """
    given: list[Given] = []
    problems: list[str] = []
    ignored: list[str] = []
    for name, text in sorted(environment.items()):
        if not name.startswith("NB_PROXY_") or not text or name in _CERTIFICATE:
            continue
        if name not in _NETBIRD:
            ignored.append(name)
            continue
        path, parse = _NETBIRD[name]
        try:
            value = parse(text)
        except ValueError as error:
            problems.append(f"{'.'.join(path)}: {error} (environment {name})")
            continue
        if value is not None:
            given.append(Given(path, value, f"environment {name}"))
    if directory := environment.get("NB_PROXY_CERTIFICATE_DIRECTORY"):
        cert, key = (environment.get(name) or default for name, default in _CERTIFICATE_FILES.items())
        pair = {"cert": str(Path(directory, cert)), "key": str(Path(directory, key))}
        given.append(Given(("tls", "certificates"), [pair], "environment NB_PROXY_CERTIFICATE_DIRECTORY"))
    if problems:
        raise host.SettingsError(problems)
    return given, tuple(ignored)


DROP_IN_PLUGINS = ("private_service", "identity_headers", "direct_upstream", "tunnel_netstack")
"""Plugins that do what NetBird's proxy always does."""
DROP_IN_HEALTH = "localhost:8080"
"""The address at which NetBird's proxy answers health checks unless `NB_PROXY_HEALTH_ADDRESS` names another."""


def replacing_netbird(environment: Mapping[str, str]) -> list[Given]:
    """Values with which a deployment of NetBird's proxy starts unchanged, where it has no settings file of ours.

    NetBird's proxy needs no list of plugins, and answers health checks and metrics by default. Our own variables beat
    these values.
    """
    if not environment.get("NB_PROXY_MANAGEMENT_ADDRESS") and not environment.get("NB_PROXY_TOKEN"):
        return []
    where = "NetBird's default (environment NB_PROXY_…)"
    given = [Given(("health", "metrics"), True, where)]
    if "NB_PROXY_HEALTH_ADDRESS" not in environment:
        given.append(Given(("health", "listen"), DROP_IN_HEALTH, where))
    if PREFIX + "PLUGINS" not in environment:
        given.append(Given(("plugins",), list(DROP_IN_PLUGINS), where))
    return given


def _boolean(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"expected true or false, not {text!r}")


def _duration(text: str) -> float | None:
    return parse_duration(text.strip()) or None  # NetBird's zero means: not set


def _level(text: str) -> str:
    levels = {"panic": "error", "fatal": "error", "warn": "warning", "trace": "debug"}
    return levels.get(text.lower(), text.lower())


def _count(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"expected a whole number, not {text!r}")
    return int(text) or None  # NetBird's zero means: no limit of its own


def _listen(text: str) -> object:
    return [{"address": text, "tls": True}]


def _list(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]


def _text(text: str) -> str:
    return text


_NETBIRD: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "NB_PROXY_TOKEN": (("management", "token"), _text),
    "NB_PROXY_MANAGEMENT_ADDRESS": (("management", "url"), _text),
    "NB_PROXY_DOMAIN": (("management", "domain"), _text),
    "NB_PROXY_ALLOW_INSECURE": (("management", "allow_insecure"), _boolean),
    "NB_PROXY_ADDRESS": (("listen",), _listen),
    "NB_PROXY_PRIVATE": (("private",), _boolean),
    "NB_PROXY_LOG_LEVEL": (("log", "level"), _level),
    "NB_PROXY_WG_PORT": (("tunnel", "ports"), _count),
    "NB_PROXY_PRESHARED_KEY": (("tunnel", "preshared_key"), _text),
    "NB_PROXY_MAPPING_BATCH_WATCHDOG": (("limits", "batch_watchdog"), _duration),
    "NB_PROXY_MAX_DIAL_TIMEOUT": (("limits", "max_dial_timeout"), _duration),
    "NB_PROXY_RESPONSE_HEADER_TIMEOUT": (("limits", "upstream_head"), _duration),
    "NB_PROXY_IDLE_CONN_TIMEOUT": (("limits", "upstream_idle"), _duration),
    "NB_PROXY_MAX_IDLE_CONNS_PER_HOST": (("limits", "upstream_idle_connections"), _count),
    "NB_PROXY_MAX_INFLIGHT": (("limits", "in_flight"), _count),
    "NB_PROXY_TRUSTED_PROXIES": (("forwarding", "trusted_proxies"), _list),
    "NB_PROXY_FORWARDED_PROTO": (("forwarding", "proto"), _text),
    "NB_PROXY_GEO_DATA_DIR": (("access_restrictions", "geo_directory"), _text),
    "NB_PROXY_HEALTH_ADDRESS": (("health", "listen"), _text),
    "NB_PROXY_REQUIRE_SUBDOMAIN": (("management", "require_subdomain"), _boolean),
}
_CERTIFICATE_FILES = {"NB_PROXY_CERTIFICATE_FILE": "tls.crt", "NB_PROXY_CERTIFICATE_KEY_FILE": "tls.key"}
_CERTIFICATE = {"NB_PROXY_CERTIFICATE_DIRECTORY", *_CERTIFICATE_FILES}
