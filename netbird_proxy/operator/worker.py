"""The program of a worker: `python -P -m netbird_proxy.operator.worker`, started by the parent."""

from __future__ import annotations

import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netbird_proxy.operator.view import OperatorView
    from netbird_proxy.process.loading import Loaded
    from netbird_proxy.process.server import ProxyServer
    from netbird_proxy.process.workers.hello import Hello
    from netbird_proxy.process.workers.member import Membership


def main() -> int:
    """Run one worker. Returns its exit code; a failure's message goes to the parent, which reports it once."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent handles it
    import structlog
    import uvloop

    from netbird_host import logs
    from netbird_host.line_writer import take_turns
    from netbird_host.running import run_process
    from netbird_proxy.api.errors import PluginFailed, ProxyError, SettingsError
    from netbird_proxy.process.workers.channel import Channel
    from netbird_proxy.process.workers.hello import Hello
    from netbird_proxy.process.workers.member import Membership

    try:
        hello = Hello.decode(sys.stdin.buffer.read())
    except ValueError:
        sys.stderr.write("netbird-proxy: a worker is started by its parent: use netbird-proxy run --workers\n")
        return 2
    take_turns(hello.turns)
    membership = Membership(Channel(socket.socket(fileno=hello.channel)))
    structlog.contextvars.bind_contextvars(worker=hello.share.number)
    try:
        loaded = _load(hello)
        logs.configure(loaded.settings.log.level, loaded.settings.log.format)
        return run_process(_serve(loaded, hello, membership), uvloop.new_event_loop)
    except (SettingsError, PluginFailed) as error:
        membership.failed(str(error), 2)
        return 2
    except ProxyError as error:
        membership.failed(str(error), 1)
        return 1


def _load(hello: Hello) -> Loaded:
    from netbird_host.settings import Sources
    from netbird_proxy.process.loading import load
    from netbird_proxy.process.settings import ProxySources, read_settings
    from netbird_proxy.process.workers.division import for_worker

    sources = ProxySources(
        Sources.restored(hello.sources), (), again=lambda: read_settings(hello.file, flags=hello.flags)
    )
    return for_worker(load(sources), hello.share)


async def _serve(loaded: Loaded, hello: Hello, membership: Membership) -> int:
    from netbird_proxy.api.model import Address
    from netbird_proxy.operator.attendants import operated
    from netbird_proxy.operator.decisions import Decisions
    from netbird_proxy.operator.view import OperatorView

    decisions = Decisions()
    server = operated(
        loaded,
        supervisor=membership,
        decisions=decisions,
        sockets=hello.sockets(),
        beside=[Address(*address) for address in hello.beside],
    )
    view = OperatorView(server, decisions)
    with membership.attached(server, lambda: _report(server, view)):
        return await server.run()


def _report(server: ProxyServer, view: OperatorView) -> dict[str, Any]:
    counters, gauges = view.numbers()
    return {
        "listening": server.listening,
        "unready": view.unready,
        "checks": view.checks(),
        "counters": counters,
        "gauges": gauges,
    }


if __name__ == "__main__":
    sys.exit(main())
