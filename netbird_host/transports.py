"""Writes to asyncio's transports, safe on every supported Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

_NEVER_PAUSES = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)


def write_pieces(transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
    """Write several pieces in order, with `writelines` where it is safe.

    asyncio's `writelines` never pauses its protocol in 3.12 before 3.12.9 and in 3.13 before 3.13.2 (CVE-2024-12254):
    a client that reads slowly would fill the memory. On these versions the pieces are joined, which costs a copy.
    """
    if _NEVER_PAUSES:
        transport.write(b"".join(pieces))
    else:
        transport.writelines(pieces)
