"""What user code finds at the end of a process that ends by `_exit`: what it finds at the end of any."""

from __future__ import annotations

import atexit
import concurrent.futures
import gc
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_mono.core_worker.process import process_end
from ray_mono.core_worker.task_execution.call_thread import CallThread
from tests.no_threads import no_threads

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Handlers of this process's own do not run; those that a test adds to the list do."""
    handlers: list[Any] = []

    def run() -> None:
        while handlers:
            handlers.pop()()

    monkeypatch.setattr(atexit, "_run_exitfuncs", run)
    monkeypatch.setattr(threading, "_threading_atexits", [])
    return handlers


def test_what_nothing_refers_to_is_collected_before_threads_and_handlers_and_again_behind_them(
    only_ours: list[Any],
) -> None:
    steps: list[str] = []

    class Cycle:
        def __init__(self, name: str) -> None:
            self.name, self.me = name, self

        def __del__(self) -> None:
            steps.append(self.name)

    def handler() -> None:
        steps.append("handler")
        Cycle("left by the handler")

    only_ours.append(handler)
    gc.disable()
    try:
        Cycle("left by the user")
        process_end.run()
    finally:
        gc.enable()
    assert steps == ["left by the user", "handler", "left by the handler"]


def test_files_that_are_still_open_are_flushed(tmp_path: Path) -> None:
    files = [(tmp_path / "text").open("w"), (tmp_path / "bytes").open("wb"), (tmp_path / "both").open("w+b")]
    files[0].write("text")
    files[1].write(b"bytes")
    files[2].write(b"both")
    process_end.run()
    assert [(tmp_path / name).read_text() for name in ("text", "bytes", "both")] == ["text", "bytes", "both"]
    for file in files:
        file.close()


def test_what_a_handler_writes_is_flushed_too(tmp_path: Path, only_ours: list[Any]) -> None:
    file = (tmp_path / "text").open("w")
    only_ours.append(lambda: file.write("late") and None)
    process_end.run()
    assert (tmp_path / "text").read_text() == "late"
    file.close()


class Holder:
    """A cycle with an open file in it."""

    def __init__(self, path: Path) -> None:
        self.me, self.file = self, path.open("w")


def test_a_file_in_a_cycle_loses_nothing(tmp_path: Path) -> None:
    gc.disable()
    try:
        Holder(tmp_path / "text").file.write("text")
        process_end.run()
    finally:
        gc.enable()
    assert (tmp_path / "text").read_text() == "text"


def test_a_file_in_a_cycle_that_a_handler_leaves_loses_nothing(tmp_path: Path, only_ours: list[Any]) -> None:
    only_ours.append(lambda: Holder(tmp_path / "text").file.write("text") and None)
    gc.disable()
    try:
        process_end.run()
    finally:
        gc.enable()
    assert (tmp_path / "text").read_text() == "text"


def test_what_is_written_as_the_last_things_are_let_go_is_flushed_too(
    tmp_path: Path, only_ours: list[Any]
) -> None:
    file = (tmp_path / "text").open("w")

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            file.write("last words")

    only_ours.append(lambda: Cycle() and None)
    gc.disable()
    try:
        process_end.run()
    finally:
        gc.enable()
    assert (tmp_path / "text").read_text() == "last words"
    file.close()


def test_threads_of_the_users_are_waited_for_and_daemons_and_ours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    asked = threading.Event()
    stays = threading.Event()

    def work() -> None:
        asked.wait(WAIT_S)
        ended.append("the user's")

    user = threading.Thread(target=work, daemon=False)
    daemon = threading.Thread(target=stays.wait, args=(WAIT_S,), daemon=True)
    ours = CallThread(lambda: stays.wait(WAIT_S) and None, "ours")
    for thread in (user, daemon, ours):
        thread.start()
    plain = threading.Thread.join

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread is user:
            asked.set()
        plain(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)
    process_end.run()
    assert ended == ["the user's"] and daemon.is_alive() and ours.is_alive()
    stays.set()
    ours.join()


def test_a_thread_that_does_not_end_is_told_of_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, only_ours: list[Any]
) -> None:
    monkeypatch.setattr(process_end, "THREADS_TIMEOUT_S", 0.01)
    goes_on, steps = threading.Event(), []
    thread = threading.Thread(target=goes_on.wait, args=(WAIT_S,), name="stubborn", daemon=False)
    thread.start()
    only_ours.append(lambda: steps.append("handler"))
    process_end.run()
    goes_on.set()
    assert "the thread stubborn did not end in 0 s" in caplog.text and steps == ["handler"]


def test_pools_are_told_to_end_in_the_order_in_which_python_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []

    def fail() -> None:
        steps.append("second")
        raise LookupError("no")

    monkeypatch.setattr(threading, "_threading_atexits", [lambda: steps.append("first"), fail])
    caplog.set_level(logging.ERROR)
    process_end.run()
    assert steps == ["second", "first"] and "the end of a pool failed" in caplog.text


def test_a_handler_that_fails_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise SystemExit("no")

    monkeypatch.setattr(atexit, "_run_exitfuncs", fail)
    process_end.run()
    assert "an exit handler failed" in caplog.text


def test_what_is_left_in_a_pool_of_the_users_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    pool = concurrent.futures.ThreadPoolExecutor(1)
    for number in range(3):
        pool.submit(ran.append, number)
    monkeypatch.setattr(threading, "_threading_atexits", [pool.shutdown])
    process_end.run()
    assert ran == [0, 1, 2]


def test_where_no_thread_may_be_made_pools_end_and_handlers_run(
    monkeypatch: pytest.MonkeyPatch, only_ours: list[Any]
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(threading, "_threading_atexits", [lambda: steps.append("pool")])
    only_ours.append(lambda: steps.append("handler"))
    with no_threads():
        process_end.run()
    assert steps == ["pool", "handler"]
