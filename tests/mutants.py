"""Remove the guards that promises stand on, one at a time, and see that the tests named for them fail.

`tests/mutants.toml` lists, for each promise, a piece of a file and the tests that must not survive its removal. Nothing
in the tree is changed: the package is copied to a scratch directory, changed there, and found first on the path. Guards
in Rust are removed from a copy of their distribution, which is built anew (`rust_mutants.py`); their tests are in Rust
or in Python.

Run as `python -m tests.mutants [TEXT]`; TEXT picks the mutants whose name contains it. With `--check` instead, no test
runs, and each mutant whose guard or test has moved is reported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.rust_mutants import RustTest, Workspace, distribution

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 180
"""Seconds that the tests of one guard may take; `EACH` more a test, since all of them run once with every guard."""
EACH = 10
INTERNAL_ERROR = 3
"""pytest's exit code if it fails to report a failing test, for example in time: the test has not passed."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard to remove. `file` is relative to the root; `remove` must stand in it exactly once."""

    name: str
    promise: int
    file: str
    remove: str
    tests: tuple[str, ...]
    replace: str = ""

    @property
    def is_rust(self) -> bool:
        return self.file.endswith(".rs")

    @property
    def package(self) -> Path:
        """The importable package that the file is in."""
        path = ROOT / self.file
        while (path.parent / "__init__.py").exists():
            path = path.parent
        return path

    def mutated(self) -> str:
        return (ROOT / self.file).read_text().replace(self.remove, self.replace)

    def moved(self) -> Iterator[str]:
        """What of the entry does not match the tree."""
        file = ROOT / self.file
        count = file.read_text().count(self.remove) if file.is_file() else 0
        if count != 1:
            yield f"{self.name}: the guard stands {count} times in {self.file}, not once"
        for test in self.tests:
            module, _, function = test.partition("[")[0].partition("::")
            if not (ROOT / module).is_file() or not _has(ROOT / module, function):
                yield f"{self.name}: no such test: {test}"


def _has(file: Path, function: str) -> bool:
    """True if the file defines a function of this name."""
    keyword = "fn" if file.suffix == ".rs" else "def"
    return re.search(rf"\b{keyword} {re.escape(function)}\b", file.read_text()) is not None


def load() -> list[Mutant]:
    entries = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def survivors(tests: tuple[str, ...], path: str) -> tuple[bool, str]:
    """Whether the tests pass in time with `path` first on the import path, and what they printed."""
    # -P: the tree itself must not come before the changed copy.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:schemathesis", *tests]
    environment = {**os.environ, "PYTHONPATH": path}
    timeout = TIMEOUT + EACH * len(tests)
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"not done in {timeout} s"
    if run.returncode not in (0, 1, INTERNAL_ERROR):
        raise SystemExit(f"pytest could not run {tests}:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
    return run.returncode == 0, run.stdout


Outcome = tuple[Mutant, list[str]]
"""A mutant, and the tests that passed without its guard; none is what we want."""


def killed(mutant: Mutant) -> Outcome:
    """Remove a guard in Python."""
    text = mutant.mutated()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / mutant.package.name
        shutil.copytree(mutant.package, copy)  # with its bytecode: compiling a package takes longer than most tests
        changed = copy / (ROOT / mutant.file).relative_to(mutant.package)
        changed.write_text(text)
        for compiled in changed.parent.glob(f"__pycache__/{changed.stem}.*"):
            compiled.unlink()
        return mutant, [test for test in mutant.tests if survivors((test,), scratch)[0]]


def killed_in_rust(workspace: Workspace, mutants: list[Mutant]) -> list[Outcome]:
    """Remove the guards of one distribution in turn: each build takes what the last one left."""
    with workspace.opened():
        if failed := rust_failures(workspace, {test for mutant in mutants for test in mutant.tests}):
            raise SystemExit(f"These tests fail with every guard in place; mend that first: {failed}")
        outcomes = []
        for mutant in mutants:
            with workspace.changed(ROOT / mutant.file, mutant.mutated()):
                failures = rust_failures(workspace, mutant.tests)
            outcomes.append((mutant, [test for test in mutant.tests if test not in failures]))
        return outcomes


def rust_failures(workspace: Workspace, tests: Iterable[str]) -> list[str]:
    """The tests that fail with the workspace as it is."""
    in_rust = [test for test in tests if ".rs::" in test]
    failures = []
    for test in in_rust:
        file, _, function = test.partition("::")
        if not workspace.survives(RustTest(ROOT / file, function)):
            failures.append(test)
    if in_python := [test for test in tests if test not in in_rust]:
        with workspace.installed() as path:
            failures += [test for test in in_python if not survivors((test,), path)[0]]
    return failures


def outcomes(mutants: list[Mutant]) -> Iterator[Outcome]:
    """Remove each guard. Those of one Rust distribution share a worker, since they share what is built."""
    rust = sorted((mutant for mutant in mutants if mutant.is_rust), key=lambda mutant: mutant.file)
    with ThreadPoolExecutor(max_workers=2) as pool:
        built = [
            pool.submit(killed_in_rust, Workspace(folder), list(group))
            for folder, group in groupby(rust, key=lambda mutant: distribution(ROOT / mutant.file))
        ]
        yield from pool.map(killed, [mutant for mutant in mutants if not mutant.is_rust])
        for outcome in built:
            yield from outcome.result()


def main(argument: str = "") -> int:
    if moved := [line for mutant in load() for line in mutant.moved()]:
        print(*moved, sep="\n")
        return 1
    if argument == "--check":
        return 0
    mutants = [mutant for mutant in load() if argument in mutant.name]
    tests = {test for mutant in mutants if not mutant.is_rust for test in mutant.tests}
    if tests and not survivors(tuple(sorted(tests)), "")[0]:
        print("The tests fail with every guard in place; mend that first.")
        return 1
    failed = 0
    for mutant, alive in outcomes(mutants):
        failed += bool(alive)
        print(f"{'SURVIVED' if alive else 'killed':9} promise {mutant.promise}: {mutant.name}", *alive, sep="\n    ")
    print(f"{len(mutants) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
