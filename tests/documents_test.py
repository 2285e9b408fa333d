"""The documents name what is there: files everywhere, classes and their members in ARCHITECTURE.md and
docs/internals."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
FOLDERS = ["bench", "examples", "python", "src", "tests", "tools"]
LINE_WIDTH_MAX = 110
ARCHITECTURE_LINES_MAX = 300
INTERNALS_LINES_MAX = 200
# Programs of the reader's.
NOT_OURS = {"prog.py"}

QUOTED = re.compile(r"`([^`\n]+)`")
A_FILE = re.compile(r"[\w./]*\w\.(?:py|md)")
A_CLASS = re.compile(r"([A-Z][a-z]\w*)(?:\.(\w+))?")
# "`path.py` Name, Name", of tables.
IN_FILE = re.compile(r"`([\w/]+\.py)` ([A-Z]\w+(?:, [A-Z]\w+)*)")


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def precise_documents() -> list[Path]:
    return [ROOT / "ARCHITECTURE.md", *sorted(ROOT.glob("docs/internals/*.md"))]


@functools.cache
def files() -> list[str]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [f"/{path.relative_to(ROOT).as_posix()}" for path in [*found, *documents()]]


def named(name: str) -> list[str]:
    """The files that a name, or the end of a path, may mean."""
    return [path for path in files() if path.endswith(f"/{name}")]


def members_of(node: ast.ClassDef) -> set[str]:
    """Its methods and fields."""
    found = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            found.add(each.attr)
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            found.add(each.id)
    return found


@functools.cache
def classes_in(path: str) -> dict[str, set[str]]:
    tree = ast.parse((ROOT / path.lstrip("/")).read_text())
    return {node.name: members_of(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


@functools.cache
def definitions() -> dict[str, set[str]]:
    """Classes of the package, and messages and calls of protobuf/, each with its members."""
    found: dict[str, set[str]] = {}
    for path in files():
        if path.startswith(("/src/", "/python/")) and path.endswith(".py"):
            for name, members in classes_in(path).items():
                found.setdefault(name, set()).update(members)
    for proto in (ROOT / "protobuf").glob("*.proto"):
        text = proto.read_text()
        for name in re.findall(r"^ *(?:message|enum|service|rpc) (\w+)", text, re.MULTILINE):
            found.setdefault(name, set())
        for name, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            found[name].update(re.findall(r"(\w+) = \d+", body))
    return found


def test_files_that_documents_name_exist() -> None:
    wrong = []
    for document in documents():
        for number, line in enumerate(document.read_text().splitlines(), 1):
            words = [word for quoted in QUOTED.findall(line) for word in quoted.split()]
            for word in words:
                if A_FILE.fullmatch(word) and word not in NOT_OURS and not named(word):
                    wrong.append(f"{document.relative_to(ROOT)}:{number}: {word}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_links_between_documents_lead_somewhere() -> None:
    wrong = []
    for document in documents():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            if not (document.parent / target).exists():
                wrong.append(f"{document.relative_to(ROOT)}: {target}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_classes_that_documents_name_exist() -> None:
    known, wrong = definitions(), []
    for document in precise_documents():
        for number, line in enumerate(document.read_text().splitlines(), 1):
            where = f"{document.relative_to(ROOT)}:{number}"
            for quoted in QUOTED.findall(line):
                match = A_CLASS.fullmatch(quoted)
                if match and (
                    match[1] not in known or (match[2] is not None and match[2] not in known[match[1]])
                ):
                    wrong.append(f"{where}: {quoted}")
            for file, names in IN_FILE.findall(line):
                there = {name for path in named(file) for name in classes_in(path)}
                wrong += [f"{where}: {name} in {file}" for name in names.split(", ") if name not in there]
    assert not wrong, "\n" + "\n".join(wrong)


def test_documents_about_the_code_are_short_enough_to_read() -> None:
    wrong = []
    for document in precise_documents():
        lines = document.read_text().splitlines()
        limit = ARCHITECTURE_LINES_MAX if document.parent == ROOT else INTERNALS_LINES_MAX
        if len(lines) > limit:
            wrong.append(f"{document.relative_to(ROOT)}: {len(lines)} lines, at most {limit}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_lines_of_documents_are_short() -> None:
    """Rows of tables may be wide, and what a program printed, but not in documents about the code."""
    wrong = []
    for document in documents():
        is_printed = False
        for number, line in enumerate(document.read_text().splitlines(), 1):
            is_printed ^= line.startswith("```")
            may_be_wide = document not in precise_documents() and (is_printed or line.startswith("|"))
            if len(line) > LINE_WIDTH_MAX and not may_be_wide:
                wrong.append(f"{document.relative_to(ROOT)}:{number}: {len(line)} wide")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_line_of_a_proto_file_is_too_wide() -> None:
    wide = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} wide"
        for path in sorted(ROOT.glob("protobuf/*.proto"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LINE_WIDTH_MAX
    ]
    assert not wide, "\n" + "\n".join(wide)
