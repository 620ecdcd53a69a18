"""A reload of running hosts: new files are in force, open connections go on, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from examples.demo.processes import BIN, Processes
from examples.demo.stack import free_port
from tests.e2e.alone import mapped, started


class Authority:
    """Writes certificates for localhost over one pair of files."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.roots = directory / "roots.pem"
        self.ca.cert_pem.write_to_path(str(self.roots))
        self.context = ssl.create_default_context(cafile=str(self.roots))

    def issue(self) -> int:
        """A new certificate in the files; its serial number."""
        made = self.ca.issue_cert("localhost", "127.0.0.1")
        self.cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        self.key.write_bytes(made.private_key_pem.bytes())
        return x509.load_pem_x509_certificates(self.cert.read_bytes())[0].serial_number

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """A connection, and the serial number of the certificate that it was shown."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.context, server_hostname="localhost")
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return reader, writer, x509.load_der_x509_certificate(shown).serial_number

    async def shown(self, port: int) -> int:
        _, writer, serial = await self.connect(port)
        writer.close()
        return serial


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"GET / HTTP/1.1\r\nhost: nobody.example.com\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    await reader.readexactly(int(head.lower().partition("content-length: ")[2].partition("\r\n")[0]))
    return head[9:12]


async def test_proxy_reloads_and_cuts_nothing(tmp_path: Path) -> None:
    """Certificates, log level, the access log's file; settings that need a restart are named; SIGHUP does the same."""
    authority, tls = Authority(tmp_path), free_port()
    first = authority.issue()
    lines = tmp_path / "access.log"
    extra = (
        f'[[listen]]\naddress = "127.0.0.1:{tls}"\ntls = true\n'
        f'[[tls.certificates]]\ncert = "{authority.cert}"\nkey = "{authority.key}"\n'
        f'[access_log]\noutput = "{lines}"\n[log]\nlevel = "info"\n[limits]\nkeep_alive = 60\n'
    )
    async with Processes(tmp_path / "logs") as processes:
        proxy = await started(processes, tmp_path, mapped(app=1), extra=extra)
        command = [str(BIN / "netbird-proxy"), "reload", "--config", str(proxy.config), "--json"]
        reader, writer, serial = await authority.connect(tls)
        assert serial == first

        second = authority.issue()
        settings = proxy.config.read_text()
        proxy.config.write_text(settings.replace('"info"', '"debug"').replace("keep_alive = 60", "keep_alive = 61"))
        code, output, _ = await processes.run(command)
        report = json.loads(output)
        assert (code, report["kept"], report["needs_restart"]) == (0, [], ["limits.keep_alive"])
        assert [line.split(",")[0] for line in report["done"]] == [
            "log: level debug",
            f"certificate {authority.cert}",
            f"access log {lines}",
        ]
        assert await authority.shown(tls) == second
        assert await get(reader, writer) == "404"  # the connection from before

        authority.cert.write_text("not a certificate")
        code, output, _ = await processes.run(command)
        assert (code, len(json.loads(output)["kept"])) == (1, 1)
        assert str(authority.cert) in json.loads(output)["kept"][0]
        assert await authority.shown(tls) == second

        third, seen = authority.issue(), len(proxy.process.lines)
        proxy.process.send(signal.SIGHUP)
        await proxy.process.until_line(r"host\.reloaded", start=seen)
        assert await authority.shown(tls) == third
        assert await get(reader, writer) == "404"
        writer.close()


async def test_management_reloads_its_certificates(tmp_path: Path) -> None:
    """Of both ports; what was open goes on; a changed setting that needs a restart is named."""
    authority = Authority(tmp_path)
    first = authority.issue()
    rest, grpc = free_port(), free_port()
    pair = f'certificate = "{authority.cert}"\nkey = "{authority.key}"\n'
    config = tmp_path / "management.toml"
    text = (
        f'state_directory = "{tmp_path / "state"}"\ngrace = 1\n[rest]\nlisten = "127.0.0.1:{rest}"\n{pair}'
        f'[grpc]\nlisten = "127.0.0.1:{grpc}"\n{pair}'
    )
    config.write_text(text)
    program = str(BIN / "netbird-management")
    async with Processes(tmp_path / "logs") as processes:
        management = await processes.start("management", [program, "run", "--config", str(config)])
        await management.until_line(r"^ready ")
        reader, writer, serial = await authority.connect(rest)
        assert (serial, await authority.shown(grpc)) == (first, first)

        second = authority.issue()
        config.write_text(text.replace("grace = 1", "grace = 2") + '[log]\nlevel = "debug"\n')
        code, output, _ = await processes.run([program, "reload", "--config", str(config)])
        assert code == 0, output
        assert output.splitlines() == [
            "done: log: level debug, format auto",
            f"done: certificate {authority.cert}",
            f"done: certificate {authority.cert}",
            "needs a restart: grace",
        ]
        assert (await authority.shown(rest), await authority.shown(grpc)) == (second, second)
        assert await get(reader, writer) == "404"
        writer.close()

        authority.key.write_text("not a key")
        code, output, _ = await processes.run([program, "reload", "--config", str(config)])
        assert (code, output.count("kept: ")) == (1, 2)
        assert (await authority.shown(rest), await authority.shown(grpc)) == (second, second)


def ignores_hangups(pid: int) -> bool:
    found = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) & 1)


@pytest.mark.parametrize("program", ["netbird-proxy", "netbird-management"])
async def test_hangups_end_no_host_at_any_moment(tmp_path: Path, program: str) -> None:
    """From before the first import to the last flush: only a signal that asks for the end ends the process."""
    config = tmp_path / "settings.toml"
    config.write_text(
        f'state_directory = "{tmp_path / "state"}"\nmappings_file = "{tmp_path / "mappings.toml"}"\n'
        f'[[listen]]\naddress = "127.0.0.1:0"\n[admin]\nsocket = "{tmp_path / "admin.sock"}"\n'
        if program == "netbird-proxy"
        else f'state_directory = "{tmp_path / "state"}"\n[rest]\nlisten = "127.0.0.1:0"\n'
        '[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    (tmp_path / "mappings.toml").write_text("mapping = []\n")

    async def hang_up(pid: int) -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, signal.SIGHUP)
                await asyncio.sleep(0.002)

    async with Processes(tmp_path / "logs") as processes:
        host = await processes.start("host", [str(BIN / program), "run", "--config", str(config)])
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            # A bare interpreter knows nothing of signals yet; from the program's first line on it ignores this one.
            while not ignores_hangups(host.pid):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
            hanging = group.create_task(hang_up(host.pid))
            await host.until_line(r"proxy\.ready|^ready ")
            await host.until_line(r"host\.reloaded")
            host.send(signal.SIGTERM)
            assert await host.handle.wait() == 0
            await hanging
