"""What a stranger sees who gets it wrong: one clear line a problem, no traceback, and an exit code that is not 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

PROXY = Path(sys.executable).with_name("netbird-proxy")
MANAGEMENT = Path(sys.executable).with_name("netbird-management")

GOOD = """
state_directory = "state"
[management]
url = "https://127.0.0.1:1"
token_file = "token"
domain = "proxy.example"
[[listen]]
address = "127.0.0.1:0"
"""
PLUGIN = """
from contextlib import asynccontextmanager
from netbird_proxy import Claim, PluginInfo, always, hookimpl
class Plugin:
    @hookimpl
    def describe(self): return PluginInfo({info})
    @hookimpl
    {hook}
"""
CLAIM = "claims=(Claim('auth.password', guards=always),)"
PLUGINS = {
    "raises": "raise RuntimeError('no database')",
    "waits": PLUGIN.format(info="", hook="async def restrict(self, route): return None"),
    "misspells": PLUGIN.format(info="", hook="def restirct(self, route): return None"),
    "invents": PLUGIN.format(info="", hook="def restrict(self, rout): return None"),
    "claims": PLUGIN.format(info=CLAIM, hook="def restrict(self): return None"),
    "claims_too": PLUGIN.format(info=CLAIM, hook="def restrict(self): return None"),
    "claims_nothing": PLUGIN.format(info="claims=(Claim('privat'),)", hook="def restrict(self): return None"),
    "cannot_start": PLUGIN.format(
        info="",
        hook="""def lifespan(self, proxy): return self.running()
    @asynccontextmanager
    async def running(self):
        raise OSError('no cache')
        yield""",
    ),
    "says_nothing": "class Plugin: pass",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory to start in, with a token, a state directory, and plugins that are wrong in one way each."""
    (tmp_path / "token").write_text("secret-token\n")
    (tmp_path / "state").mkdir(mode=0o700)
    for name, code in PLUGINS.items():
        (tmp_path / f"ex_{name}.py").write_text(code)
        info = tmp_path / f"ex_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ex-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[netbird_proxy]\n{name} = ex_{name}:Plugin\n")
    return tmp_path


def run(home: Path, *command: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NB_", "NETBIRD_"))}
    done = subprocess.run(
        command,
        cwd=home,
        env={**kept, "PYTHONPATH": str(home), "COLUMNS": "200", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def refused(home: Path, settings: str, *command: str, prefix: str = "netbird-proxy: ") -> list[str]:
    """What a start on these settings is refused with. Every line says who speaks."""
    (home / "proxy.toml").write_text(settings)
    code, out, err = run(home, PROXY, *(command or ("run",)), "--config", "proxy.toml")
    assert code == 2, (code, out, err)
    assert out == ""
    assert "Traceback" not in err
    assert "secret-token" not in err
    lines = err.splitlines()
    assert all(line.startswith(prefix) for line in lines), err
    return [line.removeprefix(prefix) for line in lines]


def changed(text: str, by: str, settings: str = GOOD) -> str:
    assert text in settings
    return settings.replace(text, by)


WRONG = {
    "an unknown setting": (
        changed("state_directory", "state_dir"),
        ["state_dir: unknown setting; did you mean state_directory? (file proxy.toml)"],
    ),
    "an unknown setting in a section": (
        changed("token_file", "token_fle"),
        ["management.token_fle: unknown setting; did you mean management.token_file? (file proxy.toml)"],
    ),
    "units that are none, two of them": (
        GOOD + '[limits]\nhead_timeout = "5 parsecs"\nhead_bytes = "64k"\n',
        [
            "limits.head_timeout: expected seconds as a number, or a text such as 500ms, 90s or 1m30s, "
            "not '5 parsecs' (file proxy.toml)",
            "limits.head_bytes: expected a whole number, not '64k' (file proxy.toml)",
        ],
    ),
    "no TOML": ("a = = b", ["proxy.toml: is not TOML: Invalid value (at line 1, column 5)"]),
    "no address": (
        changed('"127.0.0.1:0"', '"everywhere"'),
        [
            "listen[0].address: expected an address such as 127.0.0.1:8080, [::1]:8080 or :443, "
            "not 'everywhere' (file proxy.toml)"
        ],
    ),
    "nothing to listen on": (
        changed('[[listen]]\naddress = "127.0.0.1:0"\n', ""),
        ["settings: nothing to listen on: add a [[listen]] section or set private (file proxy.toml)"],
    ),
    "plain HTTP to management": (
        changed("https://", "http://"),
        [
            "management: url is http://, which shows the token to the network: use https:// or set allow_insecure "
            "(file proxy.toml)"
        ],
    ),
    "private without a tunnel plugin": (
        "private = true\n" + GOOD,
        [
            "private = true, but no plugin opens tunnels: add tunnel_netstack to `plugins`, or set private = false",
        ],
    ),
    "no token": (
        changed('"token"', '"nowhere"'),
        ["management.token_file: nowhere: No such file or directory"],
    ),
    "a certificate that is none": (
        GOOD + 'tls = true\n[[tls.certificates]]\ncert = "token"\nkey = "token"\n',
        ["tls.certificates: token and token are not a certificate and its key: "],
    ),
    "a certificate that is not there": (
        GOOD + 'tls = true\n[[tls.certificates]]\ncert = "crt"\nkey = "key"\n',
        ["tls.certificates: certificate crt: No such file or directory"],
    ),
    "a state directory that is a file": (
        changed('"state"', '"token"'),
        ["state_directory token is not a directory"],
    ),
}


FILES = ("no token", "a certificate that is none", "a state directory that is a file")
"""What a check could pass over, as nothing in the settings themselves is wrong."""


@pytest.mark.parametrize(("wrong", "command"), [*((one, "run") for one in WRONG), *((one, "check") for one in FILES)])
def test_wrong_settings_stop_the_start(home: Path, wrong: str, command: str) -> None:
    """Every problem at once, each with its setting and its source; `check` finds what `run` would."""
    settings, expected = WRONG[wrong]

    told = refused(home, settings, command)

    assert len(told) == len(expected)
    for line, start in zip(sorted(told), sorted(expected), strict=True):
        assert line.startswith(start)


WRONG_PLUGINS = {
    "nowhere": "plugin nowhere: is not installed; install it or remove it from the list (installed: ",
    "private_servce": "plugin private_servce: is not installed (did you mean private_service?); ",
    "raises": "plugin raises: importing ex_raises:Plugin raised RuntimeError: no database: fix it or remove it",
    "waits": "plugin waits: restrict is `async def`: hooks are plain `def`; code that awaits belongs in the step",
    "misspells": "plugin misspells: restirct is not a hook of this host (did you mean restrict?)",
    "invents": "plugin invents: restrict takes `rout`, which is not one of its arguments (did you mean route?)",
    "claims_nothing": "plugin claims_nothing: claims privat, which is not a field of a mapping",
    "cannot_start": "plugin cannot_start: lifespan could not start: OSError: no cache",
    "says_nothing": "plugin says_nothing: has no describe hooks: define exactly one `describe`",
}


@pytest.mark.parametrize("plugin", WRONG_PLUGINS)
def test_a_plugin_that_is_wrong_stops_the_start(home: Path, plugin: str) -> None:
    """The line names the plugin and says what to change; the proxy never runs without one that was asked for."""
    told = refused(home, f'plugins = ["{plugin}"]\n{GOOD}')

    assert len(told) == 1
    assert told[0].startswith(WRONG_PLUGINS[plugin])


def test_a_field_has_one_plugin(home: Path) -> None:
    """Two that claim it do not start together."""
    told = refused(home, f'plugins = ["claims", "claims_too"]\n{GOOD}')

    assert told == [
        "plugin claims_too: claim auth.password belongs to claims already: remove one of the two plugins from the list"
    ]


def test_the_state_directory_is_private(home: Path) -> None:
    """Keys are in there: a directory that others can look into is not used, nor one with a broken id."""
    (home / "state").chmod(0o755)
    assert refused(home, GOOD) == ["state_directory state is open to others: chmod 700 it"]
    (home / "state").chmod(0o700)
    (home / "state" / "proxy_id").write_text("what is this?")
    assert refused(home, GOOD) == ["state/proxy_id: is not a proxy id; remove the file to get a new one"]


def test_a_taken_address_stops_the_start(home: Path) -> None:
    """A port that another process has, and an admin socket that cannot be made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = changed(":0", f":{port}") + '[admin]\nsocket = "admin.sock"\n'
        told = refused(home, settings)
    assert told == [f"listen.address 127.0.0.1:{port}: Address already in use"]
    assert not (home / "admin.sock").exists()
    told = refused(home, GOOD + '[admin]\nsocket = "token/admin.sock"\n')
    assert told == ["admin.socket token/admin.sock: token is not a directory"]


def test_no_settings_file(home: Path) -> None:
    """Who names no file is told how to."""
    code, _, err = run(home, PROXY, "run")
    assert code == 2
    assert err.splitlines()[-1] == (
        "netbird-proxy: no settings file was given: use --config FILE or NETBIRD_PROXY_CONFIG"
    )
    code, _, err = run(home, PROXY, "run", environment={"NETBIRD_PROXY_CONFIG": "nowhere.toml"})
    assert (code, err) == (2, "netbird-proxy: nowhere.toml: cannot be read: No such file or directory\n")


def test_good_settings_pass(home: Path) -> None:
    """The control for everything above; values are shown with their sources, one a line, secrets never."""
    (home / "proxy.toml").write_text(GOOD)
    code, out, err = run(
        home,
        PROXY,
        "check",
        "--show",
        "--config",
        "proxy.toml",
        environment={"NB_PROXY_TOKEN": "secret-token", "NETBIRD_PROXY_LIMITS__DRAIN": "1m"},
    )
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["limits.drain"].split() == ["limits.drain", "60", "environment", "NETBIRD_PROXY_LIMITS__DRAIN"]
    assert lines["management.token"].split() == ["management.token", "***", "environment", "NB_PROXY_TOKEN"]
    assert lines["listen"].rstrip().endswith("file proxy.toml")
    assert "secret-token" not in out
    assert out.splitlines()[-1].startswith("ok: ")


def test_nobody_to_ask(home: Path) -> None:
    """The commands that ask a running proxy say that there is none, and where they looked."""
    for command in ("explain", "routes", "plugins"):
        arguments = ["abc"] if command == "explain" else []
        code, out, err = run(home, PROXY, command, *arguments, "--admin", "nowhere.sock")
        assert (code, out) == (1, "")
        assert err.startswith("netbird-proxy: nowhere.sock: ")
        assert err.endswith("is the proxy running?\n")
        assert err.count("\n") == 1


def test_help_is_there_whatever_is_installed(home: Path) -> None:
    """A broken plugin that nobody enabled takes its own commands away, and nothing else."""
    code, out, err = run(home, PROXY, "--help")
    assert code == 0
    for command in ("run", "check", "explain", "plugins", "routes", "peer"):
        assert f"│ {command} " in out
    assert "note: plugin raises: importing ex_raises:Plugin raised RuntimeError: no database" in err
    assert "Traceback" not in err
    code, out, err = run(home, PROXY, "--version")
    assert code == 0
    assert out.startswith("netbird-proxy ")
    assert err == ""
    code, _, err = run(home, PROXY, "rnu")
    assert code == 2
    assert "Did you mean 'run'?" in err


@pytest.mark.parametrize(
    "command",
    [["run"], ["check"], ["explain"], ["plugins"], ["routes"], ["peer"], ["peer", "get"], ["peer", "serve"]],
    ids=" ".join,
)
def test_every_command_explains_itself(home: Path, command: list[str]) -> None:
    """Each has a sentence, and a word on each of its options."""
    code, out, err = run(home, PROXY, *command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: netbird-proxy " + " ".join(command) in out
    silent = [line for line in out.splitlines() if line.rstrip(" │").endswith(("<bool>", "<path>", "<str>"))]
    assert silent == []


WRONG_MANAGEMENT = {
    "an unknown setting": (
        'state_dir = "state"',
        2,
        "state_dir: unknown setting; did you mean state_directory? (file management.toml)",
    ),
    "a unit that is none": (
        'grace = "5 parsecs"',
        2,
        "grace: expected seconds as a number, or a text such as 500ms, 90s or 1m30s, not '5 parsecs' "
        "(file management.toml)",
    ),
    "a plugin that is not there": (
        'plugins = ["private_servce"]',
        2,
        "plugin private_servce: is not installed (did you mean private_service?); ",
    ),
    "a certificate that is none": (
        '[rest]\nlisten = "127.0.0.1:0"\ncertificate = "token"\nkey = "token"',
        2,
        "rest: token and token are not a certificate and its key: ",
    ),
    "a certificate that is not there": (
        '[grpc]\nlisten = "127.0.0.1:0"\ncertificate = "nowhere"\nkey = "token"',
        2,
        "grpc: certificate nowhere: No such file or directory",
    ),
    "a state directory that is a file": (
        'state_directory = "token"',
        1,
        "state_directory token is not a directory",
    ),
    "a state directory that is open to others": (
        'state_directory = "open"',
        1,
        "state_directory open is accessible to other users: run chmod 700 on it",
    ),
    "a port that is taken": (
        'state_directory = "state"\n[grpc]\nlisten = "127.0.0.1:0"\n[rest]\nlisten = "127.0.0.1:{taken}"',
        1,
        "rest.listen 127.0.0.1:{taken}: Address already in use",
    ),
    "a port that is taken for gRPC": (
        'state_directory = "state"\n[rest]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:{taken}"',
        1,
        "grpc.listen 127.0.0.1:{taken}: Address already in use",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_MANAGEMENT)
def test_management_says_what_is_wrong(home: Path, wrong: str) -> None:
    """The same of the other host: one line, its setting, and what is the matter."""
    settings, code, expected = WRONG_MANAGEMENT[wrong]
    (home / "open").mkdir()
    (home / "open").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        (home / "management.toml").write_text(settings.replace("{taken}", port))
        found, out, err = run(home, MANAGEMENT, "run", "--config", "management.toml")

    assert found == code
    assert "ready" not in out
    told = [line for line in err.splitlines() if not line.startswith("{")]  # log lines are JSON
    assert len(told) == 1
    assert told[0].startswith("netbird-management: " + expected.replace("{taken}", port))
