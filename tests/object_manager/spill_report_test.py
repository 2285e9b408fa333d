"""When people are told of spilling, and what."""

from __future__ import annotations

from ray_mono.object_manager.spill_report import SpillReport

MIB = 1 << 20


def test_it_is_told_after_so_many_bytes_and_whenever_they_have_doubled() -> None:
    report = SpillReport(10 * MIB)
    told = []
    for second in range(40):
        report.begun(2.0 * second)
        told.append(report.ended(MIB, 3, 2.0 * second + 0.5))
    assert [number for number, text in enumerate(told, 1) if text] == [10, 20, 40]
    # Half of the time nothing was written.
    assert told[9].startswith("Spilled 10 MiB, 30 objects, write throughput 2 MiB/s: ")


def test_files_that_are_written_beside_each_other_take_their_time_once() -> None:
    report = SpillReport(MIB)
    report.begun(10.0)
    report.begun(10.5)
    assert not report.ended(0, 0, 11.0)  # it could not be written
    assert "Spilled 8 MiB, 2 objects, write throughput 4 MiB/s" in report.ended(8 * MIB, 2, 12.0)


def test_nothing_is_told_where_that_is_turned_off() -> None:
    report = SpillReport(0)
    report.begun(0.0)
    assert report.ended(1 << 40, 1, 1.0) == ""
