"""Certificates from PEM files, which can be read again while connections are open."""

from __future__ import annotations

import ssl
from pathlib import Path


class CertificateError(Exception):
    """A certificate or its key cannot be used; the message names the file and the reason."""


def read_pair(cert: Path, key: Path, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """Return a server's TLS context with the certificate chain and its key, both PEM. Raises CertificateError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    for what, path in (("certificate", cert), ("key", key)):
        try:
            path.read_bytes()
        except OSError as exc:
            raise CertificateError(f"{what} {path}: {exc.strerror}") from exc
    try:
        # With a password callback, an encrypted key fails; without it, OpenSSL would prompt on the terminal and hang.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as exc:
        raise CertificateError(f"{cert} and {key} are not a certificate and its key: {exc}") from exc
    return context


class ReloadedCertificate:
    """A certificate and its key, as last read from their files. A listener keeps using `context` after a reload."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises CertificateError."""
        self.cert = cert
        self.key = key
        self.context = read_pair(cert, key)
        self._current = self.context
        self.context.sni_callback = self._choose
        self.pem = (key.read_bytes(), cert.read_bytes())
        """Key and chain as PEM, in gRPC's order."""

    def reload(self) -> bool:
        """Read the files again. False if they are unchanged. On CertificateError the previous pair stays in force."""
        pem = (self.key.read_bytes(), self.cert.read_bytes())
        if pem == self.pem:
            return False
        self._current = read_pair(self.cert, self.key)
        self.pem = pem
        return True

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current
