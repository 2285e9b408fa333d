"""Nothing stands in the sources that nobody uses: no name, and no package that is asked for."""

from __future__ import annotations

import ast
import collections
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

from tests.sources import ROOT, our_files, tree

# "path:name": who uses a name that stands nowhere else
USED_BY_OTHERS = {
    "src/common/exceptions.py:from_task_error": "Ray's programs",
    "src/common/ids.py:from_binary": "Ray's programs",
    "src/common/mapped_file.py:restype": "ctypes",
    "src/common/process.py:argtypes": "ctypes",
    "src/core_worker/object_ref_generator.py:_stream_exhausted": "Ray's libraries",
    "src/core_worker/object_ref_generator.py:athrow": "Python, of an async generator",
    "src/core_worker/object_ref_generator.py:next_ready": "Ray's programs",
    "src/core_worker/object_ref_generator.py:object_creation_dur_s": "Ray's libraries",
    "src/core_worker/values/library_reducers.py:writeable": "numpy",
    "src/raylet/worker/binding.py:has_gpus": "equality, by which a worker serves what is like it",
    "src/raylet/worker/worker_command.py:worker_command": "nobody yet: environments with another Python will",
    "src/rpc/framed_connection.py:buffer_updated": "asyncio, of a protocol",
    "src/rpc/framed_connection.py:get_buffer": "asyncio, of a protocol",
    "src/rpc/grpc_splice.py:eof_received": "asyncio, of a protocol",
    "src/rpc/standby.py:_fields_": "ctypes",
    "src/rpc/stub_method.py:stub_method": "the stubs, which are generated",
    "src/rpc/surface.py:ABORTED": "a code of gRPC, which the other side may send",
    "src/rpc/surface.py:DATA_LOSS": "a code of gRPC, which the other side may send",
    "src/rpc/surface.py:OK": "a code of gRPC, which the other side may send",
    "src/rpc/surface.py:OUT_OF_RANGE": "a code of gRPC, which the other side may send",
    "src/rpc/surface.py:PERMISSION_DENIED": "a code of gRPC, which the other side may send",
}


def defined(path: str) -> Iterator[tuple[int, str]]:
    """Line and name of each function, class, variable and field that a file makes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def test_every_name_of_the_services_is_used_by_somebody() -> None:
    words = collections.Counter[str]()
    texts = [(ROOT / path).read_text() for path in our_files()]
    texts += [path.read_text() for path in (ROOT / "protobuf").glob("*.proto")]  # the methods that are served
    for text in texts:
        words.update(re.findall(r"\w+", text))
    wrong, unused = [], set()
    for path in our_files():
        for line, name in defined(path) if path.startswith("src/") else ():
            if words[name] < 2 and not re.fullmatch(r"_|__\w+__", name):
                unused.add(f"{path}:{name}")
                if f"{path}:{name}" not in USED_BY_OTHERS:
                    wrong.append(f"{path}:{line}: nobody uses {name}")
    wrong += [
        f"{name}: need not be in USED_BY_OTHERS any more" for name in USED_BY_OTHERS if name not in unused
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_package_imports_all_that_it_asks_for() -> None:
    imported: set[str] = set()
    for path in our_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    distributions = {each for name in imported for each in packages_distributions().get(name, ())}
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", each)[0] for each in asked} <= distributions
