"""One object that several nodes hold, read by another: how long it takes from one of them, and from all.

    python bench/several_holders.py --holders 2 --mb 200 [--mbit 400]

All nodes run on this machine. --mbit gives each holder a line of its own, which is no faster than that: the
bench makes itself a network for it (unshare, tc; as root). Without it they share the machine's memory, and
what is to be seen is that it does no harm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

MB = 10**6

PROGRAM = """
import json, sys, time
import numpy as np
import ray_mono as ray
from ray_mono.cluster_utils import Cluster

num_holders, size_bytes, streams_max = map(int, sys.argv[1:])
room_bytes = max(3 * size_bytes, 100_000_000)
settings = {"object_manager": {"holders_per_object_max": streams_max}}
head = dict(num_cpus=1, object_store_memory=room_bytes, _system_config=settings)
cluster = Cluster(initialize_head=True, head_node_args=head)
for number in range(num_holders):
    cluster.add_node(num_cpus=1, resources={f"holder{number}": 1}, object_store_memory=room_bytes,
                     node_ip_address=f"127.0.0.{number + 2}")
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(num_cpus=0)
def make():
    return np.random.default_rng(1).integers(0, 255, size_bytes, np.uint8)

@ray.remote(num_cpus=0)
def read(array):
    return len(array)

reference = make.options(resources={"holder0": 1}).remote()
for number in range(1, num_holders):
    ray.get(read.options(resources={f"holder{number}": 1}).remote(reference))
while len(ray.experimental.get_object_locations([reference])[reference]["node_ids"]) < num_holders:
    time.sleep(0.01)
started = time.perf_counter()
assert len(ray.get(reference)) == size_bytes
print(json.dumps(time.perf_counter() - started))
ray.shutdown()
cluster.shutdown()
"""


def lay_network(num_holders: int, mbit: float) -> None:
    """This process is in a network of its own: a line for each holder."""
    commands = ["ip link set lo up", "tc qdisc add dev lo root handle 1: htb r2q 1000"]
    for number in range(2, num_holders + 2):
        commands.append(f"tc class add dev lo parent 1: classid 1:{number} htb rate {mbit}mbit")
        match = f"match ip src 127.0.0.{number}/32 flowid 1:{number}"
        commands.append(f"tc filter add dev lo parent 1: protocol ip u32 {match}")
    for command in commands:
        subprocess.run(command.split(), check=True)


def seconds(num_holders: int, size_bytes: int, streams_max: int) -> float:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM, *map(str, (num_holders, size_bytes, streams_max))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--holders", type=int, default=2, help="nodes that have it (default: 2)")
    parser.add_argument("--mb", type=int, default=200, help="size of the object (default: 200)")
    parser.add_argument("--mbit", type=float, default=0, help="of each holder's line; 0: no bound (default)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    arguments = parser.parse_args()
    if arguments.mbit and "HAS_OWN_NETWORK" not in os.environ:
        os.environ["HAS_OWN_NETWORK"] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    if arguments.mbit:
        lay_network(arguments.holders, arguments.mbit)
    size_bytes = arguments.mb * MB
    measured: dict[int, list[float]] = {1: [], arguments.holders: []}
    for _ in range(arguments.rounds):
        for streams_max, some in measured.items():
            some.append(seconds(arguments.holders, size_bytes, streams_max))
    for streams_max, some in measured.items():
        middle = statistics.median(some)
        print(f"from {streams_max} of {arguments.holders}: {middle:.2f} s, {arguments.mb / middle:.0f} MB/s")


if __name__ == "__main__":
    main()
