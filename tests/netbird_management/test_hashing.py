"""Slow hashes: one account does not hold up another, and none is made beyond its bound."""

import asyncio
from threading import Event

import pytest

from netbird_management.model.ids import AccountId
from netbird_management.operations.proxies import Registration
from netbird_management.secrets.passwords import HASHED_AT_ONCE, hash_secret, in_turn, verify_secret
from tests.netbird_management.conftest import Api
from tests.netbird_management.rest import test_services

ONE, OTHER = AccountId("one"), AccountId("other")


async def test_promise_10_one_account_leaves_threads_to_the_others() -> None:
    """However much one account has hashed, another account's secret is judged meanwhile."""
    stored = await hash_secret(OTHER, "right")
    busy = Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        try:
            waiting = [tasks.create_task(in_turn(ONE, busy.wait, 30)) for _ in range(HASHED_AT_ONCE * 2)]
            assert await verify_secret(OTHER, "right", stored)
            assert not await verify_secret(OTHER, "wrong", stored)
            assert not any(task.done() for task in waiting)
        finally:
            busy.set()


async def test_promise_10_leaving_frees_no_thread_before_its_time() -> None:
    """A caller that leaves keeps its account's place until the work is over."""
    stored = await hash_secret(OTHER, "right")
    busy, begun = Event(), [asyncio.Event() for _ in range(HASHED_AT_ONCE * 2)]
    loop = asyncio.get_running_loop()

    def work(number: int) -> None:
        loop.call_soon_threadsafe(begun[number].set)
        busy.wait(30)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        try:
            for number in range(HASHED_AT_ONCE - 1):
                leaving = tasks.create_task(in_turn(ONE, work, number))
                await begun[number].wait()
                leaving.cancel()
            tasks.create_task(in_turn(ONE, work, HASHED_AT_ONCE))
            assert await verify_secret(OTHER, "right", stored)
            assert not begun[HASHED_AT_ONCE].is_set()
        finally:
            busy.set()


@pytest.mark.parametrize("enabled", [True, False])
async def test_promise_10_a_service_has_few_header_credentials(api: Api, proxy: Registration, enabled: bool) -> None:
    """More than 16 are refused by name before any is hashed, enabled or not; 16 are kept."""

    def given(count: int) -> dict[str, object]:
        headers = [{"enabled": enabled, "header": "x-key", "value": f"v{i}"} for i in range(count)]
        return test_services.body(auth={"header_auths": headers})

    status, message = await api.refused("POST", "/api/reverse-proxies/services", given(17))
    assert (status, "header_auths" in message) == (422, True)
    shown = await api.ok("POST", "/api/reverse-proxies/services", given(16))
    assert len(shown["auth"]["header_auths"]) == 16
