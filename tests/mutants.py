"""Remove the guards that promises stand on, one at a time, and see that the tests named for them fail.

`tests/mutants.toml` lists, for each promise, a piece of a file and the tests that must not survive its removal. Nothing
in the tree is changed: the package is copied to a scratch directory, changed there, and found first on the path.

Run as `python -m tests.mutants [TEXT]`; TEXT picks the mutants whose name contains it. With `--check` instead, no test
runs, and each mutant whose guard or test has moved is reported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 180
"""Seconds that the tests of one guard may take; `EACH` more a test, since all of them run once with every guard."""
EACH = 10


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
            if not (ROOT / module).is_file() or f"def {function}" not in (ROOT / module).read_text():
                yield f"{self.name}: no such test: {test}"


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
    if run.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {tests}:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
    return run.returncode == 0, run.stdout


def killed(mutant: Mutant) -> tuple[Mutant, list[str]]:
    """The tests that passed without the guard; none is what we want."""
    text = mutant.mutated()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / mutant.package.name
        shutil.copytree(mutant.package, copy)  # with its bytecode: compiling a package takes longer than most tests
        changed = copy / (ROOT / mutant.file).relative_to(mutant.package)
        changed.write_text(text)
        for compiled in changed.parent.glob(f"__pycache__/{changed.stem}.*"):
            compiled.unlink()
        return mutant, [test for test in mutant.tests if survivors((test,), scratch)[0]]


def main(argument: str = "") -> int:
    if moved := [line for mutant in load() for line in mutant.moved()]:
        print(*moved, sep="\n")
        return 1
    if argument == "--check":
        return 0
    mutants = [mutant for mutant in load() if argument in mutant.name]
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    if not survivors(tests, "")[0]:
        print("The tests fail with every guard in place; mend that first.")
        return 1
    failed = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for mutant, alive in pool.map(killed, mutants):
            failed += bool(alive)
            print(
                f"{'SURVIVED' if alive else 'killed':9} promise {mutant.promise}: {mutant.name}", *alive, sep="\n    "
            )
    print(f"{len(mutants) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
