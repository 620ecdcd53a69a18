"""The stages of a route, in their order, and the one place that decides what a failure means.

Nothing but ALLOW opens a guard. Whatever else a step does (raises, overruns, answers nonsense, swallows its
cancellation) ends the exchange with 503, named in log and trail and never to the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import structlog

from netbird_proxy.api.errors import ClientGone, ExchangeError, StepFailed
from netbird_proxy.api.model import Challenge, Deny
from netbird_proxy.pipeline import core_answers as answers
from netbird_proxy.pipeline.admission import Admission, step_failed
from netbird_proxy.pipeline.bound import BoundAuthenticator, BoundGuard
from netbird_proxy.pipeline.deadline import AdmissionProgress, Deadline, resumed
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Ending
from netbird_proxy.pipeline.exchange import Exchange

log = structlog.get_logger("netbird_proxy.pipeline")


class Forward(Protocol):
    """What follows when every guard has said ALLOW."""

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Pipeline:
    """The compiled stages of one route. Unused stages are empty tuples; `steps` are all that are asked, in order."""

    __slots__ = ("admission", "authenticate", "authorize", "ending", "forward", "restrict", "steps")

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
        self.admission = Admission(self.steps, ending.environment)
        self.forward = forward
        self.ending = ending

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        """Take an exchange from its route to its end. Raises nothing but the cancellation it was given."""
        ending = self.ending
        abandoned = False
        refusal: Deny | Challenge | None = None
        try:
            if self.steps:
                progress = AdmissionProgress()
                admission = self.admission.ask(progress, exchange, downstream)
                try:
                    waits_for = admission.send(None)
                except StopIteration as done:
                    # Mostly nobody has to wait, and what is never waited for needs no timer.
                    refusal = done.value
                else:
                    refusal = await self._in_time(admission, waits_for, progress, exchange, downstream)
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
                ending.environment.hung_steps.returned()
            else:
                ending.observe(exchange)

    async def revalidate(self, exchange: Exchange, downstream: Downstream) -> Deny | Challenge | None:
        """Ask the guards again about an exchange that is under way, on a copy of it. None: it may go on.

        The caller bounds the time. Raises whatever a step raises, and StepFailed: it may not go on then either.
        """
        return await self.admission.ask(AdmissionProgress(), exchange, downstream)

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
        progress: AdmissionProgress,
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
        deadline = Deadline(shared.timeout, shared.grace, shared.hung_steps, self, progress, exchange, downstream, task)
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
                raise step_failed(deadline.blamed, f"did not answer within {shared.timeout:g} s")
        elif not task.cancelling():
            return refusal
        # The client left, and a step swallowed the cancellation that said so. Its answer counts for nothing, and nobody
        # waits for one.
        raise asyncio.CancelledError

    async def abandoned(self, deadline: Deadline, exchange: Exchange, downstream: Downstream) -> None:
        """What the timer does for an exchange whose own task hangs in a step."""
        exchange.hide()
        self.ending.environment.count("step_left_behind")
        error = step_failed(deadline.blamed, "hangs and ignores its cancellation")
        try:
            await self.ending.fail(exchange, downstream, error)
        finally:
            self.ending.observe(exchange)


class _Abandoned(BaseException):
    """This task's exchange has been answered without it."""
