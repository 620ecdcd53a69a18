"""An account's state on disk is private and stable; unreadable files are refused and never replaced."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trustme
from pydantic import ValidationError

from netbird_overlay.driver import open_socket
from netbird_overlay.engine import Endpoint
from netbird_overlay.keys import KEY_FILE, STATE_FILE, StateUnusable, TunnelState
from netbird_tunnel_netstack.settings import TunnelOptions, bind_account
from netbird_wire.envelope import format_key


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "acct-1"
    made.mkdir(mode=0o700)
    return made


def options(*ports: object, **more: str) -> TunnelOptions:
    return TunnelOptions.model_validate({"ports": list(ports) or 0, "bind": "127.0.0.1", **more})


def test_survives_a_restart(directory: Path) -> None:
    """Key, port and endpoints are the same when the account is opened again."""
    first = TunnelState.load(directory)
    with bind_account(options(), first) as sock:
        port = sock.getsockname()[1]
    first.endpoints[b"\x05" * 32] = Endpoint("192.0.2.7", 4711)
    first.save()

    second = TunnelState.load(directory)
    assert second.private_key == first.private_key
    assert second.endpoints == {b"\x05" * 32: Endpoint("192.0.2.7", 4711)}
    with bind_account(options(), second) as sock:
        assert sock.getsockname()[1] == port


def test_files_are_for_us_alone(directory: Path) -> None:
    """Both files have mode 0600 whatever the umask, and `repr` does not show the key."""
    before = os.umask(0)
    try:
        state = TunnelState.load(directory)
        state.save()
    finally:
        os.umask(before)
    assert {stat.S_IMODE((directory / name).stat().st_mode) for name in (KEY_FILE, STATE_FILE)} == {0o600}
    assert repr(state.private_key) not in repr(state)
    assert sorted(path.name for path in directory.iterdir()) == [KEY_FILE, STATE_FILE]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (KEY_FILE, b"not a key\n"),
        (KEY_FILE, b""),
        (KEY_FILE, b"\xff\xfe"),
        (STATE_FILE, b"{"),
        (STATE_FILE, b"[]"),
        (STATE_FILE, b'{"udp_port": 70000, "endpoints": {}}'),
        (STATE_FILE, b'{"udp_port": 51820, "endpoints": {"x": ["h", 1]}}'),
        (STATE_FILE, b'{"udp_port": 51820}'),
    ],
)
def test_damage_is_not_repaired_silently(directory: Path, file: str, content: bytes) -> None:
    """A damaged file is an error that names it, and stays as it is for the operator to look at."""
    TunnelState.load(directory).save()
    (directory / file).write_bytes(content)
    with pytest.raises(StateUnusable, match=file):
        TunnelState.load(directory)
    assert (directory / file).read_bytes() == content


def test_an_emptied_state_file_is_damage(directory: Path) -> None:
    """An empty state file is an error and not a first start: it contained a port that clients use."""
    TunnelState.load(directory).save()
    (directory / STATE_FILE).write_text("")
    with pytest.raises(StateUnusable, match=STATE_FILE):
        TunnelState.load(directory)


def test_a_lost_key_is_not_made_anew(directory: Path) -> None:
    """A missing key beside a state file is an error: a new key would cut off every client."""
    TunnelState.load(directory).save()
    (directory / KEY_FILE).unlink()
    with pytest.raises(StateUnusable, match="missing"):
        TunnelState.load(directory)
    assert not (directory / KEY_FILE).exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_an_open_key_is_refused(directory: Path, mode: int) -> None:
    """A key file that others can read is refused."""
    TunnelState.load(directory)
    (directory / KEY_FILE).chmod(mode)
    with pytest.raises(StateUnusable, match="chmod 0600"):
        TunnelState.load(directory)


def test_directory_has_to_be_ours_and_closed(directory: Path) -> None:
    """An open directory, a link to one, a file and nothing are all refused, each with its reason."""
    directory.chmod(0o750)
    with pytest.raises(StateUnusable, match="chmod 0700"):
        TunnelState.load(directory)
    directory.chmod(0o700)
    link = directory.parent / "link"
    link.symlink_to(directory)
    with pytest.raises(StateUnusable, match="not a directory"):
        TunnelState.load(link)
    with pytest.raises(StateUnusable, match="No such file"):
        TunnelState.load(directory / "none")


def test_a_known_port_that_is_taken_is_an_error(directory: Path) -> None:
    """The account does not move to another port behind the back of its clients."""
    state = TunnelState.load(directory)
    with bind_account(options(), state) as sock:
        assert state.udp_port == sock.getsockname()[1]
        with pytest.raises(StateUnusable, match=str(state.udp_port)):
            bind_account(options(), TunnelState.load(directory))


def test_first_free_port_is_taken(directory: Path) -> None:
    """A port that another account has is passed over, and what was found is stored before it is used."""
    with open_socket("127.0.0.1", 0) as taken, open_socket("127.0.0.1", 0) as freed:
        used, free = taken.getsockname()[1], freed.getsockname()[1]
        freed.close()
        state = TunnelState.load(directory)
        with bind_account(options(used, free), state):
            assert TunnelState.load(directory).udp_port == free


def test_no_free_port_is_an_error(directory: Path) -> None:
    """If all ports are in use, the start fails at once."""
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(StateUnusable, match=r"tunnel\.ports"):
        bind_account(options(taken.getsockname()[1]), TunnelState.load(directory))


def test_a_port_outside_the_setting_is_given_up(directory: Path) -> None:
    """A stored port outside the setting is replaced, as the operator changed the setting."""
    state = TunnelState.load(directory)
    state.udp_port = 9
    with open_socket("127.0.0.1", 0) as found:
        port = found.getsockname()[1]
        found.close()
        with bind_account(options(port), state) as sock:
            assert sock.getsockname()[1] == port


def test_sockets_take_both_families_unless_bound() -> None:
    """Without a local address a peer may come by IPv4 too."""
    with open_socket("", 0) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
        sock.settimeout(5)
        assert sock.recv(10) == b"x"


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("51820-51822", (51820, 51821, 51822)),
        (51820, (51820,)),
        ("51820", (51820,)),
        ([51820, "51830-51831", 51820], (51820, 51830, 51831)),
        (0, (0,)),
    ],
)
def test_ports_are_a_range_a_number_or_a_list(value: object, ports: tuple[int, ...]) -> None:
    """Each spelling means the same ports, each once."""
    assert TunnelOptions.model_validate({"ports": value}).ports == ports


@pytest.mark.parametrize("value", ["x", "5-3", "0-9", 70000, True, [], None, "1-2-3", 1.5])
def test_ports_that_are_none(value: object) -> None:
    """Invalid ports are refused when the settings are read."""
    with pytest.raises(ValidationError):
        TunnelOptions.model_validate({"ports": value})


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("vpn.example.com", "vpn.example.com:7"), ("2001:db8::1", "[2001:db8::1]:7"), ("[::1]", "[::1]:7"), ("", "")],
)
def test_endpoint_is_host_and_port(host: str, endpoint: str) -> None:
    """The endpoint has the form of WireGuard files, and is empty without a host."""
    assert TunnelOptions(endpoint_host=host).endpoint(7) == endpoint


@pytest.mark.parametrize("host", ["vpn.example.com:51820", "https://vpn.example.com", "a b"])
def test_endpoint_host_is_only_a_host(host: str) -> None:
    """A port or a URL is refused, as clients could not read the resulting files."""
    with pytest.raises(ValidationError):
        TunnelOptions(endpoint_host=host)


def test_a_preshared_key_is_a_key_or_none() -> None:
    """The key's text is checked at the start and never printed; an empty one is none."""
    text = format_key(b"\x07" * 32)
    made = options(preshared_key=text)
    assert made.preshared_key_bytes() == b"\x07" * 32
    assert text not in repr(made)
    assert options(preshared_key="").preshared_key_bytes() is None
    with pytest.raises(ValidationError) as caught:
        options(preshared_key="secret but no key")
    assert "must be a WireGuard key" in str(caught.value)


def test_roots_are_certificates_or_none(tmp_path: Path) -> None:
    """A file of the operator's authorities is read at the start of a tunnel; one that has none is named."""
    pem = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(pem))
    assert options(roots=str(pem)).read_roots() == pem.read_bytes()
    assert options(roots="").read_roots() is None
    for content in (b"", b"no certificate", b"\xff"):
        pem.write_bytes(content)
        with pytest.raises(StateUnusable, match=r"roots\.pem"):
            options(roots=str(pem)).read_roots()
    with pytest.raises(StateUnusable, match=r"absent\.pem"):
        options(roots=str(tmp_path / "absent.pem")).read_roots()
