"""A write that is cut off leaves the store to the next one."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from netbird_management.secrets.vault import Vault
from netbird_management.store.engine import open_engine
from netbird_management.store.state import State


@pytest.fixture
def nothing_collected() -> Iterator[None]:
    """What is held by garbage stays held."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_closed_connection_holds_no_lock(tmp_path: Path) -> None:
    """Also while a statement of it is still in somebody's hands, as in the traceback of a call that was cancelled."""
    engine = open_engine(tmp_path / "a.db").execution_options(writes=True)
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
        await connection.execute(text("INSERT INTO t VALUES (1), (2)"))
        await connection.commit()
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE t SET a = 3"))
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        held = await raw.execute("UPDATE t SET a = 4 RETURNING a")
        await connection.invalidate()
    async with engine.connect() as connection:  # takes the lock, or fails after 5 s
        found = (await connection.execute(text("SELECT a FROM t ORDER BY a"))).scalars().all()
    assert found == [1, 2]
    assert held is not None
    await engine.dispose()


@pytest.mark.usefixtures("nothing_collected")
async def test_a_cancelled_write_holds_up_nobody(tmp_path: Path) -> None:
    """Wherever it is cut off, the next write begins at once, and finds all of it or nothing."""

    async def write(state: State) -> None:
        async with state.write() as session:
            await session.execute(text("INSERT INTO t VALUES (1)"))
            await session.execute(text("SELECT * FROM t"))
            (await session.execute(text("UPDATE t SET a = a RETURNING a"))).first()
            await session.execute(text("INSERT INTO t VALUES (1)"))

    loop = asyncio.get_running_loop()
    async with State.open(tmp_path, Vault(bytes(32))) as state:
        async with state.write() as session:
            await session.execute(text("CREATE TABLE t (a)"))
        for turns in range(60):
            cut = loop.create_task(write(state))
            for _ in range(turns):
                await asyncio.sleep(0)
            cut.cancel()
            await asyncio.wait((cut,))
            await write(state)
            async with state.read() as session:
                assert (await session.scalar(text("SELECT count(*) FROM t")) or 0) % 2 == 0
