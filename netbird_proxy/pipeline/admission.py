"""Admission: runs the guards and authenticators of a route for one exchange, in order.

A guard passes an exchange only by returning ALLOW. A step that raises or returns a value of another type fails the
exchange; the log and the trail name the step, and the client does not see its name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from netbird_host.containment import describe_error, must_pass
from netbird_proxy.api.errors import StepFailed
from netbird_proxy.api.exchange import TrailEntry
from netbird_proxy.api.model import Challenge, Deny, Identity, Offer
from netbird_proxy.pipeline.bound import BoundAuthenticator, BoundGuard
from netbird_proxy.pipeline.deadline import MAX_HUNG_STEPS, AdmissionProgress
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Environment, discard
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import can_be_sent, without_others_cookies
from netbird_proxy.pipeline.login_prompt import are_valid_offers, prompt


class Admission:
    """Runs the steps of one route for exchanges.

    Attributes:
        steps: guards and authenticators, in the order in which they run.
    """

    __slots__ = ("environment", "steps")

    def __init__(self, steps: Sequence[BoundGuard | BoundAuthenticator], environment: Environment) -> None:
        self.steps = tuple(steps)
        self.environment = environment

    async def ask(
        self, progress: AdmissionProgress, exchange: Exchange, downstream: Downstream
    ) -> Deny | Challenge | None:
        """Run the steps in order. None: the exchange is admitted, and may be forwarded.

        Every guard must return ALLOW. The first authenticator that returns an Identity ends authentication; if none
        does, the offers of the authenticators in phase `prompt` become one answer.

        Raises:
            StepFailed: a step raised, took too long, or returned a value that it may not return.
            CancelledError: the task was cancelled.
        """
        offers: list[Offer] = []
        timeout = self.environment.timeout
        try:
            if self.environment.hung_steps.count >= MAX_HUNG_STEPS:
                self.environment.count("guards_not_asked")
                raise step_failed(None, "too many steps hang")
            for step in self.steps:
                if isinstance(step, BoundAuthenticator):
                    if exchange.identity is not None:
                        continue  # the caller is identified
                elif offers and exchange.identity is None:
                    break
                if exchange.revalidating and not step.again:
                    continue
                if step.body_bytes:
                    await self._read_ahead(progress, step, exchange, downstream)
                progress.step = step
                if exchange.views:
                    exchange.show(step.plugin)
                verdict = await step.ask(exchange)
                exchange.body = None
                if time.monotonic() - progress.since > timeout:
                    raise step_failed(step, f"answered after more than {timeout:g} s")
                if verdict is step.passes:
                    exchange.trail.append(step.passed)
                elif isinstance(step, BoundGuard):
                    return self._refusal(step, verdict, exchange)
                elif isinstance(verdict, Identity):
                    exchange.identity, entry = step.stamped(verdict)
                    exchange.trail.append(entry)
                elif step.phase == "prompt" and isinstance(verdict, Offer | tuple):
                    offers += self._offers(step, verdict, exchange)
                else:
                    return self._refusal(step, verdict, exchange)
        except StepFailed:
            raise
        except BaseException as exc:
            if progress.step is None or must_pass(exc):  # the core was reading the request body
                raise
            raise step_failed(progress.step, describe_error(exc)) from exc
        finally:
            if exchange.views:
                exchange.hide()
        progress.step = None
        return prompt(exchange, offers) if offers and exchange.identity is None else None

    @staticmethod
    async def _read_ahead(
        progress: AdmissionProgress, step: BoundGuard | BoundAuthenticator, exchange: Exchange, downstream: Downstream
    ) -> None:
        """Read the request body for a step that declared `body_bytes`. The step's deadline does not run meanwhile."""
        progress.step = None
        progress.stop()
        exchange.body = await downstream.read_ahead(exchange, step.body_bytes)
        progress.restart()

    def _offers(self, step: BoundAuthenticator, answer: Offer | tuple[object, ...], exchange: Exchange) -> list[Offer]:
        """Return the offers of a step. Raises StepFailed for another value, or an offer that leads to another site."""
        answers = answer if isinstance(answer, tuple) else (answer,)
        if not are_valid_offers(answers):
            raise step_failed(step, "offered a login that is not valid")
        offers = [offer for offer in answers if isinstance(offer, Offer)]
        methods = ", ".join(offer.method for offer in offers)
        exchange.trail.append(TrailEntry("authenticate", step.plugin, "offer", methods))
        return offers

    def _refusal(self, step: BoundGuard | BoundAuthenticator, verdict: object, exchange: Exchange) -> Deny | Challenge:
        """Return the verdict of a step that ends the exchange, without cookies that the plugin may not set.

        Raises:
            StepFailed: the verdict is neither a Deny nor a Challenge that can be sent to a client.
        """
        if isinstance(verdict, Deny | Challenge) and verdict.headers:
            if not can_be_sent(verdict.headers):
                raise step_failed(step, "answered with headers that are not a tuple of (name, value) in bytes")
            owner_of = self.environment.cookie_owner
            verdict = replace(verdict, headers=tuple(without_others_cookies(verdict.headers, step.plugin, owner_of)))
        if isinstance(verdict, Deny) and 400 <= verdict.status <= 599:
            exchange.denial = verdict
            exchange.trail.append(
                TrailEntry(step.stage, step.plugin, f"deny {verdict.code}", verdict.reason, verdict.facts)
            )
            return verdict
        if isinstance(verdict, Challenge) and 200 <= verdict.status <= 599:
            if verdict.offers and not are_valid_offers(verdict.offers):
                raise step_failed(step, "offered a login that is not valid")
            exchange.trail.append(TrailEntry(step.stage, step.plugin, f"challenge {verdict.code}", verdict.reason))
            if verdict.offers and verdict.status == 401 and not (verdict.body or verdict.headers):
                return prompt(exchange, verdict.offers)
            return verdict
        discard(verdict)
        if isinstance(verdict, Deny | Challenge):
            raise step_failed(step, f"answered with status {verdict.status}")
        expected = "Identity, Deny, Challenge, Offer or None" if step.stage == "authenticate" else "ALLOW or a Deny"
        raise step_failed(step, f"returned {type(verdict).__name__}: return {expected}")


def step_failed(step: BoundGuard | BoundAuthenticator | None, message: str) -> StepFailed:
    """Return the failure of a step, or of the core if no step was running."""
    return StepFailed(step.plugin if step else "core", step.stage if step else "admit", message)
