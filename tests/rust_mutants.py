"""Build a Rust distribution of this repository without one of its guards, and run the tests that must fail then.

The crates are built in a copy below the distribution's own `target/`, which stays between runs: each guard costs one
incremental build of the crates above it. A test is a Rust file and a function (`crates/x/src/y.rs::name`), or a test of
pytest, which imports a copy of the Python package with the engine that was built.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 60
"""Maximum time of one Rust test, in seconds; on expiry the test counts as failed."""
PROFILE = {
    # Almost as fast to build as without optimisation, and handshakes are forty times as fast.
    "CARGO_PROFILE_DEV_OPT_LEVEL": "1",
    "CARGO_PROFILE_DEV_DEBUG": "false",
    # As in the product: an overflow that only a debug build notices must not pass for a test that fails.
    "CARGO_PROFILE_DEV_DEBUG_ASSERTIONS": "false",
    "CARGO_PROFILE_DEV_OVERFLOW_CHECKS": "false",
    "CARGO_INCREMENTAL": "1",
}


def distribution(file: Path) -> Path:
    """The folder of the Rust distribution that a file is in."""
    return next(parent for parent in file.parents if (parent / "build_backend.py").is_file())


@dataclass(frozen=True, slots=True)
class RustTest:
    """A test in a crate, by the file and the function."""

    file: Path
    function: str

    @property
    def crate(self) -> str:
        manifests = (parent / "Cargo.toml" for parent in self.file.parents)
        manifest = next(manifest for manifest in manifests if manifest.is_file())
        return str(tomllib.loads(manifest.read_text())["package"]["name"])

    @property
    def target(self) -> tuple[str, ...]:
        """The arguments that choose the test program: that of a file in `tests/`, or the library's."""
        return ("--test", self.file.stem) if self.file.parent.name == "tests" else ("--lib",)


class Workspace:
    """The copy of one distribution. One process at a time uses it."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.tree = source / "target" / "mutants"
        project = tomllib.loads((source / "pyproject.toml").read_text())["tool"]["maturin"]
        self._project: dict[str, Any] = project
        self._package, _, self._module = project["module-name"].partition(".")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the copy, and make it equal to the tree."""
        self.tree.mkdir(parents=True, exist_ok=True)
        with (self.tree / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._copy()
            yield

    def _copy(self) -> None:
        """Copy each file that differs. The others keep their times, by which cargo sees that they are built."""
        # The name of the registry, which the build backend keeps; only cargo itself can find it.
        kept = {Path("target/.source-line")} if (self.source / "target" / ".source-line").is_file() else set()
        files = set(_files(self.source)) | kept
        for stale in set(_files(self.tree)) - files - {Path(".lock")}:
            (self.tree / stale).unlink()
        for file in files:
            content = (self.source / file).read_bytes()
            if not (self.tree / file).is_file() or (self.tree / file).read_bytes() != content:
                (self.tree / file).parent.mkdir(parents=True, exist_ok=True)
                (self.tree / file).write_bytes(content)

    @contextmanager
    def changed(self, file: Path, text: str) -> Iterator[None]:
        """Give a file of the copy another text until the context is left."""
        place = self.tree / file.relative_to(self.source)
        before = place.read_text()
        place.write_text(text)
        try:
            yield
        finally:
            place.write_text(before)

    def _cargo(self, *arguments: str) -> str:
        """Run cargo in the copy. Returns what it printed; a build that fails ends the run, since it shows nothing."""
        run = subprocess.run(
            [sys.executable, "build_backend.py", "cargo", *arguments],
            cwd=self.tree,
            env={**os.environ, **PROFILE},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            raise SystemExit(f"cargo {' '.join(arguments)} failed:\n{run.stderr[-3000:]}")
        return run.stdout

    def survives(self, test: RustTest) -> bool:
        """True if the test passes in time."""
        arguments = ("-q", "--locked", "--no-run", "--message-format=json", "-p", test.crate, *test.target)
        built = [json.loads(line) for line in self._cargo("test", *arguments).splitlines()]
        program = next(item["executable"] for item in built if item.get("executable"))
        passed, output = _run([program, test.function], self.tree)
        if passed and not re.search(r"^test result: ok\. [1-9]", output, flags=re.MULTILINE):
            raise SystemExit(f"{test.file}: no test ran for {test.function}:\n{output[-1000:]}")
        return passed

    @contextmanager
    def installed(self) -> Iterator[str]:
        """Build the Python module. Yields a folder that has the package with it."""
        manifest = self.tree / self._project["manifest-path"]
        features = ",".join(self._project.get("features", ()))
        arguments = (
            "-q",
            "--locked",
            "--message-format=json",
            "--manifest-path",
            str(manifest),
            "--features",
            features,
        )
        built = [json.loads(line) for line in self._cargo("build", *arguments).splitlines()]
        ours = [item for item in built if item.get("manifest_path") == str(manifest)]  # a dependency may make one too
        library = next(name for item in ours for name in item.get("filenames", ()) if name.endswith(".so"))
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / self._package
            shutil.copytree(self.source / self._package, package)
            shutil.copyfile(library, package / f"{self._module}.abi3.so")
            yield folder


def _files(folder: Path) -> Iterator[Path]:
    """The files that a build reads, relative to the folder."""
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix in (".toml", ".lock", ".py"):
            yield entry.relative_to(folder)
    for part in ("crates", "src", "tests", "vendor", "fuzz/bodies", "fuzz/seeds"):
        yield from (file.relative_to(folder) for file in (folder / part).rglob("*") if file.is_file())


def _run(command: list[str], folder: Path) -> tuple[bool, str]:
    """Run a test program, which may hang for want of a guard."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False, f"not done in {TIMEOUT} s"
    return process.returncode == 0, output
