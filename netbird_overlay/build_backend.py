"""Maturin, with the registry's lines put into Cargo.lock for the time of a build.

The Cargo.lock that is committed and published has no `source` lines, since they name a registry host. Without them
cargo would choose versions anew. So a build puts the line back in front of every checksum, with the text that cargo
itself writes on this machine, and every version and checksum is held to what is committed (`--locked`). Afterwards the
file is as it was; a source distribution gets it as it is committed.

For the same reason cargo and maturin are started through here: `python build_backend.py COMMAND …`.
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

HERE = Path(__file__).resolve().parent
LOCK = HERE / "Cargo.lock"
SCRATCH = '[package]\nname = "scratch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nlibc = "0.2"\n'
"""A crate with one dependency: in its lock file cargo says how it names the registry."""


def _source_line() -> str:
    """The line that cargo writes for a package of the registry; made once, and kept among what is built."""
    kept = HERE / "target" / ".source-line"
    if not kept.is_file() or not kept.read_text():
        with tempfile.TemporaryDirectory() as directory:
            scratch = Path(directory)
            (scratch / "src").mkdir()
            (scratch / "src" / "lib.rs").touch()
            (scratch / "Cargo.toml").write_text(SCRATCH)
            subprocess.run(["cargo", "generate-lockfile", "-q"], cwd=scratch, check=True)
            line = re.search(r"^source = .*\n", (scratch / "Cargo.lock").read_text(), flags=re.MULTILINE)
        if line is None:
            raise RuntimeError("cargo names no registry in the lock file of a crate that has a dependency")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(line[0])
    return kept.read_text()


@contextmanager
def whole_lock() -> Iterator[None]:
    """Cargo.lock as cargo wants it, until this is left. One at a time: build.sh holds a lock."""
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


# What PEP 517 and PEP 660 ask for -------------------------------------------------------------------------------------


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
    """Put another content into one file of a source distribution."""
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
