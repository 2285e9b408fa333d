"""The program that says how much of everything one machine holds, with little of it."""

from __future__ import annotations

import pytest

from bench import one_machine


def test_each_part_is_counted_timed_and_weighed(
    session_base: object, capfd: pytest.CaptureFixture[str]
) -> None:
    little = "--nodes 2 --actors 3 --drivers 2 --tasks 400 --arguments 20 --returns 20 --objects 20 --array 1"
    assert one_machine.main(little.split()) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if " MB after" in line]
    assert [line.partition(":")[0] for line in lines] == [
        *("2 nodes", "3 actors", "2 drivers", "400 tasks", "20 arguments", "20 returns", "20 objects"),
        "an array of 1 GiB",
    ]


def test_a_part_that_is_none_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        one_machine.main(["--only", "nodes,fun"])
    assert "got 'fun'" in capsys.readouterr().err
