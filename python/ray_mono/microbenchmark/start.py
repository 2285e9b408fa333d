"""What it costs to begin and to be idle: init, the first task, actors, memory and CPU of a cluster that does
nothing.

Each workload has a process and a cluster of its own, so that everything in it happens for the first time.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from typing import Any

from ray_mono.microbenchmark import processes
from ray_mono.microbenchmark.line import Bench, Group, Line, Unit
from ray_mono.microbenchmark.timing import seconds

START = Group("start")

ACTOR_COUNTS = (20, 200)
IDLE_WORKERS = 20
# The services go on starting and settling a while after `init` has returned.
SETTLE_S = 5.0
IDLE_S = 30.0
PYTHON_START = "floor: start of a Python that does nothing"

INIT = Line("init() to connected", Unit.SECONDS, target=4, floor=PYTHON_START)
FIRST_TASK = Line("first task", Unit.SECONDS, target=4)
SERVICES_PSS = Line("idle head: PSS of the services that both sides have", Unit.MEGABYTES, target=2)
NODE_PSS = Line("idle head: the same, with reaper and template", Unit.MEGABYTES)
ALL_SERVICES_PSS = Line("idle head: PSS of all services", Unit.MEGABYTES)
WORKER_PSS = Line("idle worker: PSS (of 20)", Unit.MEGABYTES, target=8)
IDLE_CPU = Line("idle cluster: CPU over 30 s", Unit.PERCENT_OF_A_CORE)

# Parts of the command lines of services that have a counterpart on the other side: cluster metadata,
# scheduling with the store (two processes of ours), and worker output.
SHARED_SERVICES = ("gcs_server", "raylet", "log_monitor", "object_manager")
# What ours need besides. Ray keeps no parent of its services, and idle workers ready instead of a template to
# fork them from.
OWN_SERVICES = ("ray_mono::TEMPLATE", "_private.node.reaper")
# How workers are called, and the services that are called so too.
WORKER_TITLES = ("ray::", "ray_mono::")
SERVICE_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray_mono::TEMPLATE")


def forks_floor(count: int) -> str:
    return f"floor: {count} forks that answer"


def start(ray: Any) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False)


@START.workload(INIT, FIRST_TASK)
def begin(bench: Bench) -> None:
    ray = bench.ray

    @ray.remote
    def one() -> int:
        return 1

    bench.report(INIT.name, [seconds(lambda: start(ray))])
    bench.report(FIRST_TASK.name, [seconds(lambda: ray.get(one.remote()))])
    ray.shutdown()


def _register_actors(count: int) -> None:
    line = Line(f"{count} actors ready (num_cpus=0)", Unit.SECONDS, target=15, floor=forks_floor(count))

    @START.workload(line, heavy=count > 20, timeout_s=300)
    def actors(bench: Bench) -> None:
        ray = bench.ray
        start(ray)
        _warm_up(ray)
        made: list[Any] = []
        bench.report(line.name, [seconds(lambda: made.extend(actor_pids(ray, count)))])
        ray.shutdown()


for _count in ACTOR_COUNTS:
    _register_actors(_count)


def actor_pids(ray: Any, count: int) -> list[tuple[Any, int]]:
    """Makes actors and waits until each has answered; the handles keep them alive."""

    class Actor:
        def pid(self) -> int:
            return os.getpid()

    made: Any = ray.remote(num_cpus=0)(Actor)
    actors = [made.remote() for _ in range(count)]
    return list(zip(actors, ray.get([actor.pid.remote() for actor in actors]), strict=True))


def _warm_up(ray: Any) -> None:
    @ray.remote
    def nothing() -> None:
        pass

    ray.get(nothing.remote())


@START.workload(SERVICES_PSS, NODE_PSS, ALL_SERVICES_PSS, WORKER_PSS)
def memory(bench: Bench) -> None:
    ray = bench.ray
    start(ray)
    _warm_up(ray)
    time.sleep(SETTLE_S)
    shared = own = everything = 0.0
    for process in processes.descendants(os.getpid()):
        text = processes.command(process.pid)
        if not text or is_worker(text):
            continue
        pss_mb = processes.pss_bytes(process.pid) / 1e6
        everything += pss_mb
        shared += pss_mb if names_program(text, SHARED_SERVICES) else 0.0
        own += pss_mb if names_program(text, OWN_SERVICES) else 0.0
        print(
            f"{pss_mb:8.1f} MB {'' if names_program(text, SHARED_SERVICES) else '(not shared) '}{text[:150]}"
        )
    if not shared:
        raise RuntimeError(f"no command line names a service of {SHARED_SERVICES}")
    bench.report(SERVICES_PSS.name, [shared])
    bench.report(NODE_PSS.name, [shared + own])
    bench.report(ALL_SERVICES_PSS.name, [everything])
    actors = actor_pids(ray, IDLE_WORKERS)
    time.sleep(SETTLE_S)
    bench.report(WORKER_PSS.name, [statistics.median(processes.pss_bytes(pid) for _, pid in actors) / 1e6])
    ray.shutdown()


def is_worker(command: str) -> bool:
    return command.startswith(WORKER_TITLES) and not command.startswith(SERVICE_TITLES)


def names_program(command: str, names: tuple[str, ...]) -> bool:
    """Whether the program of a command line is one of these. (The arguments of Ray's other services name
    them too.)"""
    program = itertools.takewhile(lambda word: not word.startswith("--"), command.split())
    return any(name in word for word in program for name in names)


@START.workload(IDLE_CPU)
def idle_cpu(bench: Bench) -> None:
    """Of all processes, this driver and an idle worker among them, once they have settled."""
    start(bench.ray)
    _warm_up(bench.ray)
    time.sleep(SETTLE_S)
    found = [process for pid in [os.getpid()] if (process := processes.find(pid)) is not None]
    found += processes.descendants(os.getpid())
    before_s, began_s = processes.cpu_s(found), time.perf_counter()
    time.sleep(IDLE_S)
    used_s = processes.cpu_s(found) - before_s
    bench.report(IDLE_CPU.name, [100 * used_s / (time.perf_counter() - began_s)])
    bench.ray.shutdown()
