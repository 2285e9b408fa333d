"""Sums up the tests that Bazel's targets ran, from the reports that pytest left: `3 passed, 0 failed`.

    bazel query 'tests(//tests/...)' | python tools/count_tests.py bazel-testlogs

The targets are read from standard input, because Bazel keeps the reports of targets that are gone. A target
whose report is missing or tells of no test (it was ended at its timeout, or pytest never started) counts as
one failure. Exits 1 when a test failed, or none ran.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def count(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of one target."""
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (FileNotFoundError, ElementTree.ParseError):
        return 0, 1, 0
    ran, failed, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (["tests"], ["failures", "errors"], ["skipped"])
    )
    if ran == 0:
        return 0, 1, 0
    return ran - failed - skipped, failed, skipped


def main() -> int:
    reports = Path(sys.argv[1])
    targets = [line.strip() for line in sys.stdin if line.startswith("//")]
    counts = [count(reports / target[2:].replace(":", "/") / "test.xml") for target in targets]
    passed, failed, skipped = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
