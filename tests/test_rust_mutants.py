"""Guards in Rust are removed in a copy, and a test that does not notice is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rust_mutants import RustTest, Workspace

BACKEND = "import subprocess, sys\nsys.exit(subprocess.run(sys.argv[1:]).returncode)\n"
PROJECT = '[tool.maturin]\nmodule-name = "tiny.engine"\nmanifest-path = "crates/tiny/Cargo.toml"\n'
LOCK = 'version = 4\n\n[[package]]\nname = "tiny"\nversion = "0.0.0"\n'
SOURCE = "crates/tiny/src/lib.rs"
CODE = """
pub fn admits(port: u16) -> bool {
    port != 22
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_is_closed() {
        assert!(!super::admits(22));
    }

    #[test]
    fn a_port_is_open() {
        assert!(super::admits(80));
    }
}
"""


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A distribution with one crate and one guard."""
    files = {
        "build_backend.py": BACKEND,
        "pyproject.toml": PROJECT,
        "Cargo.toml": '[workspace]\nmembers = ["crates/tiny"]\nresolver = "2"\n',
        "Cargo.lock": LOCK,
        "crates/tiny/Cargo.toml": '[package]\nname = "tiny"\nversion = "0.0.0"\nedition = "2021"\n',
        SOURCE: CODE,
    }
    for name, content in files.items():
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / name).write_text(content)
    return tmp_path / "tiny"


def test_a_guard_is_removed_in_the_copy_alone(distribution: Path) -> None:
    """The test of the guard fails, the test beside it survives, and afterwards both pass."""
    workspace, source = Workspace(distribution), distribution / SOURCE
    guarded, other = RustTest(source, "a_port_is_closed"), RustTest(source, "a_port_is_open")
    with workspace.opened():
        assert workspace.survives(guarded)
        with workspace.changed(source, CODE.replace("port != 22", "port != 21")):
            assert not workspace.survives(guarded)
            assert workspace.survives(other)
        assert workspace.survives(guarded)
    assert source.read_text() == CODE


def test_a_guard_whose_removal_does_not_build_shows_nothing(distribution: Path) -> None:
    test = RustTest(distribution / SOURCE, "a_port_is_closed")
    workspace = Workspace(distribution)
    with (
        workspace.opened(),
        workspace.changed(distribution / SOURCE, CODE.replace("port != 22", "")),
        pytest.raises(SystemExit, match="failed"),
    ):
        workspace.survives(test)


def test_a_test_that_is_not_there_shows_nothing(distribution: Path) -> None:
    workspace = Workspace(distribution)
    with workspace.opened(), pytest.raises(SystemExit, match="no test ran"):
        workspace.survives(RustTest(distribution / SOURCE, "a_port_is_ajar"))
