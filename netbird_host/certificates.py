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

    def __init__(self, cert: Path, key: Path, *, alpn: tuple[str, ...] = ()) -> None:
        """`alpn` are the offered application protocols, the preferred one first. Raises CertificateError."""
        self.cert = cert
        self.key = key
        self._alpn = alpn
        self.context = read_pair(cert, key, alpn=alpn)
        self._current = self.context
        self.context.sni_callback = self._choose
        self.pem = (key.read_bytes(), cert.read_bytes())
        """Key and chain as PEM, in gRPC's order."""

    def reload(self) -> bool:
        """Read the files again. False if they are unchanged. On CertificateError the previous pair stays in force."""
        pem = (self.key.read_bytes(), self.cert.read_bytes())
        if pem == self.pem:
            return False
        self._current = read_pair(self.cert, self.key, alpn=self._alpn)
        self.pem = pem
        return True

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current


class WatchedCertificate:
    """A certificate and its key, which `refresh` reads again after their files changed.

    Attributes:
        context: a server's TLS context with the last good pair.
        pem: key and chain of that pair as PEM, in gRPC's order.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises CertificateError."""
        self._cert, self._key = cert, key
        self._seen = self._state()
        self.context, self.pem = self._read()

    def refresh(self) -> bool:
        """Look at the files. False if they are unchanged.

        Raises:
            CertificateError: the changed files cannot be used. The last good pair stays, and the files are read again
                only after they have changed once more, so that each fault is raised once.
        """
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        self.context, self.pem = self._read()
        return True

    def _state(self) -> list[tuple[int, int]]:
        """Modification times and sizes; empty if a file is away, as while it is replaced."""
        try:
            return [(status.st_mtime_ns, status.st_size) for status in (self._cert.stat(), self._key.stat())]
        except OSError:
            return []

    def _read(self) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
        context = read_pair(self._cert, self._key)
        try:
            return context, (self._key.read_bytes(), self._cert.read_bytes())
        except OSError as exc:
            raise CertificateError(f"{self._cert} and {self._key} cannot be read: {exc.strerror}") from exc
