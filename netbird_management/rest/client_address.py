"""Where a request comes from, also behind a proxy of the operator's."""

from collections.abc import Sequence

from fastapi import Request

from netbird_host.sources import Network, nearest_client


def client_address(request: Request, trusted: Sequence[Network]) -> str:
    """The nearest address that is no trusted proxy's; the connection's own where no proxy names another."""
    peer = request.client.host if request.client is not None else ""
    return nearest_client(peer, request.headers.getlist("x-forwarded-for"), trusted)
