"""How soon the loss of a node is known and made good: the table of docs/failures.md.

    python bench/node_loss.py [--losses N] [--how kill-raylet|kill-all|stop-all]

Nodes are added to a cluster of this program's and lost, one after another. On each run a task, and an actor
that has restarts. Told is how long it took from the loss until the cluster held the node to be dead, until
the task ran again, and until the actor answered from elsewhere. With --how stop-all, where a node stands
still, the actor's time is that of a lease (`gcs_reconnect_timeout_s`, `fence_margin_s`).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray
from ray_mono._private.node.node import Node
from ray_mono.cluster_utils import Cluster
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.005


@ray.remote(num_cpus=0)
def run(begun: str) -> None:
    """Says that it runs, and does not end."""
    with open(begun, "a") as file:
        file.write("x")
    time.sleep(1e6)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Actor:
    def pid(self) -> int:
        return os.getpid()


def processes_of(node: Node) -> list[psutil.Process]:
    assert node.record is not None
    reaper = psutil.Process(node.record.reaper_pid)
    return [*reaper.children(recursive=True), reaper]


def lose(node: Node, how: str) -> list[psutil.Process]:
    """Returns those that stand still."""
    assert node.record is not None
    if how == "kill-raylet":
        os.kill(int(node.record.services["raylet"]["pid"]), signal.SIGKILL)
        return []
    processes = processes_of(node)
    for process in processes:
        process.send_signal(signal.SIGKILL if how == "kill-all" else signal.SIGSTOP)
    return processes if how == "stop-all" else []


def seconds_until(reached: Callable[[], bool], since_s: float) -> float:
    while not reached():
        time.sleep(POLL_S)
    return time.perf_counter() - since_s


def is_dead(node: Node) -> bool:
    return any(row["NodeID"] == node.node_id and not row["Alive"] for row in ray.nodes())


def one_loss(cluster: Cluster, how: str, directory: str) -> dict[str, float]:
    node = cluster.add_node(num_cpus=1)
    there: dict[str, Any] = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=True)}
    begun = Path(directory) / node.node_id
    task = run.options(**there).remote(str(begun))
    actor = Actor.options(**there).remote()
    first = ray.get(actor.pid.remote())
    seconds_until(begun.exists, 0.0)
    lost_s = time.perf_counter()
    stopped = lose(node, how)
    rows = {
        "the node is held to be dead": seconds_until(lambda: is_dead(node), lost_s),
        "a task runs again": seconds_until(lambda: begun.stat().st_size > 1, lost_s),
    }
    while ray.get(actor.pid.remote()) == first:
        time.sleep(POLL_S)
    rows["an actor answers from elsewhere"] = time.perf_counter() - lost_s
    for process in stopped:
        process.kill()
    ray.cancel(task, force=True)
    ray.kill(actor)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", type=int, default=5, help="default: %(default)s")
    hows = ["kill-raylet", "kill-all", "stop-all"]
    parser.add_argument("--how", choices=hows, default=hows[0], help="default: %(default)s")
    arguments = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False, _redis_password=cluster.redis_password)
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(arguments.losses):
            for name, value_s in one_loss(cluster, arguments.how, directory).items():
                rows.setdefault(name, []).append(value_s)
    ray.shutdown()
    cluster.shutdown()
    print(f"{arguments.losses} losses, {arguments.how}; seconds".ljust(48) + "  median     most")
    for name, values_s in rows.items():
        print(f"{name:46} {statistics.median(values_s):9.2f} {max(values_s):8.2f}")


if __name__ == "__main__":
    main()
