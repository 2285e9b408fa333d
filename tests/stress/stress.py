"""The fast paths under load: drivers with random programs on one cluster, and somebody outside who judges.

    ./bazelw run //tests/stress -- --minutes 5 --drivers 4 --actors 50

(or python tests/stress/stress.py …)

Each driver (driver.py) draws scenes (scenes.py) from its printed seed and checks every answer. One driver is
killed in the middle and replaced. The judge looks from outside (outside.py), and nothing may be lost or
leaked:

    always    a driver that says nothing for SILENCE_S is stuck: its stacks are shown
    at half   memory of the services is noted
    idle      the drivers have let go of everything and are still connected: no object, no lease, no busy
              worker, all resources free
    end       the drivers are gone: processes, sockets, descriptors, subscribers are as many as before they
              came
    memory    from half to the end the services may have grown by GROWTH_MAX_BYTES, and the GCS besides by a
              row for each actor that died and its bounded log of task events, however many calls there were

The 20-second form of it is stress_test.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).absolute().parent.parent.parent))
sys.path.append(str(Path(__file__).absolute().parent.parent.parent / "python"))

from tests.integration.clusters import CommandLineCluster, run_python
from tests.stress.detached import end_detached_actors
from tests.stress.driver_process import DriverProcess, Stuck
from tests.stress.outside import Memory, Outside, left_after_settling

GROWTH_MAX_BYTES = 4 << 20
"""Of a service from half time to the end: its allocator's fragments, and no more."""
DEAD_ACTOR_BYTES = 12 << 10
"""What the GCS may keep beside that for an actor that died meanwhile: its row, and its worker's."""
TASK_EVENTS_BYTES = 6 << 20
"""What it keeps for the timeline, when it has as many events as it ever keeps (gcs/task_event_log.py)."""
SETTLE_TIMEOUT_S = 30.0
POLL_S = 0.1
STORE_BYTES = 400 << 20


@dataclass(frozen=True)
class Options:
    """One run."""

    seconds: float
    drivers: int
    actors: int
    """Of all drivers together; scenes make more."""
    seed: str
    threads: int = 3
    """Of each driver."""
    only: str = ""
    """Scenes whose names (module.scene) have this in them; empty: all."""
    num_cpus: int = 2
    """What the cluster is told that it has."""


@dataclass
class Report:
    """What a run found."""

    options: Options
    scenes: int = 0
    calls: int = 0
    troubles: list[str] = field(default_factory=list)
    growth_bytes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        grown = ", ".join(f"{name} {size / 1024:+.0f} KiB" for name, size in self.growth_bytes.items())
        verdict = "\n".join(self.troubles) or "nothing lost, nothing leaked"
        return (
            f"{self.scenes} scenes with {self.calls} checked answers in {self.options.seconds:g} s "
            f"(seed {self.options.seed}); services since half time: {grown or 'unknown'}\n{verdict}"
        )


class Stress:
    """One run on one cluster."""

    def __init__(self, options: Options, base: Path) -> None:
        """base: where sessions lie, as RAY_MONO_TMPDIR says too."""
        self.report = Report(options)
        self._options = options
        self._base = base
        self._scratch = base / "scratch"
        self._drivers: list[DriverProcess] = []
        self._num_started = 0

    def run(self) -> Report:
        """Starts the cluster, plays, judges, stops everything."""
        self._scratch.mkdir()
        self._cluster = CommandLineCluster(
            self._base, num_cpus=self._options.num_cpus, object_store_memory=STORE_BYTES
        )
        self._outside = Outside(self._cluster.head)
        try:
            self._play()
        except (Stuck, AssertionError) as error:
            self.report.troubles += [str(error), self._outside.story()]
        finally:
            for driver in self._drivers:
                driver.kill()
            self._cluster.stop()
        return self.report

    # ---- the play

    def _play(self) -> None:
        before = self._settled_counts()
        self._start(self._options.drivers)
        self._watch(self._options.seconds / 2)
        at_half = self._outside.memory()
        self._kill_one()
        self._watch(self._options.seconds / 2)
        at_end = self._outside.memory()
        for driver in self._drivers:
            driver.say("stop")
        for driver in self._drivers:
            idle = driver.wait_for("idle")
            self.report.scenes += idle["scenes"]
            self.report.calls += idle["calls"]
        self._close_hub()
        end_detached_actors(self._cluster.address)
        self._judge_idle()
        for driver in self._drivers:
            driver.say("leave")
        for driver in self._drivers:
            driver.wait()
        self._judge_counts(before)
        self._judge_memory(at_half, at_end)

    def _start(self, count: int) -> None:
        started = []
        for _ in range(count):
            options = self._options
            seed = f"{options.seed}.{self._num_started}"
            self._num_started += 1
            actors = max(1, options.actors // options.drivers)
            started.append(
                DriverProcess(
                    self._cluster.address, seed, actors, options.threads, options.only, self._scratch
                )
            )
        self._drivers += started
        for driver in started:
            driver.wait_for("started")

    def _watch(self, seconds: float) -> None:
        """Raises Stuck, or AssertionError for a driver that failed."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            for driver in self._drivers:
                driver.check()
            time.sleep(POLL_S)

    def _kill_one(self) -> None:
        victim = self._drivers.pop(random.Random(self._options.seed).randrange(len(self._drivers)))
        print(f"driver {victim.seed} is killed in the middle of {victim.playing}", flush=True)
        self.report.scenes += victim.progress.get("scenes", 0)
        self.report.calls += victim.progress.get("calls", 0)
        victim.kill()
        self._start(1)

    # ---- the judge

    def _close_hub(self) -> None:
        """The actor that all drivers shared: its counts, then its end."""
        done = run_python("-m", "tests.stress.hub", self._cluster.address)
        assert done.status == 0, done.out + done.error
        told = json.loads(done.out.splitlines()[-1])
        left = [name for name in told["by_caller"] if not self._was_killed(name)]
        if told["troubles"] or left:
            self.report.troubles.append(f"the shared actor: {told['troubles']}, calls of {left} are missing")

    def _was_killed(self, caller: str) -> bool:
        return not any(caller.startswith(f"{driver.seed}-") for driver in self._drivers)

    def _judge_idle(self) -> None:
        left = left_after_settling(self._outside.held, SETTLE_TIMEOUT_S)
        if left:
            self.report.troubles.append(
                f"held, when all drivers had let go of everything: {json.dumps(left)}"
            )

    def _settled_counts(self) -> dict[str, int]:
        """Of the new cluster, once the workers that it keeps ready have started, and its services listen to
        the GCS."""

        def missing() -> str:
            states = [worker["state"] for worker in self._outside.raylet()["workers"]]
            num_subscribers = len(self._outside.gcs()["subscribers"])
            is_settled = states == ["idle"] * self._options.num_cpus and num_subscribers == 3
            return (
                ""
                if is_settled
                else f"workers are {states}, and {num_subscribers} services listen to the GCS"
            )

        unsettled = left_after_settling(missing, SETTLE_TIMEOUT_S)
        assert not unsettled, f"the new cluster did not settle: {unsettled}"
        return self._outside.counts()

    def _judge_counts(self, before: dict[str, int]) -> None:
        def more() -> dict[str, Any]:
            now = self._outside.counts()
            return {
                name: f"{count}, before {before[name]}" for name, count in now.items() if count > before[name]
            }

        left = left_after_settling(more, SETTLE_TIMEOUT_S)
        if left:
            self.report.troubles.append(f"left, when all drivers were gone: {left}")

    def _judge_memory(self, at_half: Memory, at_end: Memory) -> None:
        self.report.growth_bytes = at_end.growth(at_half)
        dead_actors = at_end.num_dead_actors - at_half.num_dead_actors
        kept_bytes = {"gcs_server": dead_actors * DEAD_ACTOR_BYTES + TASK_EVENTS_BYTES}
        for name, size in self.report.growth_bytes.items():
            allowed = GROWTH_MAX_BYTES + kept_bytes.get(name, 0)
            if size > allowed:
                self.report.troubles.append(
                    f"{name} grew by {size / 2**20:.1f} MiB since half time,"
                    f" more than {allowed / 2**20:.1f} MiB"
                )


@contextlib.contextmanager
def own_base() -> Iterator[Path]:
    """A base directory of its own for a run by hand, so that no cluster of the user's is touched."""
    base = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    os.environ.update(RAY_MONO_TMPDIR=str(base), HOME=str(base))
    for variable in (
        "RAY_MONO_ADDRESS",
        "RAY_MONO_AUTH_TOKEN",
        "RAY_MONO_AUTH_TOKEN_PATH",
        "RAY_MONO_REDIS_PASSWORD",
    ):
        os.environ.pop(variable, None)
    try:
        yield base
    except BaseException:
        print(f"logs: {base}", file=sys.stderr)
        raise
    shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Drivers with random programs on one cluster; ends with 1 if anything was lost or leaked."
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--drivers", type=int, default=4)
    parser.add_argument(
        "--actors", type=int, default=50, help="of all drivers together (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=3, help="of each driver (default: %(default)s)")
    parser.add_argument("--only", default="", help="scenes whose names have this in them, as stream_scenes")
    parser.add_argument("--seed", default=None, help="of all choices (default: a new one, printed)")
    arguments = parser.parse_args()
    seed = arguments.seed or str(random.SystemRandom().randrange(10**6))
    print(f"seed {seed}", flush=True)
    options = Options(
        60 * arguments.minutes, arguments.drivers, arguments.actors, seed, arguments.threads, arguments.only
    )
    with own_base() as base:
        report = Stress(options, base).run()
        print(report)
        if report.troubles:
            shutil.copytree(
                base, base.with_name(base.name + "-logs"), ignore=shutil.ignore_patterns("sockets")
            )
            print(f"logs: {base}-logs", file=sys.stderr)
    return 1 if report.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
