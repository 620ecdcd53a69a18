"""WebSockets of plugins on the REST port: the connection itself is given away, so that it costs REST nothing more."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from netbird_host.sources import Network, nearest_client
from netbird_host.splice import splice
from netbird_host.tasks import start_owned
from netbird_management.plugins.steps import TakeSocket

_log = logging.getLogger(__name__)


class Upgrades:
    """Gives connections to the plugins that serve them, each in the plugin's own event loop.

    Args:
        by_path: plugin and callable by path.
        trusted: networks of reverse proxies whose `X-Forwarded-For` names the client.
    """

    def __init__(
        self,
        by_path: Mapping[str, tuple[str, TakeSocket]] = MappingProxyType({}),
        trusted: Sequence[Network] = (),
    ) -> None:
        self._by_path = by_path
        self._trusted = trusted
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def give(
        self, path: str, transport: asyncio.Transport, head: bytes, *, peer: str = "", forwarded: Sequence[str] = ()
    ) -> None:
        """Gives a connection away: the socket itself, or with TLS the end of a pair that is joined to it."""
        plugin, take = self._by_path[path]
        transport.pause_reading()
        address = nearest_client(peer, forwarded, self._trusted)
        try:
            connection = self._plain(transport)
        except OSError as error:  # no descriptor left
            _log.warning("rest.upgrade_failed", extra={"plugin": plugin, "path": path, "error": str(error)})
            transport.abort()
            return
        try:
            take(connection=connection, head=head, address=address)
        except Exception:
            _log.exception("plugin.upgrade.failed", extra={"plugin": plugin, "path": path})
            connection.close()

    def _plain(self, transport: asyncio.Transport) -> socket.socket:
        """A socket on which the plugin exchanges plain bytes with the client."""
        if transport.get_extra_info("sslcontext") is None:
            # The copy stays open after the transport has closed its own descriptor, which sends nothing.
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            connection.setblocking(False)
            transport.abort()
            return connection
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        # Not in a group: a connection that fails must not end the others. The set keeps the task until it is done.
        joining = start_owned(splice(transport, ours))
        self._tasks.add(joining)
        joining.add_done_callback(self._joined)
        return theirs

    def _joined(self, joining: "asyncio.Task[None]") -> None:
        self._tasks.discard(joining)
        if not joining.cancelled() and (error := joining.exception()) is not None:
            _log.warning("rest.upgrade_failed", extra={"error": str(error)})
