"""A build backend around maturin that adds the registry's `source` lines to Cargo.lock during a build.

The Cargo.lock that is committed and published has no `source` lines, because they name a registry host. Without them
cargo would choose versions anew. A build therefore adds the line in front of every checksum, with the text that cargo
itself writes on this machine, and `--locked` enforces the committed versions and checksums. Afterwards the file is
restored; a source distribution contains the committed one.

For the same reason, cargo and maturin are started through this file: `python build_backend.py COMMAND …`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).absolute().parent  # not resolved: a distribution has this file as a link
LOCK = HERE / "Cargo.lock"
# A crate with one dependency, whose lock file shows how cargo names the registry.
SCRATCH = '[package]\nname = "scratch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nlibc = "0.2"\n'


def _source_line() -> str:
    """Return the `source` line that cargo writes for a package of the registry; cached in the build folder."""
    cache = HERE / "target" / ".source-line"
    if not cache.is_file() or not cache.read_text():
        with tempfile.TemporaryDirectory() as directory:
            scratch = Path(directory)
            (scratch / "src").mkdir()
            (scratch / "src" / "lib.rs").touch()
            (scratch / "Cargo.toml").write_text(SCRATCH)
            subprocess.run(["cargo", "generate-lockfile", "-q"], cwd=scratch, check=True)
            line = re.search(r"^source = .*\n", (scratch / "Cargo.lock").read_text(), flags=re.MULTILINE)
        if line is None:
            raise RuntimeError("cargo wrote no source line into the lock file of a crate with a dependency")
        cache.parent.mkdir(exist_ok=True)
        cache.write_text(line[0])
    return cache.read_text()


@contextmanager
def whole_lock() -> Iterator[None]:
    """Complete Cargo.lock until the context is left. Not reentrant: build_native.sh holds a lock."""
    committed, times = LOCK.read_bytes(), LOCK.stat()
    text = committed.decode()
    if not re.search(r"^source = ", text, flags=re.MULTILINE):
        line = _source_line()
        LOCK.write_text(re.sub(r"^checksum = ", lambda match: line + match[0], text, flags=re.MULTILINE))
    try:
        yield
    finally:
        LOCK.write_bytes(committed)
        os.utime(LOCK, ns=(times.st_atime_ns, times.st_mtime_ns))


def _locked(compatibility: str = "") -> None:
    os.environ["MATURIN_PEP517_ARGS"] = " ".join(filter(None, ("--locked", compatibility)))


# Hooks of PEP 517 and PEP 660 -----------------------------------------------------------------------------------------


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return []


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


def build_wheel(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    import maturin

    _locked("--compatibility pypi")
    with whole_lock():
        return str(maturin.build_wheel(directory, config_settings, metadata_directory))


def build_editable(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    import maturin

    _locked()
    with whole_lock():
        return str(maturin.build_editable(directory, config_settings, metadata_directory))


def build_sdist(directory: str, config_settings: Any = None) -> str:
    import maturin

    committed = LOCK.read_bytes()
    with whole_lock():
        name = str(maturin.build_sdist(directory, config_settings))
    _replace(Path(directory, name), "Cargo.lock", committed)
    return name


def _replace(archive: Path, file: str, content: bytes) -> None:
    """Replace the content of one file in a source distribution."""
    from io import BytesIO

    rewritten = archive.with_suffix(".new")
    with tarfile.open(archive) as old, tarfile.open(rewritten, "w:gz") as new:
        for member in old:
            data = old.extractfile(member)
            if data is not None and member.name.partition("/")[2] == file:
                member.size, data = len(content), BytesIO(content)
            new.addfile(member, data)
    rewritten.replace(archive)


if __name__ == "__main__":
    with whole_lock():
        sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
