"""One driver of the stress: threads that play random scenes until they are told to stop. Started by
stress.py; talks with it by lines.

    it says    {"started": …}, {"progress": …} every second, {"idle": …} when all is over and let go of,
               {"failed": …}
    it hears   "stop", "leave"

What it checks itself are its calls' answers, its actors' counts and its own tables; the cluster is for the
one outside to judge.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import ray_mono as ray
from tests.stress import actor_scenes, soak_scenes, stream_scenes  # noqa: F401  their scenes are on the list too
from tests.stress.program import Caller, Program, check, state_of_process
from tests.stress.scenes import SCENES

PROGRESS_S = 1.0
LET_GO_TIMEOUT_S = 30.0
POLL_S = 0.05


def say(kind: str, **what: Any) -> None:
    print(json.dumps({kind: what}), flush=True)


class _Threads:
    """The threads of one driver, and the first failure among them."""

    def __init__(self, program: Program, num_threads: int, only: str) -> None:
        self._program = program
        self._scenes = [scene for scene in SCENES if only in f"{scene.__module__}.{scene.__name__}"]
        self._stop = threading.Event()
        self.failure = ""
        self.playing: dict[str, str] = {}
        self._threads = [
            threading.Thread(target=self._play, args=(Caller(program, number),), daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _play(self, caller: Caller) -> None:
        name = ""
        try:
            while not self._stop.is_set():
                play = caller.rng.choice(self._scenes)
                name = play.__name__
                self.playing[caller.name] = name
                play(caller)
                self._program.scene_ended()
            del self.playing[caller.name]
        except BaseException:
            self.failure = self.failure or f"{caller.name}, scene {name}:\n{traceback.format_exc()}"
            self._stop.set()

    def stop(self) -> None:
        self._stop.set()

    def are_over(self, timeout_s: float) -> bool:
        """Waits for them."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def _wait_until_let_go() -> None:
    """Raises Failure where this process still knows of any reference, value, task, lease or actor."""
    deadline_s = time.monotonic() + LET_GO_TIMEOUT_S
    while True:
        gc.collect()
        state = state_of_process()
        queues = state["scheduling"]
        left = {name: state[name] for name in ("references", "values", "tasks_pending") if state[name]}
        if len(state["actors"]) > 1:  # the shared one lives, and so does the connection to it
            left["actors"] = state["actors"]
        left.update(
            {
                name: queues
                for name in ("tasks_queued", "leases", "lease_requests")
                if any(q[name] for q in queues)
            }
        )
        if not left:
            return
        check(
            time.monotonic() < deadline_s,
            f"{LET_GO_TIMEOUT_S:g} s after everything was dropped there is still {left}",
        )
        time.sleep(POLL_S)


def _play_until_told(program: Program, num_threads: int, only: str) -> None:
    threads = _Threads(program, num_threads, only)
    heard = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        heard.set()

    threading.Thread(target=listen, daemon=True).start()
    while not heard.wait(PROGRESS_S):
        say("progress", scenes=program.num_scenes, calls=program.num_calls, playing=threads.playing)
        check(not threads.failure, threads.failure)
    threads.stop()
    while not threads.are_over(PROGRESS_S):
        say("progress", scenes=program.num_scenes, calls=program.num_calls, playing=threads.playing)
    check(not threads.failure, threads.failure)


def main() -> int:
    parser = argparse.ArgumentParser(description="One driver of the stress; stress.py starts it.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--actors", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--only", default="", help="scenes whose names have this in them")
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    ray.init(address=arguments.address, log_to_driver=False)
    try:
        program = Program(arguments.seed, arguments.actors, arguments.scratch)
        program.check_actors()
        say("started")
        _play_until_told(program, arguments.threads, arguments.only)
        program.check_actors()
        scenes, calls = program.num_scenes, program.num_calls
        del program
        _wait_until_let_go()
    except BaseException:
        say("failed", error=traceback.format_exc(), state=state_of_process())
        sys.stdin.readline()  # while somebody looks at the cluster
        return 1
    say("idle", scenes=scenes, calls=calls)
    sys.stdin.readline()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
