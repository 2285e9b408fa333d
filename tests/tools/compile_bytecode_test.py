"""Bytecode made for the tests: Python takes it instead of compiling, as long as it is that of its source."""

from __future__ import annotations

import importlib.util
import py_compile
from pathlib import Path
from types import ModuleType

from tools.compile_bytecode import main


def load(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compiled", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bytecode_of_the_same_source_is_taken_and_of_another_is_not(tmp_path: Path) -> None:
    source, other = tmp_path / "module.py", tmp_path / "other.py"
    source.write_text("VALUE = 'source'\n")
    compiled = Path(importlib.util.cache_from_source(str(source)))
    compiled.parent.mkdir()
    main([str(source), str(compiled)])
    module = load(source)
    assert module.VALUE == "source" and module.__cached__ == str(compiled)
    # As a file of its own it would say "other": it is taken for the source's where its hash is the source's.
    other.write_text("VALUE = 'other'\n")
    py_compile.compile(str(other), str(compiled))
    content = compiled.read_bytes()
    main([str(source), str(compiled)])
    compiled.write_bytes(compiled.read_bytes()[:16] + content[16:])
    assert load(source).VALUE == "other"
    source.write_text("VALUE = 'edited'\n")
    assert load(source).VALUE == "edited"
