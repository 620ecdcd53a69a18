"""The stages of a route, in their order, and the answers to their failures.

A guard passes an exchange only by returning ALLOW. A step that raises, takes too long, returns a value of another type
or ignores its cancellation ends the exchange with 503. The log and the trail name the step; the answer does not.
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
from netbird_proxy.pipeline.bound import (
    BoundAuthenticator,
    BoundGuard,
    BoundResponseTransform,
    BoundSelector,
    BoundTransform,
)
from netbird_proxy.pipeline.deadline import AdmissionProgress, Deadline, resumed
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Ending
from netbird_proxy.pipeline.exchange import Exchange

log = structlog.get_logger("netbird_proxy.pipeline")


class Forward(Protocol):
    """Answers an exchange that was admitted: a forwarder, or an endpoint."""

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None: ...


class Pipeline:
    """The compiled stages of one route.

    Attributes:
        restrict, authenticate, authorize: the steps of each stage; empty for a stage that is not used.
        steps: the steps of all three stages, in the order in which they run.
        transforms: the transforms of requests, the selector of upstreams, the transforms of responses; they are only
            shown here, and run elsewhere.
    """

    __slots__ = ("admission", "authenticate", "authorize", "ending", "forward", "restrict", "steps", "transforms")

    def __init__(
        self,
        *,
        restrict: Sequence[BoundGuard],
        authenticate: Sequence[BoundAuthenticator],
        authorize: Sequence[BoundGuard],
        forward: Forward,
        ending: Ending,
        transforms: Sequence[BoundTransform | BoundSelector | BoundResponseTransform] = (),
    ) -> None:
        self.restrict = tuple(restrict)
        self.authenticate = tuple(authenticate)
        self.authorize = tuple(authorize)
        self.steps: tuple[BoundGuard | BoundAuthenticator, ...] = (*self.restrict, *self.authenticate, *self.authorize)
        self.admission = Admission(self.steps, ending.environment)
        self.forward = forward
        self.ending = ending
        self.transforms = tuple(transforms)

    async def run(self, exchange: Exchange, downstream: Downstream) -> None:
        """Run an exchange to its end. Raises nothing but CancelledError, if the task was cancelled."""
        ending = self.ending
        downstream.transforms = ending.transforms
        abandoned = False
        refusal: Deny | Challenge | None = None
        try:
            if self.steps:
                progress = AdmissionProgress()
                admission = self.admission.ask(progress, exchange, downstream)
                try:
                    waits_for = admission.send(None)
                except StopIteration as done:
                    # Usually no step has to wait, and then no timer is needed.
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
        """Run the guards again for a copy of an open exchange. None: the exchange may go on.

        The caller bounds the time. Any exception, such as StepFailed, means that the exchange may not go on.
        """
        return await self.admission.ask(AdmissionProgress(), exchange, downstream)

    async def _cut(self, exchange: Exchange, downstream: Downstream, refusal: Deny) -> bool:
        """End an exchange that was cancelled because it may not go on. Returns False if its client has left as well."""
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
        """Return the failure for an unexpected exception: the client of another ASGI server left, or a defect."""
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
        """Resume an admission that has to wait, under the deadline.

        Raises:
            StepFailed: a step failed.
            CancelledError: the client left.
            _Abandoned: the step hung past its deadline, and the exchange was answered from another task.
        """
        shared = self.ending.environment
        # The listener stores its task; asyncio.current_task() costs a system call on 3.11.
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
        # The client left, and a step swallowed the cancellation. Its verdict counts for nothing.
        raise asyncio.CancelledError

    async def abandoned(self, deadline: Deadline, exchange: Exchange, downstream: Downstream) -> None:
        """Answer and observe an exchange whose own task hangs in a step. Called by the deadline."""
        exchange.hide()
        self.ending.environment.count("step_left_behind")
        error = step_failed(deadline.blamed, "hangs and ignores its cancellation")
        try:
            await self.ending.fail(exchange, downstream, error)
        finally:
            self.ending.observe(exchange)


class _Abandoned(BaseException):
    """The exchange of this task was answered from another task."""
