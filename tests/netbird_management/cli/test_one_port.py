"""The whole host as a process, with TLS, on one port: what an operator sets up for NetBird's agents."""

from __future__ import annotations

import base64
import json
import signal
import ssl
from pathlib import Path

import grpc.aio
import httpx
import trustme
from websockets.asyncio.client import connect

from netbird_wire.envelope import parse_key
from netbird_wire.relay import Auth, AuthResponse, decode, encode, peer_id
from netbird_wire.relay_tokens import RelayToken
from tests.netbird_management.cli.test_process import environment, program, running
from tests.netbird_management.grpc.conftest import soon
from tests.netbird_management.test_two_agents import Agent

__all__ = ["environment"]


async def test_agents_need_one_address(tmp_path: Path, environment: dict[str, str]) -> None:
    """REST makes the setup key; the agents log in, meet by signal and by relay, and show as connected, all by one port
    with one certificate; SIGTERM ends it in order while they are connected."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    chain, key, config = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "management.toml"
    leaf.cert_chain_pems[0].write_to_path(str(chain))
    leaf.private_key_pem.write_to_path(str(key))
    config.write_text(
        f'state_directory = "{tmp_path / "state"}"\ngrace = 2\nhosts = ["localhost"]\n'
        f'[rest]\nlisten = "127.0.0.1:0"\ncertificate = "{chain}"\nkey = "{key}"\ngrpc = true\n'
        '[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    code, out, _ = await program("init", "--email", "a@b.test", "--json", config=config)
    assert code == 0
    headers = {"authorization": f"Token {json.loads(out)['personal_access_token']}"}
    trusting = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    authority.configure_trust(trusting)
    async with running(config, environment) as (process, told):
        port = int(told["rest"].rpartition(":")[2])
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        body = {"name": "agents", "type": "reusable", "expires_in": 0, "auto_groups": [], "usage_limit": 0}
        async with (
            httpx.AsyncClient(base_url=f"https://localhost:{port}/api", headers=headers, verify=trusting) as client,
            grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel,
        ):
            setup_key = (await client.post("/setup-keys", json=body)).json()["key"]
            alice, bob = Agent("alice", channel, port), Agent("bob", channel, port)
            logins = [await agent.login(setup_key=setup_key) for agent in (alice, bob)]
            assert logins[0].netbirdConfig.signal.protocol == 3  # HTTPS
            for agent, login in zip((alice, bob), logins, strict=True):
                await agent.connect_signal(login)
                await agent.sync()
            token = logins[0].netbirdConfig.relay
            assert list(token.urls) == [f"rels://127.0.0.1:{port}"]
            async with connect(f"wss://localhost:{port}/relay", ssl=trusting, compression=None, proxy=None) as relay:
                presented = RelayToken(token.tokenPayload, base64.b64decode(token.tokenSignature))
                await relay.send(encode(Auth(peer_id(parse_key(alice.key)), presented)))
                answer = await soon(relay.recv())
                assert isinstance(answer, bytes)
                assert decode(answer) == AuthResponse(f"rels://127.0.0.1:{port}")
            shown = (await client.get("/peers")).json()
            assert {(peer["name"], peer["connected"], peer["connection_ip"]) for peer in shown} == {
                ("alice", True, "127.0.0.1"),
                ("bob", True, "127.0.0.1"),
            }
            process.send_signal(signal.SIGTERM)
            assert await soon(process.wait()) == 0
