"""Opens a relay's secret, sockets and certificate before it serves.

Each failure has a message for the operator: ValueError for text that is wrong, CannotServe for the rest.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from netbird_host.certificates import CertificateError, WatchedCertificate
from netbird_wire.relay_url import BadRelayUrl, RelayUrl, parse_relay_url

SHORTEST_SECRET: Final = 16
"""Characters; management asks for as many."""
BACKLOG: Final = 1024
_log = structlog.get_logger(__name__)


class CannotServe(OSError):
    """A file or an address cannot be used."""


def read_secret(file: Path) -> str:
    """The secret in a file, which other users must not be able to read."""
    try:
        mode, secret = file.stat().st_mode, file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CannotServe(f"cannot read {file}: {getattr(exc, 'strerror', None) or exc}") from exc
    if mode & 0o077:
        raise CannotServe(f"{file} is accessible to other users: run chmod 600 on it")
    if len(secret) < SHORTEST_SECRET:
        raise CannotServe(f"{file} must contain at least {SHORTEST_SECRET} characters")
    return secret


def own_url(text: str) -> RelayUrl:
    """The URL at which peers reach this relay."""
    try:
        return parse_relay_url(text)
    except BadRelayUrl as exc:
        raise ValueError(str(exc)) from exc


def host_and_port(text: str) -> tuple[str, int]:
    """`host:port`, `[address]:port` or `:port`; the port may be 0."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{text!r} is not host:port") from exc
    if port is None or parts.path or parts.query or parts.username is not None:
        raise ValueError(f"{text!r} is not host:port")
    return parts.hostname or "", port


def bind(text: str, kind: socket.SocketKind) -> socket.socket:
    """A bound, non-blocking socket; streams listen. Without a host it is bound to all addresses of both families."""
    host, port = host_and_port(text)
    both = not host and socket.has_dualstack_ipv6()
    try:
        where = ("", port) if not host else socket.getaddrinfo(host, port, type=kind)[0][4]
        family = socket.AF_INET6 if both or (host and len(where) == 4) else socket.AF_INET
        sock = socket.socket(family, kind)
        try:
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
            sock.bind(where)
            if kind == socket.SOCK_STREAM:
                sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise CannotServe(f"cannot listen on {text}: {exc.strerror or exc}") from exc
    return sock


class Certificate:
    """A certificate chain and its key in PEM files, which are read again when they have changed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises CannotServe if the files cannot be used."""
        try:
            self._pair = WatchedCertificate(certificate, key)
        except CertificateError as exc:
            raise CannotServe(f"cannot use the certificate: {exc}") from exc

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Files that cannot be used change nothing and are reported once."""
        try:
            if self._pair.refresh():
                _log.info("relay.certificate_loaded")
        except CertificateError as exc:
            _log.warning("relay.certificate_kept", error=str(exc))
        return self._pair.context


def certificate(certificate_file: Path | None, key_file: Path | None) -> Certificate | None:
    if certificate_file is None and key_file is None:
        return None
    if certificate_file is None or key_file is None:
        raise ValueError("a certificate needs its key, and a key its certificate")
    return Certificate(certificate_file, key_file)
