"""Every failure of the proxy, as one tree, with the answer that a client gets.

ProxyError
├─ SettingsError           wrong host settings                  → the process does not start
├─ PluginFailed            load, verify, lifespan               → names the plugin
├─ RouteRefused            by a hook or the codec, at apply     → a closed route, and a report to management
├─ ManagementError         a call to management failed          → guards close
│  └─ ManagementUnavailable, ManagementTimeout, ManagementRefused
└─ ExchangeError           one request failed; has side, status, code, retryable
   ├─ DownstreamError      ClientGone, BadRequest, BodyTooLarge, ReadTimeout, TooSlow, UpgradeUnsupported, StreamIdle
   ├─ UpstreamError        DialTimeout, DialRefused, DialUnreachable, DialFailed, AddressRefused, TunnelNotReady,
   │                       TlsFailed, HeadTimeout, ProtocolViolation, UpstreamClosed, UpstreamOverloaded
   └─ InternalError        StepFailed, RouteClosed, ForeignOrigin

A refusal is a value (`Deny`, `Challenge`); an exception is a failure. Exceptions of lower layers are chained and
wrapped once, where the layer changes. A message names the attempt, its object and the outcome, and is for the
operator; a client sees `code`, `sentence` and the exchange id.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Side = Literal["downstream", "upstream", "internal"]


class ProxyError(Exception):
    """Root of all exceptions that this proxy raises on purpose."""


class SettingsError(ProxyError):
    """The operator's settings cannot be used. The message names the setting, its source and the necessary change."""


class PluginFailed(ProxyError):
    """A plugin could not be loaded, verified, or entered."""

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin


class RouteRefused(ProxyError):
    """A mapping cannot be served as it is. The message goes to management as the service's error."""


class ManagementError(ProxyError):
    """A call to management returned no answer. Guards that need the answer refuse."""

    retry_after: float = 2.0
    """Seconds after which a retry may succeed; sent as `Retry-After`."""


class ManagementUnavailable(ManagementError):
    """Management could not be reached, or closed the connection during the call."""


class ManagementTimeout(ManagementError):
    """Management did not answer within the call's deadline."""


class ManagementRefused(ManagementError):
    """Management refused the call, for example because the token was revoked."""


# gRPC codes that report a broken connection or a failing management. INTERNAL is one: a GOAWAY in the middle of a
# stream arrives as INTERNAL. Every other code is a refusal by management.
_FAILURES: dict[str, type[ManagementError]] = {
    **dict.fromkeys(
        ("UNAVAILABLE", "CANCELLED", "ABORTED", "INTERNAL", "UNKNOWN", "DATA_LOSS", "RESOURCE_EXHAUSTED"),
        ManagementUnavailable,
    ),
    "DEADLINE_EXCEEDED": ManagementTimeout,
}


def management_error(call: str, code: str, details: str | None) -> ManagementError:
    """The error for a failed call to management.

    Args:
        call: the method, for the message.
        code: the name of the gRPC status code.
    """
    return _FAILURES.get(code, ManagementRefused)(f"{call}: {code}: {details}")


class ExchangeError(ProxyError):
    """One request failed.

    `retryable` describes the failure alone: true if nothing can have reached the upstream. The forwarder decides
    separately whether the request may be sent twice.
    """

    side: ClassVar[Side]
    status: ClassVar[int]
    code: ClassVar[str]
    sentence: ClassVar[str]
    retryable: ClassVar[bool] = False


class DownstreamError(ExchangeError):
    side = "downstream"


class ClientGone(DownstreamError):
    """The client closed the connection before its answer was complete. No answer is sent; the log records 499."""

    status = 499
    code = "client_gone"
    sentence = "The client closed the connection."


class BadRequest(DownstreamError):
    """The request violates a rule of HTTP on which the proxy and the upstream must agree."""

    status = 400
    code = "bad_request"
    sentence = "The request is malformed."


class BodyTooLarge(DownstreamError):
    status = 413
    code = "body_too_large"
    sentence = "The request body is larger than allowed."


class ReadTimeout(DownstreamError):
    status = 408
    code = "read_timeout"
    sentence = "The request did not arrive in time."


class TooSlow(DownstreamError):
    """The client's transfer rate stays below the minimum, so that it occupies resources that other clients need."""

    status = 408
    code = "too_slow"
    sentence = "The request arrived too slowly."


class UpgradeUnsupported(DownstreamError):
    status = 501
    code = "upgrade_unsupported"
    sentence = "Protocol upgrades are not supported here."


class StreamIdle(DownstreamError):
    """An upgraded connection carried no data in either direction for too long."""

    status = 408
    code = "stream_idle"
    sentence = "Nothing was sent for too long."


class UpstreamError(ExchangeError):
    side = "upstream"


class DialTimeout(UpstreamError):
    status = 504
    code = "dial_timeout"
    sentence = "The service could not be reached in time."
    retryable = True


class DialRefused(UpstreamError):
    status = 502
    code = "dial_refused"
    sentence = "The service refused the connection."
    retryable = True


class DialUnreachable(UpstreamError):
    status = 502
    code = "dial_unreachable"
    sentence = "The service cannot be reached."
    retryable = True


class DialFailed(UpstreamError):
    status = 502
    code = "dial_failed"
    sentence = "The service could not be reached."
    retryable = True


class AddressRefused(UpstreamError):
    """The proxy's operator does not allow the upstream's address. Nothing was dialed."""

    status = 502
    code = "address_refused"
    sentence = "The service's address is not allowed here."


class TunnelNotReady(UpstreamError):
    """The account's tunnel did not come up within the dial's deadline; nothing was sent."""

    status = 503
    code = "tunnel_not_ready"
    sentence = "The service's network is not connected yet."
    retryable = True


class TlsFailed(UpstreamError):
    """The TLS handshake with the upstream failed, or its certificate was not acceptable."""

    status = 502
    code = "tls_failed"
    sentence = "No secure connection to the service was possible."


class HeadTimeout(UpstreamError):
    status = 504
    code = "head_timeout"
    sentence = "The service did not answer in time."


class ProtocolViolation(UpstreamError):
    status = 502
    code = "protocol_violation"
    sentence = "The service gave an invalid answer."


class UpstreamClosed(UpstreamError):
    """The upstream closed before its answer was complete."""

    status = 502
    code = "upstream_closed"
    sentence = "The service closed the connection."


class UpstreamOverloaded(UpstreamError):
    """As many exchanges as allowed are already in flight there."""

    status = 503
    code = "upstream_overloaded"
    sentence = "The service is busy."
    retryable = True


class InternalError(ExchangeError):
    side = "internal"


class StepFailed(InternalError):
    """A plugin's step raised, exceeded its deadline, returned a wrong type or swallowed its cancellation."""

    status = 503
    code = "step_failed"
    sentence = "The request could not be checked."

    def __init__(self, plugin: str, stage: str, message: str) -> None:
        super().__init__(f"{stage} step of {plugin}: {message}")
        self.plugin = plugin
        self.stage = stage


class RouteClosed(InternalError):
    """The mapping behind this route was refused when it was applied."""

    status = 503
    code = "route_refused"
    sentence = "The service is not available."


class ForeignOrigin(InternalError):
    """The scope contains an origin that no registered listener issued, so none of its facts can be trusted."""

    status = 500
    code = "foreign_origin"
    sentence = "The request could not be accepted."


def leaves(root: type[ExchangeError] = ExchangeError) -> list[type[ExchangeError]]:
    """Every failure that can end an exchange; the test of the status table enumerates them."""
    classes: list[type[ExchangeError]] = []
    for child in root.__subclasses__():
        classes.extend(leaves(child) if child.__subclasses__() else [child])
    return classes


__all__ = [
    "AddressRefused",
    "DialFailed",
    "DialRefused",
    "DialTimeout",
    "DialUnreachable",
    "ManagementError",
    "ManagementRefused",
    "ManagementTimeout",
    "ManagementUnavailable",
    "ProxyError",
    "RouteRefused",
    "TlsFailed",
    "TunnelNotReady",
    "UpstreamError",
    "management_error",
]
