"""Draws small faults, plants each in a copy of the sources, and looks whether the tests find it.

    python tools/plant_faults.py --count 100 --seed 1 src/core_worker tests/core_worker

Of each kind there are as many, wherever in the sources they can be:

    drops     a statement that is a call, or that adds or subtracts, is left out
    ignores   one side of an `and` or `or` is left out, or a flag counts as set
    off       a limit is off by one: < for <=, or a + 1 or - 1 is missing; not of times and sizes in bytes, of
              which one more or less is nothing
    swaps     two statements change places that probably do not commute: one sets a field that the other uses,
              or both call methods of one object

For each a line is printed: its number, FOUND or SURVIVED, its place, and what became of what. The tests of
the folder that mirrors the fault's run first. A run that takes too long has found it. What survives may
change nothing; that is for a person to tell. The copy is made of what git knows.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
TIMEOUT_S = 400.0
OTHER_LIMIT = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
OF_MANY = re.compile(r"(_s|_ms|_us|_bytes|BYTES|_size|\.size)\b")
"""Names of what is measured, and not counted."""
# What is said to people, and in any order.
UNHARMED = ("logger.", "parser.", "super().__init__", "warnings.")


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    kind: str
    path: str
    line: int
    start: int
    """Offsets in the file, in bytes of UTF-8."""
    end: int
    text: str

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def told(self, source: bytes) -> str:
        before = " ".join(source[self.start : self.end].decode().split())
        return f"{self.path}:{self.line}: {self.kind}: {before!r} is {' '.join(self.text.split())!r}"


class Finder:
    """The faults that a file can have."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path = path
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def faults(self) -> Iterator[Fault]:
        for node in ast.walk(ast.parse(self._source)):
            if isinstance(node, ast.AugAssign) or is_call(node):
                if not self._text(node).startswith(UNHARMED):
                    yield self._fault("drops", node, "pass")
            elif isinstance(node, ast.BoolOp):
                word = " and " if isinstance(node.op, ast.And) else " or "
                for left_out in node.values:
                    rest = [f"({self._text(each)})" for each in node.values if each is not left_out]
                    yield self._fault("ignores", node, f"({word.join(rest)})")
            elif isinstance(node, ast.If | ast.While) and isinstance(node.test, ast.Name | ast.Attribute):
                yield self._fault("ignores", node.test, "True")
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER_LIMIT and len(node.ops) == 1:
                right = self._text(node.comparators[0])
                text = f"{self._text(node.left)} {OTHER_LIMIT[type(node.ops[0])]} {right}"
                if not OF_MANY.search(text):
                    yield self._fault("off", node, f"({text})")
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
                if isinstance(node.right, ast.Constant) and node.right.value == 1:
                    yield self._fault("off", node, f"({self._text(node.left)})")
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(node, block, None)
                if isinstance(statements, list):
                    yield from self._swaps(statements)

    def _swaps(self, statements: list[ast.stmt]) -> Iterator[Fault]:
        for first, second in zip(statements, statements[1:], strict=False):
            if is_simple(first) and is_simple(second) and depend(first, second):
                between = self._source[self._end(first) : self._start(second)].decode()
                text = self._text(second) + between + self._text(first)
                if text.startswith(UNHARMED):
                    continue
                yield Fault("swaps", self._path, first.lineno, self._start(first), self._end(second), text)

    def _fault(self, kind: str, node: ast.AST, text: str) -> Fault:
        return Fault(kind, self._path, node.lineno, self._start(node), self._end(node), text)  # type: ignore[attr-defined]

    def _start(self, node: ast.AST) -> int:
        return self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined, no-any-return]

    def _end(self, node: ast.AST) -> int:
        return self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined, no-any-return]

    def _text(self, node: ast.AST) -> str:
        return self._source[self._start(node) : self._end(node)].decode()


def is_call(node: ast.AST) -> bool:
    """Whether it is a statement that calls something, for what that does."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value.value if isinstance(value, ast.Await) else value, ast.Call)


def is_simple(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AugAssign) or is_call(node)


def depend(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether one sets a field that the other uses, or both call methods of one object. A variable that one
    sets and the other uses does not count, since any run would find that."""
    parts = [list(ast.walk(each)) for each in (first, second)]
    used = [{ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)} for nodes in parts]
    variables = [{node.id for node in nodes if isinstance(node, ast.Name)} for nodes in parts]
    stored = [
        [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)] for nodes in parts
    ]
    fields = [{ast.unparse(node) for node in nodes if not isinstance(node, ast.Name)} for nodes in stored]
    if any(node.id in variables[1] for node in stored[0] if isinstance(node, ast.Name)):
        return False
    called = [
        {
            ast.unparse(node.func.value)
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        for nodes in parts
    ]
    return bool(fields[0] & used[1] or fields[1] & used[0] or called[0] & called[1])


def draw(sources: dict[str, bytes], count: int, seed: int) -> list[Fault]:
    """As many of each kind, and no line twice."""
    by_kind: dict[str, list[Fault]] = {}
    for path, source in sources.items():
        for fault in Finder(path, source).faults():
            by_kind.setdefault(fault.kind, []).append(fault)
    rng = random.Random(seed)
    drawn: list[Fault] = []
    places: set[tuple[str, int]] = set()
    kinds = sorted(by_kind)
    while kinds and len(drawn) < count:
        kind = kinds[len(drawn) % len(kinds)]
        left = [each for each in by_kind[kind] if (each.path, each.line) not in places]
        if not left:
            kinds.remove(kind)
            continue
        fault = rng.choice(left)
        places.add((fault.path, fault.line))
        drawn.append(fault)
    return drawn


def copy_of_sources(folder: Path) -> None:
    """What git knows, and what is generated beside it."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    generated = [str(path.relative_to(ROOT)) for path in (ROOT / "src/protobuf").glob("*.py*")]
    for name in {*told.decode().split("\0"), *generated} - {""}:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def tests_find(copy: Path, tests: list[str]) -> bool:
    """Runs them in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": f"{copy / 'python'}{os.pathsep}{copy}"}
    with subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    ) as process:
        try:
            process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
        return process.wait() != 0


def try_fault(fault: Fault, copy: Path, find: Callable[[list[str]], bool], sources: str, tests: str) -> bool:
    """Plants it, and takes it back. Returns whether it was found."""
    file = copy / fault.path
    source = file.read_bytes()
    near = Path(tests) / Path(fault.path).relative_to(sources).parent
    file.write_bytes(fault.planted(source))
    try:
        return ((copy / near).is_dir() and find([str(near)])) or find([tests])
    finally:
        file.write_bytes(source)


def main() -> None:
    """Prints what came of each fault, and how many were found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", help="the folder in which faults are planted, as src/core_worker")
    parser.add_argument("tests", help="the folder of its tests, as tests/core_worker")
    parser.add_argument("--count", type=int, default=100, help="how many faults (100)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws others (1)")
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of those that are tried (all)")
    arguments = parser.parse_args()
    paths = sorted((ROOT / arguments.sources).rglob("*.py"))
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}
    faults = draw(files, arguments.count, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        copy = Path(folder)
        copy_of_sources(copy)
        if tests_find(copy, [arguments.tests]):
            sys.exit(f"the tests of {arguments.tests} fail without a fault")
        num_found = 0
        numbers = range(len(faults)) if arguments.only is None else arguments.only
        for number in numbers:
            fault = faults[number]
            is_found = try_fault(
                fault, copy, lambda tests: tests_find(copy, tests), arguments.sources, arguments.tests
            )
            num_found += is_found
            what = fault.told(files[fault.path])
            print(f"{number:3} {'FOUND   ' if is_found else 'SURVIVED'} {what}", flush=True)
        print(f"{num_found} of {len(numbers)} were found")


if __name__ == "__main__":
    main()
