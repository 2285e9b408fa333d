"""Workers' log files become lines that know whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mono._private.logs import log_files
from ray_mono._private.logs.ended_logs import BYTES_VARIABLE, FILES_VARIABLE, EndedLogs
from ray_mono._private.logs.log_files import LINE_BYTES_MAX, READ_BYTES_MAX, STATE_PREFIX, Lines, LogDirectory

JOB = bytes.fromhex("01000000")
LABEL = ":job_id:01000000\n"


def running(path: Path) -> LogDirectory:
    """Of workers that run, whatever their process ids are on this machine."""
    return LogDirectory(path, is_alive=lambda pid: True)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_labels_name_what_follows_and_are_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "worker-ab-7.out"
    append(
        log,
        f"before any job\n{LABEL}:task_name:f\none\ntwo\n:task_name:g\nthree\n:actor_name:Counter\nfour\n",
    )
    (tmp_path / "raylet.out").write_text("not a worker's\n")
    assert list(running(tmp_path).read_new()) == [
        Lines(JOB, 7, "f", False, ("one", "two")),
        Lines(JOB, 7, "g", False, ("three",)),
        Lines(JOB, 7, "Counter", False, ("four",)),
    ]


def test_each_line_is_passed_on_once_and_whole(tmp_path: Path) -> None:
    log, directory = tmp_path / "worker-ab-01000000-7.out", running(tmp_path)
    append(log, f"{LABEL}one\ntw")
    assert [batch.lines for batch in directory.read_new()] == [("one",)]
    assert list(directory.read_new()) == []
    append(log, "o\n")
    assert [batch.lines for batch in directory.read_new()] == [("two",)]


def test_errors_go_by_the_labels_of_the_workers_other_file(tmp_path: Path) -> None:
    append(tmp_path / "worker-ab-7.out", f"{LABEL}:task_name:f\n")
    append(tmp_path / "worker-ab-7.err", "oh\n")
    append(tmp_path / "worker-cd-8.err", "of no job\n")
    assert list(running(tmp_path).read_new()) == [Lines(JOB, 7, "f", True, ("oh",))]


def test_a_line_of_data_comes_whole(tmp_path: Path) -> None:
    line = "x" * 200_000
    append(tmp_path / "worker-ab-7.out", f"{LABEL}{line}\n")
    assert [batch.lines for batch in running(tmp_path).read_new()] == [(line,)]


def test_long_lines_are_cut_and_say_so(tmp_path: Path) -> None:
    log, directory = tmp_path / "worker-ab-7.out", running(tmp_path)
    append(log, LABEL + "x" * (READ_BYTES_MAX + LINE_BYTES_MAX))
    assert list(directory.read_new()) == []
    assert list(directory.read_new()) == []
    append(log, "\nshort\n")
    long, short = [line for batch in directory.read_new() for line in batch.lines]
    assert long == "x" * LINE_BYTES_MAX + f" … [{READ_BYTES_MAX} more bytes]"
    assert short == "short"


def test_a_bar_that_was_drawn_again_and_again_is_its_last_state(tmp_path: Path) -> None:
    log, directory = tmp_path / "worker-ab-7.err", running(tmp_path)
    append(log, LABEL + "".join(f"\r{share:3}%|{'#' * 100}|" for share in range(100)) + "\r")
    assert list(directory.read_new()) == []
    append(log, "".join(f"\r{share:3}%|{'#' * LINE_BYTES_MAX}|" for share in range(3)))
    assert list(directory.read_new()) == []
    append(log, "\r100%|##|\nfrom windows\r\n\rwhole\r\n")
    assert [batch.lines for batch in directory.read_new()] == [("100%|##|", "from windows", "whole")]


def test_one_chatty_file_does_not_starve_the_others(tmp_path: Path) -> None:
    line = "x" * 1023 + "\n"
    append(tmp_path / "worker-ab-7.out", LABEL + line * (2 * READ_BYTES_MAX // 1024))
    append(tmp_path / "worker-cd-8.out", LABEL + "patient\n")
    batches = list(running(tmp_path).read_new())
    assert batches[-1].lines == ("patient",)
    assert sum(len(batch.lines) for batch in batches) <= READ_BYTES_MAX // 1024 + 1
    assert max(len(batch.lines) for batch in batches) <= log_files.BATCH_LINES_MAX


def test_a_begun_line_is_passed_on_when_its_process_is_gone(tmp_path: Path) -> None:
    alive = {7}
    log, directory = tmp_path / "worker-ab-7.out", LogDirectory(tmp_path, is_alive=alive.__contains__)
    append(log, f"{LABEL}:task_name:f\none\nlast wor")
    assert [batch.lines for batch in directory.read_new()] == [("one",)]
    assert list(directory.read_new()) == []
    append(log, "ds")
    alive.clear()
    assert list(directory.read_new()) == []
    assert list(directory.read_new()) == [Lines(JOB, 7, "f", False, ("last words",))]
    assert list(directory.read_new()) == []


def test_a_prompt_is_passed_on_when_it_is_asked_for_and_a_bar_stays_whole(tmp_path: Path) -> None:
    directory = running(tmp_path)
    append(tmp_path / "worker-ab-7.out", f"{LABEL}name? ")
    append(tmp_path / "worker-cd-8.out", f"{LABEL}\r 50%|# |")
    assert list(directory.read_new(with_begun=True)) == []
    assert [batch.lines for batch in directory.read_new(with_begun=True)] == [("name? ",)]
    append(tmp_path / "worker-ab-7.out", "thanks\n")
    append(tmp_path / "worker-cd-8.out", "\r100%|##|\n")
    assert [batch.lines for batch in directory.read_new()] == [("thanks",), ("100%|##|",)]


def test_the_end_of_a_process_that_showed_bars_is_told_once(tmp_path: Path) -> None:
    alive = {7, 8}
    directory = LogDirectory(tmp_path, is_alive=alive.__contains__)
    append(tmp_path / "worker-ab-7.out", f"{LABEL}:task_name:f\n{STATE_PREFIX}{{}}\n")
    append(tmp_path / "worker-cd-8.out", f"{LABEL}one\n")
    assert len(list(directory.read_new())) == 2
    assert list(directory.read_new()) == []
    alive.clear()
    assert list(directory.read_new()) == [Lines(JOB, 7, "f", False, (), is_end=True)]
    assert list(directory.read_new()) == []


def test_what_was_there_before_can_be_left_out(tmp_path: Path) -> None:
    log, directory = tmp_path / "worker-ab-7.out", running(tmp_path)
    append(log, f"{LABEL}:task_name:f\nold\n")
    directory.skip({log.name: log.stat().st_size})
    # It says no more whose it is.
    append(log, "new\n")
    assert list(directory.read_new()) == [Lines(JOB, 7, "f", False, ("new",))]


def test_a_file_that_was_emptied_is_read_from_its_start(tmp_path: Path) -> None:
    log, directory = tmp_path / "worker-ab-7.out", running(tmp_path)
    append(log, f"{LABEL}one\n")
    assert len(list(directory.read_new())) == 1
    log.write_text("two\n")
    assert [batch.lines for batch in directory.read_new()] == [("two",)]


def test_files_of_ended_workers_are_dropped_when_both_are_told_and_the_oldest_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILES_VARIABLE, "2")
    living = {7, 8, 9}
    directory = LogDirectory(tmp_path, is_alive=lambda pid: pid in living)
    ended = EndedLogs(directory)
    for pid in (7, 8, 9):
        append(tmp_path / f"worker-ab-{pid}.out", f"{LABEL}{pid}\n")
        append(tmp_path / f"worker-ab-{pid}.err", "begun")
    assert len(list(directory.read_new())) == 3 and directory.drop_ended() == []
    # Its begun line is told first, by the label of its other file.
    living.remove(7)
    assert directory.drop_ended() == []
    assert list(directory.read_new()) == [Lines(JOB, 7, "", True, ("begun",))]
    dropped = directory.drop_ended()
    assert sorted(path.name for path in dropped) == ["worker-ab-7.err", "worker-ab-7.out"]
    ended.add(dropped)
    assert len(list(tmp_path.iterdir())) == 6
    # Nobody looks at it any more, and it goes when another ends.
    append(tmp_path / "worker-ab-7.out", "late\n")
    living.remove(8)
    assert [lines.pid for lines in directory.read_new()] == [8]
    ended.add(directory.drop_ended())
    assert {path.name.split("-")[2][0] for path in tmp_path.iterdir()} == {"8", "9"}
    append(tmp_path / "worker-cd-10.out", f"{LABEL}new\n")
    living.add(10)
    assert [lines.lines for lines in directory.read_new()] == [("new",)]


def test_the_size_of_what_ended_workers_leave_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES_VARIABLE, "10")
    ended = EndedLogs(running(tmp_path))
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        append(path, "12345")
    ended.add(paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_what_a_job_has_written_so_far_can_be_told_from_what_comes_later(tmp_path: Path) -> None:
    directory = running(tmp_path)
    mine, idle = tmp_path / "worker-ab-7.out", tmp_path / "worker-ef-9.out"
    append(mine, LABEL + "x\n" * READ_BYTES_MAX)
    append(tmp_path / "worker-cd-8.out", ":job_id:02000000\nanother's\n")
    append(idle, "")
    for _ in directory.read_new():
        pass
    append(tmp_path / "worker-cd-8.out", "more\n")
    sizes = directory.sizes_of(JOB)
    assert sizes == {mine.name: len(LABEL) + 2 * READ_BYTES_MAX}
    assert directory.has_more and directory.unread_bytes(JOB, sizes) == sizes[mine.name] - READ_BYTES_MAX
    append(mine, "later\nbegun")
    while directory.unread_bytes(JOB, sizes):
        assert list(directory.read_new())
    assert not directory.has_more
    assert [batch.lines for batch in directory.read_begun(JOB)] == [("begun",)]
    assert list(directory.read_begun(JOB)) == []


def test_what_turns_out_to_be_anothers_is_not_waited_for(tmp_path: Path) -> None:
    directory = running(tmp_path)
    append(tmp_path / "worker-ab-7.out", ":job_id:02000000\n" + "x\n" * READ_BYTES_MAX)
    sizes = directory.sizes_of(JOB)
    assert directory.unread_bytes(JOB, sizes)
    for _ in directory.read_new():
        pass
    assert directory.has_more and not directory.unread_bytes(JOB, sizes)


def test_a_job_that_is_held_back_is_left_unread(tmp_path: Path) -> None:
    directory, held = running(tmp_path), set[bytes]()
    append(tmp_path / "worker-ab-7.out", f"{LABEL}one\n")
    append(tmp_path / "worker-ab-7.err", "oh\n")
    append(tmp_path / "worker-cd-8.out", ":job_id:02000000\ntwo\n")
    batches = []
    for batch in directory.read_new(held_jobs=held):
        batches.append(batch.lines)
        held.add(JOB)
    assert batches == [("one",), ("two",)] and not directory.has_more
    assert [batch.lines for batch in directory.read_new()] == [("oh",)]
