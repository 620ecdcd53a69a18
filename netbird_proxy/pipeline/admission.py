"""The questions to the guards and authenticators of a route, in order.

Nothing but ALLOW opens a guard. A step that does anything else (raises, returns nonsense) fails its exchange; log and
trail name it, and the client does not learn it.
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
    """Asks the steps of one route about exchanges.

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
        """Ask the guards in order. None means: go on and dial.

        Every guard must say ALLOW; the first authenticator who knows the caller, or knows better, ends the question who
        it is, else who can, may log in.

        Raises:
            StepFailed: a step raised, or said what it may not.
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
                        continue  # who it is has been said
                elif offers and exchange.identity is None:
                    break
                if exchange.revalidating and not step.again:
                    continue
                if step.body_bytes:
                    await self._read_ahead(progress, step, exchange, downstream)
                progress.step = step
                if exchange.views:
                    exchange.show(step.plugin)
                said = await step.ask(exchange)
                exchange.body = None
                if time.monotonic() - progress.since > timeout:
                    raise step_failed(step, f"answered after more than {timeout:g} s")
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
            if progress.step is None or must_pass(exc):  # our own reading of the request body
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
        """Read the request body for a step that wants it. Its time is the client's, and so are its failures."""
        progress.step = None
        progress.stop()
        exchange.body = await downstream.read_ahead(exchange, step.body_bytes)
        progress.restart()

    def _offers(self, step: BoundAuthenticator, answer: Offer | tuple[object, ...], exchange: Exchange) -> list[Offer]:
        """What it offers. StepFailed for what is no offer, or leads elsewhere than to a plugin of ours."""
        given = answer if isinstance(answer, tuple) else (answer,)
        if not are_valid_offers(given):
            raise step_failed(step, "offered what is no way to log in")
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
                raise step_failed(step, "answered with headers that are no tuple of (name, value) in bytes")
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
                raise step_failed(step, "offered what is no way to log in")
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
    """The failure of a step; of the core itself where no step was running."""
    return StepFailed(step.plugin if step else "core", step.stage if step else "admit", message)
