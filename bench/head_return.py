"""How long a running program is without its head: the table of docs/failures.md.

    python bench/head_return.py [--kills N] [--storage file|redis]

The head of a cluster of this program's is killed again and again; its reaper starts it again. Told are, of
all kills: the slowest call of a known function and of an actor while the head was away (and the slowest of as
many calls before), and how long it took from the kill until a new actor answered.

--storage redis: over a redis-server of this machine's (Debian's package redis-server), with an append-only
file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray

CALLS_S = 0.5
"""How long calls are made before each kill, and after it."""


@ray.remote
def known(number: int) -> int:
    return number


@ray.remote(num_cpus=0)
class Actor:
    def method(self, number: int) -> int:
        return number


def slowest_s(call: Callable[[], object]) -> float:
    """Of calls that are made one after another."""
    slowest, end_s = 0.0, time.perf_counter() + CALLS_S
    while time.perf_counter() < end_s:
        started_s = time.perf_counter()
        call()
        slowest = max(slowest, time.perf_counter() - started_s)
    return slowest


def kill_head(session_dir: str) -> None:
    [record] = Path(session_dir).glob("nodes/*.json")
    reaper = psutil.Process(json.loads(record.read_text())["reaper_pid"])
    for process in reaper.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray_mono.gcs.gcs_server" in " ".join(process.cmdline()):
                process.kill()


@contextlib.contextmanager
def cluster(storage: str) -> Iterator[str]:
    """One whose head keeps its tables there; its session directory."""
    if storage == "file":
        context = ray.init(address="local", num_cpus=2, log_to_driver=False)
        yield context["session_dir"]
        ray.shutdown()
        return
    with tempfile.TemporaryDirectory(prefix="rmh", dir="/tmp") as directory:
        socket = f"{directory}/redis"
        settings = f"port 0\nunixsocket {socket}\ndir {directory}\nappendonly yes\nlogfile {directory}/log\n"
        server = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert server.stdin is not None
        server.stdin.write(settings)
        server.stdin.close()
        while not Path(socket).exists():
            time.sleep(0.01)
        command = [sys.executable, "-m", "ray_mono.scripts"]
        options = ["--head", "--port=0", "--num-cpus=2", f"--redis-address=unix:{socket}"]
        options += [f"--temp-dir={directory}/t", "--node-ip-address=127.0.0.1"]
        try:
            started = subprocess.run(
                [*command, "start", *options], check=True, capture_output=True, text=True
            )
            address = re.search(r"127\.0\.0\.1:\d+", started.stdout)
            assert address, started.stdout
            context = ray.init(address=address[0], log_to_driver=False)
            yield context["session_dir"]
            ray.shutdown()
        finally:
            subprocess.run([*command, "stop", f"--temp-dir={directory}/t"], check=False, capture_output=True)
            server.kill()
            server.wait()


def new_actor_s() -> float:
    started_s = time.perf_counter()
    ray.get(Actor.remote().method.remote(1))
    return time.perf_counter() - started_s


def told(name: str, values_s: list[float]) -> str:
    middle, most = statistics.median(values_s) * 1000, max(values_s) * 1000
    return f"{name:58} {middle:8.1f} {most:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--storage", choices=["file", "redis"], default="file", help="default: %(default)s")
    arguments = parser.parse_args()
    with cluster(arguments.storage) as session_dir:
        rows = measure(arguments.kills, session_dir)
    print(f"{arguments.kills} kills, storage {arguments.storage}; milliseconds      median     most")
    for name, values_s in rows.items():
        print(told(name, values_s))


def measure(kills: int, session_dir: str) -> dict[str, list[float]]:
    actor = Actor.remote()
    calls = (lambda: ray.get(known.remote(1)), lambda: ray.get(actor.method.remote(1)))
    for call in calls:
        call()
    rows: dict[str, list[float]] = {}
    for _ in range(kills):
        for name, call in zip(("task", "call of an actor"), calls, strict=True):
            rows.setdefault(f"slowest {name}, with a head", []).append(slowest_s(call))
            kill_head(session_dir)
            rows.setdefault(f"slowest {name}, after the head was killed", []).append(slowest_s(call))
        ray.nodes()  # it is back
        rows.setdefault("a new actor, with a head", []).append(new_actor_s())
        kill_head(session_dir)
        rows.setdefault("a new actor, from the kill of the head on", []).append(new_actor_s())
    return rows


if __name__ == "__main__":
    main()
