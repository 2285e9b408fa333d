"""One program, in local mode and on a cluster: what it sees is the same."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.scripts import Script

PROGRAM = """
    import asyncio
    import sys
    import threading
    import ray_mono as ray
    from ray_mono.util import ActorPool
    from ray_mono.util.queue import Queue

    def see(name, scene):
        try:
            seen = repr(scene())
        except BaseException as error:
            lines = [line.strip() for line in str(error).splitlines()]
            files = {line.split('"')[1] for line in lines if line.startswith("File ")}
            kinds = [kind.__name__ for kind in type(error).__mro__]
            seen = f"{kinds} {all(file == __file__ for file in files)}"
        print(f"SEEN {name} {seen}\\n", end="")  # in one piece: warnings come at any time

    def outcomes(references):
        for reference in references:
            try:
                yield ray.get(reference)
            except Exception as error:
                yield type(error).__name__

    class Own(BaseException):
        pass

    KINDS = {
        kind.__name__: kind
        for kind in (ValueError, KeyError, GeneratorExit, StopIteration, SystemExit, Own)
    }

    @ray.remote(max_retries=0)
    def add(a, b=1):
        return a + b

    @ray.remote(max_retries=0)
    def fail(kind):
        raise KINDS[kind]("on purpose")

    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    @ray.remote
    def pair():
        return 1, 2

    @ray.remote
    def count(n, fails=False):
        yield from range(n)
        if fails:
            raise ValueError("midway")

    @ray.remote
    def nested(depth):
        return depth if depth == 0 else ray.get(nested.remote(depth - 1)) + 1

    @ray.remote
    def where():
        context = ray.get_runtime_context()
        return (
            context.get_task_name(), context.get_task_function_name(), context.get_actor_id(),
            context.get_assigned_resources(), context.was_current_actor_reconstructed,
            len(context.get_task_id()), context.namespace,
        )

    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self, value=0):
            self.value = value

        def add(self, n=1):
            self.value += n
            return self.value

        def fail(self, kind):
            raise KINDS[kind]("on purpose")

        def leave(self):
            ray.actor.exit_actor()

        def count(self, n):
            yield from range(n)

        def count_and_leave(self):
            yield 1
            ray.actor.exit_actor()

        def where(self):
            context = ray.get_runtime_context()
            return (
                context.get_task_name(), context.get_task_function_name(), context.get_actor_name(),
                repr(context.current_actor)[:13],
            )

    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self, kind):
            raise KINDS[kind]("on purpose")

        def method(self):
            pass

    @ray.remote(num_cpus=0)
    class Later:
        async def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.plain = "an attribute"

        async def value(self, x):
            await asyncio.sleep(0)
            return x

        def plain(self):
            return asyncio.get_running_loop() is self.loop

        async def fail(self, kind):
            raise KINDS[kind]("on purpose")

        async def cancelled(self):
            raise asyncio.CancelledError

        async def count(self, n):
            for i in range(n):
                yield i

        async def nested(self):
            return await asyncio.gather(*[add.remote(i) for i in range(3)])

    @ray.remote(num_cpus=0, concurrency_groups={"io": 2})
    class Grouped:
        @ray.method(concurrency_group="io")
        def value(self):
            return 1

    ray.init(num_cpus=2, local_mode=sys.argv[1] == "local", namespace="here")
    see("call", lambda: ray.get(add.remote(1, b=3)))
    see("wrong call", lambda: add.remote())
    see("no returns", lambda: add.options(num_returns=0).remote(1))
    see("two returns", lambda: ray.get(pair.options(num_returns=2).remote()))
    see("three of two", lambda: ray.get(pair.options(num_returns=3).remote()))
    see("streaming", lambda: list(outcomes(count.remote(3, fails=True))))
    see("dynamic", lambda: list(outcomes(ray.get(count.options(num_returns="dynamic").remote(2)))))
    see("nested", lambda: ray.get(nested.remote(5)))
    see("where", lambda: ray.get(where.options(name="named").remote()))
    for kind in KINDS:
        see(kind, lambda: ray.get(fail.remote(kind)))
        see(f"argument {kind}", lambda: ray.get(add.remote(fail.remote(kind))))
        see(f"{kind} in a method", lambda: ray.get(Counter.remote().fail.remote(kind)))
        see(f"{kind} in a constructor", lambda: ray.get(Broken.remote(kind).method.remote()))
        see(f"{kind} in a coroutine", lambda: ray.get(Later.remote().fail.remote(kind)))
    see("unreadable", lambda: ray.get(ray.put(Unreadable())))
    see("unreadable argument", lambda: ray.get(add.remote(Unreadable())))
    see("cancelled coroutine", lambda: ray.get(Later.remote().cancelled.remote()))
    handle = Counter.options(name="named", get_if_exists=True).remote(5)
    again = Counter.options(name="named", get_if_exists=True).remote(9)
    see("get_if_exists", lambda: ray.get(
        [handle.add.remote(), again.add.remote(), ray.get_actor("named").add.remote()]
    ))
    see("name taken", lambda: Counter.options(name="named").remote())
    see("no such name", lambda: ray.get_actor("nobody"))
    see("names", lambda: ray.util.list_named_actors())
    see("where in an actor", lambda: ray.get(handle.where.remote()))
    see("method streams", lambda: list(outcomes(handle.count.remote(2))))
    see("every actor", lambda: ray.get(
        [handle.__ray_ready__.remote(), handle.__ray_call__.remote(lambda self, x: self.value + x, 1)]
    ))
    ray.kill(handle)
    see("killed", lambda: ray.get(again.add.remote()))
    see("killed name", lambda: ray.get_actor("named"))
    left = Counter.remote()
    see("leave", lambda: ray.get(left.leave.remote()))
    see("left", lambda: ray.get(left.add.remote()))
    see("leave midway", lambda: list(outcomes(Counter.remote().count_and_leave.remote())))
    detached = Counter.options(name="detached", lifetime="detached").remote()
    del detached
    see("detached", lambda: ray.get(ray.get_actor("detached").add.remote()))
    later = Later.remote()
    see("coroutine", lambda: ray.get([later.value.remote(4), later.nested.remote()]))
    see("async generator", lambda: list(outcomes(later.count.options(num_returns="streaming").remote(3))))
    see("threads", lambda: ray.get(Counter.options(max_concurrency=4).remote().add.remote()))
    see("groups", lambda: ray.get(
        [Grouped.remote().value.remote(), Grouped.remote().value.options(concurrency_group="io").remote()]
    ))

    async def awaited():
        return await later.value.remote(5), await asyncio.gather(add.remote(1), add.remote(2))

    see("await", lambda: asyncio.run(awaited()))
    one = ray.put(1)
    see("cancel what is over", lambda: (ray.get(one), ray.cancel(add.remote(1))))
    see("get", lambda: (ray.get([]), ray.get([one, one]), ray.get(one, timeout=0)))
    see("wait", lambda: [len(part) for part in ray.wait([one, ray.put(2)], num_returns=2)])
    see("wait for nothing", lambda: ray.wait([]))
    for name, wrong in {
        "get": lambda: ray.get(3), "put": lambda: ray.put(one), "wait": lambda: ray.wait(one),
        "repeats": lambda: ray.wait([one, one]), "too many": lambda: ray.wait([one], num_returns=2),
    }.items():
        see(f"wrong {name}", wrong)
    def said(call):
        try:
            call()
        except Exception as error:
            return str(error), ray.get(getattr(error, "submitted", []))

    lock, adder = threading.Lock(), Counter.remote()
    see("unpicklable argument", lambda: said(lambda: add.remote(1, b=lock)))
    see("unpicklable argument of a method", lambda: said(lambda: adder.add.remote(lock)))
    see("unpicklable item", lambda: said(lambda: add.map([*range(99), ray.put(5), [lock], 2])))
    see("unpicklable item of a method", lambda: said(lambda: adder.add.map([1, lock])))
    see("no argument taken", lambda: said(lambda: adder.__ray_ready__.map([1])))
    line = Queue(maxsize=1)
    see("queue", lambda: (line.put(1), line.full(), line.get(), line.empty()))
    see("queue empty", lambda: line.get_nowait())
    see("queue timeout", lambda: line.get(timeout=0.01))
    see("pool", lambda: list(
        ActorPool([Counter.remote()]).map(lambda actor, value: actor.add.remote(value), [1, 2, 3])
    ))
"""


def test_a_program_sees_the_same_in_local_mode_as_on_a_cluster(start: Callable[..., Script]) -> None:
    local, cluster = start(PROGRAM, "local"), start(PROGRAM, "cluster")
    seen = [
        [line for line in script.check_ended_well().splitlines() if line.startswith("SEEN")]
        for script in (local, cluster)
    ]
    assert seen[0] == seen[1]
    assert len(seen[0]) > 70 and not [line for line in seen[0] if line.endswith(" False")]
