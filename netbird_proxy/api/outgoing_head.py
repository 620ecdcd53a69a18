"""The request head for the upstream, while plugins' transforms change it. The engine holds it and checks ownership."""

from __future__ import annotations

from netbird_http import OutgoingHead

__all__ = ["OutgoingHead"]
