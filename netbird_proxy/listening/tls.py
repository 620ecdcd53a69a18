"""TLS that ends here: certificates by name, over any asyncio transport."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cryptography import x509

from netbird_proxy.api.errors import SettingsError

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that a closed connection waits for the client's own goodbye."""


class CertificateFiles(Protocol):
    """A chain and its key, in PEM files."""

    @property
    def cert(self) -> Path: ...

    @property
    def key(self) -> Path: ...


class ServerTls:
    """The certificates of this process, and which one answers for a name.

    A name's own certificate goes before a wildcard's; without either the first one answers, so that a client sees
    which certificate is missing.
    """

    def __init__(self, certificates: Sequence[CertificateFiles]) -> None:
        """Raises SettingsError naming the file that cannot be used."""
        if not certificates:
            raise SettingsError("tls.certificates is empty")
        self._by_name: dict[str, ssl.SSLContext] = {}
        contexts = []
        for files in certificates:
            context = _context(files)
            contexts.append(context)
            for name in _names(files.cert):
                self._by_name.setdefault(name, context)
        self.context = contexts[0]
        self.context.sni_callback = self._choose

    def covers(self, host: str) -> bool:
        """Whether a certificate is good for a folded host."""
        return self._find(host) is not None

    def _find(self, host: str) -> ssl.SSLContext | None:
        _, dot, parent = host.partition(".")
        return self._by_name.get(host) or (self._by_name.get(f"*.{parent}") if dot else None)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if name and (found := self._find(name.lower().rstrip("."))) is not None:
            connection.context = found


def server_tls(
    protocol: asyncio.Protocol, tls: ServerTls, *, handshake_timeout: float, ended: Callable[[], object]
) -> SSLProtocol:
    """A protocol that ends TLS and gives what is inside to `protocol`, connected once the handshake is done.

    Args:
        ended: called after the handshake, whatever came of it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(future: asyncio.Future[None]) -> None:
        # A handshake that fails closes the connection, which is all that can be done about it.
        if not future.cancelled():
            future.exception()
        ended()

    done.add_done_callback(finish)
    return SSLProtocol(
        loop,
        protocol,
        tls.context,
        done,
        server_side=True,
        ssl_handshake_timeout=handshake_timeout,  # type: ignore[arg-type]  # any number of seconds will do
        ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
    )


def _context(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for what, path in (("cert", files.cert), ("key", files.key)):
        try:
            path.read_bytes()
        except OSError as exc:
            raise SettingsError(f"tls.certificates: {what} {path}: {exc.strerror}") from exc
    try:
        # An encrypted key would ask on the terminal, and the process would hang where nobody looks.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as exc:
        raise SettingsError(
            f"tls.certificates: {files.cert} and {files.key} are no certificate with its key: {exc}"
        ) from exc
    return context


def _names(cert: Path) -> list[str]:
    leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)] + [
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    ]
