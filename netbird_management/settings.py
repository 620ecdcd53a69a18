"""Management's settings: models, read from a TOML file, the environment and flags by `netbird_host.settings`."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, IPvAnyNetwork, model_validator

from netbird_host.certificates import CertificateError, ReloadedCertificate
from netbird_host.plugins import not_loaded
from netbird_host.setting_types import Count, Seconds, SecondsOrZero, Secret, Section
from netbird_host.settings import Settings, SettingsError, read_sources
from netbird_management.defaults import DEFAULTS
from netbird_management.login.settings import OidcSettings
from netbird_management.model.domains import fold
from netbird_management.peer_servers import PublicUrl, RelayUrl, SignalUrl, StunUrl, TurnServer
from netbird_management.plugins.hooks import GROUP, Hooks, load_hooks

ENVIRONMENT_PREFIX: Final = "NETBIRD_MANAGEMENT_"
CONFIG_VARIABLE: Final = "NETBIRD_MANAGEMENT_CONFIG"


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on; port 0 lets the system choose the port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `host:port`, with an IPv6 host in brackets. Raises `ValueError`."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be host:port, such as 127.0.0.1:8080")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare and bare == host:
            raise ValueError("an IPv6 host must be in brackets, such as [::1]:8080")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen(text: str) -> str:
    Address.parse(text)
    return text


class Listener(Section):
    """One port, plain or with TLS."""

    listen: Annotated[str, AfterValidator(_listen)]
    """The address to listen on, `host:port`."""
    certificate: Path | None = None
    """A PEM file with the certificate chain, leaf first. With it and `key` the port has TLS; without, it is plain."""
    key: Path | None = None
    """A PEM file with the certificate's private key."""
    public_url: PublicUrl = ""
    """The URL at which peers reach this port, `https://host:port` or `http://host:port`; needed behind a proxy or an
    address translation. If empty, the address that the port listens on."""

    @model_validator(mode="after")
    def both(self) -> "Listener":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be set together")
        return self

    @property
    def address(self) -> Address:
        return Address.parse(self.listen)

    def url(self, port: int, hosts: Sequence[str] = ()) -> str:
        """The URL at which peers reach the port: `public_url`, else the bound address. For an address that means all
        interfaces, the first of `hosts` or, without one, the machine's name takes its place."""
        if self.public_url:
            return self.public_url
        host = self.address.host
        if not host.strip("0.:"):
            host = hosts[0] if hosts else socket.gethostname()
        return f"{'http' if self.certificate is None else 'https'}://{Address(host, port)}"

    def judge(self, name: str, *, alpn: tuple[str, ...] = ()) -> ReloadedCertificate | None:
        """Load the certificate; None for a plain port. `alpn` are the application protocols to offer, the preferred one
        first. Raises `SettingsError`, which names the section `name`."""
        if self.certificate is None or self.key is None:
            return None
        try:
            return ReloadedCertificate(self.certificate, self.key, alpn=alpn)
        except CertificateError as error:
            raise SettingsError([f"{name}: {error}"]) from error

    def bind(self, name: str) -> socket.socket:
        """Open a listening socket; connections wait in it until they are accepted. Raises `OSError`, which names it."""
        address = self.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            return socket.create_server((address.host, address.port), family=family, backlog=512)
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            raise OSError(f"{name}.listen {self.listen}: {reason}") from error


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text != "*" and (
        parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError("must be an origin, such as https://dashboard.example.com")
    return text


class RestListener(Listener):
    """The REST API's port."""

    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """Origins whose pages may call the API from a browser, such as a dashboard's; `*` allows all."""
    grpc: bool = False
    """True to serve gRPC on this port too, so that agents need one address for both; the gRPC port stays open."""


class Log(Section):
    """Events on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of events that are logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """The format of events. `auto` is JSON, or `console` where standard error is a terminal."""


class ManagementSettings(Section):
    """All settings but the plugins' own sections."""

    state_directory: Path = Path("netbird-management-state")
    """A directory for keys, the admin socket and SQLite files; only this process's user may have access to it."""
    database: Secret = Secret("")
    """`postgresql://user:password@host/name`; if empty, SQLite files in the state directory are the store."""
    plugins: tuple[str, ...] = ("private_service", "direct_upstream", "signal_server", "relay")
    """The plugins to load, in this order."""
    hosts: tuple[Annotated[str, AfterValidator(fold)], ...] = ()
    """Management's own host names; a service whose domain is one of them is refused."""
    refused_domains: tuple[Annotated[str, AfterValidator(fold)], ...] = ()
    """Further domains that services cannot have; such a service is refused."""
    dns_domain: Annotated[str, AfterValidator(fold)] = "netbird.selfhosted"
    """The domain of peers' DNS names."""
    dns_servers: tuple[str, ...] = ()
    """DNS servers that validate custom domains, each an `address` or `address:port`; if empty, the system's."""
    access_log_days: Count = 7
    """Maximum age of access-log entries in days; older ones are deleted."""
    access_log_entries: Count = 1_000_000
    """Maximum number of access-log entries of one account; above it the oldest are deleted."""
    rest: RestListener = RestListener(listen="127.0.0.1:8080")
    grpc: Listener = Listener(listen="127.0.0.1:8081")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Networks of proxies in front of REST and gRPC, whose `X-Forwarded-For` names the client. Without it, clients
    behind a proxy share one limit on logins, 15 and then 10 a minute."""
    oidc: OidcSettings | None = None
    """The identity provider; without one, single sign-on is not available."""
    signal: SignalUrl = ""
    """The signal server that peers use, `https://host:port` or `http://host:port` (plain HTTP/2). `host:port` has TLS
    if the gRPC port has. If empty, this server's own, which the plugin `signal_server` serves on the gRPC port."""
    relays: tuple[RelayUrl, ...] = ()
    """The relays that peers use, each `rels://host:port` (TLS) or `rel://host:port`; they need the secret in
    `relay_secret`. If empty, this server's own, which the plugin `relay` serves."""
    stuns: tuple[StunUrl, ...] = ()
    """The STUN servers that peers use, each `stun:host:port`. If empty, those of this server's plugins."""
    turns: tuple[TurnServer, ...] = ()
    """TURN servers, which peers use if a relay is not available."""
    relay_secret: Path | None = None
    """A file with the secret that management shares with relays; if unset, `relay.secret` in the state directory, which
    the first start creates."""
    credentials_seconds: Annotated[Seconds, Field(ge=60)] = 43_200.0
    """Time, in seconds, for which tokens for relays and TURN passwords are valid; peers get new ones at three quarters
    of it."""
    log: Log = Log()
    grace: SecondsOrZero = 10.0
    """Maximum time, in seconds, for open calls to end when the process stops; on expiry they are cut."""


def read_settings(
    file: Path | None, environment: Mapping[str, str] | None = None
) -> tuple[Settings[ManagementSettings], Hooks]:
    """The settings with the plugins they name. Raises `SettingsError` and `PluginError`."""
    sources = read_sources(
        file=file,
        environment=os.environ if environment is None else environment,
        prefix=ENVIRONMENT_PREFIX,
        ignored={CONFIG_VARIABLE},
    )
    named = sources.texts("plugins") if sources.get("plugins") is not None else None
    plugins = ManagementSettings.model_fields["plugins"].default if named is None else named
    hooks = load_hooks(plugins, defaults=DEFAULTS, reserved_ids=set(ManagementSettings.model_fields))
    return sources.read(ManagementSettings, hooks.options, absent=not_loaded(GROUP, plugins)), hooks
