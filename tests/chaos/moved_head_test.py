"""A head is stopped, and another one takes over on the same Redis, in another place. Nodes, workers and the
driver follow; the old one ends when it goes on. And a Redis comes back with older rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import ray_mono as ray
from ray_mono.experimental import internal_kv
from ray_mono.util import list_named_actors
from tests.gcs.gcs_process import MODULE
from tests.gcs.redis_servers import RedisProcess
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster, run_python, runs, service_pid
from tests.integration.titles import title_of
from tests.waiting import wait_until


@pytest.fixture
def redis(session_base: Path) -> Iterator[RedisProcess]:
    redis = RedisProcess(f"{session_base}/redis", ["appendonly yes"])
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
def cluster(session_base: Path, redis: RedisProcess) -> Iterator[CommandLineCluster]:
    """Of two nodes, over a Redis. This process is a driver there."""
    os.environ["RAY_MONO_REDIS_ADDRESS"] = redis.address
    made = CommandLineCluster(session_base, num_cpus=1, redis_address=redis.address)
    try:
        made.add_node(num_cpus=1, resources={"there": 2})
        ray.init(address=made.address, namespace="here")
        yield made
    finally:
        ray.shutdown()
        made.stop()
        del os.environ["RAY_MONO_REDIS_ADDRESS"]


@pytest.fixture
def start_head(cluster: CommandLineCluster, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Heads that the test has started by hand."""
    heads: list[subprocess.Popen[bytes]] = []
    yield heads
    for head in heads:
        head.terminate()
        head.wait()


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number


def start_by_hand(cluster: CommandLineCluster) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "RAY_MONO_AUTH_TOKEN": cluster.secret}
    arguments = ["--storage", "redis", "--host", "127.0.0.1", "--port", "0"]
    arguments += ["--session-dir", str(cluster.session_dir)]
    return subprocess.Popen([sys.executable, "-m", MODULE, *arguments], env=environment)


NEW_DRIVER = """
import ray_mono as ray, sys
ray.init(address=sys.argv[1])
print("job", ray.get_runtime_context().get_job_id())
print(ray.get(ray.remote(lambda: "a task of it has run").remote(), timeout=60))
"""


def heads_of(cluster: CommandLineCluster) -> list[psutil.Process]:
    below = psutil.Process(cluster.head.reaper_pid).children(recursive=True)
    return [process for process in below if MODULE in title_of(process)]


def new_driver(cluster: CommandLineCluster) -> str:
    done = run_python("-c", NEW_DRIVER, cluster.address)
    assert done.status == 0 and "a task of it has run" in done.out, done.out + done.error
    return done.out


def test_a_redis_that_comes_back_with_older_rows_has_a_head_that_all_follow(
    cluster: CommandLineCluster, redis: RedisProcess
) -> None:
    counter = Counter.options(name="named", lifetime="detached").remote()
    assert get(counter.next.remote()) == 1
    internal_kv._internal_kv_put(b"key", b"older")
    tables = [key for key in redis.ask("KEYS", "ray_mono:*")]
    for key in tables:
        redis.ask("COPY", key, b"older " + key)
    first = new_driver(cluster)
    internal_kv._internal_kv_put(b"key", b"newer", overwrite=True)
    for _ in range(3):
        [head] = heads_of(cluster)
        head.kill()
        head.wait()
        assert internal_kv._internal_kv_get(b"key") == b"newer"
    with redis.client() as client:
        restore = client.pipeline()
        for key in tables:
            restore.copy(b"older " + key, key, replace=True)
        restore.execute()
    wait_until(lambda: internal_kv._internal_kv_get(b"key") == b"older", "a head with the older rows")
    # What it does needs nodes that are registered there.
    assert get(Counter.remote().next.remote()) == 1
    assert get(ray.get_actor("named").next.remote()) == 2
    assert new_driver(cluster) != first


def test_a_head_that_takes_over_elsewhere_is_followed_by_all(
    cluster: CommandLineCluster, start_head: list[subprocess.Popen[bytes]]
) -> None:
    old = psutil.Process(service_pid(cluster.head, "gcs_server"))
    named = Counter.options(name="named", lifetime="detached").remote()
    there = Counter.options(resources={"there": 1}).remote()
    assert get([named.next.remote(), there.next.remote()]) == [1, 1]
    internal_kv._internal_kv_put(b"key", b"value")
    old.send_signal(signal.SIGSTOP)
    start_head.append(start_by_hand(cluster))
    # What needs the head is done by the new one. What lives goes on.
    assert get(ray.get_actor("named").next.remote()) == 2
    assert internal_kv._internal_kv_get(b"key") == b"value"
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    assert get(Counter.remote().next.remote()) == 1
    assert get(there.next.remote()) == 2
    wait_until(
        lambda: ray.available_resources().get("there") == 1.0, "the other node reports to the new head"
    )
    old.send_signal(signal.SIGCONT)
    wait_until(lambda: not runs(old), "the old head ends")
    assert list_named_actors() == ["named"]
    assert get(named.next.remote()) == 3
    assert get(there.next.remote()) == 3
    ray.kill(named)
