"""tools/typecheck.py: the joined tree, and the way back from mypy's paths to the real ones."""

from pathlib import Path

import pytest

from tools import typecheck


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_errors_are_told_with_the_real_path(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "pyproject.toml", "[tool.mypy]\n")
    write(root / "python/ray_mono/__init__.py")
    write(root / "python/ray_mono/api.py", "from ray_mono.part.door import number\n\ntext: str = number\n")
    write(root / "src/part/door.py", "number: int = 'one'\n")
    code, messages = typecheck.check(root, tmp_path / "cache", [])
    assert code == 1
    assert "src/part/door.py:1: error" in messages
    assert "python/ray_mono/api.py:3: error" in messages


def test_a_name_in_both_places_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "python/ray_mono/gcs/__init__.py")
    write(tmp_path / "src/gcs/__init__.py")
    with pytest.raises(typecheck.NameTaken, match=r"ray_mono\.gcs"):
        typecheck.link_tree(tmp_path, tmp_path / "tree")
