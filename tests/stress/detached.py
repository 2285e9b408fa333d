"""Ends the detached actors that killed drivers have left."""

from __future__ import annotations

import sys

import ray_mono as ray
from ray_mono.util import list_named_actors
from tests.integration.clusters import run_python


def end_detached_actors(address: str) -> None:
    """Runs this module as a driver of its own."""
    done = run_python("-m", "tests.stress.detached", address)
    assert done.status == 0, done.out + done.error


def main() -> int:
    ray.init(address=sys.argv[1], log_to_driver=False)
    for actor in list_named_actors(all_namespaces=True):
        ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
