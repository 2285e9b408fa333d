"""Examples of docs/howto.md that are whole programs run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[2] / "docs" / "howto.md"


@pytest.mark.parametrize("chapter", ["Call a function for many items"])
def test_an_example_prints_what_its_comments_say(chapter: str) -> None:
    text = HOWTO.read_text().partition(f"## {chapter}\n")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    told = [line.partition(")  # ")[2] for line in code.splitlines() if line.startswith("print(")]
    begun = "import ray_mono\nray_mono.init(address='local', num_cpus=2)\n"
    ran = subprocess.run([sys.executable, "-c", begun + code], stdout=subprocess.PIPE, text=True, check=True)
    assert ran.stdout.splitlines() == told and told
