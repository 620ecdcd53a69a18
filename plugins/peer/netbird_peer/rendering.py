"""A status as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def render(status: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a status for people. Names come from management and are printed without control characters."""
    yield f"{status['hostname']} in the network of {status['management']}"
    yield f"addresses  {', '.join(status['addresses'])}"
    yield f"key        {status['public_key']}"
    yield f"signal     {'connected' if status['signal_connected'] else 'not connected'}"
    yield f"relay      {_plain(status['relay']) or 'none'}"
    if status["last_error"]:
        yield f"last error {_plain(status['last_error'])}"
    rows = [("peer", "address", "path", "handshake", "received", "sent")]
    for peer in status["peers"]:
        where = peer["relay"] or peer["endpoint"] or ""
        rows.append(
            (
                _plain(peer["name"]) or peer["public_key"],
                peer["addresses"][0] if peer["addresses"] else "",
                "idle" if peer["idle"] else f"{peer['path']} {_plain(where)}".strip(),
                "never" if peer["handshake"] is None else f"{peer['handshake']:.0f} s ago",
                _bytes(peer["received"], peer["receiving"]),
                _bytes(peer["sent"], peer["sending"]),
            )
        )
    if len(rows) == 1:
        yield "no peers"
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _bytes(total: int, rate: float | None) -> str:
    return _size(total) if rate is None else f"{_size(total)} ({_size(rate)}/s)"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
