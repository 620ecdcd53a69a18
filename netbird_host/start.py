"""The programs' entry points. They ignore SIGHUP before the slow imports, which take most of a start."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module


def proxy() -> None:
    """Run `netbird-proxy`."""
    _main("netbird_proxy.operator.cli")


def management() -> None:
    """Run `netbird-management`."""
    _main("netbird_management.cli")


def _main(module: str) -> None:
    if "run" in sys.argv[1:]:
        # SIGHUP requests a reload, and must not kill a host that is still starting, which reads its files anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The imports make hundreds of thousands of objects that stay. A search for garbage among them is in vain.
    gc.disable()
    loaded = import_module(module)
    gc.freeze()
    gc.enable()
    loaded.main()
