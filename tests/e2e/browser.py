"""Debian's Chromium, which trusts the certificate of one stack and finds the stack under its names."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.async_api import Browser, async_playwright

CHROMIUM = "/usr/bin/chromium"


def key_hash(chain: Path) -> str:
    """The hash by which Chromium is told to trust a key, whoever signed it: it reads no authority from a file."""
    key = x509.load_pem_x509_certificate(chain.read_bytes()).public_key()
    return base64.b64encode(
        hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()


@asynccontextmanager
async def chromium(chain: Path, domain: str) -> AsyncIterator[Browser]:
    """A browser for which every name under `domain` is this machine."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                f"--host-resolver-rules=MAP *.{domain} 127.0.0.1",
                f"--ignore-certificate-errors-spki-list={key_hash(chain)}",
                "--no-sandbox",
                "--no-proxy-server",
            ],
        )
        try:
            yield browser
        finally:
            await browser.close()
