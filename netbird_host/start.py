"""The programs' entry points. Nothing is imported before SIGHUP is ignored, as imports take most of a start."""

from __future__ import annotations

import signal
import sys
from importlib import import_module


def proxy() -> None:
    """`netbird-proxy`."""
    _main("netbird_proxy.operator.cli")


def management() -> None:
    """`netbird-management`."""
    _main("netbird_management.cli")


def _main(module: str) -> None:
    if "run" in sys.argv[1:]:
        # It asks a running host to reload, and ends none: one that is not up yet reads everything anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import_module(module).main()
