"""A cluster of three nodes whose processes die at random, under a workload that is checked: nothing is lost,
nothing comes out wrong, and nothing is left behind.

    ./bazelw run //tests/stress:soak -- --minutes 20

(or python tests/stress/soak.py …)

breaker.py kills and stops processes: workers, templates, log monitors, the head, raylets, object managers,
reapers, whole nodes. One driver plays soak_scenes.py from beginning to end, others are killed in the middle
and replaced. The judge looks from outside:

    always   a driver's answers are right, and it does not fall silent; of a node that was lost nothing stays
    calm     nothing dies any more, and the driver has let go of everything: no object, no lease, no busy
             worker, all resources free; processes, sockets, descriptors are as many as before; the raylet and
             the object manager of the first node, which live from beginning to end, have not grown
    end      after `stop` there is no process, no file in shared memory and no spilled file

The 20-second form of it is soak_test.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).absolute().parent.parent.parent))
sys.path.append(str(Path(__file__).absolute().parent.parent.parent / "python"))

import psutil

from ray_mono._private.node.session import NodeRecord
from tests.integration.clusters import CommandLineCluster, processes_of_node, service_pid
from tests.integration.titles import title_of
from tests.stress.breaker import Breaker, LeftBehind
from tests.stress.detached import end_detached_actors
from tests.stress.driver_process import DriverProcess, Stuck
from tests.stress.log_tails import log_tails
from tests.stress.outside import Outside, anonymous_bytes, left_after_settling
from tests.stress.stress import own_base

NUM_NODES = 2
"""Beside the head's."""
PAUSE_S = 4.0
"""Between two deaths, at most."""
STORY_MAX = 15
"""How many of the latest deaths a report tells one by one."""
GROWTH_MAX_BYTES = 8 << 20
"""Of raylet and object manager of the first node, from a quarter of the time to the end."""
SETTLE_TIMEOUT_S = 120.0
POLL_S = 0.2
STORE_BYTES = 150 << 20
LASTING = ("raylet", "object_manager")

Counted = dict[str, list[str]]


@dataclass(frozen=True)
class Options:
    """One run."""

    seconds: float
    seed: str
    only: str = "soak_scenes"
    """Scenes whose names (module.scene) have this in them."""
    deaths: str = ""
    """Kinds of death that have one of these in their names, with commas between; empty: all."""
    pause_s: float = PAUSE_S


@dataclass
class Report:
    """What a soak found, as far as it came."""

    seed: str
    scenes: int = 0
    answers: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    """The deaths in their order, each with its second."""
    growth_bytes: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        deaths = "\n".join(f"{count:6} times {what}" for what, count in sorted(self.deaths.items()))
        verdict = "nothing lost, nothing wrong, nothing left behind"
        if self.troubles:
            verdict = "\n".join(["the latest deaths:", *self.story[-STORY_MAX:], *self.troubles])
        return (
            f"{self.scenes} scenes with {self.answers} checked answers (seed {self.seed}), while\n{deaths}\n"
            f"growth in bytes: {self.growth_bytes}\n{verdict}"
        )


class Soak:
    """One run."""

    def __init__(self, options: Options, base: Path) -> None:
        """base: where sessions lie, as RAY_MONO_TMPDIR says too."""
        self.report = Report(options.seed)
        self._options = options
        self._rng = random.Random(f"{options.seed}/soak")
        self._base = base
        self._scratch = base / "scratch"
        self._drivers: list[DriverProcess] = []
        self._num_started = 0

    def run(self) -> Report:
        """Starts the cluster, plays, judges, stops everything."""
        self._scratch.mkdir()
        self._cluster = CommandLineCluster(self._base, num_cpus=2, object_store_memory=STORE_BYTES)
        self._outside = Outside(self._cluster.head)
        try:
            self._play()
        except (Stuck, LeftBehind, AssertionError) as error:
            logs = log_tails(self._cluster.session_dir / "logs", str(error))
            self.report.troubles += [str(error), self._outside.story(), logs]
        finally:
            for driver in self._drivers:
                self._end(driver)
            try:
                self._cluster.stop()
            except AssertionError as error:
                self.report.troubles.append(f"stop failed: {error}")
        self._judge_end()
        return self.report

    def _end(self, driver: DriverProcess) -> None:
        self.report.scenes += driver.progress.get("scenes", 0)
        self.report.answers += driver.progress.get("calls", 0)
        driver.kill()

    def _add_node(self) -> NodeRecord:
        return self._cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)

    def _play(self) -> None:
        options, report = self._options, self.report
        breaker = Breaker(self._cluster, self._add_node, NUM_NODES, options.seed, options.deaths)
        report.deaths = breaker.done
        before: Counted = {}
        unsettled = left_after_settling(lambda: self._unsettled(before), SETTLE_TIMEOUT_S)
        assert not unsettled, f"the new cluster did not settle: {unsettled}"
        lasting, passing = self._start_driver(), self._start_driver()
        start_s = time.monotonic()
        memory = self._memory()
        while (gone_s := time.monotonic() - start_s) < options.seconds:
            report.story.append(f"{gone_s:7.1f} s: {breaker.break_something()}")
            print(report.story[-1], flush=True)
            if self._rng.random() < 0.1:
                self._drivers.remove(passing)
                self._end(passing)
                report.deaths["a driver is killed"] += 1
                passing = self._start_driver()
            if gone_s < options.seconds / 4:
                memory = self._memory()
            self._watch(self._rng.uniform(0.0, options.pause_s))
        for driver in (lasting, passing):
            driver.say("stop")
        for driver in (lasting, passing):
            driver.wait_for("idle")
        end_detached_actors(self._cluster.address)
        self._judge("held, when the drivers had let go of everything", self._outside.held)
        report.growth_bytes = {name: size - memory[name] for name, size in self._memory().items()}
        for name, size in report.growth_bytes.items():
            if size > GROWTH_MAX_BYTES:
                report.troubles.append(f"{name} grew by {size / 2**20:.1f} MiB")
        for driver in (lasting, passing):
            driver.say("leave")
        for driver in (lasting, passing):
            driver.wait()
        self._judge("left, when the drivers were gone", lambda: self._more_than(before))

    def _start_driver(self) -> DriverProcess:
        """Beside the head. The scenes that it draws are those for this."""
        seed = f"{self.report.seed}.{self._num_started}"
        self._num_started += 1
        driver = DriverProcess(self._cluster.address, seed, 0, 3, self._options.only, self._scratch)
        self._drivers.append(driver)
        driver.wait_for("started")
        return driver

    def _watch(self, seconds: float) -> None:
        """Raises Stuck, or AssertionError for a driver that failed."""
        deadline_s = time.monotonic() + seconds
        while True:
            for driver in self._drivers:
                driver.check()
            if time.monotonic() > deadline_s:
                return
            time.sleep(POLL_S)

    # ---- the judge

    def _memory(self) -> dict[str, int]:
        return {name: anonymous_bytes(service_pid(self._cluster.head, name)) for name in LASTING}

    def _counted(self) -> Counted:
        """What must be back at its number when all is over."""
        head, gcs = self._cluster.head, self._outside.gcs()
        counted: dict[str, Sequence[Any]] = {
            "processes of the first node": [title_of(process) for process in processes_of_node(head)],
            "sockets of nobody": _sockets_of_nobody(self._cluster.session_dir / "sockets"),
            "running jobs": gcs["jobs"]["running"],
            "subscribers": gcs["subscribers"],
            "watchers": ["one"] * gcs["actors"]["watchers"],
            "living actors": gcs["actors"]["living"],
        }
        for name in LASTING:
            counted[f"descriptors of {name}"] = _descriptors(service_pid(head, name))
        return {name: sorted(map(str, what)) for name, what in counted.items()}

    def _unsettled(self, before: Counted) -> str:
        """While the new cluster still starts; then `before` is what it has."""
        states = [worker["state"] for worker in self._outside.raylet()["workers"]]
        num_subscribers = len(self._outside.gcs()["subscribers"])
        if states != ["idle"] * 2 or num_subscribers != 1 + 2 * (1 + NUM_NODES):
            return f"workers are {states}, and {num_subscribers} services listen to the GCS"
        before.update(self._counted())
        return ""

    def _more_than(self, before: Counted) -> dict[str, str]:
        return {
            name: f"{len(what)}, before {len(before[name])}: {what}; before: {before[name]}"
            for name, what in self._counted().items()
            if len(what) > len(before[name])
        }

    def _judge(self, what: str, left: Any) -> None:
        if found := left_after_settling(left, SETTLE_TIMEOUT_S):
            self.report.troubles.append(f"{what}: {json.dumps(found)}")

    def _judge_end(self) -> None:
        shared = [name for name in os.listdir("/dev/shm") if self._cluster.session_dir.name in name]
        if shared:
            self.report.troubles.append(f"left in shared memory after stop: {shared}")
        processes = [process.info for process in psutil.process_iter(["pid", "environ", "cmdline"])]
        mine = [
            info
            for info in processes
            if (info["environ"] or {}).get("RAY_MONO_TMPDIR") == str(self._base)
            and info["pid"] != os.getpid()
            and "ray_mono" in " ".join(info["cmdline"] or [])
        ]
        if mine:
            self.report.troubles.append(f"processes left after stop: {[info['cmdline'] for info in mine]}")
        spilled = [str(path) for path in self._base.glob("session_*/**/*spill*/**/*") if path.is_file()]
        if spilled:
            self.report.troubles.append(f"spilled files left after stop: {spilled}")


def _descriptors(pid: int) -> list[str]:
    """What they lead to, but for connections with others that live: there are some to each node."""
    process = psutil.Process(pid)
    connections = {each.fd: each for each in process.net_connections(kind="all")}
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            leads_to, connection = os.readlink(link), connections.get(int(link.name))
            if connection is not None:
                leads_to = f"{connection.laddr} to {connection.raddr} {connection.status}"
            if not leads_to.endswith(psutil.CONN_ESTABLISHED):
                found.append(leads_to)
    return found


def _sockets_of_nobody(folder: Path) -> list[str]:
    """Paths on which no process listens."""
    listening = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    return [path.name for path in folder.iterdir() if path.is_socket() and str(path) not in listening]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A cluster whose processes die at random; ends with 1 if anything was lost or left."
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="(default: %(default)s)")
    parser.add_argument("--seed", default=None, help="of all choices (default: a new one, printed)")
    parser.add_argument("--only", default="soak_scenes", help="scenes whose names (module.scene) have this")
    parser.add_argument("--deaths", default="", help="kinds of death, as raylet,worker (default: all)")
    parser.add_argument(
        "--pause-s", type=float, default=PAUSE_S, help="between deaths, at most (default: %(default)s)"
    )
    arguments = parser.parse_args()
    seed = arguments.seed or str(random.SystemRandom().randrange(10**6))
    print(f"seed {seed}", flush=True)
    options = Options(60 * arguments.minutes, seed, arguments.only, arguments.deaths, arguments.pause_s)
    with own_base() as base:
        report = Soak(options, base).run()
        print(report)
        if report.troubles:
            kept = base.with_name(base.name + "-logs")
            os.rename(base, kept)
            print(f"logs: {kept}", file=sys.stderr)
    return 1 if report.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
