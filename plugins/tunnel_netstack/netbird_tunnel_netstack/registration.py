"""The proxy's ways to management: registration with a one-time token, and its errors for those of the library."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.errors import ManagementFailure
from netbird_overlay.membership.meta import system_meta
from netbird_proxy import (
    AccountHandle,
    ManagementError,
    ManagementTimeout,
    ManagementUnavailable,
    Proxy,
    PublicKey,
    management_error,
)
from netbird_wire.envelope import format_key, public_key
from netbird_wire.management_pb2 import PeerSystemMeta


def management_client(account: AccountHandle, private_key: bytes, proxy: Proxy) -> ManagementClient:
    """Return the account node's calls to management, over the proxy's own channel."""

    def meta(files: Sequence[str]) -> PeerSystemMeta:
        return system_meta(f"ingress-proxy-{proxy.id}", inbound=proxy.private, files=files)

    return ManagementClient(account.management.channel, private_key, meta, metadata=account.management.metadata)


class Registration:
    """Registers an account's node.

    Args:
        endpoint: `host:port` at which stock WireGuard clients reach us, or empty.
        serves_dns: see `AccountHandle.register`.
    """

    def __init__(self, account: AccountHandle, private_key: bytes, *, endpoint: str, serves_dns: bool = False) -> None:
        self._account = account
        self._public_key = PublicKey(format_key(public_key(private_key)))
        self._endpoint = endpoint
        self._serves_dns = serves_dns

    def management_connected(self) -> bool:
        return self._account.management.connected

    async def register(self) -> None:
        """Register our key with a one-time token. Raises RegistrationFailed."""
        try:
            await self._account.register(self._public_key, endpoint=self._endpoint, serves_dns=self._serves_dns)
        except ManagementError as exc:
            raise RegistrationFailed(exc) from exc


class RegistrationFailed(ManagementFailure):
    """The host could not register our key. `error` is its reason."""

    def __init__(self, error: ManagementError) -> None:
        retryable = isinstance(error, ManagementUnavailable | ManagementTimeout)
        super().__init__(str(error), code="REGISTRATION", retryable=retryable)
        self.error = error


def proxy_error(failure: ManagementFailure) -> ManagementError:
    """Return the proxy's error for a failure of the library."""
    if isinstance(failure, RegistrationFailed):
        return failure.error
    call, _, details = str(failure).partition(f": {failure.code}: ")
    return management_error(call, failure.code, details)
