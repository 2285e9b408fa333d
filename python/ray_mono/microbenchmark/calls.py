"""The workloads of Ray's own microbenchmark, by its names and with its counts: objects, tasks and actors on
one node.

Lines whose floor is an echo count round trips of an empty message on a Unix socket; those without a floor do
several things at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ray_mono.microbenchmark import clusters
from ray_mono.microbenchmark.line import Group

CALLS = Group("calls", clusters.local(address="local"), is_microbenchmark=True)

ECHO = "floor: unix socket echo"
ECHO_ONE_CPU = "floor: unix socket echo on one CPU"
ECHO_PIPELINED = "floor: unix socket echo, 1,000 in flight"
MEMCPY_800 = "floor: memcpy of 0.8 GB into mapped memory"

BATCH = 1000
ACTOR_BATCH = 5000
TASKS_OF_EACH_CLIENT = 10_000
CLIENTS = 4
# What Ray counts 800 MiB of zeros as.
LARGE_PUT_GB = 0.8
# 8 GB; a store takes at most 30% of the memory of the machines that this is run on.
PUTS_TO_WARM_THE_STORE = 10
SMALL_PUTS = 100
REFS_IN_OBJECT = 10_000
CALLS_AT_LEAST = 2.0


def num_servers() -> int:
    """Actors that are called by others: half the machine."""
    return max(1, (os.cpu_count() or 2) // 2)


def remotes(ray: Any) -> SimpleNamespace:
    """The remote functions and classes that several workloads use, made with the module. Defined here, not at
    the top, so that both sides ship them by value."""

    @ray.remote
    def small_value() -> bytes:
        return b"ok"

    @ray.remote(num_cpus=0)
    class Actor:
        def small_value(self) -> bytes:
            return b"ok"

        def small_value_arg(self, x: object) -> bytes:
            return b"ok"

        def submit_tasks(self, n: int) -> None:
            ray.get([small_value.remote() for _ in range(n)])

    @ray.remote
    class AsyncActor:
        async def small_value(self) -> bytes:
            return b"ok"

        async def small_value_arg(self, x: object) -> bytes:
            return b"ok"

    @ray.remote(num_cpus=0)
    class Client:
        def __init__(self, servers: list[Any]) -> None:
            self.servers = servers

        def call(self, n: int) -> None:
            ray.get([server.small_value.remote() for server in self.servers for _ in range(n)])

        def call_with_arg(self, n: int) -> None:
            x = ray.put(0)
            ray.get([server.small_value_arg.remote(x) for server in self.servers for _ in range(n)])

    @ray.remote
    def call_in_turn(servers: list[Any], n: int) -> None:
        ray.get([servers[i % len(servers)].small_value.remote() for i in range(n)])

    return SimpleNamespace(
        small_value=small_value, Actor=Actor, AsyncActor=AsyncActor, Client=Client, call_in_turn=call_in_turn
    )


# ---- objects


@CALLS.rate("single client get calls (Plasma Store)", target=10)
def get_small(ray: Any) -> Callable[[], object]:
    reference = ray.put(0)
    return lambda: ray.get(reference)


@CALLS.rate("single client put calls (Plasma Store)", target=10)
def put_small(ray: Any) -> Callable[[], object]:
    return lambda: ray.put(0)


@CALLS.rate("multi client put calls (Plasma Store)", SMALL_PUTS * 10, target=CALLS_AT_LEAST)
def put_small_from_many(ray: Any) -> Callable[[], object]:
    @ray.remote
    def put() -> None:
        for _ in range(SMALL_PUTS):
            ray.put(0)

    return lambda: ray.get([put.remote() for _ in range(10)])


@CALLS.rate("single client put gigabytes", LARGE_PUT_GB, target=1, floor=MEMCPY_800)
def put_large(ray: Any) -> Callable[[], object]:
    """Into memory that was used before: more is put first than the store holds."""
    array = np.zeros(100 << 20, np.int64)
    for _ in range(PUTS_TO_WARM_THE_STORE):
        ray.put(array)
    return lambda: ray.put(array)


@CALLS.rate("single client tasks and get batch", target=CALLS_AT_LEAST)
def tasks_and_get(ray: Any) -> Callable[[], object]:
    small_value = remotes(ray).small_value
    return lambda: ray.get([small_value.remote() for _ in range(BATCH)])


@CALLS.rate("multi client put gigabytes", LARGE_PUT_GB * 10, target=1)
def put_large_from_many(ray: Any) -> Callable[[], object]:
    @ray.remote
    def put() -> None:
        for _ in range(10):
            ray.put(np.zeros(10 << 20, np.int64))

    return lambda: ray.get([put.remote() for _ in range(10)])


@CALLS.rate("single client get object containing 10k refs", target=CALLS_AT_LEAST)
def get_references(ray: Any) -> Callable[[], object]:
    @ray.remote
    def make() -> list[Any]:
        return [ray.put(1) for _ in range(REFS_IN_OBJECT)]

    reference = make.remote()
    return lambda: ray.get(reference)


@CALLS.rate("single client wait 1k refs", target=CALLS_AT_LEAST)
def wait_one_by_one(ray: Any) -> Callable[[], object]:
    small_value = remotes(ray).small_value

    def wait() -> None:
        waiting = [small_value.remote() for _ in range(BATCH)]
        # Fetching has to be asked for once only.
        fetch_local = True
        while waiting:
            _, waiting = ray.wait(waiting, fetch_local=fetch_local)
            fetch_local = False

    return wait


# ---- tasks


@CALLS.rate("single client tasks sync", target=6, floor=ECHO)
def tasks_sync(ray: Any) -> Callable[[], object]:
    small_value = remotes(ray).small_value
    return lambda: ray.get(small_value.remote())


@CALLS.rate("single client tasks async", BATCH, target=6, floor=ECHO_PIPELINED)
def tasks_async(ray: Any) -> Callable[[], object]:
    return tasks_and_get(ray)


@CALLS.rate("multi client tasks async", TASKS_OF_EACH_CLIENT * CLIENTS, target=CALLS_AT_LEAST)
def tasks_from_many(ray: Any) -> Callable[[], object]:
    actors = [remotes(ray).Actor.remote() for _ in range(CLIENTS)]
    return lambda: ray.get([actor.submit_tasks.remote(TASKS_OF_EACH_CLIENT) for actor in actors])


# ---- actors


@CALLS.rate("1:1 actor calls sync", target=4, floor=ECHO)
def actor_sync(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).Actor.remote()
    return lambda: ray.get(actor.small_value.remote())


@CALLS.rate("1:1 actor calls async", BATCH, target=6, floor=ECHO_PIPELINED)
def actor_async(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).Actor.remote()
    return lambda: ray.get([actor.small_value.remote() for _ in range(BATCH)])


@CALLS.rate("1:1 actor calls concurrent", BATCH, target=CALLS_AT_LEAST, floor=ECHO_PIPELINED)
def actor_concurrent(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).Actor.options(max_concurrency=16).remote()
    return lambda: ray.get([actor.small_value.remote() for _ in range(BATCH)])


@CALLS.rate("1:n actor calls async", ACTOR_BATCH * num_servers(), target=CALLS_AT_LEAST)
def actor_one_to_many(ray: Any) -> Callable[[], object]:
    made = remotes(ray)
    client = made.Client.remote([made.Actor.remote() for _ in range(num_servers())])
    return lambda: ray.get(client.call.remote(ACTOR_BATCH))


@CALLS.rate("n:n actor calls async", ACTOR_BATCH * CLIENTS, target=CALLS_AT_LEAST)
def actor_many_to_many(ray: Any) -> Callable[[], object]:
    made = remotes(ray)
    servers = [made.Actor.remote() for _ in range(num_servers())]
    return lambda: ray.get([made.call_in_turn.remote(servers, ACTOR_BATCH) for _ in range(CLIENTS)])


@CALLS.rate("n:n actor calls with arg async", BATCH * num_servers(), target=CALLS_AT_LEAST)
def actor_many_to_many_arg(ray: Any) -> Callable[[], object]:
    made = remotes(ray)
    clients = [made.Client.remote([made.Actor.remote()]) for _ in range(num_servers())]
    return lambda: ray.get([client.call_with_arg.remote(BATCH) for client in clients])


@CALLS.rate("1:1 async-actor calls sync", target=CALLS_AT_LEAST, floor=ECHO)
def async_actor_sync(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).AsyncActor.remote()
    return lambda: ray.get(actor.small_value.remote())


@CALLS.rate("1:1 async-actor calls async", BATCH, target=CALLS_AT_LEAST, floor=ECHO_PIPELINED)
def async_actor_async(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).AsyncActor.remote()
    return lambda: ray.get([actor.small_value.remote() for _ in range(BATCH)])


@CALLS.rate("1:1 async-actor calls with args async", BATCH, target=CALLS_AT_LEAST, floor=ECHO_PIPELINED)
def async_actor_arg(ray: Any) -> Callable[[], object]:
    actor = remotes(ray).AsyncActor.remote()
    return lambda: ray.get([actor.small_value_arg.remote(i) for i in range(BATCH)])


@CALLS.rate("1:n async-actor calls async", ACTOR_BATCH * num_servers(), target=CALLS_AT_LEAST)
def async_actor_one_to_many(ray: Any) -> Callable[[], object]:
    made = remotes(ray)
    client = made.Client.remote([made.AsyncActor.remote() for _ in range(num_servers())])
    return lambda: ray.get(client.call.remote(ACTOR_BATCH))


@CALLS.rate("n:n async-actor calls async", ACTOR_BATCH * CLIENTS, target=CALLS_AT_LEAST)
def async_actor_many_to_many(ray: Any) -> Callable[[], object]:
    made = remotes(ray)
    servers = [made.AsyncActor.remote() for _ in range(num_servers())]
    return lambda: ray.get([made.call_in_turn.remote(servers, ACTOR_BATCH) for _ in range(CLIENTS)])
