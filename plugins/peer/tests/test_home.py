"""The state directory of `up`, and the options that are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from netbird_overlay.keys import StateUnusable
from netbird_peer.home import NETWORK_FILE, Network, default_directory, locked, network_of, prepare
from netbird_peer.peer_command import app

URL = "https://netbird.example.com"


def test_one_process_at_a_time_uses_a_directory(tmp_path: Path) -> None:
    """The lock ends with its holder."""
    with locked(tmp_path), pytest.raises(StateUnusable, match="another `netbird-peer up`"), locked(tmp_path):
        pytest.fail("both hold it")
    with locked(tmp_path):
        pass


def test_the_network_is_stored_and_what_is_given_replaces_it(tmp_path: Path) -> None:
    assert network_of(tmp_path, management_url=URL, hostname="a") == Network(URL, "a")
    assert network_of(tmp_path) == Network(URL, "a")
    assert network_of(tmp_path, hostname="b") == Network(URL, "b")
    assert json.loads((tmp_path / NETWORK_FILE).read_text()) == {"management_url": URL, "hostname": "b"}


@pytest.mark.parametrize("url", ["netbird.example.com", "ftp://netbird.example.com", "https://", "https:///x"])
def test_an_address_that_is_no_url_is_not_stored(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="is not an http"):
        network_of(tmp_path, management_url=url)
    assert not (tmp_path / NETWORK_FILE).exists()


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"url": 1}', '{"management_url": "x"}'])
def test_a_damaged_file_is_reported_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / NETWORK_FILE
    file.write_text(text)
    with pytest.raises(StateUnusable, match=NETWORK_FILE):
        network_of(tmp_path, management_url=URL)
    assert file.read_text() == text


def test_the_directory_is_private_and_in_the_users_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    directory = default_directory()
    prepare(directory)
    prepare(directory)

    assert directory == tmp_path / "s" / "netbird-peer"
    assert directory.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".local" / "state" / "netbird-peer"


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:1080", "192.0.2.1:1080", "[::]:1080", "localhost:1080", "1080", "127.0.0.1:x"]
)
def test_promise_6_socks_listens_on_loopback_only(listen: str) -> None:
    """A SOCKS server without authentication must not be reached from other machines."""
    result = CliRunner().invoke(app, ["socks", "--listen", listen, "--config", "/nowhere.conf"])

    assert result.exit_code == 1
    assert "/nowhere.conf" not in result.output
