"""A store, settings, mappings and a plugin of the first version start unchanged. Nobody edits its files in `first/`.

The store was filled through the API of that version by its own processes; `answers.json` holds what its API answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

FIRST = Path(__file__).parent / "first"
VOLATILE = {
    "status": "presence of proxies and peers, which are not running here",
    "last_login": "signing in changes it",
    "last_seen": "presence",
    "last_used": "reading the answers uses a token",
    "connected": "presence",
    "validated": "a name is proved again",
    "state": "setup keys expire",
    "domain": "the account's own is the provider's",
}
"""Members that time changes, each with its reason; everything else that was answered then is answered now."""
SERVICES = "/api/reverse-proxies/services"
SERVED = '"event":"proxy.ready"'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The files of that version with their placeholders filled in, and the certificates and token they name."""
    authority = trustme.CA()
    issued = authority.issue_cert("*.px.example", "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    (tmp_path / "tls.key").chmod(0o600)
    (tmp_path / "token").write_text("nbx_cKxNNhIP6OfPxwS8J0iQjsRWVsn3on2DF7Kg")
    shutil.copytree(FIRST / "store", tmp_path / "store")
    (tmp_path / "store").chmod(0o700)
    (tmp_path / "store" / "store.key").chmod(0o600)
    for name in ("proxy.toml", "run.toml", "management.toml", "mappings.toml"):
        (tmp_path / name).write_text((FIRST / name).read_text().replace("{directory}", str(tmp_path)))
    return tmp_path


def environment() -> dict[str, str]:
    """The plugin of that version is installed by being on the path, with its entry points beside it."""
    path = os.pathsep.join(filter(None, (str(FIRST / "plugin"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def program(host: str) -> list[str]:
    return [str(Path(sys.executable).with_name(host))]


async def check(host: str, config: Path) -> tuple[int, str]:
    """The exit code of `check`, and everything it printed."""
    process = await asyncio.create_subprocess_exec(
        *program(host),
        "check",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(),
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@asynccontextmanager
async def running(host: str, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, with its output on one pipe; ended politely."""
    process = await asyncio.create_subprocess_exec(
        *program(host),
        "run",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(20):
            await process.communicate()


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    """The first line of output that contains `text`; all output so far where the process ends before."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(50):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if text in line:
                return line
    raise AssertionError("".join(lines))


def missing(before: Any, after: Any, at: str = "") -> list[str]:
    """Paths into `before` whose value `after` does not have. Lists of objects are compared by their ids."""
    if isinstance(before, dict):
        if not isinstance(after, dict):
            return [at]
        return [
            path
            for name, value in before.items()
            if name not in VOLATILE
            for path in missing(value, after.get(name), f"{at}.{name}")
        ]
    if isinstance(before, list) and before and isinstance(before[0], dict) and "id" in before[0]:
        by_id = {item["id"]: item for item in after or ()}
        return [path for item in before for path in missing(item, by_id.get(item["id"]), f"{at}[{item['id']}]")]
    return [] if before == after else [f"{at}: {before!r} is now {after!r}"]


@pytest.mark.parametrize(
    ("host", "settings"), [("netbird-proxy", "proxy.toml"), ("netbird-management", "management.toml")]
)
async def test_settings_are_accepted(place: Path, host: str, settings: str) -> None:
    """Every setting by its first name is still a setting of that name, or an alias of its new one."""
    (place / "mappings.toml").write_text((place / "mappings.toml").read_text().replace("{upstream}", "9"))

    code, output = await check(host, place / settings)

    assert (code, output if code else "") == (0, "")


async def test_a_store_opens_with_all_that_is_in_it(place: Path) -> None:
    """Migrations lose nothing: the API answers each thing as it did, and the tokens of that time are still good."""
    recorded = json.loads((FIRST / "answers.json").read_text())
    async with running("netbird-management", place / "management.toml") as process:
        ready = dict(part.split("=", 1) for part in (await line_with(process, "ready ")).split()[1:])
        async with httpx.AsyncClient(base_url=f"http://{ready['rest']}", timeout=20, trust_env=False) as client:
            for name in ("owner", "robot"):
                token = {"Authorization": f"Token {recorded['tokens'][name]}"}
                assert (await client.get("/api/users/current", headers=token)).status_code == 200
            owner = {"Authorization": f"Token {recorded['tokens']['owner']}"}
            lost = {}
            for path, before in recorded["answers"].items():
                answer = await client.get(path, headers=owner)
                assert answer.status_code == 200, (path, answer.text)
                if paths := missing(before, answer.json()):
                    lost[path] = paths
            [public] = [item for item in recorded["answers"][SERVICES] if item["name"] == "public"]
            edit = {**_body(public), "name": "refused"}
            refused = await client.put(f"{SERVICES}/{public['id']}", headers=owner, json=edit)

    assert lost == {}
    assert (refused.status_code, "first refuses this name" in refused.text) == (422, True)


def _body(service: dict[str, Any]) -> dict[str, Any]:
    """The members of a service's answer that a request for it has, too."""
    return {name: service[name] for name in ("name", "domain", "enabled", "targets")}


async def test_mappings_and_a_plugin_serve(place: Path) -> None:
    """The proxy serves the file of that time, with the plugin's guard, transform and endpoint at work."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    mappings = place / "mappings.toml"
    mappings.write_text(mappings.read_text().replace("{upstream}", str(port)))
    async with upstream, running("netbird-proxy", place / "run.toml") as process:
        ready = json.loads(await line_with(process, SERVED))
        address = ready["listening"][0].split()[-1] if isinstance(ready.get("listening"), list) else ready["listen"]
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=20, trust_env=False) as client:
            host = {"Host": "app.px.example"}
            answers = {
                path: (await client.get(path, headers={**host, "X-First": "forged"}))
                for path in ("/", "/api/x", "/closed/door", "/__netbird__/first/")
            }

    assert {path: reply.status_code for path, reply in answers.items()} == {
        "/": 200,
        "/api/x": 200,
        "/closed/door": 403,
        "/__netbird__/first/": 200,
    }
    assert answers["/__netbird__/first/"].text == "first endpoint"
    assert [head.split(b" ")[1] for head in heads] == [b"/", b"/v1/x"]
    assert all(b"x-first: stamped\r\n" in head and b"forged" not in head for head in heads)
    assert b"x-env: prod\r\n" in heads[0]
