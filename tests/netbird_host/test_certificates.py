"""Certificates that are read again: the last good pair stays, and each fault is raised once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from netbird_host.certificates import CertificateError, WatchedCertificate


def test_changed_files_are_read_once_and_wrong_ones_change_nothing(tmp_path: Path) -> None:
    authority = trustme.CA()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def issue(name: str) -> None:
        certificate = authority.issue_cert(name)
        certificate.private_key_pem.write_to_path(str(key))
        certificate.cert_chain_pems[0].write_to_path(str(chain))

    issue("first.example")
    watched = WatchedCertificate(chain, key)
    first = watched.context, watched.pem
    assert not watched.refresh()
    chain.write_text("nonsense")
    with pytest.raises(CertificateError, match="are not a certificate and its key"):
        watched.refresh()
    assert not watched.refresh(), "a fault is raised once"
    chain.unlink()
    with pytest.raises(CertificateError, match="No such file"):
        watched.refresh()
    assert (watched.context, watched.pem) == first
    issue("a-longer-name.example")
    assert watched.refresh()
    assert watched.context is not first[0]
    assert watched.pem == (key.read_bytes(), chain.read_bytes())
    with pytest.raises(CertificateError):
        WatchedCertificate(tmp_path / "missing", key)
