"""What every process needs runs out: descriptors, processes, room on the disk. What needs more waits or
fails, with an error that says what is missing; the cluster lives, and goes on when there is some again."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.scripts import Script
from tests.waiting import wait_until

FEW_FILES = """
import resource
import ray_mono as ray

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
ray.init(address="local", num_cpus=2)

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        return "called"

@ray.remote
def add(one, other):
    return one + other

assert ray.get(add.remote(1, 2), timeout=60) == 3
actors = [Actor.remote() for _ in range(30)]
calls = [actor.call.remote() for actor in actors]
ready, waiting = ray.wait(calls, num_returns=30, timeout=8)
print("waiting:", len(waiting))
assert ray.get(ready, timeout=60) == ["called"] * len(ready)
assert ray.get([add.remote(number, 1) for number in range(100)], timeout=60) == list(range(1, 101))
# Those that go make room.
for actor in actors[:25]:
    ray.kill(actor)
assert ray.get(calls[25:], timeout=60) == ["called"] * 5
print("the end")
ray.shutdown()
"""


def run(program: str, directory: Path, *arguments: str) -> str:
    path = directory / "program.py"
    path.write_text(program)
    return Script(path, *arguments).check_ended_well()


def test_with_few_descriptors_there_are_few_workers_and_the_driver_is_told(
    session_base: Path, tmp_path: Path
) -> None:
    output = run(FEW_FILES, tmp_path)
    assert "waiting: 0" not in output
    assert "the raylet may open only 64 files, which is enough for 12 workers" in output
    assert "have 'ulimit -n' say more" in output and "the end" in output
    for log in session_base.glob("session_*/logs/*"):
        assert log.stat().st_size < 1 << 20, f"{log} is flooded"


NO_FILES_LEFT = """
import resource
import ray_mono as ray
from tests.chaos.victims import Victims

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
ray.init(address="local", num_cpus=2)

@ray.remote(max_retries=0)
def add(one, other):
    return one + other

@ray.remote(num_cpus=0)
class Leaking:
    def leak(self):
        self.files = []
        try:
            while True:
                self.files.append(open("/dev/null"))
        except OSError:
            pass
    def close(self):
        self.files = []
    def add(self):
        try:
            return ray.get(add.remote(1, 2), timeout=60)
        except ray.exceptions.WorkerCrashedError as error:
            return str(error)

leaking = Leaking.remote()
ray.get([leaking.leak.remote(), add.remote(1, 2)], timeout=60)
victims = Victims()
call, most = leaking.add.remote(), 0
while not ray.wait([call], timeout=0.1)[0]:
    most = max(most, len(victims.workers()))
    assert ray.get(add.remote(1, 2), timeout=60) == 3
print("at most", most, "workers")
print(ray.get(call, timeout=60))
ray.get(leaking.close.remote(), timeout=60)
assert ray.get(leaking.add.remote(), timeout=60) == 3
ray.shutdown()
"""


def test_who_has_no_descriptors_left_costs_others_nothing_and_is_told_why_its_tasks_fail(
    session_base: Path, tmp_path: Path
) -> None:
    output = run(NO_FILES_LEFT, tmp_path)
    most = re.search(r"at most (\d+) workers", output)
    assert most is not None and int(most[1]) < 8, output
    assert re.search("The worker died before.*its caller cannot connect to .*: Too many open files", output)


FULL_DISK = """
import os
import sys
import time
import ray_mono as ray

ray.init(address="local", num_cpus=2)

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        return "called"

@ray.remote
def add(one, other):
    return one + other

known = Actor.remote()
assert ray.get(known.call.remote(), timeout=60) == "called"
fill = sys.argv[1]
with open(fill, "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
# What needs nothing new goes on.
assert ray.get([add.remote(number, 1) for number in range(100)], timeout=60) == list(range(1, 101))
assert ray.get(known.call.remote(), timeout=60) == "called"
assert ray.get(ray.put(bytes(1 << 20)), timeout=60) == bytes(1 << 20)
# The head has to write this down.
call = Actor.remote().call.remote()
assert not ray.wait([call], timeout=3)[0]
os.unlink(fill)
assert ray.get(call, timeout=60) == "called"
assert ray.get([add.remote(1, 1), known.call.remote()], timeout=60) == [2, "called"]
print("the end")
ray.shutdown()
"""


@pytest.fixture
def small_disk(session_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sessions lie on it. Only root can make one, and not everywhere."""
    disk = session_base / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode(errors='replace')}")
    monkeypatch.setenv("RAY_MONO_TMPDIR", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_while_the_sessions_disk_is_full_only_what_is_new_waits(small_disk: Path, tmp_path: Path) -> None:
    output = run(FULL_DISK, tmp_path, str(small_disk / "fill"))
    assert output.count("The head waits for room in its store") == 1
    assert "database or disk is full" in output and "the end" in output


FEW_PROCESSES = """
import os
import subprocess
import sys
import ray_mono as ray

group = sys.argv[1]
with open(f"{group}/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
ray.init(address="local", num_cpus=2)

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        return "called"

@ray.remote
def add(one, other):
    return one + other

assert ray.get(add.remote(1, 2), timeout=60) == 3
threaded = Actor.options(max_concurrency=4).remote()
assert ray.get(threaded.call.remote(), timeout=60) == "called"
with open(f"{group}/pids.current") as file:
    number = int(file.read()) + 20
with open(f"{group}/pids.max", "w") as file:
    file.write(str(number))
actors = [Actor.remote() for _ in range(20)]
calls = [actor.call.remote() for actor in actors]
ready, waiting = ray.wait(calls, num_returns=20, timeout=8)
print("waiting:", len(waiting))
assert ray.get(ready, timeout=60) == ["called"] * len(ready)
assert ray.get([add.remote(number, 1) for number in range(100)], timeout=60) == list(range(1, 101))
# What would be faster with more threads does without.
large = os.urandom(64 << 20)
assert ray.get(ray.put(large), timeout=60) == large
assert ray.get([threaded.call.remote() for _ in range(8)], timeout=60) == ["called"] * 8
with open(f"{group}/pids.max", "w") as file:
    file.write("max")
assert ray.get(calls, timeout=60) == ["called"] * 20
print("the end")
ray.shutdown()
"""


@pytest.fixture
def pids_group() -> Iterator[Path]:
    """A cgroup that limits processes."""
    group = Path("/sys/fs/cgroup/pids", f"ray_mono_test_{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup of version 1 can be made here that limits processes")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the cgroup is empty")
        group.rmdir()


def test_where_no_process_can_be_made_actors_wait_and_the_driver_is_told(
    session_base: Path, pids_group: Path, tmp_path: Path
) -> None:
    output = run(FEW_PROCESSES, tmp_path, str(pids_group))
    assert "waiting: 0" not in output and "the end" in output
    assert "Workers do not start, so tasks and actors wait" in output
    assert "the pids limit of the container" in output and "The head" not in output
