"""The client's address, also behind the operator's reverse proxies."""

from collections.abc import Sequence

from fastapi import Request

from netbird_host.sources import Network, nearest_client


def client_address(request: Request, trusted: Sequence[Network]) -> str:
    """The nearest address in `X-Forwarded-For` that is not a trusted proxy; the connection's own address otherwise."""
    peer = request.client.host if request.client is not None else ""
    return nearest_client(peer, request.headers.getlist("x-forwarded-for"), trusted)
