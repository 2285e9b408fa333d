"""The house rules that can be counted: sizes, the direction of imports, and what no file may hold.

A rule is broken only by a line in one of the tables below, with its reason.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
FOLDERS = ["bench", "examples", "python", "src", "tests", "tools"]
GENERATED = "src/protobuf/"

# Lines with code on them: not blank ones, comments or docstrings.
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# "path": "why it is longer"
LONG_FILES: dict[str, str] = {}
# "path::function": "why it is longer"
LONG_FUNCTIONS: dict[str, str] = {
    "python/ray_mono/_private/driver/init_arguments.py::make": "one parameter of init() a line",
    "src/core_worker/core_worker.py::__init__": "one part of the core worker a line",
}

# Which parts of ray_mono each part may import; "api" is python/ray_mono itself. Services meet in protobuf
# and nowhere else.
LAYERS = {
    "common": {"common", "protobuf"},
    "rpc": {"rpc", "common", "protobuf"},
    "gcs": {"gcs", "rpc", "common", "protobuf"},
    "raylet": {"raylet", "rpc", "common", "protobuf"},
    "object_manager": {"object_manager", "rpc", "common", "protobuf"},
    "core_worker": {"core_worker", "rpc", "common", "protobuf"},
    "api": {"api", "core_worker", "rpc", "common", "protobuf"},
}

# A worker opens no gRPC channel, and gcs and raylet stay small.
FORBIDDEN_IMPORTS = {
    "common": {"grpc", "numpy"},
    "core_worker": {"grpc"},
    "gcs": {"grpc", "numpy"},
    "object_manager": {"grpc"},
    "raylet": {"grpc", "numpy"},
    "rpc": {"grpc", "numpy"},
}
# The one door that gRPC comes in by; loaded when the first such client arrives.
GRPC_DOORS = {"src/rpc/grpc_door.py"}

# Pieces of this file's own patterns are kept apart, so that they do not match themselves.
FORBIDDEN_TEXT = {
    "a path of one machine": re.compile("/" + r"(work|home|Users)/\w|/opt/" + "dev"),
    "the host of a package index": re.compile(
        "files.pythonhosted" + r"\.|pypi\.org/" + "simple|--extra-index" + "-url"
    ),
}


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


def imported_modules(path: str) -> Iterator[tuple[int, str]]:
    """Line and full name of each import, wherever in the file it is; `from a import b` counts as a.b."""
    package = Path(path).parent.parts
    package = ("ray_mono", *package[1:]) if package[0] == "src" else package[1:]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
                )
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def layer_of(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return name if name in LAYERS or name == "protobuf" else "api"


def test_every_component_has_its_layer() -> None:
    components = {
        path.name for path in (ROOT / "src").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert components - {"protobuf"} == set(LAYERS) - {"api"}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in python_files():
        own = part(path)
        if own is None:
            continue
        for line, module in imported_modules(path):
            top = module.split(".")[0]
            if top == "ray_mono" and layer_of(module) not in LAYERS[own]:
                wrong.append(f"{path}:{line}: {own} may not import {layer_of(module)} ({module})")
            if top in FORBIDDEN_IMPORTS.get(own, ()) and path not in GRPC_DOORS:
                wrong.append(f"{path}:{line}: {own} may not import {top}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_files_are_short() -> None:
    long = {}
    for path in python_files():
        count = len(code_lines(path))
        if count > FILE_LINES_MAX:
            long[path] = count
    wrong = [f"{path}: {count} lines" for path, count in long.items() if path not in LONG_FILES]
    wrong += [f"{path}: need not be in LONG_FILES any more" for path in LONG_FILES if path not in long]
    assert not wrong, f"\nat most {FILE_LINES_MAX} lines of code, or a reason in LONG_FILES:\n" + "\n".join(
        wrong
    )


def test_functions_are_short() -> None:
    long = {}
    for path in python_files():
        lines = code_lines(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(lines.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if count > FUNCTION_LINES_MAX:
                    long[f"{path}::{node.name}"] = count
    wrong = [f"{name}: {count} lines" for name, count in long.items() if name not in LONG_FUNCTIONS]
    wrong += [
        f"{name}: need not be in LONG_FUNCTIONS any more" for name in LONG_FUNCTIONS if name not in long
    ]
    assert not wrong, (
        f"\nat most {FUNCTION_LINES_MAX} lines of code, or a reason in LONG_FUNCTIONS:\n" + "\n".join(wrong)
    )


def test_no_module_is_a_grab_bag() -> None:
    wrong = [path for path in python_files() if Path(path).stem in {"utils", "util", "helpers", "misc"}]
    assert not wrong, f"name these after what they hold: {wrong}"


def test_every_module_says_what_it_is() -> None:
    trees = ((path, tree(path)) for path in python_files())
    wrong = [path for path, module in trees if module.body and ast.get_docstring(module) is None]
    assert not wrong, "\nwithout a docstring:\n" + "\n".join(wrong)


def test_no_file_holds_what_belongs_to_one_machine() -> None:
    others = [path for pattern in ("*.md", "*.in", "*.lock", "*.toml") for path in ROOT.glob(pattern)]
    wrong = []
    for path in [*(ROOT / name for name in python_files()), *others]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for what, pattern in FORBIDDEN_TEXT.items():
                if pattern.search(line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()}")
    assert not wrong, "\n" + "\n".join(wrong)
