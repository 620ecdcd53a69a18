"""Outside addresses of UDP: the ends between which datagrams of a tunnel travel."""

from __future__ import annotations

from netbird_overlay.engine import Endpoint as Endpoint

__all__ = ["Endpoint"]
