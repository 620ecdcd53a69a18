"""HTTP/1.1 without I/O, in Rust: the only place of the proxy that knows the name of a field."""

from __future__ import annotations

from netbird_http.engine import (
    Answer,
    Draft,
    End,
    Head,
    NotTheOwner,
    OutgoingHead,
    OutgoingRules,
    Reader,
    Refused,
    Unsendable,
    Violation,
    WrittenHead,
    fold,
    judge_scope,
    log_entry,
    log_line,
)

__all__ = [
    "Answer",
    "Draft",
    "End",
    "Head",
    "NotTheOwner",
    "OutgoingHead",
    "OutgoingRules",
    "Reader",
    "Refused",
    "Unsendable",
    "Violation",
    "WrittenHead",
    "fold",
    "judge_scope",
    "log_entry",
    "log_line",
]
