"""The sources as tests read them: which files there are, and what stands in them."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
FOLDERS = ["bench", "examples", "python", "src", "tests", "tools"]
GENERATED = "src/protobuf/"


def python_files() -> list[str]:
    found = [
        path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
    ]
    return sorted(path for path in [*found, "setup.py"] if not path.startswith(GENERATED))


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


@functools.cache
def code_lines(path: str) -> set[int]:
    """The numbers of the lines that code stands on."""
    text = (ROOT / path).read_text()
    no_code = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in no_code:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(path)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def part(path: str) -> str | None:
    """The layer that a file belongs to; None for what is not part of the package."""
    if path.startswith("python/ray_mono/"):
        return "api"
    if path.startswith("src/"):
        return path.split("/")[1]
    return None


def our_files() -> list[str]:
    """The files of the package."""
    return [path for path in python_files() if part(path) is not None]
