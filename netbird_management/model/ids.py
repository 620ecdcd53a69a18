"""Types of ids, and the generation of new ids."""

import os
import threading
import time
from typing import Final, NewType

AccountId = NewType("AccountId", str)
ServiceId = NewType("ServiceId", str)
PeerId = NewType("PeerId", str)
GroupId = NewType("GroupId", str)
UserId = NewType("UserId", str)
PolicyId = NewType("PolicyId", str)
ProxyId = NewType("ProxyId", str)
"""The name a proxy chose for itself and keeps across restarts."""
TokenId = NewType("TokenId", str)

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"  # base32hex, lower case
_lock = threading.Lock()
_machine: Final = os.urandom(5)
_counter = int.from_bytes(os.urandom(3), "big")


def new_id() -> str:
    """A unique id of twenty lower-case characters; ids sort by the second of their creation."""
    global _counter
    with _lock:
        _counter = (_counter + 1) & 0xFFFFFF
        raw = int(time.time()).to_bytes(4, "big") + _machine + _counter.to_bytes(3, "big")
    return id_from(raw)


def id_from(raw: bytes) -> str:
    """An id of twenty characters, derived from the first 96 bits of `raw`."""
    number = int.from_bytes(raw[:12], "big") << 4  # padded to the 100 bits of twenty characters
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(95, -5, -5))
