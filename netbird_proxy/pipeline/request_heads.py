"""Request heads to one upstream: the engine reads the client's fields, then the plugins' transforms change the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from netbird_host.containment import describe_error
from netbird_host.http_fields import TOKEN
from netbird_http import Draft, OutgoingRules, Unsendable, WrittenHead
from netbird_proxy.api.errors import BadRequest, RouteRefused, StepFailed
from netbird_proxy.api.headers import RawHeader, fold
from netbird_proxy.api.model import Address, RouteSpec, Upstream
from netbird_proxy.pipeline.bound import BoundTransform
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import FIELD_VALUE, HeadRules

_TARGET_PATH = re.compile(rb"/[!-~]*")


class RequestHeads:
    """Writes the request heads for one upstream of one route."""

    def __init__(
        self, spec: RouteSpec, upstream: Upstream, rules: HeadRules, transforms: Sequence[BoundTransform] = ()
    ) -> None:
        """Raises RouteRefused for a target path or a custom header that cannot be sent."""
        path, _, query = upstream.path.partition(b"?")
        if not _TARGET_PATH.fullmatch(upstream.path) or b"#" in upstream.path:
            raise RouteRefused(f"the target path {upstream.path.decode('latin-1')!r} cannot be sent")
        for name, value in upstream.custom_headers:
            if not TOKEN.fullmatch(name) or not FIELD_VALUE.fullmatch(value):
                raise RouteRefused(f"the custom header {name.decode('latin-1')!r} cannot be sent")
        self.rules = rules
        self._transforms = tuple(transforms)
        self._outgoing = OutgoingRules(
            path=path,
            query=query,
            cut=len(spec.prefix) if spec.strip_prefix and spec.prefix != b"/" else 0,
            host=None if spec.pass_host_header else host_field(upstream),
            owners=rules.owners,
            cookies=list(rules.cookies.items()),
            custom=list(upstream.custom_headers),
            pseudonym=rules.pseudonym,
        )
        self._custom_names = frozenset(fold(name) for name, _ in upstream.custom_headers)

    def write(self, exchange: Exchange, carried_body: bool | None) -> WrittenHead:
        """The head for one exchange.

        Args:
            carried_body: true if the listener expects a body; None under another server, where only the head shows it.

        Raises:
            BadRequest: two lengths, a length that is not a number, or a field with a line break.
            StepFailed: a transform raised, set a field that it may not set, or is an `async` function.
        """
        origin = exchange.origin
        try:
            draft = self._outgoing.begin(
                exchange.headers.raw,
                exchange.method,
                exchange.raw_path,
                exchange.query,
                exchange.empty_query,
                exchange.authority,
                exchange.scheme,
                origin.peer.host if origin is not None else exchange.client_address,
                exchange.kind == "websocket",
                exchange.http_version.startswith("1."),
                carried_body,
            )
            if self._transforms:
                self._transform(exchange, draft)
            return draft.written()
        except Unsendable as unsendable:
            raise BadRequest(str(unsendable)) from None

    def trailers(self, raw: Iterable[RawHeader]) -> list[RawHeader]:
        """Return the trailers of a request that may go upstream; a custom header does not come back as one."""
        return self.rules.trailers(raw, self._custom_names)

    def _transform(self, exchange: Exchange, draft: Draft) -> None:
        for transform in self._transforms:
            try:
                result = transform.apply(exchange, draft.hand(transform.plugin))
            except BaseException as exc:  # synchronous code: no cancellation can arrive here
                raise StepFailed(transform.plugin, "transform_request", describe_error(exc)) from exc
            if result is not None:
                close = getattr(result, "close", None)  # a coroutine would warn that it was never awaited
                if close is not None:
                    close()
                raise StepFailed(transform.plugin, "transform_request", f"returned {type(result).__name__}")


def host_field(upstream: Upstream) -> bytes:
    """Return the upstream's own `Host`, with its port unless it is the default of the scheme."""
    usual = {"http": 80, "https": 443}.get(upstream.scheme)
    host, port = upstream.address
    if port == usual:
        return (f"[{host}]" if ":" in host else host).encode("idna" if not host.isascii() else "ascii")
    return str(Address(host, port)).encode("ascii")
