"""Lines of several processes on one pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

WRITER = """
import sys, os
from netbird_host.line_writer import LineWriter, take_turns
take_turns(int(sys.argv[1]))
writer = LineWriter("stdout", interval=0.0, failed=lambda lines, why: os._exit(3))
for _ in range(40):
    writer.write(sys.argv[3].encode() * 100_000 + b"\\n")
os.write(int(sys.argv[2]), b".")
sys.exit(0 if writer.close(60) else 4)
"""


def test_lines_of_processes_that_take_turns_are_whole() -> None:
    """Each is longer than a pipe holds, so that it is written in many pieces; all processes write at the same time."""
    turns = os.memfd_create("turns")
    reading, writing = os.pipe()
    begun, begin = os.pipe()
    writers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(turns), str(begin), letter],
            pass_fds=[turns, begin],
            stdout=writing,
        )
        for letter in "abc"
    ]
    os.close(writing)
    for _ in writers:
        assert os.read(begun, 1) == b"."
    with os.fdopen(reading, "rb") as output:
        lines = output.read().splitlines()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    # By letters and length: a difference between lines of this length could not be printed in time.
    shapes = Counter((bytes(sorted(set(line))), len(line)) for line in lines)
    assert shapes == {(letter, 100_000): 40 for letter in (b"a", b"b", b"c")}
    for descriptor in (turns, begun, begin):
        os.close(descriptor)
