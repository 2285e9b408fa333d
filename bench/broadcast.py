"""One object to many nodes: how long it takes, and how often it leaves its node.

    python bench/broadcast.py --nodes 8 --mb 100 [--peer PYTHON]

All nodes run on this machine, so they share its CPUs and its memory: what is compared is the same program on
the same machine. The floor is as many copies of the same bytes through TCP sockets, one after the other. The
bytes that leave the node are counted by its object manager. For Ray they are not: it has no such figure that
a program could read, so its column is empty. --peer names the interpreter of an installed Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time

MB = 10**6

PROGRAM = """
import json, sys, time
import numpy as np
import {module} as ray
from {module}.cluster_utils import Cluster

num_nodes, size_bytes = int(sys.argv[1]), int(sys.argv[2])
room_bytes = max(3 * size_bytes, 100_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, object_store_memory=room_bytes))
for number in range(num_nodes):
    cluster.add_node(num_cpus=1, resources={{f"node{{number}}": 1}}, object_store_memory=room_bytes)
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(num_cpus=0)
class Reader:
    def ready(self):
        return True
    def read(self, array):
        return int(array[-1])

readers = [Reader.options(resources={{f"node{{number}}": 1}}).remote() for number in range(num_nodes)]
ray.get([reader.ready.remote() for reader in readers])

def sent_bytes():
    try:
        from {module}._private import internal_state
        return internal_state.store_stats().stream_sent_bytes
    except ImportError:
        return None

array = np.random.default_rng(1).integers(0, 255, size_bytes, np.uint8)
ray.get([reader.read.remote(ray.put(array[:200_000])) for reader in readers])
reference = ray.put(array)
before = sent_bytes()
started = time.perf_counter()
assert set(ray.get([reader.read.remote(reference) for reader in readers])) == {{int(array[-1])}}
seconds = time.perf_counter() - started
sent = None if before is None else sent_bytes() - before
print(json.dumps([seconds, sent]))
ray.shutdown()
cluster.shutdown()
"""


def floor(num_nodes: int, size_bytes: int) -> tuple[float, int | None]:
    """(seconds, bytes sent)."""
    data = memoryview(bytearray(size_bytes))

    def receive(port: int) -> None:
        target = memoryview(bytearray(size_bytes))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            done = 0
            while done < size_bytes:
                done += sock.recv_into(target[done:])

    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.perf_counter()
        for _ in range(num_nodes):
            thread = threading.Thread(target=receive, args=(server.getsockname()[1],))
            thread.start()
            connection, _ = server.accept()
            with connection:
                connection.sendall(data)
            thread.join()
        return time.perf_counter() - started, num_nodes * size_bytes


def program(num_nodes: int, size_bytes: int, python: str, module: str) -> tuple[float, int | None]:
    """(seconds, bytes sent by the object's node)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if python != sys.executable:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", PROGRAM.format(module=module), str(num_nodes), str(size_bytes)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(b"["))
    seconds, sent_bytes = json.loads(line)
    return seconds, sent_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=8, help="beside the one that has it (default: 8)")
    parser.add_argument("--mb", type=int, default=100, help="size of the object (default: 100)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default: 2)")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has Ray")
    arguments = parser.parse_args()
    num_nodes, size_bytes = arguments.nodes, arguments.mb * MB
    sides = {
        "floor": lambda: floor(num_nodes, size_bytes),
        "ray_mono": lambda: program(num_nodes, size_bytes, sys.executable, "ray_mono"),
    }
    if arguments.peer:
        sides["Ray"] = lambda: program(num_nodes, size_bytes, arguments.peer, "ray")
    best: dict[str, tuple[float, int | None]] = {}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            result = side()
            best[name] = min(best.get(name, result), result, key=lambda pair: pair[0])
    for name, (seconds, sent_bytes) in best.items():
        copies = "" if sent_bytes is None else f", {sent_bytes / size_bytes:.2f} copies out of its node"
        ratio = f"{best['floor'][0] / seconds:.2f} of the floor"
        print(f"{name:9} {num_nodes} nodes in {seconds:.2f} s, {ratio}{copies}")


if __name__ == "__main__":
    main()
