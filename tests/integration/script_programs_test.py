"""Programs that are scripts of their own: what `__main__` holds, what lies beside them, signals, and their
own clusters.
"""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import processes_of, shared_memory_of
from tests.integration.scripts import END_TIMEOUT_S, FOOTER
from tests.waiting import wait_until


def test_globals_of_main_are_shipped_by_value_and_do_not_travel_back(start: Any) -> None:
    source = """
        import ray_mono as ray

        FACTOR = 3
        COUNTS = {"calls": 0}

        def scaled(x):
            return x * FACTOR

        class Point:
            def __init__(self, x):
                self.x = x

            def double(self):
                return Point(scaled(self.x) * 2)

        @ray.remote
        def compute(point):
            COUNTS["calls"] += 1
            return point.double(), COUNTS["calls"]

        @ray.remote
        class Keeper:
            def __init__(self):
                self.point = Point(1)

            def grow(self):
                self.point = self.point.double()
                return self.point.x

        ray.init(num_cpus=2)
        point, calls = ray.get(compute.remote(Point(2)), timeout=60)
        assert isinstance(point, Point) and point.x == 12 and calls == 1
        assert COUNTS["calls"] == 0
        keeper = Keeper.remote()
        assert ray.get([keeper.grow.remote(), keeper.grow.remote()], timeout=60) == [6, 36]
        del keeper
    """
    start(textwrap.dedent(source) + FOOTER).check_ended_well()


def test_a_module_beside_the_script_can_be_imported_in_tasks(start: Any, tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = """
        import beside
        import ray_mono as ray

        @ray.remote
        def inside(x):
            import beside
            return beside.triple(x)

        @ray.remote
        def by_reference(x):
            return beside.triple(x)

        ray.init(num_cpus=2)
        assert ray.get([inside.remote(2), by_reference.remote(3)], timeout=60) == [6, 9]
    """
    start(textwrap.dedent(source) + FOOTER, cwd=elsewhere).check_ended_well()


def test_what_a_script_defines_goes_by_its_name_from_the_driver_and_from_tasks(start: Any) -> None:
    source = """
        import os
        import ray_mono as ray

        @ray.remote
        def told():
            return ray.get_runtime_context().get_task_function_name()

        @ray.remote
        class Actor:
            def told(self):
                return ray.get_runtime_context().get_task_function_name()

        def everywhere():
            return ray.get([told.remote(), Actor.remote().told.remote()], timeout=60)

        ray.init(num_cpus=2)
        script = os.path.splitext(os.path.basename(__file__))[0]
        names = [f"{script}.told", f"{script}.Actor.told"]
        assert everywhere() == names, everywhere()
        of_task = ray.get(ray.remote(everywhere).remote(), timeout=60)
        assert of_task == names, of_task
    """
    start(textwrap.dedent(source) + FOOTER).check_ended_well()


def test_a_del_that_runs_when_python_ends_is_told_that_it_comes_too_late(start: Any) -> None:
    source = """
        import ray_mono as ray

        class Late:
            def __init__(self):
                self.itself = self

            def __del__(self):
                try:
                    ray.put(1)
                except ray.exceptions.RaySystemError as error:
                    print(error, flush=True)

        ray.init(num_cpus=1)
        Late()
        held = Late()
    """
    ended = start(textwrap.dedent(source)).check_ended_well()
    assert ended.count("the interpreter is ending, and cannot connect to a cluster any more") == 2, ended


def test_ctrl_c_interrupts_get_and_the_driver_goes_on(start: Any, tmp_path: Path) -> None:
    source = """
        import sys, time
        import ray_mono as ray
        from pathlib import Path

        gate = Path(sys.argv[1])

        @ray.remote
        def wait():
            while not gate.exists():
                time.sleep(0.01)
            return "done"

        ray.init(num_cpus=2)
        reference = wait.remote()
        assert ray.wait([reference], timeout=0) == ([], [reference])
        try:
            print("waiting", flush=True)
            ray.get(reference)
            print("not interrupted", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        gate.touch()
        assert ray.get(reference, timeout=60) == "done"
        assert ray.get(wait.remote(), timeout=60) == "done"
        del reference
    """
    script = start(textwrap.dedent(source) + FOOTER, str(tmp_path / "gate"))
    script.wait_for_line("waiting")
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_line("interrupted")
    assert "not interrupted" not in script.check_ended_well()


def test_whatever_hangs_is_told_and_ctrl_c_shows_why_it_waited(start: Any) -> None:
    source = """
        import asyncio, os
        os.environ["RAY_MONO_WAIT_WARNING_S"] = "0.2"
        import ray_mono as ray
        from ray_mono.util import placement_group

        @ray.remote(resources={"moon": 1})
        def on_the_moon():
            pass

        @ray.remote(resources={"moon": 1}, num_returns="streaming")
        def rocks():
            yield 1

        async def awaits(ref):
            await ref

        async def takes(generator):
            await anext(generator)

        def polls(ref):
            while not ray.wait([ref], timeout=0.05)[0]:
                pass

        ray.init(num_cpus=1)
        for waits in (
            lambda: ray.get(on_the_moon.remote()),
            lambda: ray.wait([on_the_moon.remote()]),
            lambda: polls(on_the_moon.remote()),
            lambda: next(rocks.remote()),
            lambda: placement_group([{"moon": 1}]).wait(1000),
            lambda: on_the_moon.remote().future().result(),
            lambda: asyncio.run(awaits(on_the_moon.remote())),
            lambda: asyncio.run(takes(rocks.remote())),
        ):
            try:
                print("waiting", flush=True)
                waits()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    """
    script = start(textwrap.dedent(source))
    for is_of_ours in (True, True, True, True, True, True, False, False):
        script.wait_for_line("waiting")
        assert "moon: 1" in script.wait_for_line("Waiting for more than 0.2 s: ")
        os.killpg(script.pid, signal.SIGINT)
        if is_of_ours:
            assert "moon: 1" in script.wait_for_line("Interrupted while it waited: ")
        script.wait_for_line("interrupted")
    script.check_ended_well()


def test_ctrl_c_that_nobody_catches_ends_the_driver_and_its_cluster(start: Any) -> None:
    source = """
        import time
        import ray_mono as ray

        @ray.remote
        def forever():
            time.sleep(3600)

        ray.init(num_cpus=2)
        print("waiting", flush=True)
        ray.get(forever.remote())
    """
    script = start(source)
    script.wait_for_line("waiting")
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait() != 0
    assert "KeyboardInterrupt" in script.output


def test_sigterm_ends_a_driver_in_order_and_a_process_that_it_forked_at_once(start: Any) -> None:
    script = start("""
import atexit, os, signal, time
import ray_mono as ray

ray.init(num_cpus=1)
child = os.fork()
if not child:
    signal.pause()
os.kill(child, signal.SIGTERM)
print("child", os.waitpid(child, 0)[1], flush=True)
atexit.register(lambda: print("at exit", ray.is_initialized()))
try:
    print("waits", flush=True)
    ray.get(ray.remote(time.sleep).remote(1000))
finally:
    print("finally")
""")
    assert script.wait_for_line("child").split()[-1] == str(int(signal.SIGTERM))
    script.wait_for_line("waits")
    os.kill(script.pid, signal.SIGTERM)
    assert script.wait() == signal.SIGTERM
    assert script.output.split()[-4:] == ["finally", "at", "exit", "True"]


def test_a_driver_that_caught_a_sigterm_and_went_on_is_struck_by_the_next(start: Any) -> None:
    script = start("""
import time
import ray_mono as ray

ray.init(num_cpus=1)
slow = ray.remote(time.sleep).remote(1000)
for wait in [ray.get, lambda ref: time.sleep(1000), ray.get, ray.get]:
    try:
        print("waits", flush=True)
        wait(slow)
    except SystemExit as error:
        print("caught", error.code, flush=True)
print("ends", flush=True)
""")
    for _ in range(4):
        script.wait_for_line("waits")
        os.kill(script.pid, signal.SIGTERM)
        script.wait_for_line("caught 15")
    script.wait_for_line("ends")
    assert script.wait() == 0


def test_everything_a_driver_started_is_gone_when_it_is_killed(start: Any, session_base: Path) -> None:
    source = """
        import os, subprocess, sys, time
        import numpy as np
        import ray_mono as ray

        ray.init(num_cpus=2)

        @ray.remote
        def grandchild():
            command = [sys.executable, "-c", "import time; time.sleep(3600)"]
            return subprocess.Popen(command, start_new_session=True).pid

        @ray.remote
        class Actor:
            def pid(self):
                return os.getpid()

        kept = ray.put(np.ones(1_000_000))
        actor = Actor.remote()
        pids = ray.get([actor.pid.remote(), grandchild.remote()], timeout=60)
        print("pids", *pids, flush=True)
        time.sleep(3600)
    """
    before = set(psutil.Process().children(recursive=True))
    script = start(source)
    told = [psutil.Process(int(pid)) for pid in script.wait_for_line("pids ").split()[1:]]
    everything = {*processes_of(session_base, before), *told}
    # GCS, object manager, raylet, template, worker, grandchild, at the least.
    assert len(everything) > 6 and shared_memory_of(session_base)
    script.kill()
    _, alive = psutil.wait_procs(list(everything), timeout=END_TIMEOUT_S)
    assert not alive
    wait_until(lambda: not shared_memory_of(session_base), "the store's file is gone")


def test_init_works_again_after_shutdown(start: Any) -> None:
    source = """
        import os
        import ray_mono as ray

        @ray.remote
        def f(x):
            return x + 1

        @ray.remote
        class A:
            def m(self):
                return os.environ.get("MARK")

        marks = []
        ray.run_function_on_all_workers(lambda info: os.environ.__setitem__("MARK", "here"))
        for number in range(2):
            assert not ray.is_initialized()
            ray.init(num_cpus=2)
            assert ray.get(f.remote(number), timeout=60) == number + 1
            actor = A.remote()
            assert ray.get(actor.m.remote(), timeout=60) == "here"
            ray.shutdown()
        try:
            actor.m.remote()
        except ray.exceptions.ActorHandleNotFoundError:
            print("told")
    """
    assert "told" in start(source).check_ended_well()


def test_what_tasks_print_appears_at_the_driver(start: Any) -> None:
    source = """
        import ray_mono as ray

        ray.init(num_cpus=2)

        @ray.remote
        def talk():
            print("hello from the task")

        ray.get(talk.remote(), timeout=60)
        input()
    """
    script = start(textwrap.dedent(source) + FOOTER)
    line = script.wait_for_line("hello from the task")
    assert "talk" in line and "pid=" in line
    script.say("go on")
    script.check_ended_well()


def test_code_dumped_by_one_process_runs_in_another_after_its_source_is_gone(
    start: Any, tmp_path: Path
) -> None:
    dumped = tmp_path / "dumped"
    source = """
        import sys
        from ray_mono import cloudpickle

        STEP = 10
        CALLS = []

        class Outer:
            shift = STEP

            class Inner:
                def value(self, x):
                    CALLS.append(x)
                    return x + Outer.shift + STEP, len(CALLS)

        def make(factor):
            def nested(x):
                return Outer.Inner().value(x * factor)
            return nested

        with open(sys.argv[1], "wb") as file:
            cloudpickle.dump((make(2), Outer), file)
    """
    start(source, str(dumped), name="dumps.py").check_ended_well()
    (tmp_path / "script" / "dumps.py").unlink()
    source = """
        import sys
        from ray_mono import cloudpickle

        with open(sys.argv[1], "rb") as file:
            nested, outer = cloudpickle.load(file)
        assert nested(1) == (22, 1) and nested(2) == (24, 2)
        assert outer.Inner().value(0)[0] == 20
    """
    start(source, str(dumped), name="loads.py").check_ended_well()


def test_code_that_refers_to_itself_travels_whole(start: Any) -> None:
    source = """
        import ray_mono as ray

        @ray.remote
        def count_down(left, *, depth=0):
            return depth if left == 0 else ray.get(count_down.remote(left - 1, depth=depth + 1))

        @ray.remote(num_cpus=0)
        class Node:
            def depth(self, left):
                return 1 if left == 0 else 1 + ray.get(Node.remote().depth.remote(left - 1))

        ray.init(num_cpus=2)
        print(ray.get(count_down.remote(2)), ray.get(Node.remote().depth.remote(4)))
    """
    assert "2 5" in start(textwrap.dedent(source) + FOOTER).check_ended_well()
