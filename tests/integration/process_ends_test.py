"""What user code sees of the end of its process, by the way in which it ends: as in Ray, and as in any Python
process."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorDiedError, WorkerCrashedError
from tests.integration.bounded import GET_TIMEOUT_S, get, process_ends
from tests.integration.conftest import NUM_CPUS
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing", "by_value")


THREAD, EXIT, LAST, FILE = "a thread", "atexit", "finalize", "a file"
OF_PYTHON = {THREAD, EXIT, LAST, FILE}
OF_ACTOR = {"__ray_shutdown__", "__del__"}
CANCELLED = "a coroutine's finally"


class Marks:
    """Notes, in a directory, what ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, what: str) -> None:
        (self.path / what).touch()

    def seen(self) -> set[str]:
        return {file.name for file in self.path.iterdir() if file.name != FILE or file.read_text()} - {"go"}


def use_process(owner: Any, mark: Marks) -> Any:
    """Leaves in the process what its end has to see to. Returns a file that is open, and written to."""

    def late() -> None:
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while not (mark.path / "go").exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        mark(THREAD)

    atexit.register(mark, EXIT)
    weakref.finalize(owner, mark, LAST)
    threading.Thread(target=late).start()
    file = (mark.path / FILE).open("w")
    file.write("written")
    return file


class Plain:
    def __init__(self, mark: Marks) -> None:
        self.mark = mark
        self.file = use_process(self, mark)

    def __del__(self) -> None:
        self.mark("__del__")

    def __ray_shutdown__(self) -> None:
        self.mark("__ray_shutdown__")

    def pid(self) -> int:
        return os.getpid()

    def exit_actor(self) -> None:
        ray.actor.exit_actor()

    def sys_exit(self) -> None:
        sys.exit(0)


class Async(Plain):
    async def pid(self) -> int:  # type: ignore[override]
        self.task = asyncio.create_task(self.wait())
        await asyncio.sleep(0)
        return os.getpid()

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.mark(CANCELLED)


def call(name: str) -> Callable[[list[Any]], None]:
    def end(handles: list[Any]) -> None:
        getattr(handles[0], name).remote()

    return end


WAYS: dict[str, tuple[Callable[[list[Any]], None], bool]] = {
    "the last handle goes": (lambda handles: handles.clear(), True),
    "exit_actor()": (call("exit_actor"), True),
    "sys.exit(0)": (call("sys_exit"), True),
    "__ray_terminate__": (call("__ray_terminate__"), True),
    "SIGTERM": (lambda handles: os.kill(get(handles[0].pid.remote()), signal.SIGTERM), True),
    "kill()": (lambda handles: ray.kill(handles[0]), False),
}
"""Each with whether it is in order."""
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "plain": (Plain, {}),
    "threaded": (Plain, {"max_concurrency": 2}),
    "async": (Async, {}),
}


def test_an_actor_that_ends_in_order_ends_as_a_python_process(tmp_path: Path) -> None:
    actors: dict[tuple[str, str], tuple[Marks, list[Any]]] = {}
    for kind, (cls, options) in KINDS.items():
        for way in WAYS if kind != "threaded" else ["the last handle goes", "__ray_terminate__", "SIGTERM"]:
            mark = Marks(tmp_path / f"{kind}, {way}")
            mark.path.mkdir()
            actors[kind, way] = mark, [ray.remote(cls).options(num_cpus=0, **options).remote(mark)]
    pids = {case: get(handles[0].pid.remote()) for case, (_, handles) in actors.items()}
    for (_, way), (mark, handles) in actors.items():
        end, is_in_order = WAYS[way]
        end(handles)
        if is_in_order:
            mark("go")
    found, expected = {}, {}
    for (kind, way), (mark, _) in actors.items():
        process_ends(pids[kind, way])
        found[kind, way] = mark.seen()
        of_kind = OF_PYTHON | OF_ACTOR | ({CANCELLED} if kind == "async" else set())
        expected[kind, way] = of_kind if WAYS[way][1] else set()
    assert found == expected


class Busy:
    """What it runs says that it began, and waits for the file "go"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self) -> str:
        try:
            (self.path / str(os.getpid())).touch()
            while not (self.path / "go").exists():
                time.sleep(0.01)
        except SystemExit as error:
            (self.path / "struck").write_text(str(error.code))
            raise
        return "ran"

    def begun(self) -> int:
        """The pid of the process that began it."""
        wait_until(lambda: any(self.path.iterdir()), "it begins")
        return int(next(self.path.iterdir()).name)


def test_sigterm_strikes_what_runs_on_the_main_thread_and_calls_on_others_end_first(tmp_path: Path) -> None:
    busy = {kind: Busy(tmp_path / kind) for kind in ("task", "plain", "threaded")}
    for one in busy.values():
        one.path.mkdir()
    actor = ray.remote(num_cpus=0)(Busy)
    handles = [
        actor.remote(busy["plain"].path),
        actor.options(max_concurrency=2).remote(busy["threaded"].path),
    ]
    refs = [
        ray.remote(max_retries=0)(busy["task"].run).remote(),
        *(handle.run.remote() for handle in handles),
    ]
    for one in busy.values():
        os.kill(one.begun(), signal.SIGTERM)
    for ref, error in zip(refs, (WorkerCrashedError, ActorDiedError), strict=False):
        with pytest.raises(error, match="SIGTERM"):
            get(ref)
    (busy["threaded"].path / "go").touch()
    assert get(refs[2]) == "ran"
    assert {kind: (one.path / "struck").exists() for kind, one in busy.items()} == {
        "task": True,
        "plain": True,
        "threaded": False,
    }


def test_a_process_that_a_task_forks_is_ended_by_sigterm_however_early_that_comes() -> None:
    def fork() -> int:
        child = os.fork()
        if not child:
            time.sleep(GET_TIMEOUT_S)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fork_often() -> bool:
        return all(fork() == -signal.SIGTERM for _ in range(30))

    assert get(ray.remote(fork_often).remote())


class Owner:
    file: Any = None


def test_the_worker_of_a_last_call_ends_as_a_python_process_and_one_that_stays_does_not(
    tmp_path: Path,
) -> None:
    def use(mark: Marks) -> int:
        kept = sys.modules["__main__"].kept = Owner()  # type: ignore[attr-defined]
        kept.file = use_process(kept, mark)
        return os.getpid()

    last, stays = Marks(tmp_path / "last"), Marks(tmp_path / "stays")
    for mark in (last, stays):
        mark.path.mkdir()
        mark("go")
    task = ray.remote(num_cpus=0)(use)
    process_ends(get(task.options(max_calls=1).remote(last)))
    assert last.seen() == OF_PYTHON
    get(task.remote(stays))
    wait_until(lambda: THREAD in stays.seen(), "the thread ends")
    assert stays.seen() == {THREAD}


def test_an_actor_whose_constructor_raises_ends_as_a_python_process(tmp_path: Path) -> None:
    class Fails:
        def __init__(self, mark: Marks) -> None:
            self.mark = mark
            use_process(self, mark)
            raise ValueError(os.getpid())

        def __del__(self) -> None:
            self.mark("__del__")

    mark = Marks(tmp_path / "fails")
    mark.path.mkdir()
    mark("go")
    handle = ray.remote(num_cpus=0)(Fails).remote(mark)
    with pytest.raises(ActorDiedError) as failed:
        get(handle.__ray_ready__.remote())
    process_ends(int(str(failed.value).rpartition(" ")[2]))
    assert mark.seen() == OF_PYTHON | {"__del__"}


def test_an_actor_that_nobody_has_a_handle_of_stays_for_what_it_owns_and_holds_nothing_else(
    tmp_path: Path,
) -> None:
    @ray.remote(num_cpus=0)
    def wait() -> int:
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while not (tmp_path / "go").exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return 9

    class Owner:
        def make(self) -> list[Any]:
            return [os.getpid(), ray.put("small"), ray.put(np.ones(1_000_000)), wait.remote()]

        def __ray_shutdown__(self) -> None:
            (tmp_path / "ended").touch()

    owner = ray.remote(Owner).options(num_cpus=NUM_CPUS, name="owner").remote()
    pid, small, large, late = get(owner.make.remote())
    del owner
    # Its name is free at once, and its CPUs.
    with pytest.raises(ValueError, match="no actor named"):
        ray.get_actor("owner")
    assert get(ray.remote(num_cpus=NUM_CPUS)(lambda: 1).remote()) == 1
    assert (tmp_path / "ended").exists()
    assert get(small) == "small" and get(large).sum() == 1_000_000
    (tmp_path / "go").touch()
    assert get(late) == 9
    del small, large, late
    process_ends(pid)
