"""The crates in netbird_overlay/vendor are the published ones plus the patches beside them, and nothing else.

After an intended change, `python -m tests.netbird_overlay.test_vendored` writes the patches anew; it needs the
published crates in cargo's cache.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

VENDOR = Path(__file__).resolve().parents[2] / "netbird_overlay" / "vendor"


@dataclass(frozen=True, slots=True)
class Crate:
    """A vendored crate. `published` is the SHA-256 over path and bytes of each vendored file, as published.

    Files that the patch adds are no part of it. The manifest is ours and left out, and so is a license that is not part
    of the published crate (`added`).
    """

    name: str
    version: str
    published: str
    added: str = ""

    @property
    def copy(self) -> Path:
        return VENDOR / self.name

    @property
    def patch(self) -> Path:
        return VENDOR / f"{self.name}.patch"

    def files(self) -> list[Path]:
        """The paths of all vendored files, relative to their folder, in order."""
        files = (file.relative_to(self.copy) for file in self.copy.rglob("*") if file.is_file())
        return sorted(file for file in files if file.as_posix() not in ("Cargo.toml", "Cargo.lock", self.added))

    def digest(self, folder: Path) -> str:
        total = hashlib.sha256()
        for file in self.files():
            if not (folder / file).exists():
                continue
            content = (folder / file).read_bytes()
            total.update(f"{file.as_posix()} {len(content)}\n".encode() + content)
        return total.hexdigest()

    def differences(self, original: Path) -> Iterator[str]:
        for file in self.files():
            name = file.as_posix()
            is_new = not (original / file).exists()
            before = [] if is_new else (original / file).read_text("utf-8").splitlines(keepends=True)
            after = (self.copy / file).read_text("utf-8").splitlines(keepends=True)
            yield from difflib.unified_diff(before, after, "/dev/null" if is_new else f"a/{name}", f"b/{name}")


CRATES = (
    Crate("smoltcp", "0.14.0", "7972ed1248e392b1db10eeaaadf3411be2e2a5024d9843589081d34d012eede7"),
    Crate(
        "boringtun",
        "0.7.1",
        "d8ae5ea1fdcff6fc2d81974cbdf514ea97323e7ae1b37c8f54f014c5f3914995",
        added="LICENSE-BSD-3-Clause.txt",
    ),
)


@pytest.mark.parametrize("crate", CRATES, ids=lambda crate: crate.name)
def test_patch_leads_back_to_the_published_crate(crate: Crate, tmp_path: Path) -> None:
    """Without the patch's changes, every vendored file is byte for byte the published one."""
    for file in crate.files():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((crate.copy / file).read_bytes())
    subprocess.run(["git", "apply", "--reverse", "-p1", str(crate.patch)], cwd=tmp_path, check=True)
    assert crate.digest(tmp_path) == crate.published


def test_source_distribution_contains_the_vendored_crates(tmp_path: Path) -> None:
    """Cargo finds the patched crates in an unpacked source distribution."""
    uv = Path(sys.executable).with_name("uv")
    build = [uv, "build", "-q", "--offline", "--no-build-isolation", "--sdist", "-o", tmp_path, VENDOR.parent]
    subprocess.run(build, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {member.name for member in archive}
    (root,) = {name.partition("/")[0] for name in names}
    for crate in CRATES:
        expected = {f"{root}/vendor/{crate.name}/{file}" for file in ("Cargo.toml", *map(str, crate.files()))}
        assert expected <= names


if __name__ == "__main__":
    cache = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry" / "src"
    for each in CRATES:
        source = next(cache.glob(f"*/{each.name}-{each.version}"))
        assert each.digest(source) == each.published
        each.patch.write_text("".join(each.differences(source)), "utf-8")
