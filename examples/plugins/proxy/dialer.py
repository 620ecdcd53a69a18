"""Upstreams behind a Unix socket: `http://NAME.sock.internal` is the socket NAME in a directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from netbird_proxy import (
    Address,
    Dialer,
    DialFailed,
    DialTimeout,
    PluginInfo,
    ProtocolFactory,
    Proxy,
    RouteRefused,
    RouteSpec,
    Upstream,
    hookimpl,
)

SUFFIX = ".sock.internal"


class UnixSocketsOptions(BaseModel):
    """`[unix_sockets]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Path("/run/services")


class UnixDialer:
    """Implements `Dialer`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                return await loop.create_unix_connection(protocol_factory, str(self._path))
        except TimeoutError as error:
            raise DialTimeout(f"dial {self._path}: no connection within {timeout:g} s") from error
        except OSError as error:
            raise DialFailed(f"dial {self._path}: {error.strerror}") from error


class UnixSockets:
    """Provides the dialer for upstreams with that suffix, and for no others."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="upstreams behind Unix sockets", options=UnixSocketsOptions)

    @hookimpl
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer | None:
        host = upstream.address.host
        if not host.endswith(SUFFIX):
            return None
        name = host.removesuffix(SUFFIX)
        if not name.isalnum():
            raise RouteRefused(f"upstream {upstream}: {name!r} is not a socket's name")
        return UnixDialer(proxy.options(UnixSocketsOptions).directory / f"{name}.sock")
