"""ruff, with the rules in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
FOLDERS = ["bench", "examples", "python", "src", "tests", "tools"]
GENERATED = "src/protobuf/"


def python_files() -> list[str]:
    """By name, because ruff does not follow the links that Bazel's runfiles are made of."""
    found = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in [*found, "setup.py"] if not path.startswith(GENERATED))


def ruff(*arguments: str) -> None:
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", *python_files()]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, "\n" + done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    ruff("check", "--output-format=concise")


def test_every_file_is_formatted() -> None:
    ruff("format", "--check")
