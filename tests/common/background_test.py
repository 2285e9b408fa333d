"""Background tasks are kept, fail loudly and end together."""

from __future__ import annotations

import asyncio
import gc

from ray_mono.common.background import BackgroundTasks


def test_an_exception_is_told_at_once_with_the_tasks_name() -> None:
    async def scene() -> None:
        told: asyncio.Future[tuple[BaseException, str]] = asyncio.get_running_loop().create_future()
        tasks = BackgroundTasks(lambda error, name: told.set_result((error, name)))

        async def fail() -> None:
            raise ValueError("x")

        tasks.spawn(fail(), "failing")
        error, name = await told
        assert isinstance(error, ValueError) and name == "failing" and len(tasks) == 0

    asyncio.run(scene())


def test_a_task_that_nobody_else_holds_is_kept() -> None:
    async def scene() -> None:
        tasks = BackgroundTasks(lambda error, name: None)
        gate, done = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            await gate.wait()
            done.set()

        tasks.spawn(wait(), "waiting")
        await asyncio.sleep(0)
        gc.collect()
        assert tasks.names() == ["waiting"]
        gate.set()
        await done.wait()

    asyncio.run(scene())


def test_close_cancels_waits_and_names_what_does_not_end() -> None:
    async def scene() -> None:
        errors: list[str] = []
        tasks = BackgroundTasks(lambda error, name: errors.append(name))
        gate, ended = asyncio.Event(), []

        async def tidy() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("tidy")

        async def stubborn() -> None:
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    pass

        tasks.spawn(tidy(), "tidy")
        task = tasks.spawn(stubborn(), "stubborn")
        await asyncio.sleep(0)
        assert await tasks.close(timeout_s=0.01) == ["stubborn"]
        assert ended == ["tidy"] and errors == []
        gate.set()
        await task
        late = tasks.spawn(tidy(), "late")
        await asyncio.wait((late,))
        assert late.cancelled() and len(tasks) == 0

    asyncio.run(scene())


def test_a_task_may_close_its_own_group() -> None:
    async def scene() -> None:
        tasks = BackgroundTasks(lambda error, name: None)
        closed = asyncio.Event()

        async def close() -> None:
            try:
                await tasks.close()
            finally:
                closed.set()

        tasks.spawn(close(), "closer")
        await closed.wait()

    asyncio.run(scene())
