"""The benches of copies between nodes, on small objects: that they come to figures, not which."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from bench import broadcast, several_holders

TIMEOUT_S = 100


def output_of(path: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, path, *flags, "--rounds=1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_broadcast_is_measured_beside_its_floor(session_base: Path) -> None:
    out = output_of(broadcast.__file__, "--nodes=2", "--mb=2")
    assert re.search(r"floor +2 nodes in \d+\.\d\d s", out)
    assert re.search(r"ray_mono +2 nodes in \d+\.\d\d s, .* \d\.\d\d copies out of its node", out)


def test_one_holder_and_several_are_measured(session_base: Path) -> None:
    out = output_of(several_holders.__file__, "--holders=2", "--mb=30")
    assert re.findall(r"from (\d) of 2: \d+\.\d\d s", out) == ["1", "2"]
