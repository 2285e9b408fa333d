"""The types of src/ and python/ are right, and tell users of the API what is right, by mypy and pyright."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tools import typecheck

ROOT = Path(__file__).absolute().parent.parent
USES = Path(__file__).absolute().with_name("type_uses.py")


def checker(tree: Path, *arguments: str) -> str:
    """What `python -m ARGUMENTS` prints about the uses, which lie in a tree beside the package."""
    typecheck.link_tree(ROOT, tree)
    (tree / USES.name).write_text(USES.read_text())
    command = [sys.executable, "-m", *arguments, USES.name]
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "MYPYPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def lines_marked_wrong() -> set[int]:
    return {
        number
        for number, line in enumerate(USES.read_text().splitlines(), start=1)
        if line.endswith("# wrong")
    }


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    code, messages = typecheck.check(ROOT, tmp_path / "mypy", [])
    assert code == 0, "\n" + messages


def test_mypy_tells_wrong_uses_from_right_ones(tmp_path: Path) -> None:
    settings = (f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={tmp_path / 'cache'}")
    output = checker(tmp_path / "tree", "mypy", *settings)
    found = re.findall(rf"^{re.escape(USES.name)}:(\d+): error", output, re.MULTILINE)
    assert {int(line) for line in found} == lines_marked_wrong(), "\n" + output
    assert f"Found {len(found)} errors in 1 file" in output


def test_pyright_tells_wrong_uses_from_right_ones(tmp_path: Path) -> None:
    output = checker(tmp_path / "tree", "pyright", f"--pythonpath={sys.executable}", "--outputjson")
    errors = [each for each in json.loads(output)["generalDiagnostics"] if each["severity"] == "error"]
    assert {each["range"]["start"]["line"] + 1 for each in errors} == lines_marked_wrong(), "\n" + output
