"""The proxy's settings: the models, and what NetBird's environment names mean here.

Plugins add sections named after them (`PluginInfo.options`). Parsed at the edge, frozen inside.
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
from netbird_proxy.routing.hooks import GROUP
from netbird_wire.go_duration import parse_duration

PREFIX = "NETBIRD_PROXY_"
NOT_SETTINGS = frozenset({"NETBIRD_PROXY_CONFIG", "NETBIRD_PROXY_ADMIN"})
"""Names with our prefix that the command line reads itself: which file, and which process to ask."""


def _address(value: object) -> object:
    """`host:port`. `:443` has an empty host: every address of this machine. Port 0 lets the system choose."""
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
    """Where mappings come from."""

    url: Annotated[str, AfterValidator(_url)]
    """`https://host:port`, or `http://…` with allow_insecure."""
    domain: Annotated[str, AfterValidator(_domain)]
    """The cluster's address: what services' domains end in and clients find us under."""
    token: Secret | None = None
    """For the environment; it beats `token_file`."""
    token_file: Path | None = None
    """A file that holds the access token which management gave for this proxy."""
    roots: Path | None = None
    """PEM file of certificate authorities to trust instead of the system's."""
    allow_insecure: bool = False
    """Send the token over plain HTTP/2 too."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token is None and self.token_file is None:
            raise ValueError("token_file, or the token itself in NB_PROXY_TOKEN, is required")
        if self.token is not None and not self.token.get_secret_value().strip():
            raise ValueError("token is empty")
        if self.url.startswith("http://") and not self.allow_insecure:
            raise ValueError("url is http://, which shows the token to the network: use https:// or set allow_insecure")
        return self

    def read_token(self) -> str:
        """The token itself. SettingsError where its file cannot be read or is empty."""
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
    """`127.0.0.1:8080`, `[::1]:8080`, or `:443` for every address of this machine."""
    tls: bool = False
    """TLS ends here; needs `tls.certificates`."""
    behind_tls_proxy: bool = False
    """A proxy in front of this listener ends TLS: requests that arrive here count as https."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.tls and self.behind_tls_proxy:
            raise ValueError("tls and behind_tls_proxy exclude each other: TLS ends in one place")
        return self


class Certificate(Section):
    """A certificate chain and its key, in PEM files."""

    cert: Path
    """PEM: the chain, leaf first. The first pair answers for names that no other has."""
    key: Path
    """PEM, without a pass phrase."""


class Tls(Section):
    certificates: tuple[Certificate, ...] = ()


class Admin(Section):
    socket: Path | None = None
    """Default: `<proxy id>.sock` under /run/netbird-proxy as root, else under $XDG_RUNTIME_DIR/netbird-proxy."""


class Health(Section):
    """Answers to those who ask whether we live; nobody is asked who they are."""

    listen: ListenAddress | None = None
    """Where `/livez` and `/readyz` answer 200 or 503, over plain HTTP; nowhere by default."""
    metrics: bool = False
    """Answer `/metrics` there too, with the counters of `/state`, as Prometheus reads them."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Of events; the access log is apart from it."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: JSON, unless standard error is a terminal."""


class Limits(Section):
    """How long and how much. Seconds, bytes and counts; there is no limit on an exchange as a whole."""

    head_timeout: Seconds = 10.0
    """For a request head, from its first byte (then 408); for a TLS handshake; for a connection's first byte."""
    head_bytes: Count = 65_536
    """Of a request head; more is 431."""
    head_lines: Count = 100
    """Fields of a request head; more is 431."""
    keep_alive: Seconds = 75.0
    """How long an idle downstream connection stays open."""
    connections: Count = 10_000
    """Open at once on one listener; one more is answered 503 and closed."""
    connections_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of these, the part that one client (IPv6: a /64; trusted proxies: none) may have. 1: all of them."""
    upgrade_idle: Seconds = 300.0
    """In which something must pass on an upgraded connection, such as a websocket, either way; else it is cut."""
    body_idle: Seconds = 30.0
    """Between two pieces of a request body; then 408."""
    min_rate: Annotated[float, Field(ge=0)] = 240.0
    """Bytes a second that a request body must come at, else 408, and a response be taken at; 0 asks for nothing."""
    min_rate_grace: SecondsOrZero = 10.0
    """That a request body may lag behind min_rate, and a client that has taken next to nothing so far."""
    write_timeout: Seconds = 60.0
    """In which a client must take something of what waits for it, at min_rate; then its connection is cut."""
    half_close: Seconds = 10.0
    """For a client that has shut down its sending side and takes nothing; it may have left altogether."""
    linger: Seconds = 5.0
    """For a closing connection to end on the client's side too, once everything is out."""
    dial_timeout: Seconds = 10.0
    """For reaching an upstream, TLS included, where its mapping says nothing; then 504."""
    max_dial_timeout: Seconds | None = None
    """Cuts what mappings, and `dial_timeout`, ask for."""
    upstream_head: Seconds = 300.0
    """For an upstream's response head, after the request is sent; then 504."""
    services: Count = 100_000
    """Mappings that are kept, of all sources together; one more is refused."""
    in_flight: Count = 512
    """Exchanges at once with one upstream; more are answered 503."""
    in_flight_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of these, the part that one client (IPv6: a /64) may take; less while others take some. 1: all of them."""
    upstream_idle: Seconds = 90.0
    """How long an idle upstream connection is kept."""
    upstream_idle_connections: Count = 100
    """How many idle connections are kept to one upstream."""
    step_deadline: Seconds = 5.0
    """For all guards of an exchange together; then 503."""
    step_grace: SecondsOrZero = 0.5
    """After it, for a cancelled guard to end before the answer goes out without it."""
    loop_stall: SecondsOrZero = 2.0
    """Code that blocks the whole process for so long is named in the log, and readiness fails; 0 does not look."""
    rpc_timeout: Seconds = 2.0
    """For one call to management."""
    management_silence: Seconds = 20.0
    """Without a word from management, after which it is asked for a sign of life."""
    management_patience: Seconds = 10.0
    """For that sign; without it, management counts as silent and is connected to anew."""
    batch_watchdog: Seconds = 120.0
    """For applying one batch of mappings; then the stream is begun anew."""
    revalidate: Seconds = 60.0
    """How often open exchanges are asked about again where no event tells of changes."""
    startup_timeout: SecondsOrZero = 10.0
    """How long host listeners stay closed at the start while mappings are awaited; then unknown hosts get 503."""
    drain: SecondsOrZero = 30.0
    """For open exchanges, after the process was asked to stop; after a pool lost its last route."""

    @model_validator(mode="after")
    def _rpc_within_step(self) -> Self:
        if self.rpc_timeout > self.step_deadline:
            raise ValueError("rpc_timeout is longer than step_deadline, so guards that ask management could not finish")
        return self


def default_state_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/netbird-proxy")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "netbird-proxy"


class ProxySettings(Section):
    """One proxy process."""

    plugins: tuple[str, ...] = ()
    """What is loaded, in this order; what is not named here is not imported."""
    state_directory: Path = Field(default_factory=default_state_directory)
    """Keys, ports and the proxy's id: private to this user."""
    private: bool = False
    """Listen inside the accounts' tunnels."""
    management: Management | None = None
    mappings_file: Path | None = None
    """A TOML file of mappings that this proxy serves besides management's, or without any management."""
    listen: tuple[Listen, ...] = ()
    tls: Tls = Tls()
    admin: Admin = Admin()
    health: Health = Health()
    log: Log = Log()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.management is None and self.mappings_file is None:
            raise ValueError("nothing says what to serve: add a [management] section, or set mappings_file")
        if self.management is None and self.private:
            raise ValueError("private is set, but tunnels need a [management] section")
        if not self.listen and not self.private:
            raise ValueError("nothing to listen on: add a [[listen]] section or set private")
        if any(one.tls for one in self.listen) and not self.tls.certificates:
            raise ValueError("a listener has tls, but there is no [[tls.certificates]]")
        return self


RESERVED_SECTIONS = frozenset(ProxySettings.model_fields)
"""No plugin can be called like one of these."""


class ProxySources:
    """What file, environment and flags say. `plugins` is known first; the rest once they are loaded."""

    def __init__(self, sources: Sources, ignored: tuple[str, ...], again: Callable[[], ProxySources]) -> None:
        """
        Args:
            again: gathers all sources once more. SettingsError where one cannot be read.
        """
        self._sources = sources
        self.again = again
        self.ignored = ignored
        """Names in the environment that NetBird's proxy would heed and this one does not have."""

    @property
    def plugins(self) -> tuple[str, ...]:
        """The operator's list. SettingsError where it is not a list of texts."""
        try:
            return self._sources.texts("plugins")
        except host.SettingsError as error:
            raise SettingsError(str(error)) from error

    def settings(self, options: Mapping[str, type[BaseModel]] | None = None) -> Settings[ProxySettings]:
        """Judge all of it. `options` are the sections of the loaded plugins, see `Hooks.options`.

        Raises:
            SettingsError: with every problem, one a line.
        """
        try:
            return self._sources.read(ProxySettings, options, absent=not_loaded(GROUP, self.plugins))
        except host.SettingsError as error:
            raise SettingsError(str(error)) from error


def read_settings(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[Given] = (),
) -> ProxySources:
    """Gather the sources. SettingsError where one cannot be read."""
    environment = os.environ if environment is None else environment
    try:
        aliases, ignored = netbird_environment(environment)
        sources = host.read_sources(
            file=file, environment=environment, prefix=PREFIX, ignored=NOT_SETTINGS, aliases=aliases, flags=flags
        )
    except host.SettingsError as error:
        raise SettingsError(str(error)) from error
    return ProxySources(sources, ignored, lambda: read_settings(file, environment=environment, flags=flags))


def netbird_environment(environment: Mapping[str, str]) -> tuple[list[Given], tuple[str, ...]]:
    """What NetBird's own names say, and those of them that this proxy does not have.

    A value that NetBird would replace by its default, with a warning, stops our start.
    """
    found: list[Given] = []
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
            found.append(Given(path, value, f"environment {name}"))
    if directory := environment.get("NB_PROXY_CERTIFICATE_DIRECTORY"):
        cert, key = (environment.get(name) or default for name, default in _CERTIFICATE_FILES.items())
        pair = {"cert": str(Path(directory, cert)), "key": str(Path(directory, key))}
        found.append(Given(("tls", "certificates"), [pair], "environment NB_PROXY_CERTIFICATE_DIRECTORY"))
    if problems:
        raise host.SettingsError(problems)
    return found, tuple(ignored)


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
    "NB_PROXY_MAPPING_BATCH_WATCHDOG": (("limits", "batch_watchdog"), _duration),
    "NB_PROXY_MAX_DIAL_TIMEOUT": (("limits", "max_dial_timeout"), _duration),
    "NB_PROXY_RESPONSE_HEADER_TIMEOUT": (("limits", "upstream_head"), _duration),
    "NB_PROXY_IDLE_CONN_TIMEOUT": (("limits", "upstream_idle"), _duration),
    "NB_PROXY_MAX_IDLE_CONNS_PER_HOST": (("limits", "upstream_idle_connections"), _count),
    "NB_PROXY_MAX_INFLIGHT": (("limits", "in_flight"), _count),
    "NB_PROXY_TRUSTED_PROXIES": (("forwarding", "trusted_proxies"), _list),
}
_CERTIFICATE_FILES = {"NB_PROXY_CERTIFICATE_FILE": "tls.crt", "NB_PROXY_CERTIFICATE_KEY_FILE": "tls.key"}
_CERTIFICATE = {"NB_PROXY_CERTIFICATE_DIRECTORY", *_CERTIFICATE_FILES}
