"""Grammar of HTTP tokens (RFC 9110 §5.6.2), and the fields that several modules write."""

from __future__ import annotations

import math
import re
from typing import Final

TOKEN_PATTERN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a grammar, no secret
"""Regular expression of a token: a method, a field's name, an upgrade's protocol."""
TOKEN: Final = re.compile(TOKEN_PATTERN.encode())
"""The same, compiled for bytes."""


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """A `Retry-After` field: whole seconds, rounded up, and at least 1, so that no client comes back too early."""
    return (b"retry-after", b"%d" % max(1, math.ceil(seconds)))
