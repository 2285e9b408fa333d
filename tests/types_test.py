"""The types of src/ and python/ are right."""

from pathlib import Path

from tools import typecheck

ROOT = Path(__file__).absolute().parent.parent


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    code, messages = typecheck.check(ROOT, tmp_path / "mypy", [])
    assert code == 0, "\n" + messages
