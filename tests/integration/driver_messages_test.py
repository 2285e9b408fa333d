"""What reaches a driver beside its results: warnings, the output of its workers, refusals, and what `init`
says and does.

All programs here are drivers of one cluster that the command line made.
"""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.clusters import CommandLineCluster, processes_of_node, run_python
from tests.integration.scripts import Script
from tests.integration.titles import title_of

OPEN_FILES_SMALL = 256


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    cluster = CommandLineCluster(shared_base, num_cpus=2, resources={"A": 1, "B": 4})
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def driver(cluster: CommandLineCluster, start_script: Callable[..., Script]) -> Callable[..., Script]:
    """driver(source): a script that runs."""
    return start_script


# ---------------------------------------------------------------- warnings


def test_a_driver_is_told_what_its_own_tasks_and_actors_wait_for(driver: Any) -> None:
    quiet = """
        import ray_mono as ray

        ray.init("auto")
        print("ready", flush=True)
        input()
        assert ray.get(ray.remote(lambda: 1).remote(), timeout=60) == 1
        ray.shutdown()
    """
    bystander = driver(quiet, name="bystander.py")
    bystander.wait_for_line("ready")
    source = """
        import ray_mono as ray

        ray.init("auto")

        @ray.remote(resources={"A": 2})
        def greedy():
            pass

        @ray.remote(num_cpus=3, resources={"C": 1})
        class Greedy:
            pass

        task, actor = greedy.remote(), Greedy.remote()
        input()
        # It waits, and keeps nobody.
        assert ray.wait([task], timeout=0) == ([], [task])
        assert ray.get(greedy.options(resources={"B": 3}).remote(), timeout=60) is None
    """
    script = driver(source)
    told = [script.wait_for_line("(ray_mono) ") for _ in range(2)]
    (task,) = [line for line in told if "greedy" in line]
    (actor,) = [line for line in told if "Greedy" in line]
    for part in ("A: 2", "A: 1", "B: 4", "CPU: 2"):
        assert part in task, task
    for part in ("CPU: 3", "C: 1", "CPU: 2"):
        assert part in actor, actor
    script.say("go on")
    output = script.check_ended_well()
    # Once, not with every look.
    assert output.count("greedy") == output.count("Greedy") == 1
    bystander.say("go on")
    assert "reedy" not in bystander.check_ended_well()


def test_a_function_that_carries_too_much_is_warned_of_and_then_refused(driver: Any) -> None:
    source = """
        import ray_mono as ray

        ray.init("auto")
        big = bytes(11 << 20)
        bigger = bytes(96 << 20)

        @ray.remote
        def oversized():
            return len(big)

        @ray.remote
        class Oversized:
            def size(self):
                return len(big)

        sizes = [oversized.remote(), oversized.remote(), Oversized.remote().size.remote()]
        assert ray.get(sizes, timeout=60) == [11 << 20] * 3
        try:
            ray.remote(lambda: len(bigger)).remote()
        except ValueError as error:
            print("refused:", error)
    """
    output = driver(source).check_ended_well()
    warnings = [line for line in output.splitlines() if "WARNING" in line]
    assert len(warnings) == 2, output
    for line, kind in zip(warnings, ("function 'oversized'", "class 'Oversized'"), strict=True):
        assert kind in line and "11 MiB" in line and "ray_mono.put()" in line
    assert re.search(r"refused: .*96 MiB.* at most 95 MiB", output), output


def test_workers_that_end_after_their_last_call_are_no_news(driver: Any) -> None:
    source = """
        import os, time
        import ray_mono as ray

        session_dir = ray.init("auto").address_info["session_dir"]

        @ray.remote(max_calls=1)
        def once():
            return os.getpid()

        pids = ray.get([once.remote() for _ in range(20)], timeout=60)
        log = open(os.path.join(session_dir, "logs", "raylet.err"))
        seen = ""
        while not all(f"pid {pid} exited" in seen for pid in pids):
            seen += log.read()
            time.sleep(0.01)
        assert all(f"pid {pid} exited with code 0" in seen for pid in pids), seen
    """
    assert "worker died" not in driver(source).check_ended_well()


def test_a_driver_is_told_of_workers_that_die_by_themselves_and_of_what_blocks_a_loop(
    driver: Any, tmp_path: Path
) -> None:
    source = """
        import os, signal, time
        import ray_mono as ray

        ray.init("auto")

        @ray.remote(max_retries=1)
        def crash_once(path):
            if not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGSEGV)
            return os.getpid()

        @ray.remote(num_cpus=0)
        class Actor:
            def pid(self):
                return os.getpid()

            def end(self, how):
                how()

        @ray.remote(num_cpus=0)
        class Loop:
            async def wait(self, actor):
                return ray.get([actor.pid.remote(), slow.remote()])

        @ray.remote
        def slow():
            time.sleep(0.2)

        @ray.remote
        def never(path):
            open(path, "w").close()
            time.sleep(1000)

        in_front = ray.remote(lambda: None).remote()  # for which the lease is asked
        ray.get(crash_once.options(name="renamed").remote(os.path.abspath("crashed")), timeout=60)
        crashing, leaving, killed = [Actor.remote() for _ in range(3)]
        pid = ray.get(crashing.pid.remote(), timeout=60)
        for actor, how in ((crashing, lambda: os._exit(7)), (leaving, ray.actor.exit_actor)):
            ray.wait([actor.end.remote(how)], timeout=60)
        ray.get(killed.pid.remote(), timeout=60)
        ray.kill(killed)
        cancelled = never.remote(os.path.abspath("never"))
        while not os.path.exists("never"):
            time.sleep(0.01)
        ray.cancel(cancelled, force=True)
        ray.wait([cancelled], timeout=60)
        loops, actor = Loop.remote(), Actor.options(name="lost", lifetime="detached").remote()
        for _ in range(2):
            ray.get(loops.wait.remote(actor), timeout=60)
        ray.kill(actor)
        print("crashed was", pid, flush=True)
        input()
    """
    script = driver(source, cwd=tmp_path)
    pid = script.wait_for_line("crashed was").split()[-1]
    script.say("go on")
    output = script.check_ended_well()
    deaths = [line for line in output.splitlines() if "worker died" in line]
    assert len(deaths) == 2, output
    assert "ran task renamed" in deaths[0] and "SIGSEGV" in deaths[0] and "node 127.0.0.1" in deaths[0]
    assert re.search(r"^\(renamed pid=.*line \d+ in crash_once$", output, re.MULTILINE), output
    assert output.count("renamed() failed and is run again (retries left: 0)") == 1
    assert f"actor Actor: worker pid {pid} exited with code 7" in deaths[1]
    assert output.count("blocks its event loop") == 1
    assert len(re.findall(r"detached actor lost .*init\(namespace='", output)) == 1


# ---------------------------------------------------------------- output of workers


TALKER = """
    import sys
    import ray_mono as ray

    ray.init("auto"{more})

    @ray.remote
    def talk():
        print("out of the task")
        print("error of the task", file=sys.stderr)

    @ray.remote
    class Talker:
        def talk(self):
            print("out of the actor")

    talker = Talker.remote()
    ray.get([talk.remote(), talker.talk.remote()], timeout=60)
    print("all have talked", flush=True)
    input()
    ray.shutdown()
"""


def test_what_workers_write_appears_at_their_driver_with_who_wrote_it(driver: Any) -> None:
    script = driver(TALKER.format(more=""))
    lines = {script.wait_for_line(" pid=").strip() for _ in range(3)}
    patterns = (
        r"\(talk pid=\d+\) out of the task",
        r"\(talk pid=\d+\) error of the task",
        r"\(Talker pid=\d+\) out of the actor",
    )
    for pattern in patterns:
        assert [line for line in lines if re.fullmatch(pattern, line)], lines
    script.say("go on")
    script.check_ended_well()


def test_a_driver_hears_nothing_of_others_and_nothing_at_all_if_it_says_so(driver: Any) -> None:
    other = driver(TALKER.format(more=""), name="other.py")
    silent = driver(TALKER.format(more=", log_to_driver=False"), name="silent.py")
    for script in (silent, other):
        script.wait_for_line("all have talked")
    # The other's own lines have come, so that the silent one's would have as well.
    for _ in range(3 - other.output.count(" pid=")):
        other.wait_for_line(" pid=")
    for script in (silent, other):
        script.say("go on")
    assert " pid=" not in silent.check_ended_well()
    assert other.check_ended_well().count(" pid=") == 3


# ---------------------------------------------------------------- refusals


def test_a_cluster_of_another_version_is_refused(cluster: CommandLineCluster) -> None:
    """Told to a driver, and to a node that would join."""
    lie = """
import platform, sys
from ray_mono.common import version
address, ours, python = sys.argv[1:]
version.VERSION = ours or version.VERSION
if python:
    platform.python_version = lambda: python
import ray_mono
try:
    ray_mono.init(address)
except RuntimeError as error:
    print(error)
sys.argv[1:] = ["start", "--address=" + address]
from ray_mono.scripts.scripts import cli
cli()
"""
    for version, python in (("0.0.1", ""), ("", "3.99.1")):
        done = run_python("-c", lie, cluster.address, version, python)
        for text in (done.out, done.error):
            assert (
                f"the cluster at {cluster.address} runs ray_mono" in text and "use the same version" in text
            ), done
            assert (version or python) in text, done
        assert done.status == 1 and "Traceback" not in done.error, done


# ---------------------------------------------------------------- a driver and its cluster


def test_init_tells_where_it_is_and_makes_room_for_files(cluster: CommandLineCluster) -> None:
    program = f"""
import resource, sys
import ray_mono as ray
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN_FILES_SMALL}, hard))
context = ray.init(sys.argv[1])
soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
assert soft == min(hard, 65536), (soft, hard)
print(context["node_id"], context["address"], context["session_dir"], context["raylet_socket_name"])
print(context.address_info["node_id"], len(ray.nodes()))
with context:
    assert ray.is_initialized()
assert not ray.is_initialized()
"""
    done = run_python("-c", program, cluster.address)
    head = cluster.head
    assert done.out.split() == [
        *(head.node_id, head.gcs_address, head.session_dir, head.raylet_socket),
        *(head.node_id, "1"),
    ], done.error


def test_every_process_of_a_node_has_room_for_files(
    cluster: CommandLineCluster,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_SMALL, hard))
    try:
        node = cluster.add_node(num_cpus=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        limits = {}
        for process in processes_of_node(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                limits[title_of(process)[:100]] = process.rlimit(psutil.RLIMIT_NOFILE)[0]
    finally:
        cluster.remove_node(node)
    assert set(limits.values()) == {min(hard, 65536)}, limits


def test_init_and_shutdown_and_init_in_one_process(driver: Any) -> None:
    source = """
        import ray_mono as ray

        @ray.remote
        def f(x):
            return x + 1

        @ray.remote
        class A:
            def m(self):
                return "m"

        jobs = set()
        for number in range(3):
            ray.init("auto" if number != 1 else "local", num_cpus=None if number != 1 else 1)
            jobs.add(ray.get_runtime_context().get_job_id())
            reference, actor = f.remote(number), A.remote()
            assert ray.get([reference, actor.m.remote()], timeout=60) == [number + 1, "m"]
            ray.shutdown()
            ray.shutdown()
            for old in (lambda: actor.m.remote(), lambda: ray.get(reference), lambda: f.remote(reference)):
                try:
                    old()
                except Exception as error:
                    print(type(error).__name__, error)
                else:
                    print("went through")
                ray.shutdown()
        assert len(jobs) >= 2
    """
    assert "went through" not in driver(source).check_ended_well()
