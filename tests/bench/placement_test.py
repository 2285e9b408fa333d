"""The program that says what decisions cost, on few nodes."""

from __future__ import annotations

import pytest

from bench import placement


def test_each_kind_of_work_gets_its_place_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert placement.main(["--nodes", "2,200", "--decisions", "4"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["nodes", "asked", "for", "task", "actor", "group"]
    assert [line[7:21].strip() for line in lines] == [*placement.kinds(2)] * 2
    assert all(float(each) > 0 for line in lines for each in line[21:].split())
