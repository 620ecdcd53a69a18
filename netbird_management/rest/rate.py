"""How often an address may come without being known."""

import asyncio
from collections import OrderedDict
from typing import Final

BURST: Final = 15
PER_SECOND: Final = 10 / 60
ADDRESSES: Final = 4096


class Rate:
    """A bucket of tries for each address. Bounded: the address that has been quiet for longest is forgotten."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        now = asyncio.get_running_loop().time()
        left, at = self._left.pop(address, (float(BURST), now))
        left = min(float(BURST), left + (now - at) * PER_SECOND)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return left >= 1
