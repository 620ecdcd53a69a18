"""The rate at which one core seals datagrams, by OpenSSL: what the tunnel's rate is compared with."""

from __future__ import annotations

import asyncio
import re

from bench.measure import MEASURED_CORE

BLOCK = 1_420
"""Bytes: a full datagram of a tunnel with an MTU of 1,420."""
_RATE = re.compile(r"^\+F:\d+:ChaCha20-Poly1305:([\d.]+)", re.MULTILINE | re.IGNORECASE)


def rate(output: str) -> float:
    """Bytes a second out of `openssl speed -mr`. Raises LookupError where they are missing."""
    stated = _RATE.search(output)
    if stated is None:
        raise LookupError(f"openssl speed printed {output.strip()[-200:]!r}")
    return float(stated[1])


async def openssl(seconds: int = 2) -> float:
    """Bytes a CPU second of ChaCha20-Poly1305 on the measured core."""
    process = await asyncio.create_subprocess_exec(
        "taskset", "-c", str(MEASURED_CORE), "openssl", "speed", "-mr", "-seconds", str(seconds), "-bytes", str(BLOCK),
        "-evp", "chacha20-poly1305",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(seconds + 60):
        output, _ = await process.communicate()
    return rate(output.decode())
