"""One-time tokens, each of which permits a proxy to create its peer in an account once, within a few minutes.

A token is a MAC over account, service, the proxy's access token, expiry and nonce, so management stores nothing when it
issues one. The transaction that creates the peer stores the nonce and thereby spends the token.
"""

import base64
import binascii
import hmac
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from netbird_management.model.clock import now
from netbird_management.model.errors import PermissionDenied
from netbird_management.model.ids import AccountId, ServiceId
from netbird_management.secrets.vault import Vault

LIFETIME_SECONDS: Final = 300
_PURPOSE: Final = "one-time tokens"
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """A verified token; it may already be spent."""

    nonce: str
    expires_at: datetime


def mint(vault: Vault, account_id: AccountId, service_id: ServiceId, proxy_token_id: str) -> str:
    """A new token. `proxy_token_id` is the id of the access token of the proxy that receives it."""
    nonce = os.urandom(_NONCE_BYTES)
    expires = int(now().timestamp()) + LIFETIME_SECONDS
    head = struct.pack(">Q", expires) + nonce
    return base64.urlsafe_b64encode(head + _mac(vault, account_id, service_id, proxy_token_id, head)).decode()


def verify(vault: Vault, text: str, account_id: AccountId, service_id: ServiceId, proxy_token_id: str) -> OneTimeToken:
    """The token, if management issued it for exactly this account, service and proxy. Does not spend it.

    Raises `PermissionDenied` for any other text and for an expired token.
    """
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise PermissionDenied("token validation: invalid token") from error
    head, mac = raw[: 8 + _NONCE_BYTES], raw[8 + _NONCE_BYTES :]
    if not hmac.compare_digest(mac, _mac(vault, account_id, service_id, proxy_token_id, head)):
        raise PermissionDenied("token validation: invalid token")
    expires_at = datetime.fromtimestamp(struct.unpack(">Q", head[:8])[0], UTC)
    if expires_at < now():
        raise PermissionDenied("token validation: invalid token")
    return OneTimeToken(head[8:].hex(), expires_at)


def _mac(vault: Vault, account_id: str, service_id: str, proxy_token_id: str, head: bytes) -> bytes:
    parts = (account_id.encode(), service_id.encode(), proxy_token_id.encode(), head)
    message = b"".join([len(part).to_bytes(4) + part for part in parts])
    return hmac.digest(_key(vault), message, "sha256")


@lru_cache(maxsize=4)  # a snapshot of ten thousand services mints ten thousand tokens
def _key(vault: Vault) -> bytes:
    return vault.derive(_PURPOSE)
