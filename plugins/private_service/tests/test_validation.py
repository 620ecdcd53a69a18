"""Validation of peers: the cache, single flight, the rate limit and outdated answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netbird_private_service.validation import AccountChanging, Question, TooManyQuestions, Validations
from netbird_proxy import AccountId, ManagementTimeout, PublicKey
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerResponse

ALICE = Question(AccountId("acct"), PublicKey("alice"), "100.64.0.7", "wiki.example")
GRANT = ValidateTunnelPeerResponse(valid=True, user_id="u", session_token="t")
DENIAL = ValidateTunnelPeerResponse(valid=False, denied_reason="not_in_group")


class Management:
    """A fake that answers from a list; questions wait while `open` is clear."""

    def __init__(self, *answers: ValidateTunnelPeerResponse | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Question] = []
        self.asking = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.generation = 0
        self.now = 0.0

    async def ask(self, question: Question, domain: str) -> ValidateTunnelPeerResponse:
        self.asked.append(question)
        self.asking.set()
        await self.open.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def running(management: Management, *, per_account: int = 2, burst: int = 3) -> AsyncIterator[Validations]:
    validations = Validations(
        management.ask,
        lambda _account: management.generation,
        lambda: management.now,
        lifetime=300,
        per_account=per_account,
        burst=burst,
        rate=10,
    )
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(validations.run(ready))
        await ready.wait()
        yield validations
        task.cancel()


async def test_grant_is_kept_until_its_end() -> None:
    """Management is asked once in a lifetime, and again after it."""
    management = Management(GRANT)
    async with running(management) as validations:
        for now in (0.0, 299.9):
            management.now = now
            assert (await validations.validate(ALICE, "wiki.example")).valid
        assert len(management.asked) == 1

        management.now = 300.0
        await validations.validate(ALICE, "wiki.example")

        assert len(management.asked) == 2


@pytest.mark.parametrize("answer", [DENIAL, ValidateTunnelPeerResponse(valid=True, user_id="u")])
async def test_only_complete_grants_are_kept(answer: ValidateTunnelPeerResponse) -> None:
    """A denial may be lifted at any moment; a grant without a token is no grant."""
    management = Management(answer)
    async with running(management) as validations:
        await validations.validate(ALICE, "wiki.example")
        await validations.validate(ALICE, "wiki.example")

        assert len(management.asked) == 2


async def test_another_key_at_the_same_address_is_asked_about() -> None:
    """Addresses are reused: what was granted to one peer is nothing to the next."""
    management = Management(GRANT, DENIAL)
    async with running(management) as validations:
        await validations.validate(ALICE, "wiki.example")
        mallory = Question(ALICE.account, PublicKey("mallory"), ALICE.address, ALICE.host)

        assert not (await validations.validate(mallory, "wiki.example")).valid


async def test_change_of_the_account_drops_its_grants() -> None:
    """A new generation invalidates all cached grants of the account at once."""
    management = Management(GRANT, DENIAL)
    async with running(management) as validations:
        await validations.validate(ALICE, "wiki.example")
        management.generation = 1

        assert not (await validations.validate(ALICE, "wiki.example")).valid


async def test_answer_asked_for_before_a_change_serves_nobody() -> None:
    """A grant that is under way while the account changes is not used."""
    management = Management(GRANT, DENIAL)
    management.open.clear()
    async with running(management) as validations, asyncio.TaskGroup() as group:
        waiting = group.create_task(validations.validate(ALICE, "wiki.example"))
        await management.asking.wait()
        management.generation = 1
        management.open.set()

        assert not (await waiting).valid
        assert len(management.asked) == 2


async def test_account_that_never_stops_changing_is_refused_for_now() -> None:
    """After three outdated answers the request is refused for now."""
    management = Management(GRANT)

    async def restless(question: Question, domain: str) -> ValidateTunnelPeerResponse:
        management.generation += 1
        return GRANT

    management.ask = restless  # type: ignore[method-assign]
    async with running(management) as validations:
        with pytest.raises(AccountChanging):
            await validations.validate(ALICE, "wiki.example")


async def test_waiters_share_one_question_and_the_first_ones_leaving_fails_nobody() -> None:
    """Concurrent callers share one RPC, and the cancellation of one does not fail the others."""
    management = Management(GRANT)
    management.open.clear()
    async with running(management) as validations, asyncio.TaskGroup() as group:
        first = group.create_task(validations.validate(ALICE, "wiki.example"))
        await management.asking.wait()
        second = group.create_task(validations.validate(ALICE, "wiki.example"))
        first.cancel()
        await asyncio.wait((first,))
        management.open.set()

        assert (await second).valid
        assert len(management.asked) == 1


async def test_failure_reaches_who_asked_and_ends_nothing_else() -> None:
    """A failed call fails its waiters; the next question makes a new call."""
    management = Management(ManagementTimeout("late"), GRANT)
    async with running(management) as validations:
        with pytest.raises(ManagementTimeout):
            await validations.validate(ALICE, "wiki.example")

        assert (await validations.validate(ALICE, "wiki.example")).valid


async def test_peer_that_asks_too_often_must_wait() -> None:
    """A peer has a burst and a rate of its own, which do not affect other peers."""
    management = Management(DENIAL)
    async with running(management, burst=2) as validations:
        await validations.validate(ALICE, "wiki.example")
        await validations.validate(ALICE, "wiki.example")
        with pytest.raises(TooManyQuestions) as refused:
            await validations.validate(ALICE, "wiki.example")
        assert refused.value.retry_after >= 1

        await validations.validate(Question(ALICE.account, PublicKey("bob"), "100.64.0.8", ALICE.host), "wiki.example")
        management.now = 0.2
        await validations.validate(ALICE, "wiki.example")

        assert len(management.asked) == 4


async def test_grants_kept_for_an_account_are_bounded() -> None:
    """The oldest goes first, so that one account cannot fill the memory."""
    management = Management(GRANT)
    async with running(management, per_account=2, burst=10) as validations:
        hosts = [Question(ALICE.account, ALICE.peer, ALICE.address, f"{i}.example") for i in range(3)]
        for question in hosts:
            await validations.validate(question, question.host)
        assert repr(validations) == "Validations(kept=2, under_way=0)"

        await validations.validate(hosts[2], hosts[2].host)
        assert len(management.asked) == 3
        await validations.validate(hosts[0], hosts[0].host)

        assert len(management.asked) == 4


def about(*hosts: int) -> list[Question]:
    return [Question(ALICE.account, ALICE.peer, ALICE.address, f"{host}.example") for host in hosts]


@pytest.mark.parametrize("ended", ["the account changed", "its time was over"])
async def test_a_grant_that_ended_is_asked_for_again_on_us(ended: str) -> None:
    """The renewal of an expired grant does not count against the peer's rate, however many expire at once."""
    management = Management(GRANT)
    async with running(management, per_account=10, burst=3) as validations:
        for number, question in enumerate(about(*range(9))):
            management.now = float(number)
            assert (await validations.validate(question, question.host)).valid
        if ended == "the account changed":
            management.generation += 1
        else:
            management.now = 400.0
            await validations.validate(about(20)[0], "d")
        for question in about(*range(9)):
            assert (await validations.validate(question, question.host)).valid
        for question in about(30, 31):
            await validations.validate(question, question.host)
        with pytest.raises(TooManyQuestions):
            await validations.validate(about(32)[0], "d")


async def test_a_grant_that_ended_pays_for_one_question() -> None:
    """If the renewal gives no grant, the next question counts against the peer's rate."""
    management = Management(GRANT, ManagementTimeout("late"))
    async with running(management, burst=3) as validations:
        await validations.validate(ALICE, "wiki.example")
        management.generation += 1
        for _ in range(3):
            with pytest.raises(ManagementTimeout):
                await validations.validate(ALICE, "wiki.example")
        with pytest.raises(TooManyQuestions):
            await validations.validate(ALICE, "wiki.example")


async def test_asking_again_for_an_open_exchange_is_on_us() -> None:
    """A revalidation by the proxy does not count against the peer's rate, also without a cached grant."""
    management = Management(GRANT)
    async with running(management, per_account=1, burst=2) as validations:
        for question in about(1, 2):
            await validations.validate(question, question.host)
        for question in about(*range(10)):
            assert (await validations.validate(question, question.host, ours=True)).valid
        with pytest.raises(TooManyQuestions):
            await validations.validate(about(20)[0], "d")


async def test_a_change_under_a_question_costs_the_peer_one() -> None:
    """A repeated question after a change of the account counts once against the peer's rate."""
    management = Management(DENIAL)

    async def restless(question: Question, domain: str) -> ValidateTunnelPeerResponse:
        management.generation += management.generation % 3 != 2
        return DENIAL

    management.ask = restless  # type: ignore[method-assign]
    async with running(management, burst=3) as validations:
        for _ in range(3):
            management.generation = 0
            assert not (await validations.validate(ALICE, "wiki.example")).valid
        with pytest.raises(TooManyQuestions):
            await validations.validate(ALICE, "wiki.example")
