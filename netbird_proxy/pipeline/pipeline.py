"""The stages of a route, in their order, and the one place that decides what a failure means.

Nothing but ALLOW opens a guard. Whatever else a step does (raises, overruns, answers nonsense, swallows its
cancellation) ends the exchange with 503, named in log and trail and never to the client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

import structlog

from netbird_host.containment import GRACE, LeftBehind, describe_error, must_pass
from netbird_proxy.api.errors import ClientGone, ExchangeError, ManagementError, StepFailed
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Challenge, Deny, Identity, Offer
from netbird_proxy.api.steps import Pages
from netbird_proxy.pipeline import core_answers as answers
from netbird_proxy.pipeline.bound import BoundAuthenticator, BoundGuard, BoundObserver
from netbird_proxy.pipeline.deadline import MOST, Asking, Deadline, resumed
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.heads import can_be_sent, without_others_cookies
from netbird_proxy.pipeline.offers import are_ways, prompt

log = structlog.get_logger("netbird_proxy.pipeline")

GUARD_TIMEOUT = 5.0
"""Seconds that the guards of one exchange have, together."""
ENDPOINT_TIMEOUT = 30.0

Count = Callable[[str], None]


class Forward(Protocol):
    """What follows when every guard has said ALLOW."""

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Runner(Protocol):
    """What a route runs: a pipeline, or a fixed answer where there is nothing to forward to."""

    async def run(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Environment:
    """What all pipelines of a process share.

    Attributes:
        timeout: seconds that the guards of one exchange have, together.
        grace: seconds that a cancelled guard has to end before its exchange is answered without it.
        endpoint_timeout: seconds that an endpoint has until its answer begins.
        left_behind: counts the tasks of steps that ignored their cancellation.
        count: adds one to a counter of the process.
        cookie_owner: cookie name → the plugin that declared it, "core", or "" for anybody's.
        pages: what makes the pages that browsers get; None leaves them with plain text.
    """

    def __init__(
        self,
        *,
        timeout: float = GUARD_TIMEOUT,
        grace: float = GRACE,
        endpoint_timeout: float = ENDPOINT_TIMEOUT,
        count: Count = lambda _name: None,
    ) -> None:
        self.timeout = timeout
        self.grace = grace
        self.endpoint_timeout = endpoint_timeout
        self.count = count
        self.left_behind = LeftBehind()
        self.pages: Pages | None = None
        self.cookie_owner: Callable[[bytes], str] = lambda _name: ""

    def page_failed(self, error: BaseException) -> None:
        self.count("page_failed")
        log.warning("page.failed", error=describe_error(error))


class Ending:
    """How every exchange ends, whoever answered it: an error is answered if it still can be, and observers run."""

    __slots__ = ("environment", "observers")

    def __init__(self, observers: Sequence[BoundObserver], environment: Environment) -> None:
        self.observers = tuple(observers)
        self.environment = environment

    async def fail(self, exchange: Exchange, downstream: Downstream, error: ExchangeError) -> None:
        """Answer a failure, or close the stream when the answer has begun. Never raises but for cancellation."""
        exchange.error = error
        headers: list[RawHeader] = []
        if isinstance(error, StepFailed):
            exchange.trail.append(TrailEntry(error.stage, error.plugin, "failed", str(error)))
            self.environment.count("step_failed")
            log.warning(
                "exchange.step_failed", exchange=exchange.id, plugin=error.plugin, stage=error.stage, error=str(error)
            )
            if isinstance(error.__cause__, ManagementError):
                headers.append((b"retry-after", b"%d" % max(1, round(error.__cause__.retry_after))))
        if isinstance(error, ClientGone):
            self.gone(exchange, downstream, error)
        elif downstream.started:
            if not downstream.complete:
                downstream.abort()
        else:
            try:
                await answers.fail(exchange, downstream, error, headers, self.environment)
            except Exception as exc:
                self.gone(exchange, downstream, ClientGone(f"{type(exc).__name__} while it was answered"))

    @staticmethod
    def gone(exchange: Exchange, downstream: Downstream, error: ClientGone) -> None:
        """Nobody reads an answer any more."""
        exchange.error = exchange.error or error
        exchange.status = exchange.status or error.status
        downstream.abort()

    def observe(self, exchange: Exchange) -> None:
        """Tell every observer, whatever the others do."""
        exchange.ended_ns = time.monotonic_ns()
        for bound in self.observers:
            try:
                said = bound.observe(exchange)
                if said is not None:
                    _discard(said)
                    raise TypeError(f"an observer returned {type(said).__name__}")
            except BaseException as exc:  # it is plain code: nobody can have cancelled it
                self.environment.count("observer_failed")
                log.warning(
                    "exchange.observer_failed", exchange=exchange.id, plugin=bound.plugin, error=describe_error(exc)
                )


class FixedAnswer:
    """A route without steps and without upstream: it answers one thing, and is observed like any other.

    No route, a closed route, a path that could be read in two ways.
    """

    __slots__ = ("answer", "ending")

    def __init__(self, answer: Deny | ExchangeError, ending: Ending) -> None:
        self.answer = answer
        self.ending = ending

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        await self.say(exchange, downstream, self.answer)

    async def say(self, exchange: Exchange, downstream: Downstream, answer: Deny | ExchangeError) -> None:
        """Answer, then observe; also when the client leaves meanwhile."""
        try:
            if isinstance(answer, Deny):
                exchange.denial = answer
                await answers.refuse(exchange, downstream, answer, self.ending.environment)
            else:
                await self.ending.fail(exchange, downstream, answer)
        except asyncio.CancelledError:
            self.ending.gone(exchange, downstream, ClientGone("it left while it was answered"))
            raise
        except Exception as exc:
            self.ending.gone(exchange, downstream, ClientGone(f"{type(exc).__name__} while it was answered"))
        finally:
            self.ending.observe(exchange)


class Pipeline:
    """The compiled stages of one route. Unused stages are empty tuples; `steps` are all that are asked, in order."""

    __slots__ = ("authenticate", "authorize", "ending", "forward", "restrict", "steps")

    def __init__(
        self,
        *,
        restrict: Sequence[BoundGuard],
        authenticate: Sequence[BoundAuthenticator],
        authorize: Sequence[BoundGuard],
        forward: Forward,
        ending: Ending,
    ) -> None:
        self.restrict = tuple(restrict)
        self.authenticate = tuple(authenticate)
        self.authorize = tuple(authorize)
        self.steps: tuple[BoundGuard | BoundAuthenticator, ...] = (*self.restrict, *self.authenticate, *self.authorize)
        self.forward = forward
        self.ending = ending

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        """Take an exchange from its route to its end. Raises nothing but the cancellation it was given."""
        ending = self.ending
        abandoned = False
        refusal: Deny | Challenge | None = None
        try:
            if self.steps:
                asking = Asking()
                admission = self.admit(asking, exchange, downstream)
                try:
                    waits_for = admission.send(None)
                except StopIteration as done:
                    # Mostly nobody has to wait, and what is never waited for needs no timer.
                    refusal = done.value
                else:
                    refusal = await self._in_time(admission, waits_for, asking, exchange, downstream)
            if refusal is None:
                await self.forward.forward(exchange, downstream)
            elif isinstance(refusal, Deny):
                await answers.refuse(exchange, downstream, refusal, ending.environment)
            else:
                await answers.challenge(exchange, downstream, refusal, ending.environment)
        except _Abandoned:
            abandoned = True
        except ExchangeError as error:
            await self._failed(exchange, downstream, error)
        except asyncio.CancelledError:
            if downstream.cut is None or not await self._cut(exchange, downstream, downstream.cut):
                ending.gone(exchange, downstream, ClientGone("the client left before its answer was complete"))
                raise
        except Exception as exc:
            await self._failed(exchange, downstream, self._unforeseen(exchange, downstream, exc))
        finally:
            if abandoned:
                ending.environment.left_behind.returned()
            else:
                ending.observe(exchange)

    async def readmit(self, exchange: Exchange, downstream: Downstream) -> Deny | Challenge | None:
        """Ask the guards again about an exchange that is under way, on a copy of it. None: it may go on.

        The caller bounds the time. Raises whatever a step raises, and StepFailed: it may not go on then either.
        """
        return await self.admit(Asking(), exchange, downstream)

    async def _cut(self, exchange: Exchange, downstream: Downstream, refusal: Deny) -> bool:
        """End an exchange that was cancelled because it may not go on. False: its client has left as well."""
        task = asyncio.current_task()
        if task is None or task.uncancel():
            return False
        exchange.denial = refusal
        if downstream.started:
            downstream.abort()
            return True
        try:
            await answers.refuse(exchange, downstream, refusal, self.ending.environment)
        except Exception as exc:
            self.ending.gone(exchange, downstream, ClientGone(f"{type(exc).__name__} while it was answered"))
        return True

    @staticmethod
    def _unforeseen(exchange: Exchange, downstream: Downstream, exc: Exception) -> ExchangeError:
        """What is nobody's step and no failure we know: a foreign server's word that the client left, or a bug."""
        if isinstance(exc, OSError) and downstream.connection is None:
            return ClientGone(f"{type(exc).__name__} while it was answered")
        log.exception("exchange.core_failed", exchange=exchange.id)
        failed = StepFailed("core", "forward", f"{type(exc).__name__}: {exc}")
        failed.__cause__ = exc
        return failed

    async def _failed(self, exchange: Exchange, downstream: Downstream, error: ExchangeError) -> None:
        try:
            await self.ending.fail(exchange, downstream, error)
        except asyncio.CancelledError:
            self.ending.gone(exchange, downstream, ClientGone("it left while it was answered"))
            raise

    async def _in_time(
        self,
        admission: Coroutine[Any, Any, Deny | Challenge | None],
        waits_for: object,
        asking: Asking,
        exchange: Exchange,
        downstream: Downstream,
    ) -> Deny | Challenge | None:
        """Go on with an admission that has to wait, under the deadline.

        Raises:
            StepFailed: a step failed, in whatever way.
            CancelledError: the client left.
            _Abandoned: time ran out, the step still hung, and the exchange has been answered without this task.
        """
        shared = self.ending.environment
        # Our own listener knows its task; to ask for the current one is a system call on 3.11.
        connection = downstream.connection
        task = asyncio.current_task() if connection is None else connection.task
        assert task is not None, "the application runs in a task"  # noqa: S101 - narrows; asyncio promises it
        deadline = Deadline(shared.timeout, shared.grace, shared.left_behind, self, asking, exchange, downstream, task)
        refusal: Deny | Challenge | None = None
        try:
            refusal = await resumed(admission, waits_for)
        except asyncio.CancelledError:
            if not deadline.expired:
                raise
        except StepFailed as failed:
            if not deadline.expired:
                raise
            log.debug("exchange.late_failure", exchange=exchange.id, error=str(failed))
        finally:
            deadline.stop()
        if deadline.abandoned:
            raise _Abandoned
        if deadline.expired:
            if not task.uncancel():
                raise self._step_failed(deadline.blamed, f"did not answer within {shared.timeout:g} s")
        elif not task.cancelling():
            return refusal
        # The client left, and a step swallowed the cancellation that said so. Its answer counts for nothing, and nobody
        # waits for one.
        raise asyncio.CancelledError

    async def abandoned(self, deadline: Deadline, exchange: Exchange, downstream: Downstream) -> None:
        """What the timer does for an exchange whose own task hangs in a step."""
        exchange.hide()
        self.ending.environment.count("step_left_behind")
        error = self._step_failed(deadline.blamed, "hangs and ignores its cancellation")
        try:
            await self.ending.fail(exchange, downstream, error)
        finally:
            self.ending.observe(exchange)

    @staticmethod
    def _step_failed(step: BoundGuard | BoundAuthenticator | None, message: str) -> StepFailed:
        return StepFailed(step.plugin if step else "core", step.stage if step else "admit", message)

    async def admit(self, asking: Asking, exchange: Exchange, downstream: Downstream) -> Deny | Challenge | None:
        """Ask the guards in order. None means: go on and dial.

        Every guard must say ALLOW; the first authenticator who knows the caller, or knows better, ends the question who
        it is, else who can, may log in.

        Raises:
            StepFailed: a step raised, or said what it may not.
            CancelledError: the task was cancelled.
        """
        offers: list[Offer] = []
        timeout = self.ending.environment.timeout
        try:
            if self.ending.environment.left_behind.count >= MOST:
                self.ending.environment.count("guards_not_asked")
                raise self._step_failed(None, "too many steps hang")
            for step in self.steps:
                if isinstance(step, BoundAuthenticator):
                    if exchange.identity is not None:
                        continue  # who it is has been said
                elif offers and exchange.identity is None:
                    break
                if exchange.asked_again and not step.again:
                    continue
                if step.body_bytes:
                    await self._read_ahead(asking, step, exchange, downstream)
                asking.step = step
                if exchange.views:
                    exchange.show(step.plugin)
                said = await step.ask(exchange)
                exchange.body = None
                if time.monotonic() - asking.since > timeout:
                    raise self._step_failed(step, f"answered after more than {timeout:g} s")
                if said is step.passes:
                    exchange.trail.append(step.passed)
                elif isinstance(step, BoundGuard):
                    return self._refusal(step, said, exchange)
                elif isinstance(said, Identity):
                    exchange.identity, entry = step.stamped(said)
                    exchange.trail.append(entry)
                elif step.phase == "prompt" and isinstance(said, Offer | tuple):
                    offers += self._offers(step, said, exchange)
                else:
                    return self._refusal(step, said, exchange)
        except StepFailed:
            raise
        except BaseException as exc:
            if asking.step is None or must_pass(exc):  # our own reading of the request body
                raise
            raise self._step_failed(asking.step, describe_error(exc)) from exc
        finally:
            if exchange.views:
                exchange.hide()
        asking.step = None
        return prompt(exchange, offers) if offers and exchange.identity is None else None

    @staticmethod
    async def _read_ahead(
        asking: Asking, step: BoundGuard | BoundAuthenticator, exchange: Exchange, downstream: Downstream
    ) -> None:
        """Read the request body for a step that wants it. Its time is the client's, and so are its failures."""
        asking.step = None
        asking.stop()
        exchange.body = await downstream.read_ahead(exchange, step.body_bytes)
        asking.restart()

    def _offers(self, step: BoundAuthenticator, answer: Offer | tuple[object, ...], exchange: Exchange) -> list[Offer]:
        """What it offers. StepFailed for what is no offer, or leads elsewhere than to a plugin of ours."""
        given = answer if isinstance(answer, tuple) else (answer,)
        if not are_ways(given):
            raise self._step_failed(step, "offered what is no way to log in")
        offers = [one for one in given if isinstance(one, Offer)]
        exchange.trail.append(TrailEntry("authenticate", step.plugin, "offer", ", ".join(one.method for one in offers)))
        return offers

    def _refusal(self, step: BoundGuard | BoundAuthenticator, verdict: object, exchange: Exchange) -> Deny | Challenge:
        """What a step said instead of letting the exchange on.

        Raises:
            StepFailed: it is neither a Deny nor a Challenge that can be answered.
        """
        if isinstance(verdict, Deny | Challenge) and verdict.headers:
            if not can_be_sent(verdict.headers):
                raise self._step_failed(step, "answered with headers that are no tuple of (name, value) in bytes")
            owner_of = self.ending.environment.cookie_owner
            verdict = replace(verdict, headers=tuple(without_others_cookies(verdict.headers, step.plugin, owner_of)))
        if isinstance(verdict, Deny) and 400 <= verdict.status <= 599:
            exchange.denial = verdict
            exchange.trail.append(
                TrailEntry(step.stage, step.plugin, f"deny {verdict.code}", verdict.reason, verdict.facts)
            )
            return verdict
        if isinstance(verdict, Challenge) and 200 <= verdict.status <= 599:
            if verdict.offers and not are_ways(verdict.offers):
                raise self._step_failed(step, "offered what is no way to log in")
            exchange.trail.append(TrailEntry(step.stage, step.plugin, f"challenge {verdict.code}", verdict.reason))
            if verdict.offers and verdict.status == 401 and not (verdict.body or verdict.headers):
                return prompt(exchange, verdict.offers)
            return verdict
        _discard(verdict)
        if isinstance(verdict, Deny | Challenge):
            raise self._step_failed(step, f"answered with status {verdict.status}")
        expected = "Identity, Deny, Challenge, Offer or None" if step.stage == "authenticate" else "ALLOW or a Deny"
        raise self._step_failed(step, f"returned {type(verdict).__name__}: return {expected}")


class _Abandoned(BaseException):
    """This task's exchange has been answered without it."""


def _discard(said: object) -> None:
    """Close a coroutine that nobody awaited, so that it does not warn from the garbage collector."""
    if asyncio.iscoroutine(said):
        said.close()
