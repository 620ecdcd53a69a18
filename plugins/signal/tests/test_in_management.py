"""The signal server as a plugin of management, on its gRPC port."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from netbird_management import PluginInfo, RpcService, hookimpl
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import create_stock_peer
from netbird_management.plugins.hooks import load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_signal.management import Options, Signal
from plugins.signal.tests.agents import SECONDS, agent, key, message, read, status_of

STATUS = grpc.StatusCode
LOCAL = "127.0.0.1:0"


def settings(tmp_path: Path) -> ManagementSettings:
    return ManagementSettings(
        state_directory=tmp_path, rest=RestListener(listen=LOCAL), grpc=Listener(listen=LOCAL), grace=60.0
    )


async def peers(server: ManagementServer, count: int, *, email: str = "owner@example.com") -> list[str]:
    """The keys of new peers of a new account."""
    account_id, owner = await create_account(server.state, email=email, name="Owner", dns_domain="nb.test")
    made = [
        await create_stock_peer(server.state, account_id, name=f"peer{number}", user_id=owner.id)
        for number in range(count)
    ]
    return [peer.key for peer, _ in made]


async def test_agents_exchange_messages_on_managements_port_without_a_token(tmp_path: Path) -> None:
    async with serve(settings(tmp_path), load_hooks(["signal_server"])) as server, agent(server.grpc_port) as ours:
        alice, bob = await peers(server, 2)
        stream = await ours.register(bob)

        assert await ours.send(message(alice, bob)) == b""

        assert await read(stream) == message(alice, bob)


async def test_the_settings_bound_the_streams_and_their_address(tmp_path: Path) -> None:
    hooks = load_hooks([("signal_server", Signal())])
    options = Options(streams=2, streams_of_address=1)
    async with serve(settings(tmp_path), hooks, options=[options]) as server, agent(server.grpc_port) as ours:
        alice, bob = await peers(server, 2)
        await ours.register(alice)

        assert await status_of(ours.register(bob)) is STATUS.RESOURCE_EXHAUSTED


async def test_strangers_do_not_register_unless_the_operator_allows_it(tmp_path: Path) -> None:
    """`own_peers_only` is on by default; a server for several managements switches it off."""
    for options, code in (((), STATUS.PERMISSION_DENIED), ((Options(own_peers_only=False),), None)):
        hooks = load_hooks([("signal_server", Signal())])
        async with serve(settings(tmp_path), hooks, options=options) as server, agent(server.grpc_port) as ours:
            if code is None:
                await ours.register(key())
            else:
                assert await status_of(ours.register(key())) is code


async def test_promise_10_peers_of_two_accounts_do_not_meet(tmp_path: Path) -> None:
    async with serve(settings(tmp_path), load_hooks(["signal_server"])) as server, agent(server.grpc_port) as ours:
        alice, bob = await peers(server, 2)
        (mallory,) = await peers(server, 1, email="mallory@example.com")
        stream = await ours.register(bob)
        await ours.send(message(mallory, bob))
        await ours.send(message(alice, bob))

        assert await read(stream) == message(alice, bob)


async def test_management_stops_without_waiting_for_streams(tmp_path: Path) -> None:
    """Streams of agents last for days. They end with a status that makes agents reconnect, and the grace of a minute
    is not used up."""
    async with asyncio.timeout(SECONDS), AsyncExitStack() as clients:
        async with serve(settings(tmp_path), load_hooks(["signal_server"])) as server:
            ours = await clients.enter_async_context(agent(server.grpc_port))
            stream = await ours.register(*await peers(server, 1))

        assert await status_of(stream.read()) is STATUS.UNAVAILABLE


class Deaf:
    """A plugin whose service does not stop when it is asked to."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def rpc(self) -> list[RpcService]:
        def fail() -> None:
            raise ZeroDivisionError

        return [RpcService(HealthServicer(), add_HealthServicer_to_server, open=True, stop=fail)]


async def test_a_plugin_that_fails_to_stop_costs_the_others_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, and the next service still ends its streams."""
    hooks = load_hooks([("deaf", Deaf()), "signal_server"])
    async with asyncio.timeout(SECONDS), AsyncExitStack() as clients:
        async with serve(settings(tmp_path), hooks) as server:
            ours = await clients.enter_async_context(agent(server.grpc_port))
            stream = await ours.register(*await peers(server, 1))

        assert await status_of(stream.read()) is STATUS.UNAVAILABLE
    assert [record.__dict__["plugin"] for record in caplog.records if record.message == "plugin.stop_failed"] == [
        "deaf"
    ]


@pytest.mark.parametrize("wrong", [{"streams": 0}, {"messages_per_second": 0}, {"unknown": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Options.model_validate(wrong)


def test_the_rate_of_the_settings_is_the_sum_of_all() -> None:
    limits = Options(messages_per_second=7).limits()
    assert (limits.all_messages.per_second, limits.all_messages.burst) == (7, 70)
