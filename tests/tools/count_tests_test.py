"""tools/count_tests.py: the line that it prints for a folder of reports."""

import io
from pathlib import Path

import pytest

from tools import count_tests

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *reports: str | None) -> int:
    """The exit code for targets with these reports; None is a target that left none."""
    targets = [f"//tests/part:target{number}_test" for number in range(len(reports))]
    for target, text in zip(targets, reports, strict=True):
        path = folder / "tests" / "part" / target.rpartition(":")[2] / "test.xml"
        path.parent.mkdir(parents=True)
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr("sys.argv", ["count_tests", str(folder)])
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(target + "\n" for target in targets)))
    return count_tests.main()


def test_cases_are_summed_over_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, REPORT.format(5, 0, 0, 1), REPORT.format(2, 0, 0, 0)) == 0
    assert capsys.readouterr().out == "6 passed, 0 failed, 1 skipped\n"


BAD_REPORTS = [REPORT.format(1, 0, 1, 0), REPORT.format(0, 0, 0, 0), "", "<broken", None]


@pytest.mark.parametrize("report", BAD_REPORTS)
def test_a_failure_an_error_and_a_target_without_tests_all_fail(
    report: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, REPORT.format(2, 0, 0, 0), report) == 1
    assert capsys.readouterr().out == "2 passed, 1 failed\n"


def test_no_target_at_all_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch) == 1
