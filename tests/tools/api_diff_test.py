"""tools/api_diff.py on toy packages, and the tables of docs/differences.md."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tools import api_diff

THEIRS = """
    import enum

    __all__ = ["LIMIT", "Machine", "Part", "run", "stop", "_hidden"]

    LIMIT = 3
    _hidden = 1

    class Part:
        def inherited(self):
            pass

    class Machine(Part):
        size = 1

        def __init__(self, name, speed=2):
            self.name = name

        @property
        def state(self):
            return ""

        def start(self, when, *, how="fast", _private=None):
            pass

    def run(first, second=1, **options):
        pass

    def stop(when=None):
        pass
"""
OURS = """
    __all__ = ["Machine", "Part", "run", "stop"]

    class Part:
        pass

    class Machine(Part):
        def __init__(self, name, speed=3):
            self._name = name

        def start(self, when):
            raise NotImplementedError("later")

    def run(first, *, second=1, third=None):
        return first, second, third

    def stop(when=None):
        '''Looks at nothing.'''
        return None
"""


def compared(tmp_path: Path, theirs: str, ours: str) -> dict[str, str]:
    """What is found, by subject, for a package `toy` and another one that is to be like it."""
    described = []
    for name, source in (("toy", theirs), ("toy_here", ours)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        described.append(api_diff.inspect_package(sys.executable, name, [""], [str(tmp_path)]))
    return {
        each.subject: f"{each.kind}: {each.detail}" for each in api_diff.compare(described[1], described[0])
    }


def test_every_kind_of_gap_is_found(tmp_path: Path) -> None:
    assert compared(tmp_path, THEIRS, OURS) == {
        "toy.LIMIT": "missing: constant",
        "toy.Machine(speed)": "different: default 3, in Ray default 2",
        "toy.Machine.name": "missing: attribute",
        "toy.Machine.size": "missing: attribute",
        "toy.Machine.state": "missing: attribute",
        "toy.Machine.start": "missing: raises NotImplementedError",
        "toy.Part.inherited": "missing: method",
        "toy.run(**options)": "missing: parameter",
        "toy.run(second)": "different: KEYWORD_ONLY, in Ray POSITIONAL_OR_KEYWORD",
        "toy.stop(when)": "missing: accepted, but never looked at",
    }


def test_what_is_the_same_or_wider_is_no_gap(tmp_path: Path) -> None:
    theirs = "def run(first, *, second='a'): pass\n"
    ours = "def run(first=None, second='a', third=3): return first, second, third\n"
    assert compared(tmp_path, theirs, ours) == {}


def test_an_order_that_differs_is_a_gap(tmp_path: Path) -> None:
    theirs = "def run(first, second): pass\n"
    ours = "def run(second, first): return first, second\n"
    assert compared(tmp_path, theirs, ours) == {"toy.run(first, second)": "different: order (second, first)"}


def test_without_a_list_only_what_a_module_itself_makes_is_public(tmp_path: Path) -> None:
    theirs = """
        from pathlib import Path
        from typing import TypeVar

        T = TypeVar("T")
        LIMIT = 1

        def run(): pass

        def _hidden(): pass
    """
    assert compared(tmp_path, theirs, "") == {
        "toy.LIMIT": "missing: constant",
        "toy.run": "missing: function",
    }


def test_a_package_that_cannot_be_described_says_why(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import nothing_like_it\n")
    with pytest.raises(RuntimeError, match="could not describe toy(.|\n)*nothing_like_it"):
        api_diff.inspect_package(sys.executable, "toy", [""], [str(tmp_path)])


def test_rows_explain_what_their_patterns_match() -> None:
    rows = api_diff.read_rows("## Later\n\n| names | why |\n|---|---|\n| `toy.a`, `toy.B.*` | it comes |\n")
    subjects = ["toy.a", "toy.ab", "toy.B.run", "toy.B.run(x)"]
    findings = [api_diff.Finding("toy", subject, api_diff.MISSING, "") for subject in subjects]
    explained = {each.subject: each.explanation for each in api_diff.explain(findings, rows)}
    assert explained == {
        "toy.a": "Later: it comes",
        "toy.ab": "",
        "toy.B.run": "Later: it comes",
        "toy.B.run(x)": "Later: it comes",
    }


def test_every_row_of_differences_names_something_and_says_why() -> None:
    rows = api_diff.read_rows(api_diff.DIFFERENCES.read_text())
    assert {row.explanation.partition(":")[0] for row in rows} == {"Deliberate", "Later"}
    assert all(row.patterns and row.explanation.partition(": ")[2] for row in rows)
    assert all(pattern.startswith("ray.") for row in rows for pattern in row.patterns)


def test_our_own_package_can_be_described() -> None:
    described = api_diff.inspect_package(
        sys.executable, "ray_mono", api_diff.MODULES, [path for path in sys.path if path]
    )
    assert described["modules"][""]["names"]["init"]["kind"] == "function"
    assert "TaskCancelledError" in described["modules"]["exceptions"]["names"]
