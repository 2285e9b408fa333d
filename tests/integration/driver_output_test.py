"""What workers have written before a driver's last `get` returned is on its screen when it has ended, however
it ends."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clusters import CommandLineCluster, run_python

NUM_LINES = 20_000
"""Some 2 MB: more than a log monitor reads at once."""


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    cluster = CommandLineCluster(shared_base, num_cpus=1)
    try:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        yield cluster
    finally:
        cluster.stop()


PROGRAM = f"""
import ctypes, os, signal, subprocess, sys
import ray_mono as ray

ray.init("auto")

@ray.remote
def burst():
    for number in range({NUM_LINES}):
        print("x" * 80, number)

@ray.remote(resources={{"there": 1}}, max_retries=0)
def crash():
    print("last words", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)

@ray.remote(num_cpus=0)
class Talker:
    async def talk(self):
        os.write(1, b"without Python\\n")
        ctypes.CDLL(None).puts(b"by C code")
        subprocess.run(["echo", "by a child"])
        print("snow \\u2603 \\udc80")
        print("begun", end="")

talker = Talker.remote()
ray.get([burst.remote(), talker.talk.remote()], timeout=60)
ray.kill(talker)
try:
    ray.get(crash.remote(), timeout=60)
except ray.exceptions.WorkerCrashedError:
    pass
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
        ("ray.shutdown(); os._exit(5)", 5),
    ],
    ids=["interrupt", "shutdown"],
)
def test_all_that_was_written_is_shown(
    cluster: CommandLineCluster, monkeypatch: Any, end: str, status: int
) -> None:
    monkeypatch.setenv("RAY_MONO_DEDUP_LOGS", "0")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    done = run_python("-c", PROGRAM + end)
    lines = [re.sub(r"pid=\d+", "pid=", line) for line in done.out.splitlines()]
    burst = [line for line in lines if line.startswith("(burst")]
    assert burst == [f"(burst pid=) {'x' * 80} {number}" for number in range(NUM_LINES)]
    # The driver's output cannot have these characters.
    talk = ["without Python", "by C code", "by a child", "snow \\u2603 \\udc80", "begun"]
    assert [line for line in lines if line.startswith("(Talker")] == [
        f"(Talker pid=) {line}" for line in talk
    ]
    assert re.search(r"\(crash pid=\d+\) last words\n", done.error), done.error
    assert "not shown" not in done.error and done.status == status, done.error


def test_the_first_lines_of_a_cluster_of_its_own_are_shown(shared_base: Path, monkeypatch: Any) -> None:
    """Its log monitor is its last process to start, and the program may be over before it listens."""
    monkeypatch.setenv("RAY_MONO_DEDUP_LOGS", "0")
    source = """
import ray_mono as ray
ray.init("local", num_cpus=2)
talk = ray.remote(lambda number: print("line", number))
ray.get([talk.remote(number) for number in range(50)])
"""
    done = run_python("-c", source)
    numbers = [int(number) for number in re.findall(r"line (\d+)\n", done.out)]
    assert sorted(numbers) == list(range(50)), done


def test_actors_go_by_their_repr_and_bars_prompts_and_last_words_come_whole(
    cluster: CommandLineCluster, start_script: Any
) -> None:
    source = """
        import os
        import sys
        import ray_mono as ray

        @ray.remote(num_cpus=0)
        class Learner:
            def __init__(self, number):
                self.number = number
                print("constructing", number)

            def __repr__(self):
                return f"Learner({self.number})"

            def work(self):
                print("working")
                for share in (0, 50, 100):
                    print(f"\\r{share}%|{'#' * (share // 10)}|", end="", flush=True)
                print()
                print("a prompt? ", end="", flush=True)

            def end(self):
                print("last words", end="", flush=True)
                os._exit(1)

        ray.init("auto")
        learner = Learner.remote(7)
        ray.get(learner.work.remote())
        input()
        ray.wait([learner.end.remote()])
        input()
        ray.shutdown()
    """
    script = start_script(source)
    script.wait_for_line("a prompt? ")
    script.say("go on")
    script.wait_for_line("last words")
    script.say("go on")
    lines = [
        re.sub(r"pid=\d+", "pid=", line) for line in script.check_ended_well().splitlines() if " pid=" in line
    ]
    assert lines[:4] == [
        "(Learner pid=) constructing 7",
        "(Learner(7) pid=) working",
        "(Learner(7) pid=) 100%|##########|",
        "(Learner(7) pid=) a prompt? ",
    ]
    assert "(Learner(7) pid=) last words" in lines


def test_a_line_of_many_workers_appears_once_with_their_number(
    cluster: CommandLineCluster, start_script: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAY_MONO_DEDUP_LOGS_AGG_WINDOW_S", "2")
    source = """
        import ray_mono as ray

        ray.init("auto")

        @ray.remote
        class Worker:
            def hello(self, number):
                print("hello from worker", number)

        workers = [Worker.options(num_cpus=0).remote() for _ in range(4)]
        # Their starts are no part of the window.
        ray.get([worker.__ray_ready__.remote() for worker in workers], timeout=60)
        ray.get([worker.hello.remote(number) for number, worker in enumerate(workers)], timeout=60)
        print("all have said it", flush=True)
        input()
        ray.shutdown()
    """
    script = start_script(source)
    script.wait_for_line("(Worker pid=")
    script.wait_for_line("[repeated 3x across cluster]")
    script.say("go on")
    assert script.check_ended_well().count("hello from worker") == 2
