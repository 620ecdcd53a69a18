"""Logins at the identity provider: the place where agents begin, and the callback, to which the provider redirects
browsers with a state and a code instead of a token."""

import logging
from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from netbird_host.sources import source_of
from netbird_management.login.identity_provider import LoginRefused, ProviderFailed
from netbird_management.model.errors import BadRequest, NotFound
from netbird_management.rest import shapes
from netbird_management.rest.client_address import client_address
from netbird_management.rest.context import Context, InContext
from netbird_management.rest.wire import ApiResponse

router = APIRouter(tags=["reverse-proxy"])
_log = logging.getLogger(__name__)


@router.get("/agent-login", response_model=shapes.AgentLogin)
async def agent_login(context: InContext) -> Response:
    """The identity provider at which users of agents log in. Needs no token, as a user without a peer has none yet."""
    if context.agent_login is None:
        raise NotFound("no identity provider is configured")
    return ApiResponse(asdict(context.agent_login))


@router.get(
    "/reverse-proxy/callback",
    status_code=302,
    response_class=RedirectResponse,
    response_description="Back to the service",
    responses={"4XX": {"description": "Refused"}, "5XX": {"description": "The identity provider is unavailable"}},
)
async def callback(request: Request, context: InContext, state: str = "", code: str = "", error: str = "") -> Response:
    """Completes a login and redirects the browser to the service.

    Only failures count against the client's address, as many users may share it.
    """
    source = source_of(client_address(request, context.trusted_proxies))
    if context.callbacks.is_empty(source):
        context.state.count("logins_refused_at_callback")
        return _text(429, "too many failed logins from this address; try again in a minute")
    answer = await _finished(context, state, code, error)
    if answer.status_code != 302:
        context.callbacks.take(source)
    return _private(answer)


async def _finished(context: Context, state: str, code: str, error: str) -> Response:
    if context.sign_on is None:
        return _text(404, "no identity provider is configured")
    try:
        place = await context.sign_on.finish(state, code=code, error=error)
    except BadRequest as refused:
        return _text(400, refused.message)
    except LoginRefused as refused:
        _log.warning("login.provider.refused", extra={"reason": str(refused)})
        return _text(401, "the identity provider's response is not valid")
    except ProviderFailed as failed:
        _log.warning("login.provider.failed", extra={"reason": str(failed)})
        return _text(500, "the identity provider is unavailable")
    return RedirectResponse(place, status_code=302)


def _text(status: int, text: str) -> Response:
    return _private(PlainTextResponse(text + "\n", status_code=status))


def _private(answer: Response) -> Response:
    answer.headers["cache-control"] = "no-store"
    answer.headers["referrer-policy"] = "no-referrer"
    answer.headers["x-content-type-options"] = "nosniff"
    return answer
