"""What is published: wheels with the right names in them, that work without this repository around them."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from glob import glob
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "netbird-proxy": (ROOT, ROOT / "netbird_proxy"),
    "netbird-host": (ROOT / "netbird_host", ROOT / "netbird_host"),
    "netbird-wire": (ROOT / "proto", ROOT / "proto" / "netbird_wire"),
    "netbird-management": (ROOT / "netbird_management", ROOT / "netbird_management"),
    "netbird-http": (ROOT / "netbird_http", ROOT / "netbird_http" / "netbird_http"),
    "netbird-overlay": (ROOT / "netbird_overlay", ROOT / "netbird_overlay" / "netbird_overlay"),
    **{
        f"netbird-{name.replace('_', '-')}": (ROOT / "plugins" / name, ROOT / "plugins" / name / f"netbird_{name}")
        for name in (
            "private_service",
            "identity_headers",
            "response_headers",
            "load_balancing",
            "direct_upstream",
            "tunnel_netstack",
            "peer",
            "signal",
            "relay",
        )
    },
}
"""Each distribution: where its pyproject.toml is, and its import package."""

NATIVE = ("netbird-http", "netbird-overlay")


def project(name: str) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((PACKAGES[name][0] / "pyproject.toml").read_text())["project"]
    return found


def declared(name: str) -> set[str]:
    """The distributions that a package asks for, extras' included, by normal name."""
    about = project(name)
    extras = about.get("optional-dependencies", {})
    assert isinstance(extras, dict)
    wanted = [about.get("dependencies", []), *extras.values()]
    return {_name(one) for group in wanted for one in group}


def _name(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
    return requirement[:end].replace("_", "-").lower()


def imported(name: str) -> Iterator[str]:
    """The packages that a package's modules import, at the top or deeper; type checkers' own imports too."""
    for file in PACKAGES[name][1].rglob("*.py"):
        if "target" in file.parts or "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


OWN = {package.name: name for name, (_, package) in PACKAGES.items()}


def distribution_of(module: str, known: dict[str, list[str]]) -> set[str]:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return set()
    if top in OWN:
        return {OWN[top]}
    if top in ("google", "opentelemetry"):  # namespaces that many distributions share
        return {"protobuf"} if top == "google" else {"opentelemetry-sdk"}
    return {one.replace("_", "-").lower() for one in known.get(top, [top])}


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_imported_is_declared(name: str) -> None:
    """A package asks for what it imports itself, and does not live on what others happen to bring."""
    known = {top: list(found) for top, found in packages_distributions().items()}
    wanted = {module: distribution_of(module, known) for module in imported(name)}

    missing = {module: found for module, found in wanted.items() if found and not found & (declared(name) | {name})}

    assert missing == {}


@pytest.mark.parametrize("name", PACKAGES)
def test_one_version_one_license(name: str) -> None:
    """All packages are released together, under one license."""
    about, root = project(name), project("netbird-proxy")

    assert (about["version"], about["license"], about["requires-python"]) == (
        root["version"],
        root["license"],
        root["requires-python"],
    )
    assert (PACKAGES[name][0] / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (PACKAGES[name][1] / "py.typed").is_file()


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheels` builds."""
    where = tmp_path_factory.mktemp("dist")
    run("make", "wheels", f"ARGS={where}", cwd=ROOT, UV_PYTHON_DOWNLOADS="never")
    return where


def _wheel(name: str, dist: Path) -> Path:
    (wheel,) = dist.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


@pytest.mark.live
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_has_what_it_should(name: str, dist: Path) -> None:
    """Every module under its import name and nothing else; types, license, page and entry points with it."""
    package = PACKAGES[name][1]
    wheel = _wheel(name, dist)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(one for one in names if one.endswith(".dist-info/METADATA"))
        metadata = archive.read(about).decode()
    inside = {one for one in names if ".dist-info/" not in one}
    there = {
        f"{package.name}/{file.relative_to(package)}"
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.name not in ("pyproject.toml", "LICENSE")
    }

    assert inside == there
    assert f"{package.name}/py.typed" in inside
    assert any(one.endswith(".dist-info/licenses/LICENSE") for one in names)
    about_it = project(name)
    assert ("Description-Content-Type: text/markdown" in metadata) == ("readme" in about_it)
    published = {"scripts", "entry-points"} & set(about_it)
    assert any(one.endswith(".dist-info/entry_points.txt") for one in names) == bool(published)
    assert wheel.name.endswith("-py3-none-any.whl" if name not in NATIVE else "_x86_64.whl")
    assert name not in NATIVE or "-cp311-abi3-manylinux" in wheel.name


@pytest.mark.live
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_source_distribution_has_what_it_should(name: str, dist: Path) -> None:
    """What is under version control for the package and builds it, as it is committed; no other package's files."""
    (archive,) = dist.glob(f"{name.replace('-', '_')}-*.tar.gz")
    with tarfile.open(archive) as source:
        inside = {
            member.name.partition("/")[2]: file.read()
            for member in source
            if (file := source.extractfile(member)) is not None
        }
    place = PACKAGES[name][0]
    listed = run("git", "ls-files", "-co", "--exclude-standard", place, cwd=place).splitlines()
    committed = {one: (place / one).read_bytes() for one in listed if not one.startswith("..")}
    if name == "netbird-proxy":
        files = ("README.md", "LICENSE", "pyproject.toml")
        committed = {one: data for one, data in committed.items() if one.startswith("netbird_proxy/") or one in files}
    made = {"PKG-INFO", ".gitignore"}
    rewritten = {"Cargo.toml"}  # by maturin, which writes it anew

    assert {one for one in inside if one not in made and not one.startswith("tests/")} == {
        one for one in committed if not one.startswith("tests/")
    }
    assert [one for one in inside if one not in made | rewritten and inside[one] != committed[one]] == []
    assert [one for one, data in inside.items() if b"registry+" in data] == []


def _blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "installation.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.live
@pytest.mark.timeout(900)
def test_the_page_on_installation_works(dist: Path, tmp_path: Path) -> None:
    """Its commands, in an empty folder with the wheels alone, give an environment whose commands run.

    Whatever the wheel folder has came from there, and from no registry.
    """
    build, *commands = [line for block in _blocks("sh") for line in block.splitlines()]
    assert build == "make wheels"  # done above
    (tmp_path / "dist").symlink_to(dist)
    (settings,) = _blocks("toml")
    (tmp_path / "proxy.toml").write_text(settings)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}

    answers = {}
    for line in commands:
        line = line.replace("/opt/netbird-proxy", str(tmp_path / "netbird-proxy"))
        words = [sys.executable if word == "python3" else word for word in shlex.split(line)]
        words = [file for word in words for file in (glob(word, root_dir=tmp_path) if "*" in word else [word])]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        answers[words[0].rpartition("/")[2] + " " + words[1]] = done.stdout

    assert answers["netbird-proxy check"].startswith("ok: ")
    assert "Usage: netbird-management" in answers["netbird-management --help"]
    assert "Usage: netbird-peer" in answers["netbird-peer --help"]
    (site,) = (tmp_path / "netbird-proxy" / "lib").glob("python3*/site-packages")
    installed = {about.name.partition("-")[0]: about for about in site.glob("netbird_*.dist-info")}
    assert {name.replace("_", "-") for name in installed} == set(PACKAGES)
    for name, about in installed.items():
        with zipfile.ZipFile(_wheel(name, dist)) as archive:
            ours = archive.read(f"{about.name}/METADATA")
        assert (about / "METADATA").read_bytes() == ours


@pytest.mark.live
@pytest.mark.timeout(900)
def test_installed_wheels_work(dist: Path, tmp_path: Path) -> None:
    """Installed beside each other they import, find their plugins and data, and their commands run."""
    uv, site = Path(sys.executable).with_name("uv"), tmp_path / "site"
    run(
        *(uv, "pip", "install", "--quiet", "--no-deps", "--target", site, "--python", sys.executable),
        *sorted(dist.glob("*.whl")),
        cwd=tmp_path,
    )
    script = f"""
import netbird_host, netbird_management, netbird_proxy, netbird_wire
import netbird_direct_upstream, netbird_identity_headers, netbird_private_service
from netbird_management.plugins.hooks import load_hooks as management
from netbird_proxy.sources.decode.claims import CORE_CLAIMS
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.routing.hooks import load_hooks as proxy
plugins = ["private_service", "direct_upstream"]
print(sorted(one.id for one in management(plugins).plugins))
hooks = proxy([*plugins, "identity_headers"], defaults=DEFAULTS, core_claims=CORE_CLAIMS)
print([one.id for one in hooks.plugins][:3], [one.distribution for one in hooks.plugins][:3])
import sys
ours = [m.__file__ for n, m in sys.modules.items() if n.startswith("netbird_") and getattr(m, "__file__", None)]
print([one for one in ours if not one.startswith({str(site)!r})])
"""
    said = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()

    assert said == [
        "['direct_upstream', 'private_service']",
        "['private_service', 'direct_upstream', 'identity_headers'] "
        "['netbird-private-service', 'netbird-direct-upstream', 'netbird-identity-headers']",
        "[]",
    ]
    made = run(
        *(sys.executable, site / "bin" / "netbird-management", "init", "--email", "a@b.test", "--json"),
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    assert "personal_access_token" in made
    assert "netbird-proxy" in run(
        sys.executable, site / "bin" / "netbird-proxy", "--version", cwd=tmp_path, PYTHONPATH=str(site)
    )
