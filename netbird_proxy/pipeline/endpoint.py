"""A plugin's own ASGI application under `/__netbird__/<plugin>/`, which answers in place of an upstream."""

from __future__ import annotations

import time
from urllib.parse import unquote

from netbird_host.containment import describe_error
from netbird_proxy.api.endpoints import EXCHANGE_STATE, Endpoint
from netbird_proxy.api.errors import BodyTooLarge, ClientGone, ExchangeError, StepFailed
from netbird_proxy.api.model import OWN_PATHS
from netbird_proxy.asgi import Message, Scope
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import without_others_cookies

_NEVER_SENT = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"))


class EndpointApplication:
    """Runs the endpoint of one plugin. Implements `pipeline.Forward`."""

    __slots__ = ("_endpoint", "_environment", "_root", "plugin")

    def __init__(self, plugin: str, endpoint: Endpoint, environment: Environment) -> None:
        self.plugin = plugin
        self._environment = environment
        self._endpoint = endpoint
        self._root = f"{OWN_PATHS}{plugin}"

    async def forward(self, exchange: Exchange, downstream: Downstream) -> None:
        """Run the endpoint until its answer is complete.

        Raises:
            StepFailed: the endpoint raised, sent no complete answer, or did not start one in time.
            ExchangeError: the request body could not be read.
        """
        began_reading = over = False
        begun, timeout = time.monotonic(), self._environment.endpoint_timeout

        async def receive() -> Message:
            nonlocal began_reading
            if over:
                raise ClientGone("its exchange is over")
            if began_reading and (downstream.exhausted or not _has_body(downstream)):
                return await downstream.receive()
            began_reading = True
            if not _has_body(downstream):
                downstream.exhausted = True
                return {"type": "http.request", "body": b"", "more_body": False}
            try:
                data = await downstream.read(exchange)
            except ClientGone:
                return {"type": "http.disconnect"}
            if exchange.bytes_received > self._endpoint.body_bytes:
                raise BodyTooLarge(f"the endpoint of {self.plugin} reads at most {self._endpoint.body_bytes} bytes")
            return {"type": "http.request", "body": data, "more_body": not downstream.exhausted}

        async def send(message: Message) -> None:
            if over:
                raise ClientGone("its exchange is over")
            if message["type"] == "http.response.start":
                if time.monotonic() - begun > timeout:
                    raise StepFailed(self.plugin, "endpoint", f"answered after more than {timeout:g} s")
                headers = [(name.lower(), value) for name, value in message.get("headers", ())]
                headers = without_others_cookies(headers, self.plugin, self._environment.cookie_owner)
                await downstream.start(
                    exchange, message["status"], [pair for pair in headers if pair[0] not in _NEVER_SENT]
                )
            elif message["type"] == "http.response.body":
                body = b"" if exchange.method == "HEAD" else message.get("body", b"")
                exchange.bytes_sent += len(body)
                if message.get("more_body", False):
                    await downstream.send({"type": "http.response.body", "body": body, "more_body": True})
                else:
                    await downstream.finish(body)
            else:
                raise ValueError(f"the message type {message['type']!r} is not supported")

        async def run() -> None:
            exchange.show(self.plugin)
            exchange.query = exchange.full_query
            await self._endpoint.app(self._scope(exchange), receive, send)

        try:
            # In a task of its own: an endpoint that ignores its cancellation must not keep the client waiting.
            await self._environment.hung_steps.bounded(
                run(), timeout=timeout, grace=self._environment.grace, goes_on=lambda: downstream.started
            )
        except ExchangeError:
            raise
        except Exception as exc:
            raise StepFailed(self.plugin, "endpoint", describe_error(exc)) from exc
        finally:
            over = True
            exchange.hide()
        if not downstream.complete:
            raise StepFailed(self.plugin, "endpoint", "returned without a complete answer")

    def _scope(self, exchange: Exchange) -> Scope:
        host, _, port = exchange.authority.decode("latin-1").rpartition(":")
        usual = 443 if exchange.scheme == "https" else 80
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": exchange.http_version,
            "method": exchange.method,
            "scheme": exchange.scheme,
            "path": unquote(exchange.raw_path.decode("latin-1")),
            "raw_path": exchange.raw_path,
            "root_path": self._root,
            "query_string": exchange.query,
            "headers": list(exchange.headers.raw),
            "client": (exchange.client_address, 0) if exchange.client_address else None,
            "server": (host, int(port)) if host and port.isdigit() else (exchange.host, usual),
            "state": {EXCHANGE_STATE: exchange},
        }


def _has_body(downstream: Downstream) -> bool:
    return downstream.connection is None or downstream.connection.has_body
