"""Accounts' tunnels, kept up: what a change of the map does first, and what the loss of a tunnel does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netbird_proxy.accounts.accounts import Accounts, AccountState
from netbird_proxy.api.errors import TunnelNotReady
from netbird_proxy.api.model import AccountId
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, FakeTunnel

ACME = AccountId("acme")
SOON = 5.0


class Opener:
    """Hooks with one plugin that opens tunnels; each one is there to be changed or lost."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[FakeTunnel] = asyncio.Queue()
        self.lost = asyncio.Event()

    def open_tunnel(self, account: Any, proxy: Any) -> Any:
        return "fake", self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[FakeTunnel]:
        tunnel = FakeTunnel()
        self.opened.put_nowait(tunnel)
        async with asyncio.TaskGroup() as group:
            losing = group.create_task(self._lose())
            yield tunnel
            losing.cancel()

    async def _lose(self) -> None:
        await self.lost.wait()
        self.lost.clear()
        raise TunnelNotReady("the socket is gone")


class Kept:
    """Accounts that are being kept, and what was told of them."""

    def __init__(self, directory: Path) -> None:
        self.opener = Opener()
        self.maps: asyncio.Queue[int] = asyncio.Queue()
        self.states: asyncio.Queue[bool] = asyncio.Queue()
        self.accounts = Accounts(
            self.opener,  # type: ignore[arg-type]  # only tunnels are opened here
            FakeManagement(),  # type: ignore[arg-type]  # nothing registers
            directory,
            listening=None,
            on_change=self._changed,
            on_map=lambda account: self.maps.put_nowait(self.accounts.generation(account)),
            connections=100,
        )

    def _changed(self, state: AccountState) -> None:
        self.states.put_nowait(state.tunnel is not None)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    made = Kept(tmp_path)
    async with asyncio.TaskGroup() as group:
        await made.accounts.run(FakeProxy(), group)
        made.accounts.want(frozenset((ACME,)))
        yield made
        await made.accounts.stop()


async def test_promise_8_a_changed_map_drops_answers_before_anybody_is_asked_about(kept: Kept) -> None:
    """Each change of the map raises the generation, and only then are open exchanges asked about."""
    tunnel = await asyncio.wait_for(kept.opener.opened.get(), SOON)
    assert await asyncio.wait_for(kept.states.get(), SOON)
    before = kept.accounts.generation(ACME)
    tunnel.change()
    assert await asyncio.wait_for(kept.maps.get(), SOON) == before + 1
    tunnel.change()
    assert await asyncio.wait_for(kept.maps.get(), SOON) == before + 2


async def test_promise_8_answers_about_a_lost_tunnel_serve_nobody(kept: Kept) -> None:
    """Whoever held an address in it may not hold it in the next one."""
    await asyncio.wait_for(kept.opener.opened.get(), SOON)
    assert await asyncio.wait_for(kept.states.get(), SOON)
    before = kept.accounts.generation(ACME)
    kept.opener.lost.set()
    assert not await asyncio.wait_for(kept.states.get(), SOON)

    assert kept.accounts.generation(ACME) > before
    assert kept.accounts.tunnel(ACME) is None


async def test_raising_all_raises_those_never_heard_of(kept: Kept) -> None:
    """An answer about an account may be under way before anything else is known of it."""
    others = AccountId("others")
    before = kept.accounts.generation(others)
    kept.accounts.raise_generations()

    assert kept.accounts.generation(others) == before + 1


async def test_an_account_that_nobody_wants_any_more_is_closed(kept: Kept) -> None:
    """Its tunnel ends, and what was answered about it is over."""
    await asyncio.wait_for(kept.opener.opened.get(), SOON)
    assert await asyncio.wait_for(kept.states.get(), SOON)
    before = kept.accounts.generation(ACME)
    kept.accounts.want(frozenset())

    assert kept.accounts.state(ACME) is None
    assert kept.accounts.generation(ACME) > before
    with pytest.raises(TunnelNotReady, match="has no tunnel"):
        await kept.accounts.wait_for_tunnel(ACME, 0.1)
