"""A driver that forks: the child is told what to do instead. `init` on other threads than the main one, and
on several at once. Threads that are left when the interpreter ends."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.scripts import Script

FORKING = """
    import multiprocessing
    import os
    import signal
    import sys
    import ray_mono as ray

    @ray.remote
    def f(x):
        return x + 1

    @ray.remote(num_cpus=0)
    class Actor:
        def method(self):
            return os.getpid()

    ray.init(num_cpus=1)
    reference, actor = f.remote(1), Actor.remote()
    assert ray.get(reference) == 2
    there = ray.get(actor.method.remote())
    USES = {
        "get": lambda: ray.get(reference), "put": lambda: ray.put(1), "wait": lambda: ray.wait([reference]),
        "task": lambda: f.remote(1), "call": lambda: actor.method.remote(), "kill": lambda: ray.kill(actor),
        "cancel": lambda: ray.cancel(reference), "nodes": ray.nodes, "get_actor": lambda: ray.get_actor("a"),
        "context": lambda: ray.get_runtime_context().get_job_id(), "create": Actor.remote,
    }

    def use(name):
        try:
            USES[name]()
        except ray.exceptions.RaySystemError as error:
            return str(error)
        return "nothing"

    def in_a_fork(function, *arguments):
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            signal.alarm(50)
            try:
                print(*arguments, function(*arguments), flush=True)
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    def start_over():
        assert not ray.is_initialized()
        ray.init(num_cpus=1)
        assert ray.get(f.remote(5)) == 6
        for old in (lambda: ray.get(reference), lambda: actor.method.remote()):
            try:
                old()
            except ray.exceptions.RayError as error:
                print("old:", error)
        ray.shutdown()
        return "started over"

    for name in USES:
        in_a_fork(use, name)
    in_a_fork(ray.shutdown)
    in_a_fork(start_over)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print("multiprocessing", pool.apply(use, ("get",)))
    # What children did, or how they ended, is nothing to this process.
    assert ray.get([f.remote(2), actor.method.remote()]) == [3, there]
    assert ray.get(reference) == 2
    print("the parent goes on")
    ray.shutdown()
"""


def test_a_fork_of_a_driver_is_told_what_to_do_instead(start: Callable[..., Script]) -> None:
    output = start(FORKING).check_ended_well()
    told = [line for line in output.splitlines() if "was forked from one that is connected" in line]
    assert [line.split()[0] for line in told] == [
        *("get", "put", "wait", "task", "call", "kill", "cancel", "nodes", "get_actor", "context", "create"),
        "multiprocessing",
    ]
    assert all("run the work as a task or an actor" in line and "'spawn'" in line for line in told)
    assert "started over" in output and output.count("old: ") == 2 and "the parent goes on" in output


THREADS = """
    import signal
    import sys
    import threading
    import ray_mono as ray

    @ray.remote
    def f(x):
        return x + 1

    outcomes = []

    def begin(name, **options):
        try:
            ray.init(num_cpus=1, **options)
            outcomes.append("connected")
        except RuntimeError as error:
            assert "already" in str(error) and "ignore_reinit_error=True" in str(error)
            outcomes.append("refused")

    def run_all(*functions):
        threads = [threading.Thread(target=function) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    handler = signal.getsignal(signal.SIGINT)
    run_all(*[lambda: begin("one of four")] * 4)
    print(sorted(outcomes))
    assert ray.get(f.remote(1)) == 2 and signal.getsignal(signal.SIGINT) is handler
    run_all(ray.shutdown, ray.shutdown)
    assert not ray.is_initialized()
    outcomes.clear()
    run_all(*[lambda: begin("each", ignore_reinit_error=True)] * 3)
    print(outcomes)
    results = []
    run_all(*[lambda: results.append(ray.get([f.remote(i) for i in range(20)]))] * 4)
    assert results == [list(range(1, 21))] * 4
    run_all(ray.shutdown)
    # Nobody said init: the first use does, once.
    outcomes.clear()
    run_all(*[lambda: outcomes.append(ray.get(f.remote(1)))] * 3)
    print(outcomes, len(ray.nodes()))
"""


def test_init_and_shutdown_on_several_threads_at_once_make_one_session(start: Callable[..., Script]) -> None:
    lines = start(THREADS).check_ended_well().splitlines()
    assert "['connected', 'refused', 'refused', 'refused']" in lines
    assert "['connected', 'connected', 'connected']" in lines
    assert "[2, 2, 2] 1" in lines


def test_daemon_threads_that_are_in_calls_when_the_interpreter_ends_say_nothing(
    start: Callable[..., Script],
) -> None:
    script = start("""
        import asyncio, atexit, os, threading

        class OfItsOwn(Exception):
            pass

        def fail():
            is_over.wait()
            raise OfItsOwn

        def end():
            is_over.set()
            fails.join()

        is_over = threading.Event()
        fails = threading.Thread(target=fail, daemon=True)
        atexit.register(end)  # so it runs after ray's

        import ray_mono as ray
        from ray_mono.util import placement_group

        @ray.remote(resources={"moon": 1})
        def on_the_moon():
            pass

        @ray.remote(resources={"moon": 1}, num_returns="streaming")
        def rocks():
            yield 1

        async def awaits():
            await never

        async def takes():
            await anext(rocks.remote())

        def asks():
            while True:
                ray.nodes()

        ray.init(num_cpus=1)
        never = on_the_moon.remote()
        group = placement_group([{"moon": 1}])
        for waits in (
            lambda: ray.get(never),
            lambda: ray.wait([never]),
            lambda: next(rocks.remote()),
            lambda: group.wait(1000),
            lambda: never.future().result(),
            lambda: asyncio.run(awaits()),
            lambda: asyncio.run(takes()),
            asks,
        ):
            threading.Thread(target=waits, daemon=True).start()
        fails.start()
        print("ends")
    """)
    said = script.check_ended_well()
    assert (
        said.startswith("ends\n") and said.endswith("OfItsOwn\n") and said.count("Exception in thread") == 1
    )
