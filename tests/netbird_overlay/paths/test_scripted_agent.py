"""Ours as the other side of a scripted NetBird agent, and of the messages that NetBird's own programs exchanged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from netbird_overlay.members import Member
from netbird_overlay.paths.servers import PathServers, RemotePeer
from netbird_overlay.signal.client import SignalTarget
from netbird_wire.envelope import Envelope
from netbird_wire.relay import Subscribe, peer_id
from netbird_wire.relay_tokens import RelayToken
from netbird_wire.signalexchange_pb2 import Body, EncryptedMessage
from tests.netbird_overlay.paths.agent import CID, Agent, scripted_agent
from tests.netbird_overlay.paths.house import Resident, Servers, ordered_keys, reported, resident, servers, token
from tests.netbird_overlay.relay.double import scripted_relay
from tests.netbird_overlay.signal.scripted import SECONDS, captured, private_key, public_key, scripted_signal

OURS, THEIRS = "100.64.0.1", "100.64.0.2"


@dataclass
class Scene:
    ours: Resident
    agent: Agent
    tasks: asyncio.TaskGroup
    group: Servers
    relay: str

    def kind(self) -> str:
        return self.ours.paths.state(self.agent.engine.public_key).kind

    async def until(self, kind: str) -> None:
        await self.ours.until(lambda: self.kind() == kind)

    async def join_relay(self) -> None:
        await self.agent.join_relay(self.group.relays["relay"].url, token(), self.tasks)


@asynccontextmanager
async def scene(*, controls: bool, ice: bool = True, lazy: bool = False) -> AsyncIterator[Scene]:
    """An agent that is registered, and ours that knows it. `controls`: the agent's key is the greater."""
    smaller, greater = ordered_keys()
    own, theirs = (smaller, greater) if controls else (greater, smaller)
    async with (
        servers() as group,
        resident(OURS, private_key=own, ice=ice) as ours,
        scripted_agent(group.signal_port, theirs, ours.key, (THEIRS, OURS)) as (agent, tasks),
    ):
        ours.paths.configure(group.configuration())
        await ours.until_home()
        ours.node.set_members([Member(agent.engine.public_key, (THEIRS,))], {})
        ours.paths.set_peers([RemotePeer(agent.engine.public_key, "0.77.1", lazy)])
        yield Scene(ours, agent, tasks, group, group.relays["relay"].url)


@pytest.mark.parametrize("controls", [False, True])
async def test_an_agent_that_uses_relays_only_is_relayed(controls: bool) -> None:
    """A forced relay: payloads ":" only. The end that is not the controller waits for the handshake for 5 s."""
    async with scene(controls=controls) as stage:
        agent = stage.agent
        offer = await agent.body(Body.OFFER)
        assert offer.relayServerAddress == stage.relay
        await stage.join_relay()
        await agent.send(agent.negotiation(Body.ANSWER, stage.relay))
        assert await agent.subscribe() == b"\x01\x0a" + peer_id(stage.ours.key)
        await agent.use_relay(starts=controls)
        await agent.handshaken()
        await stage.until("relay")
        state = stage.ours.paths.state
        assert state(agent.engine.public_key).relay == stage.relay
        await stage.ours.until(lambda: state(agent.engine.public_key).handshake is not None)
        assert 1 in agent.first_types, "ours starts a handshake in either role"


async def test_an_initiation_that_overtakes_our_subscription_is_answered() -> None:
    """Without the early datagram, the agent would repeat it after 5 s only."""
    async with scene(controls=True, ice=False) as stage:
        agent = stage.agent
        await agent.body(Body.OFFER)
        await stage.join_relay()
        await agent.use_relay(starts=True)
        await agent.send(agent.negotiation(Body.OFFER, stage.relay))
        await agent.subscribe()
        await agent.handshaken()
        await agent.body(Body.ANSWER)
        await stage.until("relay")
        await asyncio.wait_for(agent.first_of_type(2), SECONDS)


async def test_an_answer_of_ours_follows_each_offer_and_says_the_same() -> None:
    async with scene(controls=True) as stage:
        agent = stage.agent
        first = await agent.body(Body.OFFER)
        for _ in range(3):
            await agent.send(agent.negotiation(Body.OFFER, stage.relay))
            answer = await agent.body(Body.ANSWER)
            answer.type = Body.OFFER
            assert answer == first


async def test_an_agent_that_believes_us_without_ice_keeps_getting_our_credentials() -> None:
    async with scene(controls=True) as stage:
        agent = stage.agent
        for _ in range(3):
            await agent.send(agent.negotiation(Body.OFFER, stage.relay))
            answer = await agent.body(Body.ANSWER)
            assert answer.payload.count(":") == 1
            assert answer.payload != ":"
            assert len(answer.sessionId) == 5


async def test_ours_without_ice_sends_one_colon_and_no_session() -> None:
    async with scene(controls=True, ice=False) as stage:
        offer = await stage.agent.body(Body.OFFER)
        assert offer.payload == ":"
        assert not offer.HasField("sessionId")


async def ice_exchange(stage: Scene) -> int:
    """Offer with ICE, and wait for ours' candidate. Returns our port."""
    agent = stage.agent
    await agent.body(Body.OFFER)
    await agent.send(agent.candidate())  # it overtakes the answer
    await agent.send(agent.negotiation(Body.ANSWER, stage.relay, session=b"sess1"))
    candidate = await agent.body(Body.CANDIDATE)
    words = candidate.payload.split()
    assert words[1:3] == ["1", "udp"]
    assert words[6:8] == ["typ", "host"]
    assert dict(zip(words[8::2], words[9::2], strict=True))["ufrag"] == agent.ufrag_of_peer
    return int(words[5])


@pytest.mark.parametrize("controls", [False, True])
async def test_an_agent_and_ours_agree_on_a_direct_pair_and_ours_answers_for_its_life(controls: bool) -> None:
    async with scene(controls=controls) as stage:
        agent = stage.agent
        port = await ice_exchange(stage)
        assert port == stage.ours.node.driver.local_port
        async with asyncio.timeout(SECONDS):
            agent.check(port, nominate=controls, controlling=controls)
            nominated = await agent.checks.get()
            while not controls and not nominated.use_candidate:
                nominated = await agent.checks.get()
            answer = await agent.answers.get()
            assert answer.candidate_ids == ("x" * 32, CID), "the ids are swapped in the answer"
        await stage.until("ice")
        await agent.use_direct(port)
        assert stage.ours.paths.state(agent.engine.public_key).endpoint.port == agent.port  # type: ignore[union-attr]
        async with asyncio.timeout(SECONDS):
            for _ in range(3):
                agent.check(port, nominate=False, controlling=controls)
                await agent.answers.get()
            while not agent.checks.empty():
                agent.checks.get_nowait()
            await agent.checks.get()  # ours asks by itself, within 4 s


async def test_candidates_of_ours_are_sent_twice_and_only_once_the_agent_can_take_them() -> None:
    async with scene(controls=True) as stage:
        agent = stage.agent
        offer = await agent.body()
        assert offer.type == Body.OFFER
        await agent.send(agent.negotiation(Body.OFFER, stage.relay, session=b"sess1"))
        answer = await agent.body()
        assert answer.type == Body.ANSWER, "no candidate overtakes the answer"
        first, second = await agent.body(Body.CANDIDATE), await agent.body(Body.CANDIDATE)
        assert first.payload == second.payload


async def test_a_direct_pair_that_falls_silent_is_replaced_by_the_relay_and_a_new_session() -> None:
    async with scene(controls=True) as stage:
        agent = stage.agent
        await stage.join_relay()
        port = await ice_exchange(stage)
        assert await agent.subscribe()
        agent.check(port, nominate=True, controlling=True)
        await stage.until("ice")
        agent.answering = False  # as an agent that closed its session
        await stage.until("relay")
        offer = await agent.body(Body.OFFER)
        assert offer.sessionId
        assert offer.payload == f"{agent.ufrag_of_peer}:{agent.pwd_of_peer}", "the credentials stay"


async def test_a_sleeping_agent_that_loses_the_first_offer_is_reached_by_its_own() -> None:
    async with scene(controls=True, lazy=True) as stage:
        agent = stage.agent
        await agent.send(Body(type=Body.GO_IDLE))
        await stage.ours.until(lambda: stage.ours.paths.state(agent.engine.public_key).idle)
        while not agent.bodies.empty():
            agent.bodies.get_nowait()
        assert stage.ours.paths.wake(agent.engine.public_key)
        await agent.body(Body.OFFER)  # lost: it wakes the agent, whose receiver is not ready yet
        await stage.join_relay()
        await agent.send(agent.negotiation(Body.OFFER, stage.relay))
        assert (await agent.body(Body.ANSWER)).relayServerAddress == stage.relay
        await agent.subscribe()
        await agent.use_relay(starts=True)
        await agent.handshaken()
        await stage.until("relay")


async def test_the_punch_packet_and_old_modes_are_ignored() -> None:
    async with scene(controls=True) as stage:
        agent = stage.agent
        assert agent.udp is not None
        agent.udp.sendto(b"nb", ("127.0.0.1", stage.ours.node.driver.local_port))
        with reported() as errors:
            await agent.send(Body(type=Body.MODE))
            await agent.send(Body(payload="no colon"))
            await agent.send(Body(payload="a:b:c"))
            await agent.send(agent.negotiation(Body.OFFER, stage.relay))
            await agent.body(Body.ANSWER)
            assert not errors


# The captured messages -----------------------------------------------------------------------------------------------


def golden_relay(connection: str) -> list[tuple[str, str, bytes]]:
    """Direction, type and bytes of the messages of a captured connection."""
    file = "tests/contract/wire/relay.jsonl"
    with open(file, encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    return [
        (entry["direction"], entry["type"], base64.b64decode(entry["base64"]))
        for entry in entries
        if entry["conn"] == connection
    ]


async def test_ours_with_alices_key_sends_what_alices_agent_sent() -> None:
    """Alice's agent, captured: its Auth and subscription byte for byte, and the fields of its offer."""
    sent = {kind: raw for direction, kind, raw in reversed(golden_relay("005")) if direction == "c2s"}
    access = RelayToken.decode(sent["Auth"][2 + 4 + 36 :])
    instance = "rel://10.99.0.1:8081"
    offers = [each for each in captured() if (each.sender, each.receiver) == ("bob", "alice")]
    relay_of_bob = next(each for each in offers if Body.FromString(each.plain).relayServerAddress)
    async with (
        scripted_signal() as signal,
        scripted_relay(instance_url=instance, judge=lambda auth: True) as relay,
        resident(OURS, private_key=private_key("alice"), ice=True, version="development") as ours,
    ):
        ours.paths.configure(
            PathServers(signal=SignalTarget(signal.host_port, tls=False), relays=(relay.url,), relay_token=access)
        )
        stream = await signal.stream()
        await ours.until_home()
        bob = public_key("bob")
        ours.node.set_members([Member(bob, (THEIRS,))], {})
        ours.paths.set_peers([RemotePeer(bob, "0.77.1")])
        await signal.message()
        stream.deliver(relay_of_bob.raw)
        await relay.until(lambda: len(relay.clients) == 1 and len(relay.clients[0].received) == 2)
        assert relay.clients[0].received == [sent["Auth"], sent["SubscribePeerState"]]
        assert relay.clients[0].messages[1] == Subscribe((peer_id(bob),))


async def test_an_offer_of_ours_has_the_fields_of_alices_offer() -> None:
    golden = next(
        Body.FromString(each.plain)
        for each in captured()
        if each.sender == "alice" and each.kind != "CANDIDATE" and each.receiver == "bob"
    )
    async with (
        scripted_signal() as signal,
        scripted_relay(instance_url=golden.relayServerAddress) as relay,
        resident(OURS, private_key=private_key("alice"), ice=True, version="development") as ours,
    ):
        ours.paths.configure(
            PathServers(signal=SignalTarget(signal.host_port, tls=False), relays=(relay.url,), relay_token=token())
        )
        await signal.stream()
        await ours.until_home()
        bob = public_key("bob")
        ours.node.set_members([Member(bob, (THEIRS,))], {})
        ours.paths.set_peers([RemotePeer(bob, "0.77.1")])
        encrypted = EncryptedMessage.FromString(await signal.message())
        body = Envelope(private_key("bob"), public_key("alice")).open(encrypted.body, Body)
        assert [field.name for field, _ in body.ListFields()] == [field.name for field, _ in golden.ListFields()]
        for ours_part, golden_part in zip(body.payload.split(":"), golden.payload.split(":"), strict=True):
            assert len(ours_part) == len(golden_part)
            assert ours_part.isalpha()
        assert len(body.sessionId) == len(golden.sessionId)
        assert body.relayServerAddress == golden.relayServerAddress
        assert body.relayServerIP == bytes((127, 0, 0, 1))
        assert body.netBirdVersion == golden.netBirdVersion
