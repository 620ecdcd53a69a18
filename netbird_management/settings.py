"""Management's settings: models, read from a TOML file, the environment and flags by `netbird_host.settings`."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, IPvAnyNetwork, model_validator

from netbird_host.certificates import CertificateError, ReloadedCertificate
from netbird_host.plugins import not_loaded
from netbird_host.setting_types import Count, SecondsOrZero, Secret, Section
from netbird_host.settings import Settings, SettingsError, read_sources
from netbird_management.defaults import DEFAULTS
from netbird_management.login.settings import OidcSettings
from netbird_management.model.domains import fold
from netbird_management.plugins.hooks import GROUP, Hooks, load_hooks

ENVIRONMENT_PREFIX: Final = "NETBIRD_MANAGEMENT_"
CONFIG_VARIABLE: Final = "NETBIRD_MANAGEMENT_CONFIG"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From `host:port`, an IPv6 host in brackets. Raises `ValueError`."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ValueError("expected host:port, such as 127.0.0.1:8080")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if ":" in bare and bare == host:
            raise ValueError("an IPv6 host needs brackets, such as [::1]:8080")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen(text: str) -> str:
    Address.parse(text)
    return text


class Listener(Section):
    """One port: plain, or TLS with a certificate chain and its key in PEM files."""

    listen: Annotated[str, AfterValidator(_listen)]
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def both(self) -> "Listener":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self

    @property
    def address(self) -> Address:
        return Address.parse(self.listen)

    def judge(self, name: str) -> ReloadedCertificate | None:
        """The certificate as a start reads it; None for a plain port. Raises `SettingsError` about section `name`."""
        if self.certificate is None or self.key is None:
            return None
        try:
            return ReloadedCertificate(self.certificate, self.key)
        except CertificateError as error:
            raise SettingsError([f"{name}: {error}"]) from error

    def bind(self, name: str) -> socket.socket:
        """A listening socket: connections wait in it until somebody takes them. Raises `OSError` that says which."""
        address = self.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            return socket.create_server((address.host, address.port), family=family, backlog=512)
        except OSError as error:
            why = (error.strerror or str(error)).partition(" (while")[0]
            raise OSError(f"{name}.listen {self.listen}: {why}") from error


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text != "*" and (
        parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError("expected an origin, such as https://dashboard.example.com")
    return text


class RestListener(Listener):
    """The REST API's port."""

    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    """Sites whose pages may call the API from a browser, such as a dashboard's; none by default, `*` is any."""


class Log(Section):
    """What the host writes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: JSON, unless standard error is a terminal."""


class ManagementSettings(Section):
    """Everything but the plugins' own sections.

    `hosts` are management's own names; they and `refused_domains` are no domains for services.
    """

    state_directory: Path = Path("netbird-management-state")
    database: Secret = Secret("")
    """`postgresql://user:password@host/name`; "" keeps everything in SQLite files in the state directory."""
    plugins: tuple[str, ...] = ("private_service", "direct_upstream")
    hosts: tuple[Annotated[str, AfterValidator(fold)], ...] = ()
    refused_domains: tuple[Annotated[str, AfterValidator(fold)], ...] = ()
    dns_domain: Annotated[str, AfterValidator(fold)] = "netbird.selfhosted"
    dns_servers: tuple[str, ...] = ()
    """`address` or `address:port` of the servers that custom domains are validated by; none are the system's."""
    access_log_days: Count = 7
    access_log_entries: Count = 1_000_000
    """Entries that are kept of one account, at most; the oldest go first."""
    rest: RestListener = RestListener(listen="127.0.0.1:8080")
    grpc: Listener = Listener(listen="127.0.0.1:8081")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Proxies in front of REST, whose `X-Forwarded-For` says who calls: without them all logins behind one share a
    limit, 15 and then 10 a minute."""
    oidc: OidcSettings | None = None
    """The identity provider; without one nobody is offered single sign-on."""
    signal: str = ""
    """`host:port` of the signal server that NetBird agents are told of; "" for none of one's own."""
    log: Log = Log()
    grace: SecondsOrZero = 10.0
    """Seconds that open calls get to end when the process stops."""


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
