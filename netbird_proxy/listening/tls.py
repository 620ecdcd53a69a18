"""TLS towards clients: certificates by server name, over any asyncio transport."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from netbird_host.certificates import CertificateError, read_pair
from netbird_host.reload import ReloadReport
from netbird_proxy.api.errors import SettingsError

if TYPE_CHECKING:
    from cryptography import x509

SHUTDOWN_TIMEOUT = 2.0
"""Seconds that a closing connection waits for the client's close_notify."""


class CertificateFiles(Protocol):
    """PEM files of a certificate chain and its key."""

    @property
    def cert(self) -> Path: ...

    @property
    def key(self) -> Path: ...


class ServerTls:
    """The certificates of this process, and the choice of one by server name.

    A certificate for the exact name is preferred to a wildcard. Without either, the first certificate is sent, so that
    the client's error shows the name that is missing.
    """

    def __init__(self, certificates: Sequence[CertificateFiles]) -> None:
        """SettingsError, which names the file, if a file cannot be used."""
        if not certificates:
            raise SettingsError("tls.certificates is empty")
        self._pairs = [_Pair.read(files) for files in certificates]
        self._by_name = _by_name(self._pairs)
        # Listeners keep this context; `_choose` selects the certificate at each handshake.
        self.context = self._pairs[0].context
        self.context.sni_callback = self._choose

    def reload(self, certificates: Sequence[CertificateFiles], report: ReloadReport) -> None:
        """Read the files again. New handshakes use the new certificates; open connections continue.

        If a pair cannot be used, its last version stays in use; a pair that is new is left out.
        """
        before = {(pair.cert, pair.key): pair for pair in self._pairs}
        pairs: list[_Pair] = []
        for files in certificates:
            old = before.get((files.cert, files.key))
            try:
                pair = _Pair.read(files)
            except SettingsError as exc:
                report.kept.append(str(exc))
                pairs += [old] if old is not None else []
                continue
            if old is not None and pair.pem == old.pem:
                pairs.append(old)
                continue
            pairs.append(pair)
            report.done.append(f"certificate {pair.cert}, valid until {pair.expires:%Y-%m-%d}")
        if pairs:
            self._pairs, self._by_name = pairs, _by_name(pairs)

    def covers(self, host: str) -> bool:
        """True if a certificate is valid for this folded host."""
        return self._find(host) is not None

    def _find(self, host: str) -> ssl.SSLContext | None:
        _, dot, parent = host.partition(".")
        return self._by_name.get(host) or (self._by_name.get(f"*.{parent}") if dot else None)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        named = self._find(name.lower().rstrip(".")) if name else None
        connection.context = named or self._pairs[0].context


def server_tls(
    protocol: asyncio.Protocol, tls: ServerTls, *, handshake_timeout: float, ended: Callable[[], object]
) -> SSLProtocol:
    """A protocol that decrypts TLS for `protocol`, which is connected after the handshake.

    Args:
        ended: called after the handshake, whether it succeeded or failed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(future: asyncio.Future[None]) -> None:
        # A failed handshake closes the connection; nothing else is to be done.
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
        ssl_handshake_timeout=handshake_timeout,  # type: ignore[arg-type]  # a float works as well
        ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """A chain and its key, as they were read."""

    cert: Path
    key: Path
    pem: tuple[bytes, bytes]
    context: ssl.SSLContext
    names: tuple[str, ...]
    expires: datetime

    @classmethod
    def read(cls, files: CertificateFiles) -> _Pair:
        try:
            context = read_pair(files.cert, files.key, alpn=("http/1.1",))
            pem = (files.cert.read_bytes(), files.key.read_bytes())
        except (CertificateError, OSError) as exc:
            raise SettingsError(f"tls.certificates: {exc}") from exc
        from cryptography import x509  # a proxy without certificates starts without it

        leaf = x509.load_pem_x509_certificates(pem[0])[0]
        return cls(files.cert, files.key, pem, context, tuple(_names(leaf)), leaf.not_valid_after_utc)


def _by_name(pairs: Sequence[_Pair]) -> dict[str, ssl.SSLContext]:
    """Server name → certificate; the first of several for a name wins."""
    return {name: pair.context for pair in reversed(pairs) for name in pair.names}


def _names(leaf: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)] + [
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    ]
